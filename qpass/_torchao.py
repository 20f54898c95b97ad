"""Import torchao without what it logs: that its CUDA extensions did not load, which qpass never uses.

transformers imports more of torchao, so it is imported here too, before every other module of the package.
"""

from __future__ import annotations

import importlib
import logging


def _import_quietly() -> None:
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        for module in ("torchao.quantization.quant_primitives", "transformers.modeling_utils"):
            importlib.import_module(module)
    finally:
        logging.disable(before)


_import_quietly()
