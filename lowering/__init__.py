"""Lowerings: how each op of the dialect runs on a device. Installed as ``qpass.lowering``."""

if __name__ != "qpass.lowering":
    raise ImportError(
        f"this folder was imported as {__name__!r}, which would register every kernel twice. "
        "Fix: install the project (pip install -e .) and import qpass.lowering."
    )
