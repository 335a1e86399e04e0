"""Progress of long work: one line every few seconds, with what is left.

Knows nothing of the work; writes to stderr, as lines, so that it reads well through dvc, prefect and a log file.
"""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts units of work and says, at most every `every_seconds`, how far it is.

    >>> progress = Progress("sft", 600, unit="steps")      # doctest: +SKIP
    >>> progress.advance(1, "loss 0.43")                   # doctest: +SKIP
    sft  120/600 steps  20 %  loss 0.43  48 s left
    """

    def __init__(self, name: str, total: int, *, unit: str, every_seconds: float = 5.0) -> None:
        self.name, self.total, self.unit, self.every_seconds = name, max(1, total), unit, every_seconds
        self.done = 0
        self._from = 0
        self._started = self._said = time.monotonic()

    def skip(self, count: int) -> None:
        """Count work that an earlier run has done, so that it does not make this one look fast."""
        self.done += count
        self._from += count

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` units as done."""
        self.done += count
        now = time.monotonic()
        if now - self._said < self.every_seconds and self.done < self.total:
            return
        self._said = now
        spent = now - self._started
        rate = (self.done - self._from) / spent if spent > 0 else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else f"{spent:.0f} s"
        parts = [
            f"{self.name:<8}",
            f"{self.done:,}/{self.total:,} {self.unit}",
            f"{100 * self.done / self.total:.0f} %",
            note,
            left,
        ]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


def say(name: str, text: str) -> None:
    """One line of news from a stage."""
    print(f"{name:<8}  {text}", file=sys.stderr, flush=True)
