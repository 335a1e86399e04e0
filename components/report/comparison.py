"""The section that compares whole answers: selectors, paired differences, aggregations, sources.

Owns how metrics.json is shown; computes nothing but the place of a mark on its axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.report.charts import Scale, axis, scale_for, track
from components.report.markup import (
    Html,
    count,
    interval,
    join,
    missing,
    number,
    percent,
    points,
    table,
    tag,
)

SPLIT_NAMES = {"dev": "dev", "test": "test", "ood": "out of domain"}
SHOWN_SPLITS = ("test", "ood")  # dev chose the aggregation, so it proves nothing

# selector -> (what a reader calls it, mark); the groups stand in the order of the question "how good, and why?"
GROUPS: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Baselines",
        "no reward model",
        "baseline",
        (
            ("random", "random pick", "ring"),
            ("greedy", "greedy decoding", "ring"),
            ("majority", "majority vote", "ring"),
            ("likelihood", "policy likelihood", "ring"),
        ),
    ),
    ("PRM", "the model under test", "prm", (("prm", "PRM Best-of-N", "dot"), ("prm_vote", "PRM-weighted vote", "dot"))),
    (
        "Controls",
        "blind: trained and scored without the picture; shuffled: the PRM given another problem's picture",
        "control",
        (
            ("blind", "blind Best-of-N", "diamond"),
            ("blind_vote", "blind vote", "diamond"),
            ("shuffled", "shuffled Best-of-N", "diamond"),
            ("shuffled_vote", "shuffled vote", "diamond"),
        ),
    ),
    ("Ceiling", "one right candidate is enough", "ceiling", (("oracle", "oracle pass@N", "bar"),)),
)
_KNOWN = {name: label for _, _, _, rows in GROUPS for name, label, _ in rows}


def split_name(split: str) -> str:
    """What a reader calls a split."""
    return SPLIT_NAMES.get(split, split)


def selector_name(selector: str, num_candidates: Any = None) -> str:
    """What a reader calls a selector, with the real N where it is known."""
    label = _KNOWN.get(selector, selector)
    known = number(num_candidates)
    return label if known is None else label.replace("-of-N", f"-of-{known:.0f}").replace("@N", f"@{known:.0f}")


def comparison(metrics: Mapping[str, Any]) -> Html:
    """Selectors with intervals side by side, then aggregations, paired differences and sources."""
    splits = {name: metrics.get("splits", {}).get(name) for name in SHOWN_SPLITS}
    known = {name: split for name, split in splits.items() if split}
    if not known:
        return missing("No test split was evaluated.")
    scale = scale_for(
        [v for split in known.values() for e in split.get("selectors", {}).values() for v in _ends(e)],
        floor=0.0,
        ceiling=1.0,
    )
    panels = []
    for name in SHOWN_SPLITS:
        split = splits[name]
        panels.append(
            _selectors(name, split, metrics, scale) if split else missing(f"No {split_name(name)} split was evaluated.")
        )
    aggregation = metrics.get("aggregation")
    share = percent(metrics.get("confidence")).removesuffix(".0")
    chosen = (
        f"The aggregation “{aggregation}” and the threshold were chosen on dev, nothing on the split shown."
        if aggregation
        else "It is not known which aggregation was chosen on dev."
    )
    unit = f"Share of problems answered right, in per cent; lines are {share} % bootstrap intervals over problems."
    note = tag("p", f"{unit} {chosen}", class_="note")
    return join(
        [
            note,
            tag("div", *panels, class_="pair"),
            tag("h3", "Paired differences"),
            tag("div", *(_differences(name, split, metrics) for name, split in known.items()), class_="pair"),
            tag("h3", "How step scores become one score"),
            _aggregations(metrics),
            tag("h3", "By source of the problem"),
            tag(
                "p",
                "Ring: random pick; dot: PRM Best-of-N; bar: the ceiling, pass@N. No intervals: the groups are small.",
                class_="note",
            ),
            tag("div", *(_sources(name, split) for name, split in known.items()), class_="pair"),
        ]
    )


def _ends(estimate: Mapping[str, Any] | None) -> list[float]:
    found = (number((estimate or {}).get(key)) for key in ("low", "mean", "high"))
    return [value for value in found if value is not None]


def _panel_title(name: str, split: Mapping[str, Any]) -> str:
    return f"{split_name(name)} · {count(split.get('num_problems'))} problems"


def _value(estimate: Mapping[str, Any], form: Any = percent) -> Html:
    return join([tag("b", form(estimate.get("mean"))), interval(estimate, form)], " ")


def _dot_table(title: str, first: str, scale: Scale, form: Any, groups: list[Html]) -> Html:
    head = tag(
        "tr",
        tag("th", first, scope="col"),
        tag("th", axis(scale, form), scope="col", aria_label="place on the axis"),
        tag("th", "value", scope="col"),
    )
    return tag("table", tag("caption", title), tag("thead", head), *groups, class_="dots")


def _as_percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _selectors(name: str, split: Mapping[str, Any], metrics: Mapping[str, Any], scale: Scale) -> Html:
    found = {key: estimate for key, estimate in (split.get("selectors") or {}).items() if estimate}
    guide = number(found.get("random", {}).get("mean"))
    shown = [*GROUPS, ("Others", "", "baseline", tuple((key, key, "ring") for key in sorted(set(found) - set(_KNOWN))))]
    groups = []
    for group, meaning, kind, members in shown:
        rows = [
            _row(
                _label(key, split, metrics), track(scale, [(mark, found[key], kind)], guide=guide), _value(found[key]), kind
            )
            for key, _, mark in members
            if key in found
        ]
        absent = ", ".join(selector_name(key, split.get("num_candidates")) for key, _, _ in members if key not in found)
        if members:
            groups.append(_group(group, [meaning, f"not measured: {absent}" if absent else ""], rows))
    return _dot_table(_panel_title(name, split), "selector", scale, _as_percent, groups)


def _label(key: str, split: Mapping[str, Any], metrics: Mapping[str, Any]) -> Html:
    parts: list[str] = [_unbroken(selector_name(key, split.get("num_candidates")))]
    if key == "prm" and metrics.get("aggregation"):
        parts.append(tag("span", f"{metrics['aggregation']}, chosen on dev", class_="sub"))
    return join(parts, " ")


def _unbroken(text: str) -> Html:
    """`text` that breaks between words but not at a hyphen."""
    return join([tag("span", word, class_="unbroken") if "-" in word else word for word in text.split(" ")], " ")


def _group(name: str, about: list[str], rows: list[Html]) -> Html:
    meaning = tag("span", "; ".join(part for part in about if part), class_="sub")
    heading = tag("th", name, " ", meaning, colspan=3, scope="rowgroup", class_="group")
    return tag("tbody", tag("tr", heading), *rows)


def _row(label: str, chart: Html, value: Html, kind: str = "plain") -> Html:
    return tag("tr", tag("th", label, scope="row"), tag("td", chart), tag("td", value), class_=f"row-{kind}")


def _differences(name: str, split: Mapping[str, Any], metrics: Mapping[str, Any]) -> Html:
    found = split.get("differences") or []
    if not found:
        return missing(f"No paired differences for {split_name(name)}.")
    everywhere = [d for s in SHOWN_SPLITS for d in (metrics["splits"].get(s) or {}).get("differences") or []]
    scale = scale_for([0.0, *(v for d in everywhere for v in _ends(d))])
    rows = []
    for one in found:
        a, b = (selector_name(one[key], split.get("num_candidates")) for key in ("a", "b"))
        mark, kind = _DIRECTIONS[direction(one) or 0]
        label = join([_unbroken(a), tag("span", "minus ", _unbroken(b), class_="sub")], " ")
        rows.append(_row(label, track(scale, [(mark, one, kind)], guide=0.0), _value(one, points)))
    title = f"{_panel_title(name, split)}, percentage points"
    return _dot_table(title, "difference", scale, _as_points, [tag("tbody", *rows)])


_DIRECTIONS = {1: ("dot", "prm"), 0: ("ring", "baseline"), -1: ("diamond", "control")}


def _as_points(value: float) -> str:
    return points(value).removesuffix(".0") if value else "0"


def difference(split: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any] | None:
    """The paired difference a minus b, or None if it was not measured."""
    found = (one for one in split.get("differences") or [] if one.get("a") == a and one.get("b") == b)
    return next(found, None)


def direction(estimate: Mapping[str, Any] | None) -> int | None:
    """1 if the whole interval lies above zero, -1 if below, 0 if it holds zero, None if there is none."""
    low, high = number((estimate or {}).get("low")), number((estimate or {}).get("high"))
    if low is None or high is None:
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def _aggregations(metrics: Mapping[str, Any]) -> Html:
    splits = {name: split for name in SPLIT_NAMES if (split := metrics["splits"].get(name)) and split.get("aggregations")}
    if not splits:
        return missing("Aggregations were not compared.")
    names = sorted({key for split in splits.values() for key in split["aggregations"]}, key=_aggregation_order)
    rows = []
    for name in names:
        badge = tag("span", "chosen on dev", class_="badge prm") if name == metrics.get("aggregation") else None
        values = [_value(split["aggregations"].get(name) or {}) for split in splits.values()]
        rows.append([join([name, badge], " "), *values])
    head = ["aggregation", *(split_name(split) for split in splits)]
    return table(head, rows, caption="PRM Best-of-N under each aggregation, % right")


def _aggregation_order(name: str) -> tuple[int, str]:
    known = ("min", "product", "mean", "last", "max")
    return (known.index(name) if name in known else len(known), name)


def _sources(name: str, split: Mapping[str, Any]) -> Html:
    sources = split.get("sources") or {}
    if not sources:
        return missing(f"No figures by source for {split_name(name)}.")
    values = [v for row in sources.values() for key, _, _ in _SOURCE_MARKS if (v := number(row.get(key))) is not None]
    scale = scale_for(values, floor=0.0, ceiling=1.0)
    rows = []
    for source, row in sorted(sources.items()):
        marks = [(mark, {"mean": row.get(key)}, kind) for key, mark, kind in _SOURCE_MARKS]
        parts = join(source.split("/"), "/<wbr>")
        label = join([parts, tag("span", f"{count(row.get('num_problems'))} problems", class_="sub")], " ")
        ceiling = tag("span", f"of {percent(row.get('oracle'))}", class_="interval")
        value = join([percent(row.get("random")), "→", tag("b", percent(row.get("prm"))), ceiling], " ")
        rows.append(_row(label, track(scale, marks), value))
    return _dot_table(_panel_title(name, split), "source", scale, _as_percent, [tag("tbody", *rows)])


_SOURCE_MARKS = (("random", "ring", "baseline"), ("oracle", "bar", "ceiling"), ("prm", "dot", "prm"))
