"""Import torchao without what it logs: that its CUDA extensions did not load, which qpass never uses.

transformers imports torchao too, so this comes before every other import of the package.
"""

from __future__ import annotations

import importlib
import logging


def _import_quietly() -> None:
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("torchao.quantization")
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


_import_quietly()
