"""Scale flow: where a program may be re-scaled exactly, found from its dataflow."""

from qpass.sites.analyse import analyse
from qpass.sites.analysis import Analysis
from qpass.sites.site import Axis, Powers, Site, Smooth, State

__all__ = ["Analysis", "Axis", "Powers", "Site", "Smooth", "State", "analyse"]
