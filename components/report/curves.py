"""The section about more candidates: accuracy against their number, and against the tokens they cost.

Owns which curves are drawn and how they are named; the points are metrics.json's, and search.json's where it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.report.charts import Line, Scale, lines, scale_for
from components.report.comparison import other_scorers, selector_name, shown_splits, split_name
from components.report.markup import Html, count, interval, join, missing, number, percent, points, table, tag

# selector -> (name at the end of its curve, class, dashed)
STYLES: dict[str, tuple[str, str, bool]] = {
    "oracle": ("pass@n", "ceiling", False),
    "prm": ("PRM", "prm", False),
    "prm_vote": ("PRM vote", "prm", True),
    "majority": ("majority", "baseline", False),
    "random": ("random", "baseline", True),
}
DRAWN_ALREADY = ("best_of_n", "vote", "majority", "random")  # strategies that are curves of the pool: told in numbers only
MARKS = {"beam": "diamond", "lookahead": "square", "early_stop": "triangle"}
MAX_NAME_CHARS = 12  # of a name that stands beside a chart


_SEARCH_NOTE = (
    "Dashed with larger marks: search at inference, which generated its own tokens for its own problems; its intervals are "
    "in the numbers."
)


def curves(metrics: Mapping[str, Any], search: Mapping[str, Any]) -> Html:
    """Two charts a split, and every number of them in a table.

    Args:
        search: search.json, {"split", "rows": [{"strategy", "budget", "mean", "low", "high", "tokens"}]}; {} without one.
    """
    known = {name: found for name, split in shown_splits(metrics).items() if (found := _drawn(metrics, split))}
    if not known:
        return missing("No curves were measured: metrics.json has nothing under curves. Run evaluate again.")
    searched = {name: _searched(search, name, metrics) for name in known}
    everything = [*known.values(), *searched.values()]
    values = [v for drawn in everything for curve in drawn.values() for one in curve for v in _ends(one)]
    scale = scale_for(values, floor=0.0, ceiling=1.0)
    share = percent(metrics.get("confidence")).removesuffix(".0")
    note = (
        f"What a selector's pick is worth when it sees only n of the candidates, over all choices of n. Bands: {share} % "
        "intervals over problems. Tokens are those that were generated for a problem, without the reading of the prompt."
    )
    parts: list[Html | None] = [tag("p", note, class_="note")]
    for name, drawn in known.items():
        parts.append(_said(name, drawn))
        by_number = _chart(name, drawn, {}, scale, key="n")
        by_tokens = _chart(name, drawn, searched[name], scale, key="tokens")
        parts.append(tag("div", by_number, by_tokens, class_="pair"))
        if searched[name]:
            parts.append(tag("p", _SEARCH_NOTE, class_="note"))
        parts.append(_numbers(name, drawn, searched[name]))
    return join(parts)


def _drawn(metrics: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Selector -> its points in the order of n, of those curves that the section shows."""
    found = split.get("curves") or {}
    wanted = [*STYLES, *other_scorers(metrics)]
    drawn = {}
    for name in wanted:
        rows = [row for row in found.get(name) or [] if number(row.get("n")) and number(row.get("mean")) is not None]
        if rows:
            drawn[name] = sorted(rows, key=lambda row: row["n"])
    return drawn


def _searched(search: Mapping[str, Any], split: str, metrics: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Strategy -> its points in the order of tokens, of a search that was run on this split."""
    if search.get("split", "test") != split or (search.get("prm_digest") not in (None, metrics.get("prm_digest"))):
        return {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in search.get("rows") or []:
        if number(row.get("tokens")) and number(row.get("mean")) is not None:
            found.setdefault(str(row.get("strategy")), []).append(row)
    return {name: sorted(rows, key=lambda row: row["tokens"]) for name, rows in found.items()}


def _ends(row: Mapping[str, Any]) -> list[float]:
    return [value for key in ("low", "mean", "high") if (value := number(row.get(key))) is not None]


def _short_name(name: str) -> str:
    text = STYLES[name][0] if name in STYLES else name.replace("_", " ")
    return text if len(text) <= MAX_NAME_CHARS else text[: MAX_NAME_CHARS - 1] + "…"


def _chart(
    split: str,
    drawn: Mapping[str, Sequence[Mapping[str, Any]]],
    searched: Mapping[str, Sequence[Mapping[str, Any]]],
    scale: Scale,
    *,
    key: str,
) -> Html:
    shown = []
    for name, rows in drawn.items():
        placed = [(float(row[key]), row) for row in rows if (number(row.get(key)) or 0) > 0]
        if placed:
            _, kind, is_dashed = STYLES.get(name, ("", "other", name.endswith("_vote")))
            shown.append(Line(_short_name(name), kind, placed, is_dashed))
    for name, rows in searched.items():
        placed = [(float(row["tokens"]), row) for row in rows]
        if name not in DRAWN_ALREADY:
            shown.append(Line(_short_name(name), "control", placed, True, MARKS.get(name, "diamond")))
    if not shown:
        return missing(f"The tokens that the candidates of {split_name(split)} cost are not known.")
    if key == "n":
        title, label = f"{split_name(split)}: right answers by number of candidates", "candidates a problem, n"
        ticks = sorted({at for line in shown for at, _ in line.points})
        ticks = ticks if len(ticks) <= 8 else ticks[::2]
    else:
        title, label = f"{split_name(split)}: right answers by tokens spent", "generated tokens a problem"
        ticks = _round_ticks([at for line in shown for at, _ in line.points])
    figure = lines(shown, scale, title=title, x_label=label, x_ticks=ticks, form=lambda value: f"{100 * value:.0f}")
    return tag("figure", tag("figcaption", tag("b", f"{title}, %")), figure)


def _round_ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, 20, .. inside the values; the values' ends where none lies inside."""
    low, high = min(values), max(values)
    found = [m * 10.0**e for e in range(-1, 9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return found or sorted({low, high})


def _said(split: str, drawn: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html | None:
    rows = drawn.get("prm") or []
    if len(rows) < 2:
        return tag("h3", split_name(split))
    first, half, last = rows[0], rows[-2], rows[-1]
    gain, doubling = points(last["mean"] - first["mean"]), points(last["mean"] - half["mean"])
    text = (
        f"From {count(first['n'])} to {count(last['n'])} candidates the PRM's pick goes from {percent(first['mean'])} to "
        f"{percent(last['mean'])} % right ({gain} points); the last step, from {count(half['n'])} on, brings {doubling}."
    )
    return join([tag("h3", split_name(split)), tag("p", text)])


def _numbers(
    split: str,
    drawn: Mapping[str, Sequence[Mapping[str, Any]]],
    searched: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Html:
    every = sorted({row["n"] for rows in drawn.values() for row in rows})
    body = []
    for name, rows in drawn.items():
        by_n = {row["n"]: row for row in rows}
        body.append([_long_name(name), *(_cell(by_n.get(n)) for n in every)])
    spent = {row["n"]: row.get("tokens") for rows in drawn.values() for row in rows}
    body.append(["tokens a problem", *(count(spent.get(n)) for n in every)])
    head = ["selector", *(f"n = {count(n)}" for n in every)]
    shown = [table(head, body, caption=f"Curves of {split_name(split)}, % right")]
    if searched:
        told = [
            [name.replace("_", " "), count(row.get("budget")), count(row.get("tokens")), _cell(row)]
            for name, rows in searched.items()
            for row in rows
        ]
        shown.append(table(["strategy", "budget", "tokens a problem", "% right"], told, caption="Search at inference"))
    return tag("details", tag("summary", "the same in numbers"), *shown)


def _long_name(name: str) -> str:
    return selector_name(name).replace("-of-N", "-of-n").replace("@N", "@n")


def _cell(row: Mapping[str, Any] | None) -> Html:
    if row is None:
        return join(["–"])
    return join([tag("b", percent(row.get("mean"))), interval(row)], " ")
