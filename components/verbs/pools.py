"""Verbs about answers: graded, measured on benchmarks, sampled elsewhere, searched for, and compared between runs.

Owns their arguments; each is computed elsewhere, and imported when it is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from components.verbs.shared import (
    OUT,
    PARAMS,
    add_gold,
    named_path,
    recorded,
    refuse_foreign,
)

_GRADE = "Grade a file of gold fields and responses; for example: grade outputs.jsonl --rule mathvista --official true_false"


def add(verbs: Any) -> None:
    """Add them to the sub-commands `verbs`."""
    _add_world(verbs)
    _add_grade(verbs)
    _add_benchmark(verbs)
    _add_import_pool(verbs)
    _add_search(verbs)
    _add_compare(verbs)


def _add_world(verbs: Any) -> None:
    sub = verbs.add_parser(
        "world", help="write the known-truth world's data folder", description="Write the known-truth world's data."
    )
    sub.add_argument("--out", default="data", help="folder to write (default: data)")
    sub.add_argument("--seed", type=int, default=0, help="another seed is another world (default: 0, pinned by data.dvc)")
    sub.add_argument(
        "--task", default="maths", choices=("maths", "scene"), help="the task whose world it is (default: maths)"
    )
    sub.set_defaults(call=_run_world)


def _run_world(args: argparse.Namespace) -> int:
    from components.scenes import write_scenes
    from components.world import write_world

    refuse_foreign(Path(args.out), "truth.parquet")
    (write_scenes if args.task == "scene" else write_world)(Path(args.out), seed=args.seed)
    return 0


def _add_grade(verbs: Any) -> None:
    sub = verbs.add_parser(
        "grade", help="verdicts on any file of responses, compared with official ones", description=_GRADE
    )
    sub.add_argument("file", metavar="FILE", help="JSONL, JSON, CSV or Parquet file of gold fields and responses")
    sub.add_argument(
        "--rule", required=True, help="how this benchmark is graded, for example mathvista; auto reads the type"
    )
    sub.add_argument("--response", metavar="FIELD", help="field of the response, or of a list of them (default: the rule's)")
    sub.add_argument("--official", metavar="FIELD", help="field of an official verdict to compare with")
    sub.add_argument("--inverted", action="store_true", help="the official field says 0 or no for right")
    add_gold(sub)
    sub.add_argument("--out", metavar="FILE", help="write every verdict as JSON lines")
    sub.set_defaults(call=_run_grade)


def _run_grade(args: argparse.Namespace) -> int:
    from components.grade import run

    return run(args)


def _add_benchmark(verbs: Any) -> None:
    what = "a benchmark's own numbers beside ours: from outputs, from step scores, or from a reward model or a judge"
    example = "stepforge benchmark wemath outputs.json; stepforge benchmark processbench data --prm artifacts/prm"
    example += " --tune-on gsm8k; stepforge benchmark mathvision hub/MathVision --split testmini --to mathvision.parquet"
    sub = verbs.add_parser(
        "benchmark", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples: {example}"
    )
    sub.add_argument("name", metavar="NAME", help="of the benchmark; a wrong one lists those that are known")
    sub.add_argument("file", metavar="FILE", help="a file of it, or the folder of its hub snapshot or repository")
    sub.add_argument("--split", help="of the distribution (default: the one that the papers report)")
    sub.add_argument("--images", metavar="FOLDER", help="where the pictures' paths start (default: FILE's own folder)")
    sub.add_argument("--to", metavar="PARQUET_FILE", help="write its problems, for sample --split NAME=FILE")
    sub.add_argument(
        "--candidates", metavar="FOLDER", help="written by sample on the file that --to wrote, which FILE names"
    )
    sub.add_argument("--evaluation", metavar="FOLDER", help="written by evaluate on these candidates: the PRM's picks too")
    sub.add_argument("--response", metavar="FIELD", help="of the response (default: the answer rule's)")
    add_gold(sub)
    sub.add_argument("--official", metavar="FIELD", help="of a stored official verdict, shown and compared with")
    sub.add_argument("--inverted", action="store_true", help="the stored verdict says 0 or no for right")
    sub.add_argument("--prm", metavar="PRM", help="of a step benchmark: folder written by train, which scores the steps")
    sub.add_argument("--scores", metavar="FILE", help="of a step benchmark: step scores made elsewhere, with the cases' ids")
    sub.add_argument("--judge", metavar="MODEL", help="of a step benchmark: a model at STEPFORGE_JUDGE_URL judges the steps")
    sub.add_argument(
        "--threshold", type=float, help="at or below it a step is wrong (default: the reward model's own, or cross-fitted)"
    )
    sub.add_argument("--tune-on", metavar="GROUP", help="choose the threshold on this source or subset")
    sub.add_argument("--out", metavar="JSON_FILE", help="write every number, and every step score")
    sub.set_defaults(call=_run_benchmark)


def _run_benchmark(args: argparse.Namespace) -> int:
    from components.scoreboard import run

    return run(args)


def _add_import_pool(verbs: Any) -> None:
    what = "candidates that were sampled elsewhere -> a folder that stands in for the one of sample"
    example = (
        "stepforge import-pool math_cot_100.jsonl --format qwen-best-of-8 --split test=math.parquet --out artifacts/pool"
    )
    sub = verbs.add_parser("import-pool", help=what, description=what, epilog=f"example: {example}")
    sub.add_argument("file", nargs="+", help="JSON, JSONL or Parquet file of candidates")
    sub.add_argument("--format", required=True, metavar="FORMAT", help="mm-prm, qwen-best-of-8, jsonl")
    sub.add_argument("--split", required=True, action="append", help="NAME=FILE, the problems that they answer; repeatable")
    sub.add_argument(
        "--verdicts", default="ours", metavar="WHOSE", help="ours: graded here; official: those of the file (default: ours)"
    )
    sub.add_argument("--scorer", default="elsewhere", metavar="NAME", help="under which the file's scores are kept")
    sub.add_argument("--params", default="params.yaml", help=PARAMS)
    sub.add_argument("--out", required=True, help=OUT)
    sub.set_defaults(call=_run_import_pool)


def _run_import_pool(args: argparse.Namespace) -> int:
    from components.pools import run
    from components.settings import load_params, load_runtime

    params, runtime, out = load_params(Path(args.params)), load_runtime(), Path(args.out)
    files = [Path(name) for name in args.file]
    split = dict(named_path("--split", text) for text in args.split)
    inputs = {f"file/{i}": path for i, path in enumerate(files)} | {f"split/{n}": path for n, path in split.items()}
    options = {"form": args.format, "verdicts": args.verdicts, "scorer": args.scorer}
    settings = {"task": params.task, "import-pool": options}
    with recorded(runtime, "import-pool", inputs=inputs, out=out, params=settings) as (part, _):
        summary = run(params, runtime, files=files, split=split, out=part, **options)
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in summary["verdict_counts"].items())
    print(f"{out}: {summary['candidates']:,} candidates, {counts}; {summary['num_scored']:,} with scores")
    same, judged = (summary["official"][name] for name in ("num_agreeing", "num_judged"))
    if judged and args.verdicts == "ours":
        print(f"official verdicts, see official.parquet: {same:,} of {judged:,} agree; unknown counts as not right")
    return 0


def _add_search(verbs: Any) -> None:
    what = "strategies at inference on a policy and a reward model: accuracy against tokens"
    example = "stepforge search --split test=data/test.parquet --policy artifacts/policy --prm artifacts/prm"
    example += " --out artifacts/search"
    sub = verbs.add_parser("search", help=what, description=what, epilog=f"example: {example}")
    sub.add_argument("--split", required=True, help="NAME=FILE, a benchmark in the problem format")
    sub.add_argument("--policy", required=True, help="folder written by sft")
    sub.add_argument("--prm", required=True, help="folder written by train")
    sub.add_argument(
        "--how", metavar="A,B", help="of best_of_n, vote, majority, early_stop, beam, lookahead (default: all of them)"
    )
    sub.add_argument("--num", type=int, default=16, help="largest budget N; powers of two below it are measured too")
    sub.add_argument("--width", type=int, help="prefixes that beam and lookahead keep (default: the root of the budget)")
    sub.add_argument("--ahead", type=int, default=2, help="further steps that lookahead rolls out (default: 2)")
    sub.add_argument("--confidence", type=float, default=0.8, help="at which early_stop stops (default: 0.8)")
    sub.add_argument("--aggregation", help="of step scores to one score (default: the reward model's)")
    sub.add_argument("--problems", type=int, help="so many of the file, drawn by the seed (default: all)")
    sub.add_argument("--params", default="params.yaml", help=PARAMS)
    sub.add_argument("--out", required=True, help=OUT)
    sub.set_defaults(call=_run_search)


def _run_search(args: argparse.Namespace) -> int:
    from components.settings import limit_threads, load_params, load_runtime

    params, runtime = load_params(Path(args.params)), load_runtime()
    limit_threads(runtime.num_threads)
    from components.inference import lines_of, run
    from components.records import read_json
    from components.strategies import STRATEGIES

    folders: dict[str, Any] = {"policy": Path(args.policy), "prm": Path(args.prm)}
    name, file = named_path("--split", args.split)
    how = [part.strip() for part in args.how.split(",")] if args.how is not None else list(STRATEGIES)
    options: dict[str, Any] = {key: getattr(args, key) for key in ("num", "width", "ahead", "confidence", "aggregation")}
    options |= {"how": how, "num_problems": args.problems}
    inputs, out = folders | {f"split/{name}": file}, Path(args.out)
    settings = {"seed": params.seed, "search": options}
    with recorded(runtime, "search", inputs=inputs, out=out, params=settings) as (part, cost):
        cost.update(run(params, runtime, split=(name, file), **folders, out=part, **options))
    print("\n".join(lines_of(read_json(out / "search.json"))))
    return 0


def _add_compare(verbs: Any) -> None:
    what = "two runs, or two registered versions: what changed in data, labels, settings, code and metrics"
    example = "stepforge compare ../before/artifacts artifacts --out changes.html; "
    example += "stepforge compare prm.staging@champion prm.dev/3"
    sub = verbs.add_parser("compare", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples: {example}")
    for name in ("a", "b"):
        about = "folder of artifacts, or what evaluate wrote, or a registered version: NAME@ALIAS or NAME/NUMBER"
        sub.add_argument(name, metavar=name.upper(), help=about)
    sub.add_argument("--json", action="store_true", help="print everything as JSON instead of a table")
    sub.add_argument("--out", metavar="HTML_FILE", help="write one self-contained page too")
    sub.set_defaults(call=_run_compare)


def _run_compare(args: argparse.Namespace) -> int:
    from components.compare import run

    return run(args)
