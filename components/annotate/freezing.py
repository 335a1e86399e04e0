"""`annotate freeze`: what people settled -> a step benchmark, and what labels and scores are worth against it.

Owns the file and the report; how shares are weighted back is `estimates`' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.annotate.answers import ANSWERS, Settled, read_earlier, settled
from components.annotate.drawing import FILE, Row, read_audit
from components.annotate.estimates import weighted_ratio
from components.errors import DataError, SettingsError
from components.lineage import SUMMARY
from components.metrics import Interval
from components.records import (
    IMAGE,
    bytes_digest,
    digest,
    read_json,
    row_images,
    with_image_column,
    write_json,
    write_table,
)

FROZEN = with_image_column(
    pa.schema(
        [
            ("id", pa.string()),  # of the solution
            ("source", pa.string()),
            ("question", pa.string()),
            ("images", pa.list_(IMAGE)),
            ("steps", pa.list_(pa.string())),
            ("marks", pa.list_(pa.string())),  # + | - | 0; null where people came to nothing
            ("so_far", pa.list_(pa.bool_())),  # whether it and all before it are right; null where that is open
            ("num_annotators", pa.int32()),  # who marked at least one of its steps
            ("stratum", pa.string()),
            ("probability", pa.float64()),  # with which it was drawn
        ]
    ),
    "images",
    many=True,
)
MEASURED = {"values": "labels", "scores": "scores", "judged": "judge"}
"""Column of the audit -> what it is called in the report."""
READINGS = {"so_far": "the step and all before it", "own": "the step alone"}
NUMBERS = ("precision right", "recall right", "precision wrong", "recall wrong", "accuracy")

Truth = Sequence[bool | None]


def freeze(folder: Path, *, out: Path) -> dict[str, Any]:
    """Write the benchmark to `out` and the report beside it, as `.json`; returns the report.

    Args:
        folder: written by `annotate read`.
        out: a Parquet file.
    Raises:
        SettingsError: `out` or the report would replace a file that it is made of, or the report one that is none.
        DataError: nothing is settled there, or `out` cannot be written.
    """
    own_files = {(folder / name).resolve() for name in (FILE, ANSWERS, SUMMARY)}
    beside = out.with_suffix(".json")
    if own_files & {out.resolve(), beside.resolve()}:
        raise SettingsError("command line", f"--out {str(out)!r} would replace its own input", "name a new file")
    if beside.exists() and not _is_report(beside):
        what = f"the report of --out {str(out)!r} would replace {str(beside)!r}, which is none"
        raise SettingsError("command line", what, "name a new file: people's answers are JSON too")
    rows, summary = read_audit(folder)
    outcome = settled(rows, read_earlier(folder), adjudicator=summary.get("adjudicator"))
    frozen = []
    for row in rows:
        steps = outcome[row["solution_id"]]
        if any(one.mark is not None for one in steps):
            who = {name for one in steps for name, _ in one.votes}
            shared = {name: row[name] for name in ("source", "question", "images", "steps", "stratum", "probability")}
            marks = [one.mark for one in steps]
            frozen.append(
                shared | {"id": row["solution_id"], "marks": marks, "so_far": so_far(marks), "num_annotators": len(who)}
            )
    if not frozen:
        raise DataError(str(folder), "people settled no step", "have them answer the next round, or name an --adjudicator")
    judged = {name: [row for row in rows if _is_judged(outcome[row["solution_id"]], name)] for name in READINGS}
    complete = judged["own"]
    marks_of = {key: [one.mark for one in steps] for key, steps in outcome.items()}
    flat = [mark for row in frozen for mark in row["marks"]]
    report: dict[str, Any] = {
        "set": summary["set"],
        "digest": frozen_digest(frozen),
        "num_solutions": len(frozen),
        "num_complete": len(complete),
        "num_complete_so_far": len(judged["so_far"]),
        "num_steps": sum(mark is not None for mark in flat),
        "num_unsettled": sum(mark is None for mark in flat),
        "marks": {mark: flat.count(mark) for mark in ("+", "-", "0")},
        "annotators": summary["annotators"],
        "agreement": summary["agreement"],
        "strata": _strata(rows, complete),
        "thresholds": summary["thresholds"],
        "measures": measures(judged, marks_of, summary["thresholds"]),
    }
    schema = FROZEN.with_metadata({**(FROZEN.metadata or {}), b"stepforge_audit": report["digest"].encode()})
    try:
        write_table(out, frozen, schema)
        write_json(beside, report)
    except OSError as error:
        raise DataError(str(out), f"cannot be written: {error.strerror}", "check its folder and the free space") from error
    return report


def _is_report(path: Path) -> bool:
    try:
        content = read_json(path)
    except (DataError, OSError):
        return False
    return isinstance(content, dict) and {"digest", "measures"} <= set(content)


def frozen_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """The name of the benchmark: its solutions and what people settled, whatever they were drawn from."""
    names = ("id", "question", "steps", "marks")
    of_row = {row["id"]: [*(row[name] for name in names), [bytes_digest(one) for one in row_images(row)]] for row in rows}
    return digest("audit-benchmark-1", [of_row[key] for key in sorted(of_row)])


def _is_judged(steps: Sequence[Settled], reading: str) -> bool:
    """Whether people marked all that a reading needs: so far, nothing behind the first "-" does.

    Who stops at the first error would else leave the solutions without one to speak for all.
    """
    end = next((i for i, one in enumerate(steps) if one.mark == "-"), len(steps)) if reading == "so_far" else len(steps)
    return all(one.votes for one in steps[:end])


def _strata(rows: Sequence[Row], complete: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Stratum -> solutions in it, drawn, and judged to their end."""
    found = {row["stratum"]: {"of": row["num_in_stratum"], "drawn": row["num_drawn"], "complete": 0} for row in rows}
    for row in complete:
        found[row["stratum"]]["complete"] += 1
    return found


def measures(
    judged: Mapping[str, Sequence[Row]], marks_of: Mapping[str, Sequence[str | None]], thresholds: Mapping[str, float]
) -> dict[str, dict[str, dict[str, Interval | None]]]:
    """What is measured -> reading -> NUMBERS of the whole population, each with its 95 % interval.

    A label is about all of the solution up to its step: against "so far", a step is right as long as nobody marked it or one
    before it "-". Against "own", every step stands for itself. Neutral and unsettled steps are left out.

    Args:
        judged: reading -> solutions of the audit that were judged as far as it goes; of a stratum they stand for all of it.
        marks_of: solution -> what people settled, one a step.
        thresholds: column -> at or below it a step is said to be wrong.
    """
    found: dict[str, dict[str, dict[str, Interval | None]]] = {}
    for column, name in MEASURED.items():
        if column not in thresholds:
            continue
        limit = thresholds[column]
        found[name] = {}
        for reading, truth_of in (("so_far", so_far), ("own", own)):
            rows = judged[reading]
            strata, sizes = [row["stratum"] for row in rows], {row["stratum"]: row["num_in_stratum"] for row in rows}
            counts = []
            for row in rows:
                said = [None if value is None else value > limit for value in row[column] or [None] * len(row["steps"])]
                counts.append(_counts(said, truth_of(marks_of[row["solution_id"]])))
            over, under = np.array([one[0] for one in counts]), np.array([one[1] for one in counts])
            if not counts:
                found[name][reading] = dict.fromkeys(NUMBERS)
                continue
            found[name][reading] = {
                number: weighted_ratio(over[:, i], under[:, i], strata, sizes) for i, number in enumerate(NUMBERS)
            }
    return found


def own(marks: Sequence[str | None]) -> list[bool | None]:
    """What people say of each step alone; None where it is neutral or not settled."""
    return [None if mark in (None, "0") else mark == "+" for mark in marks]


def so_far(marks: Sequence[str | None]) -> list[bool | None]:
    """Whether each step and all before it are right; None where it is neutral, or where an unsettled one decides."""
    found: list[bool | None] = []
    state: bool | None = True
    for mark in marks:
        if mark == "-":
            state = False
        elif mark is None and state is True:
            state = None
        found.append(None if mark == "0" or (mark is None and state is not False) else state)
    return found


def _counts(said: Truth, truth: Truth) -> tuple[list[int], list[int]]:
    """Numerators and denominators of NUMBERS in one solution."""
    pairs = [(a, b) for a, b in zip(said, truth, strict=True) if a is not None and b is not None]
    both = {one: sum(a == b == one for a, b in pairs) for one in (True, False)}
    over = [both[True], both[True], both[False], both[False], both[True] + both[False]]
    under = [
        sum(a for a, _ in pairs),
        sum(b for _, b in pairs),
        sum(not a for a, _ in pairs),
        sum(not b for _, b in pairs),
        len(pairs),
    ]
    return over, under
