"""The section that asks where the gain comes from: by source, by difficulty, by number of steps.

Owns the tables' form; the groups are metrics.json's. One table a grouping and split, to be sorted in the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.report.charts import Scale, axis, scale_for, track
from components.report.comparison import DIRECTIONS, direction, shown_splits, split_name
from components.report.markup import Cell, Html, count, interval, join, missing, number, percent, points, sortable, tag

KINDS: dict[str, tuple[str, str, str]] = {  # in tables -> (heading, first column, what the groups are)
    "source": ("By source of the problem", "source", ""),
    "difficulty": (
        "By difficulty",
        "right candidates",
        "Difficulty is the share of a problem's candidates that are right: where none or all are, nothing can be gained.",
    ),
    "steps": ("By number of steps", "steps", "The mean number of steps of a problem's candidates, rounded."),
}
_COLUMNS = (("random", "random"), ("majority", "majority"), ("prm", "PRM"), ("oracle", "pass@N"))
_NOT_MEASURED = {"source": "source", "difficulty": "difficulty", "steps": "number of steps"}


def groups(metrics: Mapping[str, Any]) -> Html:
    """Every grouping of every split; what was not measured is said."""
    splits = shown_splits(metrics)
    found = {name: split.get("tables") or _older(split) for name, split in splits.items()}
    gains = [
        v
        for tables in found.values()
        for rows in tables.values()
        for row in rows or ()
        for key in ("low", "mean", "high")
        if (v := number((row.get("gain") or {}).get(key))) is not None
    ]
    scale = scale_for([0.0, *gains])
    note = (
        "Gain: PRM Best-of-N minus a random pick, in percentage points, with its interval. Small groups have wide ones, "
        "and among many groups some stand out by luck. A column's name sorts by it."
    )
    parts: list[Html | None] = [tag("p", note, class_="note")]
    for kind, (heading, first, about) in KINDS.items():
        parts += [tag("h3", heading), tag("p", about, class_="note") if about else None]
        shown = [_table(name, tables.get(kind) or [], first, scale, kind=kind) for name, tables in found.items()] or [
            missing(f"No figures by {_NOT_MEASURED[kind]}: no split was evaluated.")
        ]
        parts += shown
    return join(parts)


def _older(split: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The tables of a file from before there were any: by source, without gains."""
    sources = split.get("sources") or {}
    return {"source": [{"group": name, **row} for name, row in sorted(sources.items())]} if sources else {}


def _table(split: str, rows: Sequence[Mapping[str, Any]], first: str, scale: Scale, *, kind: str) -> Html:
    if not rows:
        return missing(f"No figures by {_NOT_MEASURED[kind]} for {split_name(split)}.")
    body: list[list[Cell]] = []
    for i, row in enumerate(rows):
        gain = row.get("gain") or {}
        mark, colour = DIRECTIONS[direction(gain) or 0]
        chart = track(scale, [(mark, gain, colour)], guide=0.0)
        value = join([tag("b", points(gain.get("mean"))), interval(gain, points)], " ")
        parts = join(str(row.get("group", "–")).split("/"), "/<wbr>")
        body.append(
            [
                (parts, i if kind != "source" else str(row.get("group", ""))),
                (value, number(gain.get("mean"))),
                (tag("div", chart, class_="cell"), number(gain.get("mean"))),
                *((percent(_mean(row.get(key))), _mean(row.get(key))) for key, _ in _COLUMNS),
                (count(row.get("num_problems")), number(row.get("num_problems"))),
            ]
        )
    head = [first, "gain", axis(scale, _as_points), *(name for _, name in _COLUMNS), "problems"]
    return sortable(head, body, caption=f"{split_name(split)}, % right", class_="groups")


def _mean(value: Any) -> float | None:
    return number(value.get("mean")) if isinstance(value, Mapping) else number(value)


def _as_points(value: float) -> str:
    return points(value).removesuffix(".0") if value else "0"
