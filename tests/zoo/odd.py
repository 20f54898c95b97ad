"""What the rules by field name do not get right, per model type. ``...`` leaves a field at its default."""

from __future__ import annotations

from typing import Any

ODD: dict[str, dict[str, Any]] = {}
