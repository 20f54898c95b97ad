"""One class per kind of user mistake. Each message says what failed, where, and what to do."""

from __future__ import annotations


class QPassError(Exception):
    """Base of every error that qpass raises on purpose.

    Args:
        what: what is wrong, in one sentence without a full stop.
        where: parameter, value, file or field the sentence is about; None when there is no place.
        fix: one action that resolves it.
    """

    exit_code = 70

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        text = what + (f" (at {where})" if where else "") + "."
        super().__init__(text + (f" Fix: {fix}." if fix else ""))


class RecipeError(QPassError):
    """A recipe, format or field that is not legal, or that matches nothing in this model."""

    exit_code = 2


class InputError(QPassError):
    """An argument of a public function that cannot be used."""

    exit_code = 2


class CaptureError(QPassError):
    """The model could not be turned into a graph."""

    exit_code = 3


class UnsupportedError(QPassError):
    """A graph, device or kernel that qpass does not support."""

    exit_code = 3


class NumericsError(QPassError):
    """NaN or Inf where finite numbers are needed."""

    exit_code = 4


class OutputError(QPassError):
    """A file or folder that cannot be written."""

    exit_code = 5


class VerifyError(QPassError):
    """A program that is not legal for its stage: a defect of a pass, not of the user's input."""

    exit_code = 70
