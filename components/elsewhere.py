"""Scores that came with a pool from elsewhere: a scorer like any other, but for a model that could be asked.

Owns how they are read and by what they may be aggregated; does not know which model made them, nor how.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from components.errors import DataError
from components.metrics import AGGREGATIONS
from components.records import DIGEST_CHARS, SCORE, file_sha256, read_table

SCORES = "scores.parquet"


class KeptScores:
    """What a reward model elsewhere said of the candidates of an imported pool.

    Args:
        folder: written by `import-pool`.
        name: of the scorer; a folder that holds one scorer holds it under any name.
        wanted: the candidates that must have a score.
    Raises:
        DataError: the folder does not hold that scorer, a candidate has no score, or one that is no number.
    """

    def __init__(self, folder: Path, name: str, wanted: Iterable[str]) -> None:
        rows = read_table(folder / SCORES, SCORE)
        known = dict.fromkeys(row["scorer"] for row in rows)
        if name not in known and len(known) != 1:
            shown = ", ".join(known) or "none"
            raise DataError(str(folder / SCORES), f"holds no scorer {name!r}", f"it holds: {shown}")
        held = name if name in known else next(iter(known))
        self.steps: dict[str, list[float]] = {r["candidate_id"]: r["step_scores"] for r in rows if r["scorer"] == held}
        missing = next((key for key in wanted if key not in self.steps), None)
        if missing is not None:
            what = f"scorer {held!r} says nothing of candidate {missing}"
            raise DataError(str(folder / SCORES), what, "were these candidates imported into this folder?")
        broken = next((key for key, steps in self.steps.items() if not all(map(math.isfinite, steps))), None)
        if broken is not None:
            what = f"scorer {held!r}: a score of candidate {broken} is no finite number"
            raise DataError(str(folder / SCORES), what, "leave out what was not scored")
        self.digest = file_sha256(folder / SCORES)[:DIGEST_CHARS]
        values = [value for steps in self.steps.values() for value in steps]
        self.aggregations: tuple[str, ...] = tuple(
            how for how in AGGREGATIONS if how != "product" or min(values, default=0) >= 0
        )
        """By which its scores may become one; a single score a solution is what it is."""
        if max(map(len, self.steps.values())) <= 1:
            self.aggregations = ("last",)
