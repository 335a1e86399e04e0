"""The page of a comparison of two runs: what changed in what they were made from, and what came of it.

Owns its form alone: every number is that of `compare.comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.report.charts import Scale, axis, scale_for, track
from components.report.comparison import CHOOSING, DIRECTIONS, GROUPS, direction, selector_name, split_name
from components.report.markup import (
    MISSING,
    Cell,
    Html,
    count,
    decimal,
    interval,
    join,
    missing,
    number,
    p_value,
    percent,
    points,
    short,
    sortable,
    table,
    tag,
)
from components.report.template import section, write_page

LINKS = {"metrics": "Metrics", "steps": "Steps", "settings": "Settings", "labels": "Labels", "data": "Data", "code": "Code"}
_FORMS: dict[str, Any] = {
    "count": count,
    "share": lambda value: MISSING if number(value) is None else f"{percent(value)} %",
    "value": lambda value: decimal(value, 4),
    "digest": short,
    "text": lambda value: MISSING if value is None else str(value),
}
MAX_OPEN_FILES = 12


def write_changes(out: Path, found: Mapping[str, Any]) -> Path:
    """Write the page to `out` and return it; equal comparisons give equal bytes.

    Args:
        found: of `compare.comparison`.
    Raises:
        DataError: `out` cannot be written.
    """
    sections = [
        tag("section", _headline(found), aria_label="what changed"),
        section("metrics", "What each selector's pick is worth", _metrics(found)),
        section("steps", "Single steps, and what was chosen on dev", _rows(found["steps"], "Nothing about steps is known.")),
        section("settings", "Settings", _settings(found["settings"])),
        section("labels", "Labels and counts", _rows(found["labels"], "No counts are known.")),
        section("data", "Data", _rows(found["data"], "No digest of data is known.")),
        section("code", "Code", _code(found["code"])),
    ]
    names = [found["runs"][key]["name"] for key in ("a", "b")]
    return write_page(out, join(sections, "\n"), title=f"StepForge: {names[0]} and {names[1]}", links=LINKS)


def _headline(found: Mapping[str, Any]) -> Html:
    split = next((name for name in ("test", *found["metrics"]) if name in found["metrics"] and name != CHOOSING), None)
    sentences = [_result_sentence(split, found["metrics"][split])] if split else ["No split was measured by both."]
    sentences.append(_made_sentence(found))
    sides = []
    for key in ("a", "b"):
        about = found["runs"][key]
        lines = [tag("p", line, class_="sub") for line in about["decisions"][-3:]]
        lines += [tag("p", f"Not known: {line}.", class_="sub") for line in about["unknown"]]
        prm = tag("p", "PRM ", short(about["prm_digest"]), ", policy ", short(about["policy_digest"]), class_="sub")
        sides.append(tag("div", tag("p", tag("b", key.upper()), " ", tag("b", about["name"])), prm, *lines, class_="tile"))
    return join(
        [tag("p", *(f"{sentence} " for sentence in sentences), class_="lead"), tag("div", *sides, class_="tiles sides")]
    )


def _made_sentence(found: Mapping[str, Any]) -> str:
    """How much of what the two were made from is not the same."""
    amounts = {
        "settings": len(found["settings"]["differ"]) if found["settings"]["is_known"] else None,
        "files of code": len(found["code"]["files"]) if found["code"]["is_known"] else None,
        "files and pools of data": sum(row["form"] == "digest" and row["is_same"] is False for row in found["data"]),
    }
    parts = [
        f"of {words} not known what differs" if amount is None else f"{count(amount) if amount else 'no'} {words} differ"
        for words, amount in amounts.items()
    ]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _result_sentence(split: str, part: Mapping[str, Any]) -> str:
    row: Mapping[str, Any] = next((row for row in part["selectors"] if row["selector"] == "prm"), {})
    means = [percent((row.get(key) or {}).get("mean")) for key in ("a", "b")]
    facts = f"On {split_name(split)} the PRM's pick is right {means[0]} % of the time in A and {means[1]} % in B"
    if not part["is_paired"]:
        return f"{facts}; the two are not paired, because they were {part['why']}."
    change = row.get("difference")
    verdict = {
        1: f"B is clearly better, by {points((change or {}).get('mean'))} points.",
        -1: f"B is clearly worse, by {points((change or {}).get('mean'))} points.",
        0: "no clear difference, its interval holds zero.",
        None: f"whether that is more than chance is not known: {row.get('why', 'not measured')}.",
    }[direction(change)]
    return f"{facts}, on the same candidates: {verdict}"


def _metrics(found: Mapping[str, Any]) -> Html:
    if not found["metrics"]:
        return missing("No split was measured by both.")
    parts = found["metrics"].values()
    values = [v for part in parts for row in part["selectors"] for v in _ends(row.get("difference"))]
    scale = scale_for([0.0, *values])
    note = (
        "B − A in percentage points, over the same problems and candidates, with its interval; p is how often chance alone "
        "would give a difference this large, Holm's p pays for asking of several selectors."
    )
    order = sorted(found["metrics"], key=lambda name: (name != "test", name == CHOOSING))
    return join([tag("p", note, class_="note"), *(_split(name, found["metrics"][name], scale) for name in order)])


def _ends(estimate: Mapping[str, Any] | None) -> list[float]:
    return [value for key in ("low", "mean", "high") if (value := number((estimate or {}).get(key))) is not None]


def _split(name: str, part: Mapping[str, Any], scale: Scale) -> Html:
    sizes = [count(part["num_problems"][key]) for key in ("a", "b")]
    told = f"{sizes[0]} problems" if sizes[0] == sizes[1] else f"{sizes[0]} problems in A, {sizes[1]} in B"
    aside = " (it chose the aggregation)" if name == CHOOSING else ""
    rows: list[list[Cell]] = []
    for row in sorted(part["selectors"], key=lambda row: (_order(row["selector"]), row["selector"])):
        change, label = row.get("difference"), selector_name(row["selector"])
        mark = DIRECTIONS[direction(change) or 0]
        value = join([tag("b", points(change["mean"])), interval(change, points)], " ") if change else Html(MISSING)
        chart = (
            track(scale, [(mark[0], change, mark[1])], guide=0.0) if change else tag("span", row.get("why"), class_="sub")
        )
        mean = number((change or {}).get("mean"))
        sides = [row.get(key) or {} for key in ("a", "b")]
        rows.append(
            [
                (label, label),
                (value, mean),
                (tag("div", chart, class_="cell"), mean),
                *((join([tag("b", percent(s.get("mean"))), interval(s)], " "), number(s.get("mean"))) for s in sides),
                *((p_value(row.get(key)), number(row.get(key))) for key in ("p", "p_holm")),
            ]
        )
    head = ["selector", "B − A", axis(scale, _as_points), "A, % right", "B, % right", "p", "Holm"]
    shown = sortable(head, rows, caption=f"{split_name(name)} · {told}{aside}", class_="groups")
    why = None if part["is_paired"] else missing(f"Unpaired: {part['why']}. Compare the intervals of A and B with care.")
    return join([tag("h3", split_name(name)), why, shown])


def _order(selector: str) -> int:
    """What the reward model does first, what asks none last."""
    groups = {kind: [name for name, _, _ in members] for _, _, kind, members in GROUPS}
    known = [*groups["prm"], *groups["control"], *groups["baseline"], *groups["ceiling"]]
    others = len(groups["prm"])  # other reward models stand behind the one under test
    place = known.index(selector) if selector in known else others
    return place if place < others else place + 1 if selector in known else others


def _as_points(value: float) -> str:
    return points(value).removesuffix(".0") if value else "0"


def _rows(rows: Sequence[Mapping[str, Any]], nothing: str) -> Html:
    """What differs open, what is the same folded away."""
    if not rows:
        return missing(nothing)
    differ, same, half = ([row for row in rows if row["is_same"] is fate] for fate in (False, True, None))
    parts = [_table(differ, f"{count(len(differ))} differ")] if differ else [tag("p", "Nothing that both know differs.")]
    for told, some in (("the same", same), ("known of one only", half)):
        if some:
            name = f"{told}: {count(len(some))}"
            parts.append(tag("details", tag("summary", name), _table(some, f"{told[:1].upper()}{told[1:]}")))
    return join(parts)


def _table(rows: Sequence[Mapping[str, Any]], caption: str) -> Html:
    body = [[row["what"], *(_FORMS[row["form"]](row[key]) for key in ("a", "b"))] for row in rows]
    return table(["what", "A", "B"], body, caption=caption, class_="words")


def _settings(settings: Mapping[str, Any]) -> Html:
    if not settings["is_known"]:
        return missing("The settings of one of them are not known.")
    if not settings["differ"]:
        return tag("p", f"All {count(settings['num_same'])} are the same.")
    return _table(settings["differ"], f"{count(len(settings['differ']))} differ, {count(settings['num_same'])} are the same")


def _code(code: Mapping[str, Any]) -> Html:
    if not code["is_known"]:
        return missing("The code of one of them is not known.")
    digests = tag("p", "A ", short(code["a"]), ", B ", short(code["b"]), class_="sub")
    if not code["files"]:
        return join([tag("p", "The code is the same."), digests])
    rows = [[tag("code", one["file"]), ", ".join(one["stages"])] for one in code["files"]]
    caption = f"{count(len(rows))} files differ in a stage that both describe"
    shown = table(["file", "stages"], rows, caption=caption, class_="words")
    if len(rows) > MAX_OPEN_FILES:
        shown = tag("details", tag("summary", f"{count(len(rows))} files"), shown)
    return join([digests, shown])
