"""The verb `benchmark`: outputs or step scores -> a benchmark's own numbers beside ours, each with its interval.

Owns what is asked of whom and how the table looks; the rules, metrics and file layouts are elsewhere.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from components import metrics
from components.benchmarks import BENCHMARKS, Benchmark, answer_rule
from components.distributions import Row, official_rows, write_problems
from components.errors import DataError, SettingsError
from components.grade import graded_rows, joined, official_verdict, read_rows
from components.measures import Measure, best_of_n_rows, first_best, first_majority, inside
from components.metrics import Bootstrap, Interval
from components.progress import Progress, say
from components.published import published, published_lines
from components.records import CANDIDATE, SCORE, read_json, read_table, write_json
from components.step_benchmarks import STEP_BENCHMARKS, Case, read_cases, scores_of_rows, step_benchmark
from components.step_standings import METRICS, Standing, chosen_threshold, crossed_thresholds, standings

FILES = ("best-of-n", "best-of-n-curves")
"""Files of selections that were made elsewhere: candidates with verdicts and scores, and finished curves."""
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_MAX_PIXELS = 50_000_000


def run(args: argparse.Namespace) -> int:
    """The verb: 0 whatever the numbers are."""
    name = args.name
    if name in BENCHMARKS:
        lines, content = _write_problems(args) if args.to else _answers(args)
    elif name in STEP_BENCHMARKS:
        lines, content = _steps(args)
    elif name in FILES:
        rows = read_rows(Path(args.file))
        lines, content = best_of_n(rows) if name == "best-of-n" else curves(rows)
    else:
        known = ", ".join((*BENCHMARKS, *STEP_BENCHMARKS, *FILES))
        raise SettingsError("command line", f"no benchmark named {name!r}", f"known: {known}")
    if not args.to:
        lines += published_lines(name)
    if args.out:
        if Path(args.out).is_dir():
            raise SettingsError("command line", f"--out {args.out} is a folder", "name a JSON file")
        write_json(Path(args.out), {"benchmark": name, **content, "published": [asdict(row) for row in published(name)]})
    print("\n".join(lines).encode(errors="replace").decode())
    return 0


# --- answers -------------------------------------------------------------------------------------------------------


def _write_problems(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    benchmark = BENCHMARKS[args.name]
    rows = official_rows(benchmark, Path(args.file), split=args.split, pictures=True)
    images = Path(args.images) if args.images else None
    fates = write_problems(args.name, benchmark, rows, Path(args.to), images=images, max_image_pixels=_MAX_PIXELS)
    return [f"{args.to}: " + ", ".join(f"{count:,} {fate}" for fate, count in fates.items())], {"rows": fates}


def _answers(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    benchmark, path = BENCHMARKS[args.name], Path(args.file)
    if args.candidates:
        return _selected(args, benchmark, path)
    rows = official_rows(benchmark, path, split=args.split)
    if args.gold:
        rows = joined(rows, official_rows(benchmark, Path(args.gold), split=args.split), args.on)
    found = answer_standings(benchmark, rows, response=args.response, official=args.official, inverted=args.inverted)
    lines = [f"{args.name}  {path}  {len(rows):,} rows"]
    lines += _columns(found.measures, benchmark.overall)
    return [*lines, *found.notes], {"num_rows": len(rows), "measures": found.measures, "notes": found.notes}


def _selected(args: argparse.Namespace, benchmark: Benchmark, path: Path) -> tuple[list[str], dict[str, Any]]:
    evaluation = Path(args.evaluation) if args.evaluation else None
    picked = candidate_rows(path, Path(args.candidates), evaluation)
    found = {selector: answer_standings(benchmark, rows) for selector, rows in picked.items()}
    judges = {judge: None for one in found.values() for judge in one.measures}
    num_rows = len(next(iter(picked.values())))
    lines, content = [f"{args.name}  {path}  {num_rows:,} rows"], {}
    for judge in judges:
        content[judge] = {selector: one.measures[judge] for selector, one in found.items()}
        lines += [judge, *_columns(content[judge], benchmark.overall)]
    lines += [f"{selector}: {note}" for selector, one in found.items() for note in one.notes]
    return lines, {"num_rows": num_rows, "measures": content}


class AnswerStandings:
    """A benchmark's numbers by several judges: `official`, `ours`, `stored`."""

    def __init__(self) -> None:
        self.measures: dict[str, dict[str, Interval | None]] = {}
        """judge -> measure -> its mean and interval; None where it is not defined"""
        self.verdicts: dict[str, list[float]] = {}
        """judge -> one a row: the share of its responses that are right"""
        self.notes: list[str] = []


def answer_standings(
    benchmark: Benchmark,
    rows: Sequence[Mapping[str, Any]],
    *,
    response: str | None = None,
    official: str | None = None,
    inverted: bool = False,
    num_resamples: int = NUM_RESAMPLES,
) -> AnswerStandings:
    """The numbers of a benchmark from rows of gold fields and responses, or of official verdicts alone.

    Args:
        response: field of the response, or of a list of them; None: the first that the answer rule knows.
        official: field of a stored verdict, shown as `stored`; None: `official`, where the rows have it.
        inverted: the stored verdict says 0 or no for right.
    Raises:
        DataError: a row lacks a field.
    """
    found, rule = AnswerStandings(), answer_rule(benchmark.rule)
    field = official or ("official" if rows and "official" in rows[0] else None)
    stored: list[bool | None] = []
    if field is not None:
        stored = [official_verdict(inside(row, field)) for row in rows]
        if inverted:
            stored = [None if value is None else not value for value in stored]
        if not any(value is not None for value in stored):
            raise DataError("official", f"no verdict in {field!r} says right or wrong", "name the field with --official")
        found.verdicts["stored"] = [float(value is True) for value in stored]
    named = response or next((name for name in rows[0] if str(name).endswith("answer raw")), None)
    if named is None and field is not None and not any(name in rows[0] for name in rule.responses):
        found.verdicts = {"official": found.verdicts.pop("stored")}
        found.notes.append("the rows hold official verdicts and no responses: nothing to judge anew")
    else:
        _judged(found, benchmark, rows, named)
    for judge, verdicts in found.verdicts.items():
        found.measures[judge] = intervals(benchmark.numbers(rows, verdicts), num_resamples=num_resamples)
    for judge, verdicts in found.verdicts.items():
        if judge != "stored" and "stored" in found.verdicts:
            both = [(one, value) for one, value in zip(verdicts, stored, strict=True) if value is not None]
            same = sum((one == 1) == value for one, value in both)
            found.notes.append(f"{judge} and stored verdicts agree on {same:,} of {len(both):,} rows")
    return found


def _judged(found: AnswerStandings, benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], field: str | None) -> None:
    rule = answer_rule(benchmark.rule)
    graded = list(graded_rows(rows, rule, response=field))
    of_row: list[list[str]] = [[] for _ in rows]
    number = -1
    unknown = 0
    for one in graded:
        number += one.index == 0
        of_row[number].append(one.verdict)
        unknown += one.verdict == "unknown"
    responses = _responses(rows, field or next(name for name in rule.responses if name in rows[0]))
    if benchmark.official is not None and all(len(texts) == 1 for texts in responses):
        said = benchmark.official(rows, [texts[0] for texts in responses])
        found.verdicts = {"official": [float(one.is_right is True) for one in said], **found.verdicts}
        guesses = [one for one in said if one.is_guess]
        if guesses:
            right = sum(one.is_right is True for one in guesses)
            num_right = int(sum(found.verdicts["official"]))
            found.notes.append(
                f"official: {num_right:,} of {len(rows):,} right; {len(guesses):,} answers were drawn at random, "
                f"{right:,} of these right; without them {num_right - right:,}"
            )
    elif benchmark.official is None:
        found.notes.append("official: not computed here" + (f"; its rule: {rule.note}" if rule.note else ""))
    found.verdicts["ours"] = [
        sum(verdict == "right" for verdict in verdicts) / len(verdicts) if verdicts else 0.0 for verdicts in of_row
    ]
    found.notes.append(f"ours: {unknown:,} of {len(graded):,} responses are unknown and count as not right")


def _responses(rows: Sequence[Mapping[str, Any]], field: str) -> list[list[str]]:
    def text(value: Any) -> str:
        return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)

    held = [inside(row, field) for row in rows]
    return [[text(v) for v in value] if isinstance(value, list) else [text(value)] for value in held]


def candidate_rows(problems: Path, candidates: Path, evaluation: Path | None = None) -> dict[str, list[Row]]:
    """Selector -> the official rows of a problem file, each with the answer that it picks from a frozen pool.

    greedy, where the pool has it, else first · majority: the first of the most frequent answers · prm: the highest score
    under the aggregation that was chosen on dev; of equal ones the first. A benchmark's rule may look at several rows at
    once (worst case, groups), so one answer is picked, where the metrics of `evaluate` share ties.

    Args:
        problems: written by `stepforge benchmark NAME FILE --to`.
        candidates: folder written by `stepforge sample`.
        evaluation: folder written by `stepforge evaluate` on this pool; None: without prm.
    Raises:
        DataError: no problem has candidates, or the pool was not evaluated.
    """
    from components.problems import Quarantined, load_problems

    pools: dict[str, dict[str, list[Row]]] = defaultdict(lambda: {"greedy": [], "sample": []})
    for row in read_table(candidates / "candidates.parquet", CANDIDATE):
        pools[row["problem_id"]][row["decoding"]].append(row)
    scores = _candidate_scores(evaluation) if evaluation is not None else None
    rows: dict[str, list[Row]] = defaultdict(list)
    known, num = read_rows(problems), 0
    for number, problem in load_problems(problems, max_image_pixels=_MAX_PIXELS):
        if isinstance(problem, Quarantined) or problem["problem_id"] not in pools:
            continue
        num += 1
        official = json.loads(known[number].get("official_row") or "{}")
        pool = pools[problem["problem_id"]]
        for selector, picked in _picked(pool["greedy"], pool["sample"], scores).items():
            rows[selector].append({**official, "response": picked["text"]})
    if not num:
        raise DataError(str(candidates), f"answers no problem of {problems}", "run sample with this file as a split")
    if num < len(known):
        say("benchmark", f"{len(known) - num:,} of {len(known):,} problems have no candidate and are left out")
    return {selector: chosen for selector, chosen in rows.items() if len(chosen) == num}


def _picked(greedy: Sequence[Row], sample: Sequence[Row], scores: Mapping[str, float] | None) -> dict[str, Row]:
    found = {"greedy": greedy[0]} if greedy else {"first": sample[0]}
    if sample:
        answering = [row for row in sample if row["answer"] is not None] or list(sample)
        found["majority"] = answering[first_majority([row["answer"] for row in answering])]
        if scores is not None:
            missing = next((row["candidate_id"] for row in sample if row["candidate_id"] not in scores), None)
            if missing is not None:
                raise DataError("scores", f"candidate {missing} has no score", "run evaluate on this pool")
            found["prm"] = sample[first_best([scores[row["candidate_id"]] for row in sample])]
    return found


def _candidate_scores(evaluation: Path) -> dict[str, float]:
    how = read_json(evaluation / "metrics.json")["aggregation"]
    rows = read_table(evaluation / "scores.parquet", SCORE)
    return {row["candidate_id"]: metrics.aggregate(row["step_scores"], how) for row in rows if row["scorer"] == "prm"}


def intervals(
    measures: Sequence[Measure], *, num_resamples: int = NUM_RESAMPLES, confidence: float = CONFIDENCE
) -> dict[str, Interval | None]:
    """Every measure with its interval, by bootstrap over its units or their clusters."""
    draws: dict[tuple[int, tuple[str, ...] | None], Bootstrap] = {}
    found: dict[str, Interval | None] = {}
    for measure in measures:
        key = (len(measure.over), measure.clusters)
        if measure.value is None:
            found[measure.name] = None
            continue
        if key not in draws:
            draws[key] = Bootstrap(
                key[0], num_resamples=num_resamples, confidence=confidence, seed=0, clusters=measure.clusters
            )
        over = np.asarray(measure.over, dtype=float)
        under = None if measure.under is None else np.asarray(measure.under, dtype=float)
        found[measure.name] = draws[key].mean(over) if under is None else draws[key].ratio(over, under)
    return found


# --- steps ---------------------------------------------------------------------------------------------------------


def _steps(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    benchmark = step_benchmark(args.name)
    if sum(bool(one) for one in (args.prm, args.scores, args.judge)) != 1:
        raise SettingsError("command line", "one of --prm, --scores and --judge", "say whose scores are to be measured")
    if args.threshold is not None and args.tune_on:
        raise SettingsError("command line", "--threshold and --tune-on", "name one")
    path = Path(args.file)
    cases = read_cases(benchmark, path)
    folder = Path(args.images) if args.images else (path if path.is_dir() else path.parent)
    threshold: float | None = args.threshold
    if args.prm:
        scores, known = prm_scores(args.prm, cases, folder)
        threshold = known if threshold is None and not args.tune_on else threshold
        whose = f"the reward model's own threshold {known:.2f}"
    elif args.scores:
        scores, whose = scores_of_rows(cases, read_rows(Path(args.scores))), ""
    else:
        scores, whose = judge_scores(args.judge, cases, folder), "a judge says right or wrong"
        threshold = 0.5
    scored = [case for case in cases if case.id in scores]
    if not scored:
        raise DataError(args.name, f"none of {len(cases):,} cases could be scored", "see the lines before")
    rows = [scores[case.id] for case in scored]
    if args.tune_on:
        tuning = [i for i, case in enumerate(scored) if case.group == args.tune_on]
        if not tuning:
            groups = ", ".join(sorted({case.group for case in scored}))
            raise SettingsError("command line", f"--tune-on {args.tune_on!r}: no such group", f"known: {groups}")
        threshold = chosen_threshold([scored[i] for i in tuning], [rows[i] for i in tuning], benchmark.metric)
        whose = f"threshold {threshold:.4g}, chosen on {args.tune_on}: its own row is optimistic"
    if threshold is not None:
        threshold_P = np.full(len(scored), threshold)
        whose = f"threshold {threshold:.4g}, as asked" if args.threshold is not None else whose
    else:
        threshold_P = crossed_thresholds(scored, rows, benchmark.metric)
        shown = ", ".join(f"{value:.4g}" for value in sorted(set(threshold_P.tolist())))
        whose = f"thresholds {shown}: for each half of the problems chosen on the other"
    found = standings(benchmark, scored, rows, threshold_P, num_resamples=NUM_RESAMPLES, confidence=CONFIDENCE)
    lines = [f"{args.name}  {path}  {len(scored):,} of {len(cases):,} cases scored", whose]
    lines += [benchmark.note] if benchmark.note else []
    lines += step_table(benchmark.metric, found)
    content = {
        "num_cases": len(cases),
        "num_scored": len(scored),
        "threshold": whose,
        "groups": [
            {
                "group": one.group,
                "num_cases": one.num_cases,
                "num_steps": one.num_steps,
                "wrong_frac": one.wrong_frac,
                "numbers": dict(one.numbers),
                "trivial": dict(one.trivial),
            }
            for one in found
        ],
        "scores": {case.id: row for case, row in zip(scored, rows, strict=True)},
    }
    return lines, content


def prm_scores(name: str, cases: Sequence[Case], folder: Path) -> tuple[dict[str, list[float]], float]:
    """Case id -> step scores by a trained reward model, and its own threshold; what cannot be scored is counted aloud."""
    from components.score import open_prm
    from components.settings import limit_threads, load_runtime

    runtime = load_runtime()
    limit_threads(runtime.num_threads)
    scorer = open_prm(name, device=runtime.device)
    if scorer.model.formulation.last_only:
        what = "judges whole solutions, not steps"
        raise SettingsError(name, what, "name a reward model of another formulation than `outcome`")
    asked, fates = _asked(cases, folder)
    progress = Progress("benchmark", len(asked), unit="solutions")
    found: dict[str, list[float]] = {}
    names = list(asked)
    for start in range(0, len(names), _WINDOW):
        part = names[start : start + _WINDOW]
        for case_id, scored in zip(part, scorer.score_all([asked[one] for one in part]), strict=True):
            if scored.fate == "scored":
                found[case_id] = list(scored.scores)
            else:
                fates[scored.fate] += 1
        progress.advance(len(part))
    _say_fates(fates)
    return found, scorer.threshold


_WINDOW = 64


def judge_scores(model: str, cases: Sequence[Case], folder: Path) -> dict[str, list[float]]:
    """Case id -> 1 or 0 a step by a model at STEPFORGE_JUDGE_URL; what it says nothing of is left out, and counted aloud."""
    from components.settings import load_runtime
    from components.step_judge import StepJudge
    from components.store import Journal

    runtime = load_runtime()
    asked, fates = _asked(cases, folder)
    journal = Journal(runtime.home / "journal.sqlite")
    try:
        judge = StepJudge(model, url=runtime.judge_url, key=runtime.judge_key, journal=journal)
        said = judge.judge(list(asked.values()))
    finally:
        journal.close()
    _say_fates(fates)
    return {name: verdicts for name, verdicts in zip(asked, said, strict=True) if verdicts is not None}


def _asked(cases: Sequence[Case], folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Case id -> what a scorer is asked, and how often a picture is missing or broken."""
    from components.problems import Quarantined, picture_bytes
    from components.score import Asked

    found: dict[str, Asked] = {}
    fates: dict[str, int] = defaultdict(int)
    for case in cases:
        contents = [picture_bytes(one, folder, case.id, _MAX_PIXELS) for one in case.images if one is not None]
        bad = next((one for one in contents if isinstance(one, Quarantined)), None)
        if bad is not None:
            fates[f"{bad.reason} (such as {bad.detail})" if not fates else bad.reason] += 1
            continue
        pictures = tuple(one for one in contents if isinstance(one, bytes))
        found[case.id] = Asked(case.question, case.steps, pictures)
    return found, fates


def _say_fates(fates: Mapping[str, int]) -> None:
    if fates:
        say("benchmark", "cases left out: " + ", ".join(f"{count:,} {fate}" for fate, count in fates.items()))


def step_table(metric: str, found: Sequence[Standing]) -> list[str]:
    """The lines of a table: a group a line, overall first, trivial baselines behind."""
    parts = [name for name in found[0].numbers if name != metric]
    width = max(10, *(len(one.group) for one in found))
    names = [METRICS[metric], *(name.replace("_", " ").replace("f1", "F1").replace("auroc", "AUROC") for name in parts)]
    head = f"{'group':<{width}}{'cases':>8}{'steps':>9}{'wrong':>8}  " + "".join(f"{name:<23}" for name in names)
    lines = [head + "  ".join(found[0].trivial)]
    for one in found:
        line = f"{one.group:<{width}}{one.num_cases:>8,}{one.num_steps:>9,}{one.wrong_frac:>8.3f}  "
        line += "".join(f"{shown(one.numbers[name]):<23}" for name in (metric, *parts))
        cells = [f"{value:.3f}".ljust(len(name)) for name, value in one.trivial.items()]
        lines.append((line + "  ".join(cells)).rstrip())
    return lines


# --- files of selections -------------------------------------------------------------------------------------------


def best_of_n(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Best-of-N of a file with `pred`, `score` and `pred_score`, as its authors count and with ties shared.

    Raises:
        DataError: a row has no verdicts.
    """
    if not all(isinstance(row.get("score"), list) and row["score"] for row in rows):
        raise DataError("best-of-n", "a row has no list `score`", "fields: score, and pred and pred_score where there are")
    official = best_of_n_rows(rows)
    n = min(len(row["score"]) for row in rows)
    ours = []
    for measure in official:
        values = measure.over
        if measure.name == f"rm@{n}":
            values = tuple(metrics.best_of_n(_flat(row["pred_score"][:n]), _bools(row["score"][:n])) for row in rows)
        elif measure.name == f"maj@{n}":
            values = tuple(metrics.vote([str(p) for p in row["pred"][:n]], _bools(row["score"][:n])) for row in rows)
        ours.append(Measure(measure.name, values))
    measures = {"official": intervals(official), "ours": intervals(ours)}
    return [f"best-of-n  {len(rows):,} problems", *_columns(measures, official[0].name)], {"measures": measures}


def _flat(scores: Sequence[Any]) -> list[float]:
    return [float(score[0]) if isinstance(score, list | tuple) else float(score) for score in scores]


def _bools(values: Sequence[Any]) -> list[bool]:
    return [bool(value) for value in values]


def curves(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Finished Best-of-N curves: `metric`, `num_samples_per_problem`, `mean`, `std`, and the model where several are there.

    Raises:
        DataError: a row lacks one of these.
    """
    table: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    models = {str(row.get("model_name_or_path", "")) for row in rows if row.get("metric") != "majority_voting"}
    for number, row in enumerate(rows):
        try:
            n, mean, std = int(row["num_samples_per_problem"]), float(row["mean"]), float(row.get("std") or 0)
            name = str(row["metric"])
        except (KeyError, TypeError, ValueError) as error:
            hint = "fields: metric, num_samples_per_problem, mean, std"
            raise DataError(f"row {number}", f"no curve point: {error}", hint) from error
        model = str(row.get("model_name_or_path", ""))
        label = f"{name}  {model}" if len(models) > 1 and name != "majority_voting" else name
        table[label][n] = (mean, std)
    numbers = sorted({n for points in table.values() for n in points})
    width = max(len(name) for name in table) + 2
    lines = [f"{len(table):,} curves, {len(rows):,} points: mean ± standard deviation over trials, as published"]
    lines.append(f"{'curve':<{width}}" + "".join(f"{'N=' + str(n):<15}" for n in numbers))
    for name in sorted(table, key=lambda one: -max(table[one].items())[1][0]):
        cells = [f"{table[name][n][0]:.3f} ±{table[name][n][1]:.3f}" if n in table[name] else "" for n in numbers]
        lines.append((f"{name:<{width}}" + "".join(f"{cell:<15}" for cell in cells)).rstrip())
    content = {
        name: {str(n): {"mean": m, "std": s} for n, (m, s) in sorted(points.items())} for name, points in table.items()
    }
    return lines, {"curves": content}


# --- the table -----------------------------------------------------------------------------------------------------


def shown(interval: Interval | None) -> str:
    """`0.803 [0.771, 0.836]`, or a dash."""
    return "-" if interval is None else f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _columns(measures: Mapping[str, Mapping[str, Interval | None]], overall: str) -> list[str]:
    """A measure a line, a judge a column; the one that papers report is marked."""
    names = list(dict.fromkeys(name for column in measures.values() for name in column))
    width = max(24, *(len(name) + 4 for name in names))
    lines = [f"{'measure':<{width}}" + "".join(f"{judge:<24}" for judge in measures)]
    marked = overall if overall in names else names[0]
    for name in names:
        label = f"{name} *" if name == marked else name
        lines.append(
            (f"{label:<{width}}" + "".join(f"{shown(column.get(name)):<24}" for column in measures.values())).rstrip()
        )
    return [*lines, "* the number that papers report"]
