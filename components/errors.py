"""Every deliberate error, its exit code and its hint. Knows nothing of what went wrong elsewhere.

StepForgeError                  exit code
├── SettingsError      2        params.yaml, the environment or the command line is wrong
├── DataError          3        a file or row is wrong
├── EngineError        4        a model cannot be loaded or asked
├── RefusedError       5        a gate refused or an audit failed: a result, not a fault
└── TryAgainError      75       the same command may succeed later (lock held, server busy)
"""

from __future__ import annotations


class StepForgeError(Exception):
    """A failure whose cause the user can see: `error: <place>: <what, with the value>` and a hint."""

    exit_code = 1

    def __init__(self, place: str, what: str, hint: str) -> None:
        super().__init__(f"{place}: {what}")
        self.place = place
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type[StepForgeError], tuple[str, str, str]]:
        return type(self), (self.place, self.what, self.hint)

    def lines(self) -> str:
        """The two lines a user sees."""
        return f"error: {one_line(self.place)}: {one_line(self.what)}\nhint: {one_line(self.hint)}"


class SettingsError(StepForgeError):
    """params.yaml, the environment or the command line is wrong."""

    exit_code = 2


class DataError(StepForgeError):
    """A file or a row is wrong."""

    exit_code = 3


class EngineError(StepForgeError):
    """A model cannot be loaded or asked."""

    exit_code = 4


class RefusedError(StepForgeError):
    """A gate refused, or an audit failed."""

    exit_code = 5


class TryAgainError(StepForgeError):
    """The same command may succeed later."""

    exit_code = 75


def one_line(text: str, max_chars: int = 400) -> str:
    """`text` without line breaks, shortened in the middle of nothing: cut at `max_chars`."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= max_chars else flat[: max_chars - 1] + "…"
