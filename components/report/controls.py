"""The section of the controls: what the reward model could be paid for besides being right.

Owns their names and units on the page; what each says and whether it is flagged is told by metrics and registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.report.charts import axis, scale_for, track
from components.report.comparison import split_name
from components.report.evidence import Evidence
from components.report.markup import Html, count, decimal, interval, join, missing, number, percent, points, tag

# name -> (what a reader calls it, unit): points of accuracy, a share, or a number between -1 and 1
NAMES: dict[str, tuple[str, str]] = {
    "blind": ("without the picture", "points"),
    "picture": ("its picture exchanged", "points"),
    "shuffled": ("another picture, over chance", "points"),
    "answer_only": ("the last step alone", "points"),
    "before_last": ("the steps before the last", "points"),
    "steps_shuffled": ("steps in another order", "points"),
    "padding": ("a step said again", "share"),
    "format": ("another format", "share"),
    "empty": ("against saying nothing", "share"),
    "one_dot": ("against one dot", "share"),
    "truncated": ("against itself cut short", "share"),
    "last_minimum": ("lowest score on the last step", "share"),
    "length": ("length", "number"),
    "paraphrase": ("another wording of the prompt", "number"),
}
UNITS: dict[str, tuple[str, Any, Any]] = {  # unit -> (heading, form of a value, form of a tick)
    "points": ("Accuracy, percentage points", points, lambda value: points(value).removesuffix(".0") if value else "0"),
    "share": ("Shares, %", percent, lambda value: f"{100 * value:.0f}"),
    "number": ("Scores and correlations", lambda value: decimal(value, 3), lambda value: f"{value:g}".replace("-", "−")),
}


def controls(evidence: Evidence) -> Html:
    """Every measure on its axis, with its sentence, and what the gates said of it where they were asked."""
    found = evidence.metrics.get("controls") or {}
    measures = [one for one in found.get("measures") or [] if number(one.get("mean")) is not None]
    if not measures:
        return missing("The controls were not measured: metrics.json has nothing under controls. Run evaluate again.")
    gates = gates_of(evidence)
    flagged = [one for one in measures if gates.get(str(one.get("name"))) is False]
    where = f"Measured on {count(found.get('num_problems'))} problems of {split_name(str(found.get('split')))}. "
    asked = (
        f"{len(flagged)} of {len(gates)} gates on controls flag this PRM, by the registry's last decision on it."
        if gates
        else "No decision of the registry on this PRM asked for them, so nothing is flagged here."
    )
    why = "What a reward model could be paid for besides being right: each number should be what an honest one would give. "
    parts = [tag("p", why, where, asked, class_="note")]
    by_unit: dict[str, list[Mapping[str, Any]]] = {}
    for one in measures:
        by_unit.setdefault(NAMES.get(str(one.get("name")), ("", "number"))[1], []).append(one)
    panels = [_panel(unit, by_unit[unit], gates) for unit in UNITS if unit in by_unit]
    parts.append(tag("div", *panels, class_="pair"))
    absent = [f"{_label(name)} ({why})" for name, why in sorted(_absent(found).items())]
    parts += [missing(f"Not measured: {'; '.join(absent)}.")] if absent else []
    return join(parts)


def gates_of(evidence: Evidence) -> dict[str, bool]:
    """Control -> whether it passed, by the last decision on the PRM shown that asked for controls."""
    shown = evidence.metrics.get("prm_digest")
    for record in reversed(evidence.ledger):
        if record.get("prm_digest") != shown:
            continue
        found = {
            gate.removeprefix(_GATE).strip(): bool(reason["passed"])
            for reason in record["reasons"]
            if (gate := str(reason["gate"])).startswith(_GATE)
        }
        if found:
            return found
    return {}


_GATE = "control "


def _absent(found: Mapping[str, Any]) -> dict[str, str]:
    """Control -> why it is not there."""
    told = {str(name): str(why) for name, why in (found.get("absent") or {}).items()}
    for one in found.get("measures") or []:
        if number(one.get("mean")) is None:
            told[str(one.get("name"))] = str(one.get("why") or "no reason was recorded")
    return told


def _label(name: str) -> str:
    return NAMES.get(name, (name.replace("_", " "), ""))[0]


def _panel(unit: str, measures: Sequence[Mapping[str, Any]], gates: Mapping[str, bool]) -> Html:
    heading, form, tick = UNITS[unit]
    values = [v for one in measures for key in ("low", "mean", "high") if (v := number(one.get(key))) is not None]
    scale = scale_for([0.0, 1.0] if unit == "share" else [0.0, *values])
    order = list(NAMES)
    rows = []
    for one in sorted(measures, key=lambda m: order.index(str(m.get("name"))) if m.get("name") in order else len(order)):
        name = str(one.get("name"))
        passed = gates.get(name)
        kind = "control" if passed is False else "prm" if passed else "baseline"
        mark = "diamond" if passed is False else "dot"
        badge = None if passed is None else _badge(passed)
        label = tag("th", join([_label(name), badge], " "), scope="row")
        guide = 0.0 if unit != "share" else None
        value = join([tag("b", form(one.get("mean"))), interval(one, form)], " ")
        rows.append(tag("tr", label, tag("td", track(scale, [(mark, one, kind)], guide=guide)), tag("td", value)))
        worst = f"the worst: {one['variant']}" if one.get("variant") else None
        says = join([str(one.get("says") or ""), worst, f"n\u00a0=\u00a0{count(one.get('num'))}"], " · ")
        rows.append(tag("tr", tag("td", says, colspan=3), class_="says"))
    head = tag(
        "tr",
        tag("th", "control", scope="col"),
        tag("th", axis(scale, tick), scope="col", aria_label="place on the axis"),
        tag("th", "value", scope="col"),
    )
    return tag("table", tag("caption", heading), tag("thead", head), tag("tbody", *rows), class_="dots")


def _badge(passed: bool) -> Html:
    return tag("span", "✓ not flagged" if passed else "✗ flagged", class_=f"badge {'prm' if passed else 'control'}")
