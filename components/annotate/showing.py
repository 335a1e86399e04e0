"""What a terminal is told of an audit: who was drawn, how far people agree, what labels are worth.

Knows how numbers are written; computes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.annotate import label_studio, page
from components.annotate.freezing import READINGS
from components.errors import one_line
from components.metrics import Interval


def drawn_lines(out: Path, summary: Mapping[str, Any]) -> list[str]:
    """After `annotate draw`."""
    width = max(20, *(len(name) for name in summary["strata"]))
    lines = [f"{'stratum':<{width}}{'drawn':>8}{'of':>10}"]
    lines += [f"{one_line(name):<{width}}{n['drawn']:>8,}{n['of']:>10,}" for name, n in summary["strata"].items()]
    lines.append(f"{'all':<{width}}{summary['num_solutions']:>8,}{sum(n['of'] for n in summary['strata'].values()):>10,}")
    lines.append(f"set {summary['set']}: {summary['num_steps']:,} steps to judge")
    return [*lines, f"{out / page.FILE}, or {out / label_studio.TASKS} with {out / label_studio.CONFIG} for Label Studio"]


def read_lines(out: Path, summary: Mapping[str, Any]) -> list[str]:
    """After `annotate read`."""
    people = ", ".join(f"{who} {num:,}" for who, num in summary["annotators"].items())
    lines = [f"steps marked, of {summary['num_steps']:,}: {people}"]
    for number, found in summary["agreement"].items():
        lines += [f"round {number}: {line}" for line in agreement_lines(found)]
    settled = f"{summary['num_settled']:,} steps settled, {summary['num_tied']:,} without a majority"
    lines.append(f"{settled}, {summary['num_steps'] - summary['num_marked']:,} not marked by anybody")
    if summary["num_asked_again"]:
        lines.append(f"{out / page.FILE} asks again about {summary['num_asked_again']:,} steps")
    else:
        lines.append("nothing to ask again: annotate freeze")
    return lines


def agreement_lines(found: Mapping[str, Any]) -> list[str]:
    """How far people agree."""
    if not found["num_steps"]:
        return ["no step was judged by two people: no agreement to measure"]
    lines = [
        f"{found['num_differing']:,} of {found['num_steps']:,} shared steps differ; the same mark {_shown(found['share'])}"
    ]
    lines += [f"Cohen's kappa of {pair} {_shown(value)}" for pair, value in found["kappa"].items()]
    if found["fleiss"] is not None:
        lines.append(f"Fleiss' kappa {_shown(found['fleiss'])}")
    return [*lines, f"Krippendorff's alpha {_shown(found['alpha'])}"]


def frozen_lines(out: Path, report: Mapping[str, Any]) -> list[str]:
    """After `annotate freeze`."""
    marks = ", ".join(f"{count:,} {mark}" for mark, count in report["marks"].items())
    lines = [f"{out}: {report['num_solutions']:,} solutions, {marks}, {report['num_unsettled']:,} steps not settled"]
    lines.append(f"digest {report['digest']}")
    numbers: list[str] = []
    for name, readings in report["measures"].items():
        for reading, found in readings.items():
            if not numbers:
                numbers = list(found)
                lines.append(f"{'of all, against people':<36}" + "".join(f"{one:<23}" for one in numbers).rstrip())
            line = f"{name + ', ' + READINGS[reading]:<36}" + "".join(f"{_shown(found[one]):<23}" for one in numbers)
            lines.append(line.rstrip())
    unseen = [name for name, one in report["strata"].items() if not one["complete"]]
    if unseen:
        count = sum(report["strata"][name]["of"] for name in unseen)
        lines.append(f"no solution of {', '.join(map(one_line, unseen))} was judged: {count:,} solutions are not spoken of")
    stopped = report["num_complete_so_far"] - report["num_complete"]
    lines.append(f"{report['num_complete']:,} solutions were judged to their end; the intervals are 95 %")
    if stopped:
        lines.append(f"{stopped:,} more as far as an error: {READINGS['own']} speaks of those without such a stop alone")
    return [*lines, f"next: stepforge benchmark audit {out} --prm PRM"]


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
