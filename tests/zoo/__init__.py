"""Every text architecture that the installed transformers can build from its config: tiny, random, with example inputs.

``architectures()`` names them, ``build(name)`` makes one, ``capture(model, args, kwargs)`` gives its NORMAL program.
"""

from tests.zoo.build import build, capture, flat_inputs
from tests.zoo.names import architectures

__all__ = ["architectures", "build", "capture", "flat_inputs"]
