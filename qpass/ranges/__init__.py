"""A proof that an INTEGER program cannot overflow: bounds of every value, by case, from the weights as they are.

``integer_ranges(program)`` is the proof and its table; ``engine`` interprets operators on bounds, op by op of torch.
"""

from qpass.ranges.lookups import table_context
from qpass.ranges.program import greatest_context, integer_ranges
from qpass.ranges.report import Line, Ranges

__all__ = ["Line", "Ranges", "greatest_context", "integer_ranges", "table_context"]
