"""The page: one HTML file that shows a whole run to somebody who would rather look than read.

Owns the order of the sections and that the file needs nothing outside itself; does not know how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.report import comparison, controls, curves, groups, overview, provenance
from components.report.evidence import gather
from components.report.gallery import gallery
from components.report.markup import join, missing, num_bytes, tag
from components.report.steps import steps
from components.report.template import section, write_page

MAX_BYTES = 3_000_000
LINKS = {
    "pipeline": "Pipeline",
    "comparison": "Comparison",
    "curves": "Curves",
    "groups": "Groups",
    "steps": "Steps",
    "controls": "Controls",
    "cost": "Cost",
    "gallery": "Gallery",
    "provenance": "Provenance",
}


def write_report(
    out: Path,
    *,
    artifacts: Path,
    data: Path,
    receipts: Sequence[Mapping[str, Any]],
    registry: Mapping[str, Any],
) -> Path:
    """Write the page to `out` and return `out`; equal inputs give equal bytes. What is missing is said, not an error.

    Args:
        out: the HTML file, at most 3 MB; replaced whole.
        artifacts: folder with the stages' outputs.
        data: folder with the benchmarks' Parquet files, for questions and pictures.
        receipts: what `lineage.find_receipt` gave; stages whose output was restored have none.
        registry: {} or {"model": str, "environments": {"dev" | "staging" | "prod": {"version", "digest"} | None},
            "ledger": the records of `ledger.verify_ledger`, oldest first}: what stands in each environment, and why.
    Raises:
        DataError: a file is there and cannot be read, or `out` cannot be written.
    """
    evidence = gather(artifacts, data, receipts, registry)
    metrics = evidence.metrics
    unmeasured = missing("Nothing was evaluated yet: there is no metrics.json.")
    sections = [
        tag("section", overview.headline(evidence), aria_label="what was found"),
        section("pipeline", "From problems to a promoted model", overview.pipeline(evidence)),
        section("comparison", "Which answer would it keep?", comparison.comparison(metrics) if metrics else unmeasured),
        section(
            "curves", "What do more candidates buy?", curves.curves(metrics, evidence.search) if metrics else unmeasured
        ),
        section("groups", "Where does it gain?", groups.groups(metrics) if metrics else unmeasured),
        section("steps", "Does it know which step is wrong?", steps(metrics, evidence.summaries["label"])),
        section("controls", "Is it paid for anything else?", controls.controls(evidence) if metrics else unmeasured),
        section("cost", "What it cost", provenance.cost(evidence)),
    ]
    tail = section("provenance", "Where everything came from", provenance.provenance(evidence))
    room = MAX_BYTES - num_bytes(join([*sections, tail])) - 40_000
    shown = gallery(artifacts, data, metrics, room)
    body = join([*sections, section("gallery", "Look for yourself: errors first", shown), tail], "\n")
    return write_page(out, body, title=f"StepForge: {registry.get('model') or 'process reward model'}", links=LINKS)
