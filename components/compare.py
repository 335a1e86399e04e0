"""What changed between two runs: data, labels, settings, code, and what each selector's pick is worth.

Owns which differences are told, and when two runs may be compared problem by problem; does not know where they are kept
(runs.py) nor how the page looks.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.report.evidence import FOLDERS
from components.runs import Run, read_run

NUM_RESAMPLES = 10_000  # of the intervals, and flips of signs
BASELINES = ("random", "greedy", "majority", "likelihood", "likelihood_mean", "oracle")
"""Selectors that ask no reward model: on the same pool they are the same."""

# what is told of a stage's output: (words, stage, keys of its summary, form)
_COUNTS: tuple[tuple[str, str, str, str], ...] = (
    ("problems kept as seeds", "curate", "seeds", "count"),
    ("rows quarantined", "curate", "quarantined", "count"),
    ("solutions", "rollout", "solutions", "count"),
    ("solutions that are right", "rollout", "right_solutions", "count"),
    ("continuations", "rollout", "continuations", "count"),
    ("tokens of the rollouts", "rollout", "tokens", "count"),
    ("labels", "label", "labels", "count"),
    ("steps unlabelled", "label", "unlabelled", "count"),
    ("mean label", "label", "mean", "value"),
    ("labels learnt from", "train", "labels", "count"),
    ("candidates", "sample", "candidates", "count"),
)
_STEP_NUMBERS = ("auroc", "auroc_reading", "macro_f1", "first_error_f1")
_CHOSEN = ("aggregation", "vote_aggregation", "threshold")


def comparison(a: Run, b: Run) -> dict[str, Any]:
    """Everything that differs between A and B; equal runs give equal bytes.

    Returns: `runs` (a and b: name, prm_digest, decisions, what is unknown), `data`, `labels`, `settings` (rows of what, a,
        b; settings only where they differ), `code` (digests, files that differ with their stages), `metrics` (split ->
        num_problems of each, is_paired, why not, and selectors: a and b with intervals, and where it is paired the
        difference b - a with interval, p and Holm's p) and `steps`.
    """
    return {
        "runs": {key: _about(run) for key, run in (("a", a), ("b", b))},
        "data": _data(a, b),
        "labels": _labels(a, b),
        "settings": {"num_same": _num_same(a, b), "differ": _settings(a, b), "is_known": bool(a.settings and b.settings)},
        "code": _code(a, b),
        "metrics": _metrics(a, b),
        "steps": _steps(a, b),
    }


def _about(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "prm_digest": run.prm_digest,
        "policy_digest": run.metrics.get("policy_digest"),
        "decisions": run.decisions,
        "unknown": run.unknown,
    }


def _row(what: str, values: Sequence[Any], form: str) -> dict[str, Any]:
    """Its `is_same` is None where only one side is known: nobody can say."""
    a, b = values
    return {"what": what, "a": a, "b": b, "form": form, "is_same": None if (a is None) != (b is None) else a == b}


def _data(a: Run, b: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in sorted(set(a.data) | set(b.data)):
        mine, theirs = a.data.get(name, {}), b.data.get(name, {})
        kind = next((kind for kind in ("md5", "sha256") if kind in mine and kind in theirs), None)
        digests = [
            side.get(kind or "md5", side.get("sha256")) or ("not read" if run.data else None)
            for side, run in ((mine, a), (theirs, b))
        ]
        rows.append(_row(name, digests, "digest"))
        if kind is None and mine and theirs:
            rows[-1]["is_same"] = None  # two kinds of digests: nobody can say
        counts = [side.get("num_rows") for side in (mine, theirs)]
        if any(count is not None for count in counts):
            rows.append(_row(f"rows of {name}", counts, "count"))
    pools = [run.metrics.get("pools") or {} for run in (a, b)]
    rows += [
        _row(f"pool of {split}", [pool.get(split) for pool in pools], "digest") for split in sorted({*pools[0], *pools[1]})
    ]
    return rows


def _labels(a: Run, b: Run) -> list[dict[str, Any]]:
    rows = []
    for what, stage, key, form in _COUNTS:
        values = [run.summaries.get(stage, {}).get(key) for run in (a, b)]
        if any(value is not None for value in values):
            rows.append(_row(what, values, form))
    for verdict in ("right", "wrong", "unknown"):
        shares = [_verdict_share(run, verdict) for run in (a, b)]
        if any(share is not None for share in shares):
            rows.append(_row(f"continuations that are {verdict}", shares, "share"))
    for words, low, high in (("at most 0.1", 0.0, 0.1), ("between", 0.1, 0.9), ("at least 0.9", 0.9, 1.0)):
        shares = [_label_share(run, low, high) for run in (a, b)]
        if any(share is not None for share in shares):
            rows.append(_row(f"labels {words}", shares, "share"))
    for key in ("formulation", "estimator"):
        texts = [run.summaries.get("label", {}).get(key) for run in (a, b)]
        if any(text is not None for text in texts):
            rows.append(_row(f"{key} of the labels", texts, "text"))
    return rows


def _verdict_share(run: Run, verdict: str) -> float | None:
    found = run.summaries.get("rollout", {})
    flat = {key.removeprefix("verdicts."): value for key, value in found.items() if key.startswith("verdicts.")}
    counts: Mapping[str, float] = found.get("verdicts") or flat
    total = sum(counts.values()) if counts else 0
    return round(counts.get(verdict, 0) / total, 6) if total else None


def _label_share(run: Run, low: float, high: float) -> float | None:
    bars = run.summaries.get("label", {}).get("histogram") or []
    total = sum(num for _, _, num in bars)
    return round(sum(num for at, to, num in bars if at >= low - 1e-9 and to <= high + 1e-9) / total, 6) if total else None


def _settings(a: Run, b: Run) -> list[dict[str, Any]]:
    if not (a.settings and b.settings):
        return []
    rows = []
    for key in sorted(set(a.settings) | set(b.settings)):
        told = [_setting(run, key) for run in (a, b)]
        if told[0] != told[1]:
            rows.append(_row(key, told, "text"))
    return rows


def _setting(run: Run, key: str) -> str:
    if key in run.settings:
        return json.dumps(run.settings[key], ensure_ascii=False)
    section = key.partition(".")[0]
    return "not set" if section not in FOLDERS or section in run.described else "not known"


def _num_same(a: Run, b: Run) -> int:
    return sum(key in b.settings and b.settings[key] == value for key, value in a.settings.items())


def _code(a: Run, b: Run) -> dict[str, Any]:
    """Files whose content differs in a stage that both describe, with these stages."""
    found: dict[str, list[str]] = {}
    for stage in a.code:
        mine, theirs = a.code[stage], b.code.get(stage)
        if theirs is None:
            continue
        for path in sorted({*mine, *theirs}):
            if mine.get(path) != theirs.get(path):
                found.setdefault(path, []).append(stage)
    files = [{"file": path, "stages": stages} for path, stages in sorted(found.items())]
    return {"a": a.code_digest, "b": b.code_digest, "is_known": bool(set(a.code) & set(b.code)), "files": files}


def _metrics(a: Run, b: Run) -> dict[str, Any]:
    splits = [run.metrics.get("splits") or {} for run in (a, b)]
    return {split: _split(a, b, split) for split in splits[0] if splits[0][split] and splits[1].get(split)}


def _split(a: Run, b: Run, split: str) -> dict[str, Any]:
    mine, theirs = (run.metrics["splits"][split] for run in (a, b))
    why = _why_unpaired(a, b, split)
    found = [side.get("selectors") or {} for side in (mine, theirs)]
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*found[0], *found[1]]):
        rows.append({"selector": name, "a": found[0].get(name), "b": found[1].get(name)})
    if why is None:
        _pair(rows, a, b, split)
    sizes = {key: side.get("num_problems") for key, side in (("a", mine), ("b", theirs))}
    return {"num_problems": sizes, "is_paired": why is None, "why": why, "selectors": rows}


def _why_unpaired(a: Run, b: Run, split: str) -> str | None:
    """Why the two cannot be compared problem by problem; None if they can."""
    pools = [(run.metrics.get("pools") or {}).get(split) for run in (a, b)]
    if None in pools:
        return f"{a.name if pools[0] is None else b.name} does not say which pool it was measured on"
    if pools[0] != pools[1]:
        return "measured on different candidate pools"
    for run in (a, b):
        if not any(one == split for one, _ in run.selections):
            return f"{run.name} keeps no selections of single problems"
    return None


def _pair(rows: Sequence[dict[str, Any]], a: Run, b: Run, split: str) -> None:
    """Add to each row the difference b - a over the same problems, its p, and p by Holm over those that were tested."""
    import numpy as np

    from components.metrics import Bootstrap
    from components.significance import holm, paired_p

    clusters = _clusters(a, b, split)
    bootstraps: dict[tuple[str, ...], Bootstrap] = {}
    tested = []
    for row in rows:
        if row["selector"] in BASELINES:
            row["why"] = "asks no reward model: the same on the same pool"
            continue
        mine, theirs = (run.selections.get((split, row["selector"]), {}) for run in (a, b))
        if len(mine) < 2 or mine.keys() != theirs.keys():
            row["why"] = f"selections of {len(mine)} and {len(theirs)} problems do not pair"
            continue
        keys = tuple(sorted(mine))
        pair = [np.array([side[key] for key in keys]) for side in (mine, theirs)]
        if not all(math.isfinite(value) for values in pair for value in values.tolist()):
            row["why"] = "a selection is no finite number"
            continue
        if keys not in bootstraps:
            confidence = float(a.metrics.get("confidence") or 0.95)
            bootstraps[keys] = Bootstrap(
                len(keys), num_resamples=NUM_RESAMPLES, confidence=confidence, seed=0, clusters=_names(keys, clusters)
            )
        row["difference"] = bootstraps[keys].mean(pair[1] - pair[0], is_difference=True)
        p = paired_p(pair[1], pair[0], clusters=_names(keys, clusters), num_flips=NUM_RESAMPLES, seed=0)
        row["p"] = round(p, 6)
        tested.append(row)
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = round(corrected, 6)


def _names(keys: Sequence[str], clusters: Mapping[str, str] | None) -> list[str] | None:
    return None if clusters is None else [clusters.get(key, key) for key in keys]


def _clusters(a: Run, b: Run, split: str) -> dict[str, str] | None:
    """Problem -> the problems that belong together, as evaluate found them; equal pools have equal ones."""
    return next((known for run in (a, b) if (known := (run.metrics.get("clusters") or {}).get(split))), None)


def _steps(a: Run, b: Run) -> list[dict[str, Any]]:
    """Numbers about single steps, and what was chosen on dev."""
    rows = []
    for pool in ("candidates", "step_errors"):
        found = [((run.metrics.get("steps") or {}).get(pool) or {}).get("prm") or {} for run in (a, b)]
        for key in _STEP_NUMBERS:
            values = [side.get(key) for side in found]
            if any(value is not None for value in values):
                rows.append(_row(f"{key.replace('_', ' ')}, {pool.replace('_', ' ')}", values, "value"))
    errors = [(run.metrics.get("calibration") or {}).get("ece") for run in (a, b)]
    if any(value is not None for value in errors):
        rows.append(_row("calibration error", errors, "value"))
    for key in _CHOSEN:
        values = [run.metrics.get(key) for run in (a, b)]
        if any(value is not None for value in values):
            rows.append(_row(f"{key.replace('_', ' ')}, chosen on dev", values, "text" if key != "threshold" else "value"))
    return rows


# For a terminal


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The comparison as text."""
    lines = []
    for key, about in found["runs"].items():
        lines.append(f"{key.upper()}  {about['name']}  PRM {str(about['prm_digest'] or '-')[:12]}")
        lines += [f"   {line}" for line in about["decisions"][-3:]]
        lines += [f"   not known: {line}" for line in about["unknown"]]
    for title in ("data", "labels"):
        lines += ["", *_differing(title, found[title])]
    settings, code = found["settings"], found["code"]
    told = _told(len(settings["differ"]), settings["num_same"]) if settings["is_known"] else "not known of both"
    lines += ["", f"settings: {told}", *_columns(settings["differ"])]
    digests = " -> ".join(str(code[key] or "-")[:12] for key in ("a", "b"))
    told = f"{len(code['files'])} files differ, {digests}" if code["is_known"] else "not known of both"
    lines += ["", f"code: {told}"]
    lines += [f"  {one['file']}  ({', '.join(one['stages'])})" for one in code["files"]]
    for split, part in found["metrics"].items():
        how = "the same problems and candidates, B - A" if part["is_paired"] else f"unpaired: {part['why']}"
        lines += ["", f"{split}: {how}"]
        rows = [("selector", "A", "B", "B - A", "p", "Holm")]
        for row in part["selectors"]:
            difference = _interval(row.get("difference"), signed=True) if row.get("difference") else "-"
            tests = [f"{row[key]:.4f}" if row.get(key) is not None else "-" for key in ("p", "p_holm")]
            rows.append((row["selector"], _interval(row["a"]), _interval(row["b"]), difference, *tests))
        lines += _aligned(rows)
    if not found["metrics"]:
        lines += ["", "metrics: no split was measured by both"]
    return [*lines, "", *_differing("steps, and what was chosen on dev", found["steps"])]


def _differing(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many rows are the same, and those that are not."""
    by_fate = {fate: [row for row in rows if row["is_same"] is fate] for fate in (True, False, None)}
    half = f", {len(by_fate[None])} known of one only" if by_fate[None] else ""
    return [f"{title}: {_told(len(by_fate[False]), len(by_fate[True]))}{half}", *_columns(by_fate[False])]


def _told(num_differ: int, num_same: int) -> str:
    if not num_differ:
        return f"all {num_same} are the same" if num_same else "nothing is known"
    return f"{num_differ} differ, {num_same} are the same"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return _aligned([(row["what"], shown(row["a"], row["form"]), shown(row["b"], row["form"])) for row in rows])


def shown(value: Any, form: str) -> str:
    """A value of a row as a reader expects it."""
    if value is None:
        return "-"
    if form == "count" and isinstance(value, (int, float)):
        return f"{value:,.0f}"
    if form == "share" and isinstance(value, (int, float)):
        return f"{100 * value:.1f} %"
    if form == "value" and isinstance(value, (int, float)):
        return f"{value:.6g}"
    return str(value)[:12] if form == "digest" else str(value)


def _interval(value: Mapping[str, float] | None, *, signed: bool = False) -> str:
    if not value or any(value.get(key) is None for key in ("mean", "low", "high")):
        return "-"
    sign = "+" if signed else ""
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def run(args: Namespace) -> int:
    """The verb: a table on the terminal, or JSON; and a page where one is wanted.

    Raises:
        SettingsError: a name names no run.
        DataError: a file cannot be read, or the page cannot be written.
    """
    from components.settings import load_runtime

    home = load_runtime().home
    found = comparison(read_run(args.a, home=home), read_run(args.b, home=home))
    print(json.dumps(found, ensure_ascii=False, indent=1) if args.json else "\n".join(lines_of(found)))
    if args.out:
        from components.report.changes import write_changes

        page = write_changes(Path(args.out), found)
        if not args.json:
            print(f"\npage  {page}")
    return 0
