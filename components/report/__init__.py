"""The page: one HTML file that shows a whole run to somebody who would rather look than read.

Owns the order of the sections and that the file needs nothing outside itself; does not know how the numbers came about.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.records import replacing
from components.report import comparison, overview, provenance
from components.report.evidence import gather
from components.report.gallery import gallery
from components.report.markup import Html, join, missing, num_bytes, tag
from components.report.steps import steps

MAX_BYTES = 3_000_000


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
        _section("pipeline", "From problems to a promoted model", overview.pipeline(evidence)),
        _section("comparison", "Which answer would it keep?", comparison.comparison(metrics) if metrics else unmeasured),
        _section("steps", "Does it know which step is wrong?", steps(metrics, evidence.summaries["label"])),
        _section("cost", "What it cost", provenance.cost(evidence)),
    ]
    tail = _section("provenance", "Where everything came from", provenance.provenance(evidence))
    room = MAX_BYTES - num_bytes(join([*sections, tail])) - 40_000
    shown = gallery(artifacts, data, metrics.get("aggregation"), room)
    body = join([*sections, _section("gallery", "Look for yourself: errors first", shown), tail], "\n")
    page = _fill(body, title=f"StepForge: {registry.get('model') or 'process reward model'}")
    try:
        with replacing(out) as part:
            part.write_bytes(page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise DataError(
            str(out), f"cannot be written: {error.strerror}", "check its permissions and the free space"
        ) from error
    return out


def _section(name: str, title: str, content: Html) -> Html:
    return tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")


def _fill(body: Html, *, title: str) -> str:
    """The template with its places filled, in one pass, so that no text of the data can name a place."""
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    places = {"title": join([title]), "body": body, "script": script, "script_hash": f"sha256-{sha}"}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: places[found[1]], template)
