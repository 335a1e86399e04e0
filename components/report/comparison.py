"""The section that compares whole answers: selectors, benchmarks, paired differences, aggregations.

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
    p_value,
    percent,
    points,
    sortable,
    table,
    tag,
)

SPLIT_NAMES = {"dev": "dev", "test": "test", "ood": "out of domain"}
SHOWN_SPLITS = ("test", "ood")  # those of the demo, whose absence is said
CHOOSING = "dev"  # it chose the aggregation, so it proves nothing

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
            ("likelihood_mean", "likelihood a token", "ring"),
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
_OWN_SCORERS = ("prm", "blind", "shuffled")


def shown_splits(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The splits that were evaluated and chose nothing, test and out of domain first."""
    found = metrics.get("splits") or {}
    names = [*(name for name in SHOWN_SPLITS if name in found), *(n for n in found if n not in (*SHOWN_SPLITS, CHOOSING))]
    return {name: found[name] for name in names if found[name]}


def other_scorers(metrics: Mapping[str, Any]) -> list[str]:
    """Reward models beside the one under test, such as an outcome reward model."""
    return sorted(set(metrics.get("aggregations_by_scorer") or {}) - set(_OWN_SCORERS))


def split_name(split: str) -> str:
    """What a reader calls a split."""
    return SPLIT_NAMES.get(split, split)


def selector_name(selector: str, num_candidates: Any = None) -> str:
    """What a reader calls a selector, with the real N where it is known."""
    label = _KNOWN.get(selector) or (
        f"{selector.removesuffix('_vote')}-weighted vote" if selector.endswith("_vote") else selector
    )
    known = number(num_candidates)
    return label if known is None else label.replace("-of-N", f"-of-{known:.0f}").replace("@N", f"@{known:.0f}")


def comparison(metrics: Mapping[str, Any]) -> Html:
    """Selectors with intervals side by side, then paired differences and aggregations."""
    known = shown_splits(metrics)
    if not known:
        return missing("No test split was evaluated.")
    scale = scale_for(
        [v for split in known.values() for e in (split.get("selectors") or {}).values() for v in _ends(e)],
        floor=0.0,
        ceiling=1.0,
    )
    wanted = [*SHOWN_SPLITS, *(name for name in known if name not in SHOWN_SPLITS)]
    panels = [
        _selectors(name, known[name], metrics, scale)
        if name in known
        else missing(f"No {split_name(name)} split was evaluated.")
        for name in wanted
    ]
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
            _benchmarks(known) if len(known) > len(SHOWN_SPLITS) else None,
            tag("div", *panels, class_="pair"),
            tag("h3", "Paired differences"),
            _holm_line(known, metrics),
            tag("div", *(_differences(name, split, known) for name, split in known.items()), class_="pair"),
            tag("h3", "How step scores become one score"),
            _aggregations(metrics),
            _by_scorer(metrics),
        ]
    )


def _benchmarks(splits: Mapping[str, Mapping[str, Any]]) -> Html:
    """One row a benchmark, to be sorted by any column."""
    shown = ("random", "greedy", "majority", "prm", "prm_vote", "oracle")
    rows = []
    for name, split in splits.items():
        found, gain = split.get("selectors") or {}, difference(split, "prm", "random")
        values = [(percent((found.get(key) or {}).get("mean")), (found.get(key) or {}).get("mean")) for key in shown]
        value = _value(gain, points) if gain else missing("–")
        numbers = [(count(split.get("num_problems")), split.get("num_problems")), *values, (value, (gain or {}).get("mean"))]
        rows.append([(split_name(name), split_name(name)), *numbers])
    head = ["benchmark", "problems", *(selector_name(key) for key in shown), "PRM minus random, points"]
    return sortable(head, rows, caption="Every benchmark, % right")


def _holm_line(splits: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> Html:
    """What the p-values are, and what the correction for asking many questions did to them."""
    level = 1 - (number(metrics.get("confidence")) or 0.95)
    told = []
    for name, split in splits.items():
        tested = [one for one in split.get("differences") or [] if number(one.get("p")) is not None]
        if not tested:
            continue
        before = sum(one["p"] < level for one in tested)
        after = sum((number(one.get("p_holm")) or 0.0) < level for one in tested if number(one.get("p_holm")) is not None)
        told.append(
            f"on {split_name(name)} {before} of {len(tested)} differences have p below {level:.2g}, {after} after it"
        )
    if not told:
        return missing("No p-values: they were not measured. Run evaluate again.")
    what = "p: how often chance alone would give a difference this large (exact McNemar, or signs flipped at random). "
    holm = "Who asks many questions gets some answers by luck; Holm's correction pays for that: "
    return tag("p", f"{what}{holm}{'; '.join(told)}.", class_="note")


def _ends(estimate: Mapping[str, Any] | None) -> list[float]:
    found = (number((estimate or {}).get(key)) for key in ("low", "mean", "high"))
    return [value for value in found if value is not None]


def _panel_title(name: str, split: Mapping[str, Any]) -> str:
    return f"{split_name(name)} · {count(split.get('num_problems'))} problems"


def _value(estimate: Mapping[str, Any], form: Any = percent) -> Html:
    return join([tag("b", form(estimate.get("mean"))), interval(estimate, form)], " ")


def _dot_table(title: str, first: str, scale: Scale, form: Any, groups: list[Html], *more: str) -> Html:
    head = tag(
        "tr",
        tag("th", first, scope="col"),
        tag("th", axis(scale, form, most=3 if more else 5), scope="col", aria_label="place on the axis"),
        tag("th", "value", scope="col"),
        *(tag("th", name, scope="col") for name in more),
    )
    return tag("table", tag("caption", title), tag("thead", head), *groups, class_="dots tested" if more else "dots")


def _as_percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _selectors(name: str, split: Mapping[str, Any], metrics: Mapping[str, Any], scale: Scale) -> Html:
    found = {key: estimate for key, estimate in (split.get("selectors") or {}).items() if estimate}
    guide = number(found.get("random", {}).get("mean"))
    scorers = [key for name in other_scorers(metrics) for key in (name, f"{name}_vote") if key in found]
    rest = sorted(set(found) - set(_KNOWN) - set(scorers))
    shown = [
        *GROUPS[:2],
        ("Other reward models", "on the same candidates", "other", tuple((key, key, "dot") for key in scorers)),
        *GROUPS[2:],
        ("Others", "", "baseline", tuple((key, key, "ring") for key in rest)),
    ]
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
    chosen = metrics.get("aggregation") if key == "prm" else (metrics.get("aggregations_by_scorer") or {}).get(key)
    if chosen and (key == "prm" or key in other_scorers(metrics)):
        parts.append(tag("span", f"{chosen}, chosen on dev", class_="sub"))
    return join(parts, " ")


def _unbroken(text: str) -> Html:
    """`text` that breaks between words but not at a hyphen."""
    return join([tag("span", word, class_="unbroken") if "-" in word else word for word in text.split(" ")], " ")


def _group(name: str, about: list[str], rows: list[Html]) -> Html:
    meaning = tag("span", "; ".join(part for part in about if part), class_="sub")
    heading = tag("th", name, " ", meaning, colspan=3, scope="rowgroup", class_="group")
    return tag("tbody", tag("tr", heading), *rows)


def _row(label: str, chart: Html, value: Html, kind: str = "plain", *more: Html) -> Html:
    return tag("tr", tag("th", label, scope="row"), tag("td", chart), tag("td", value), *more, class_=f"row-{kind}")


def _differences(name: str, split: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]) -> Html:
    found = [one for one in split.get("differences") or [] if one.get("a") and one.get("b")]
    if not found:
        return missing(f"No paired differences for {split_name(name)}.")
    everywhere = [d for one in splits.values() for d in one.get("differences") or []]
    scale = scale_for([0.0, *(v for d in everywhere for v in _ends(d))])
    is_tested = any(number(one.get("p")) is not None for one in found)
    rows = []
    for one in found:
        a, b = (selector_name(one[key], split.get("num_candidates")) for key in ("a", "b"))
        mark, kind = DIRECTIONS[direction(one) or 0]
        label = join([_unbroken(a), tag("span", "minus ", _unbroken(b), class_="sub")], " ")
        tests = [tag("td", p_value(one.get(key)), class_="p") for key in ("p", "p_holm")] if is_tested else []
        rows.append(_row(label, track(scale, [(mark, one, kind)], guide=0.0), _value(one, points), "plain", *tests))
    title = f"{_panel_title(name, split)}, percentage points"
    more = ("p", "Holm") if is_tested else ()
    return _dot_table(title, "difference", scale, _as_points, [tag("tbody", *rows)], *more)


DIRECTIONS = {1: ("dot", "prm"), 0: ("ring", "baseline"), -1: ("diamond", "control")}


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
    known = metrics.get("splits") or {}
    order = [*(name for name in SPLIT_NAMES if name in known), *shown_splits(metrics)]
    found = {name: known[name] or {} for name in dict.fromkeys(order)}
    splits = {name: split for name, split in found.items() if split.get("aggregations")}
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


def _by_scorer(metrics: Mapping[str, Any]) -> Html | None:
    others = other_scorers(metrics)
    if not others:
        return None
    told = ", ".join(f"{name} {metrics['aggregations_by_scorer'][name]}" for name in others)
    return tag("p", f"Other reward models have an aggregation of their own, chosen on dev as well: {told}.", class_="note")
