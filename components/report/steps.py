"""The section about single steps: calibration, the labels' histogram, how well each scorer finds wrong steps.

Owns their form; what counts as a right step is said by the metrics and repeated here in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.report.charts import histogram, reliability
from components.report.markup import Html, count, decimal, join, missing, number, percent, table, tag

SCORERS = {"prm": "PRM", "blind": "blind PRM", "shuffled": "PRM, shuffled picture", "likelihood": "policy likelihood"}
SETS = {"candidates": "Steps of the candidates", "step_errors": "Step-error set (exact labels)"}
ESTIMATORS = {
    "joint": "All steps of a problem's solutions were estimated together.",
    "beta": "Each step was estimated by itself, shrunk to what is usual: together they predicted rollouts less well.",
    "counts": "Each is the share of right continuations.",
}
COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("auroc", "AUROC", decimal),
    ("auroc_reading", "AUROC, reading steps", decimal),
    ("macro_f1", "macro F1", decimal),
    ("f1_right", "F1 right", decimal),
    ("f1_wrong", "F1 wrong", decimal),
    ("first_error_f1", "first-error F1", decimal),
    ("num_steps", "steps", count),
    ("wrong_frac", "% wrong", percent),
)


def steps(metrics: Mapping[str, Any], label_summary: Mapping[str, Any]) -> Html:
    """Calibration beside the labels' histogram, then a table for each set of steps."""
    measured = metrics.get("steps") or {}
    threshold = decimal(metrics.get("threshold"), 2)
    caption = f"A step is right if it and all before it are. AUROC needs no threshold; F1 is at {threshold}, chosen on dev"
    figures = tag("div", _calibration(metrics.get("calibration") or {}), _labels(label_summary), class_="pair")
    return join([figures, *(_table(title, key, measured.get(key) or {}, caption) for key, title in SETS.items())])


def _calibration(calibration: Mapping[str, Any]) -> Html:
    if not calibration.get("bins"):
        return missing("Calibration was not measured.")
    title = f"Reliability of the step scores, ECE {decimal(calibration.get('ece'))}"
    note = (
        "Does a solution end right as often as its steps' scores say? Above the dashed line the PRM is too modest, "
        "below it too sure. A larger dot is more steps."
    )
    caption = tag("figcaption", tag("b", title), ". ", note)
    return tag("figure", reliability(calibration["bins"], title=title), caption)


def _labels(summary: Mapping[str, Any]) -> Html:
    if not summary.get("histogram"):
        return missing("The labels have no histogram.")
    title = f"Labels, {count(summary.get('labels'))} steps"
    bars = [(low, high, num) for low, high, num in summary["histogram"] if None not in (low, high, num)]
    told = ESTIMATORS.get(str(summary.get("estimator")), "")
    caption = tag(
        "figcaption", tag("b", title), ". What the PRM was taught: how often a solution that begins so ends right. ", told
    )
    kept = [
        f"{name.replace('_', ' ')} kept {count(switch.get('after'))} of {count(switch.get('before'))}"
        for name, switch in sorted((summary.get("switches") or {}).items())
    ]
    note = tag("p", f"Switches: {', '.join(kept)}.", class_="note") if kept else None
    return tag("figure", histogram(bars, title=title, x_label="value of the step"), caption, note)


def _table(title: str, key: str, scorers: Mapping[str, Any], caption: str) -> Html:
    found = {name: scorers[name] for name in [*SCORERS, *sorted(set(scorers) - set(SCORERS))] if scorers.get(name)}
    if not found:
        return join([tag("h3", title), missing(f"Not measured: metrics.json has nothing under steps.{key}.")])
    rows = [
        [SCORERS.get(name, name), *(form(row.get(column)) for column, _, form in COLUMNS)] for name, row in found.items()
    ]
    shown = table(["scorer", *(label for _, label, _ in COLUMNS)], rows, caption=caption)
    trivial = next(iter(found.values())).get("trivial") or {}
    guesses = [
        f"{name.removesuffix('_macro_f1').replace('_', ' ')} {decimal(value)}"
        for name, value in sorted(trivial.items())
        if number(value) is not None
    ]
    note = tag("p", f"Macro F1 without looking: {', '.join(guesses)}.", class_="note") if guesses else None
    absent = ", ".join(label for name, label in SCORERS.items() if name not in found)
    return join([tag("h3", title), shown, note, missing(f"Not measured: {absent}.") if absent else None])
