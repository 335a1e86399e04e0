"""Numbers that papers print for the benchmarks of the table, to be shown beside ours and marked `published`.

Owns what was printed where; knows no file and no model. Nothing here was measured by this code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VISUALPRM = "VisualPRM, arXiv 2503.10291"
MM_PRM = "MM-PRM, arXiv 2505.13427"


@dataclass(frozen=True)
class Published:
    """One number of a paper."""

    benchmark: str
    """A key of BENCHMARKS or STEP_BENCHMARKS."""
    measure: str
    """What it is comparable with: a measure of that benchmark."""
    model: str
    """The policy; on step benchmarks whoever judges the steps."""
    selector: str
    """How one answer was chosen; empty on step benchmarks."""
    value: float
    """In [0, 1]."""
    source: str


# One greedy answer, then the best of 8 by VisualPRM-8B, in percent; in the order of _SEVEN.
_SEVEN = {
    "mmmu": "accuracy",
    "mathvista": "accuracy",
    "mathvision": "accuracy",
    "mathverse": "problem_version Vision Only",
    "dynamath": "worst case",
    "wemath": "score strict",
    "logicvista": "accuracy",
}
_BEST_OF_8: dict[str, tuple[tuple[float, float], ...]] = {
    "MiniCPM-V2.6-8B": (
        (49.8, 56.8), (60.8, 65.7), (23.4, 24.7), (18.9, 35.8), (9.8, 11.2), (16.4, 31.0), (27.5, 37.4),
    ),
    "Qwen2.5-VL-7B": (
        (55.0, 58.6), (67.8, 70.3), (25.4, 31.3), (41.1, 44.3), (21.0, 23.0), (35.2, 39.8), (44.1, 48.3),
    ),
    "InternVL2.5-8B": (
        (56.2, 60.2), (64.5, 68.5), (17.0, 25.7), (22.8, 35.8), (9.4, 18.0), (23.5, 36.5), (36.0, 43.8),
    ),
}  # fmt: skip
# A random one of 16 answers, then the best of 16 by MM-PRM, in percent; MathVerse over all its versions.
_FIVE = ("mmk12", "olympiadbench", "mathvista", "mathverse", "mathvision")
_BEST_OF_16: dict[str, tuple[tuple[float, float], ...]] = {
    "MM-Policy-8B": ((33.92, 42.80), (15.41, 24.00), (62.93, 67.60), (42.99, 46.27), (21.74, 27.11)),
    "InternVL2.5-8B": ((27.01, 37.80), (5.23, 15.33), (56.43, 63.50), (36.26, 42.56), (10.04, 19.41)),
    "InternVL2.5-26B": ((28.01, 38.00),),
    "InternVL2.5-38B": ((40.34, 52.40),),
    "InternVL2.5-78B": ((42.24, 48.80),),
}
# Macro F1 over the steps of VisualProcessBench, in percent.
_STEPS = {
    "random guess": (50.0, VISUALPRM),
    "InternVL2.5-8B": (48.0, VISUALPRM),
    "GPT-4o": (60.3, VISUALPRM),
    "Qwen2.5-VL-72B": (60.5, VISUALPRM),
    "VisualPRM-8B": (62.0, VISUALPRM),
    "Gemini-2.0-Flash": (62.3, VISUALPRM),
    "BIS": (65.5, "arXiv 2602.04145"),
    "Athena-PRM-7B": (65.9, "arXiv 2506.09532"),
}


def _rows() -> Iterator[Published]:
    for model, pairs in _BEST_OF_8.items():
        for (benchmark, measure), pair in zip(_SEVEN.items(), pairs, strict=True):
            for selector, percent in zip(("greedy", "best of 8"), pair, strict=True):
                yield Published(benchmark, measure, model, selector, round(percent / 100, 4), VISUALPRM)
    for model, pairs in _BEST_OF_16.items():
        for benchmark, pair in zip(_FIVE, pairs, strict=False):  # the large ones were asked MM-K12 alone
            for selector, percent in zip(("random", "best of 16"), pair, strict=True):
                yield Published(benchmark, "accuracy", model, selector, round(percent / 100, 4), MM_PRM)
    for model, (percent, source) in _STEPS.items():
        yield Published("visualprocessbench", "macro_f1", model, "", round(percent / 100, 4), source)


PUBLISHED = tuple(_rows())
"""Without intervals, as they were printed."""


def published(benchmark: str) -> tuple[Published, ...]:
    """What papers print for this benchmark; empty where none does."""
    return tuple(row for row in PUBLISHED if row.benchmark == benchmark)


def published_lines(benchmark: str) -> list[str]:
    """The lines below a table: a model a line, each marked."""
    by_line: dict[tuple[str, str, str], list[str]] = {}
    for row in published(benchmark):
        shown = f"{row.selector} {row.value:.3f}".strip()
        by_line.setdefault((row.model, row.measure, row.source), []).append(shown)
    return [
        f"published  {model:<18}{measure.replace('_', ' ')}: {', '.join(shown)}  ({source})"
        for (model, measure, source), shown in by_line.items()
    ]
