"""The stage verbs and their arguments; turns every deliberate error into two lines and an exit code.

Starts light: a stage's module is imported when its verb is used, and not before.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from components.errors import DataError, SettingsError, StepForgeError


@dataclass(frozen=True)
class Arg:
    """One command-line argument of a stage: always a path, or a name=path pair."""

    flag: str
    help: str
    many: bool = False
    named: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage as the command line sees it; the module of the same name computes it."""

    help: str
    args: tuple[Arg, ...]


_SEEDS = Arg("--seeds", "folder written by curate")
_POLICY = Arg("--policy", "folder written by sft")
_ROLLOUTS = Arg("--rollouts", "folder written by rollout")
_SPLITS = Arg("--split", "NAME=FILE, a benchmark in the problem format; repeatable", many=True, named=True)

STAGES: dict[str, Stage] = {
    "curate": Stage(
        "raw problems -> seeds, and a quarantine with reasons",
        (
            Arg("--problems", "JSON, JSONL, Parquet or Arrow file with id, question, answer, image; repeatable", many=True),
            Arg("--holdout", "test file that no seed may overlap; repeatable", many=True, optional=True),
            Arg("--policy", "folder written by sft; only for the difficulty filter", optional=True),
        ),
    ),
    "sft": Stage(
        "demonstrations -> the policy (MM-Policy)",
        (Arg("--demonstrations", "Parquet file of solved problems", optional=True),),
    ),
    "rollout": Stage("seeds -> solutions, and continuations of their prefixes", (_SEEDS, _POLICY)),
    "label": Stage(
        "rollouts -> step labels with their counts",
        (
            _SEEDS,
            _ROLLOUTS,
            Arg("--second", "labels of the same solutions by another completer or judge: keep what agrees", optional=True),
        ),
    ),
    "train": Stage(
        "labels -> the process reward model and its blind control",
        (
            _SEEDS,
            _ROLLOUTS,
            Arg("--labels", "folder written by label"),
            _POLICY,
            Arg("--statements", "Parquet file of pictures with true statements", optional=True),
        ),
    ),
    "sample": Stage("benchmarks -> frozen candidate pools", (_SPLITS, _POLICY)),
    "evaluate": Stage(
        "pools and step-error set -> metrics with intervals, baselines and controls",
        (
            _SPLITS,
            Arg("--step-errors", "Parquet file of solutions with exact step labels", optional=True),
            Arg("--truth", "Parquet file of exact derivations, where they are known", optional=True),
            Arg("--candidates", "folder written by sample"),
            Arg("--prm", "folder written by train"),
            Arg(
                "--scorer",
                "NAME=FOLDER, a further reward model written by train, such as an outcome one; repeatable",
                many=True,
                named=True,
                optional=True,
            ),
        ),
    ),
}

TRAINING = ("sft", "train")
"""Stages that several processes may run together, started by torchrun or a like launcher."""

BESIDE: dict[str, Stage] = {
    "regrade": Stage(
        "stored rollouts under today's verifier, and a report of what changes; samples nothing",
        (_SEEDS, _ROLLOUTS, Arg("--labels", "folder written by label, to compare with", optional=True)),
    ),
}
"""Verbs that write a folder as stages do, but are no part of the pipeline."""

_GRADE = "Grade a file of gold fields and responses; for example: grade outputs.jsonl --rule mathvista --official true_false"
Verb = Callable[[argparse.Namespace], int]
INTERRUPTED = 130  # the exit code after Ctrl-C or SIGTERM


def build_parser(program: str = "python -m components") -> tuple[argparse.ArgumentParser, Any]:
    """The parser with one sub-command a stage; `flows.cli` adds its own to it."""
    parser = argparse.ArgumentParser(
        prog=program, description="From raw multimodal problems to a promoted process reward model."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, stage in (STAGES | BESIDE).items():
        sub = verbs.add_parser(name, help=stage.help, description=stage.help)
        for arg in stage.args:
            kind = "append" if arg.many else "store"
            default: Any = [] if arg.many else None
            sub.add_argument(arg.flag, help=arg.help, action=kind, required=not arg.optional, default=default)
        sub.add_argument("--params", default="params.yaml", help="settings file (default: params.yaml)")
        sub.add_argument("--out", required=True, help="folder to write; replaced whole, or left as it was")
        sub.set_defaults(call=_run_stage)
    sub = verbs.add_parser(
        "world", help="write the known-truth world's data folder", description="Write the known-truth world's data."
    )
    sub.add_argument("--out", default="data", help="folder to write (default: data)")
    sub.add_argument("--seed", type=int, default=0, help="another seed is another world (default: 0, pinned by data.dvc)")
    sub.add_argument(
        "--task", default="maths", choices=("maths", "scene"), help="the task whose world it is (default: maths)"
    )
    sub.set_defaults(call=_run_world)
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
    sub.add_argument("--gold", metavar="FILE", help="file of the gold rows, joined by id, if FILE lacks their fields")
    sub.add_argument("--on", metavar="FIELD", help="the id field to join by (default: the first that both have)")
    sub.add_argument("--out", metavar="FILE", help="write every verdict as JSON lines")
    sub.set_defaults(call=_run_grade)
    _add_choose(verbs)
    _add_score(verbs)
    _add_export_vllm(verbs)
    _add_import(verbs)
    _add_export(verbs)
    _add_explain(verbs)
    _add_benchmark(verbs)
    _add_compare(verbs)
    _add_annotate(verbs)
    _add_search(verbs)
    _add_import_pool(verbs)
    return parser, verbs


LABEL_FORMATS = "visualprm400k, visualprm_raw, mmprm_tree, mmprm_rows, prm800k, math_shepherd, stepwise, parquet"


def _add_import(verbs: Any) -> None:
    what = "labels from elsewhere -> a folder that stands in for seeds, rollouts and labels"
    example = "stepforge import labels.jsonl --as stepwise --out artifacts/imported"
    sub = verbs.add_parser("import", help=what, description=what, epilog=f"example: {example}")
    sub.add_argument("file", nargs="+", help="JSON, JSONL or Parquet file, or a folder of them")
    sub.add_argument("--as", required=True, dest="format", metavar="FORMAT", help=LABEL_FORMATS)
    sub.add_argument("--images", help="folder below which pictures are looked for (default: the file's own)")
    sub.add_argument("--task", default="maths", help="decides what the units of a solution are (default: maths)")
    sub.add_argument("--max-quarantined-frac", type=float, default=0.1, help="with more bad rows it fails (default: 0.1)")
    sub.add_argument("--out", required=True, help="folder to write; replaced whole, or left as it was")
    sub.set_defaults(call=_run_import)


def _add_export(verbs: Any) -> None:
    what = "labelled solutions -> a file in another format"
    example = "stepforge export --as visualprm_raw --out exported"
    sub = verbs.add_parser("export", help=what, description=what, epilog=f"example: {example}")
    _add_labelled(sub)
    sub.add_argument("--as", required=True, dest="format", metavar="FORMAT", help=LABEL_FORMATS)
    sub.add_argument(
        "--out", required=True, help="folder, or a .jsonl or .parquet file where there are no pictures beside it"
    )
    sub.set_defaults(call=_run_export)


def _add_explain(verbs: Any) -> None:
    what = "a label -> its problem, its step and every continuation that counted, recounted"
    description = f"{what[0].upper()}{what[1:]}. Exit code 5 if they contradict the label."
    sub = verbs.add_parser(
        "explain", help=what, description=description, epilog="example: stepforge explain 1f0c9a --html x.html"
    )
    sub.add_argument("label_id", help="the id of a label, or its first characters (at least 6)")
    _add_labelled(sub)
    sub.add_argument("--task", help="whose units name the prefix (default: the one that fits)")
    sub.add_argument("--html", help="write one self-contained page instead of printing")
    sub.set_defaults(call=_run_explain)


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
    sub.add_argument("--gold", metavar="FILE", help="file of the gold rows, joined by id, if FILE lacks their fields")
    sub.add_argument("--on", metavar="FIELD", help="the id field to join by (default: the first that both have)")
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
    sub.add_argument("--params", default="params.yaml", help="settings file (default: params.yaml)")
    sub.add_argument("--out", required=True, help="folder to write; replaced whole, or left as it was")
    sub.set_defaults(call=_run_search)


def _add_annotate(verbs: Any) -> None:
    what = "a sample of labelled steps for people to judge, and what the labels are worth against them"
    example = "stepforge annotate draw --prm artifacts/prm --out audit"
    example += "; stepforge annotate read audit answers-*.json --out judged"
    example += "; stepforge annotate freeze judged --out audit.parquet"
    sub = verbs.add_parser("annotate", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples: {example}")
    parts = sub.add_subparsers(dest="part", metavar="PART", required=True)
    what = "a stratified sample -> a page and Label Studio tasks"
    one = parts.add_parser("draw", help=what, description=what)
    _add_labelled(one)
    one.add_argument("--prm", metavar="PRM", help="folder written by train: where it contradicts a label, people look first")
    one.add_argument("--scores", metavar="FILE", help="or step scores made elsewhere, with the ids of solutions")
    one.add_argument("--judge", metavar="MODEL", help="a model at STEPFORGE_JUDGE_URL, asked about every labelled solution")
    one.add_argument("--num", type=int, default=100, help="solutions to draw (default: 100)")
    one.add_argument("--threshold", type=float, default=0.03, help="a label at or below it says wrong (default: 0.03)")
    one.add_argument("--score-threshold", type=float, help="the same of scores (default: the reward model's own, or 0.5)")
    one.add_argument(
        "--margin", type=float, default=0.1, help="a label without interval is unsure this near it (default: 0.1)"
    )
    one.add_argument("--seed", type=int, default=0, help="another seed draws others (default: 0)")
    one.add_argument("--out", required=True, help="folder to write; replaced whole, or left as it was")
    what = "answers of people -> how far they agree, and a page with what they differ on"
    one = parts.add_parser("read", help=what, description=what)
    one.add_argument("audit", metavar="FOLDER", help="written by draw, or by read: then its answers count too")
    one.add_argument("file", metavar="ANSWERS", nargs="+", help="saved by the page, or Label Studio's JSON export")
    one.add_argument("--adjudicator", metavar="NAME", help="the annotator whose word settles a step")
    one.add_argument("--out", required=True, help="folder to write; replaced whole, or left as it was")
    what = "what people settled -> a step benchmark, and precision and recall of labels and scores"
    one = parts.add_parser("freeze", help=what, description=what)
    one.add_argument("audit", metavar="FOLDER", help="written by read")
    one.add_argument("--out", required=True, metavar="PARQUET_FILE", help="the benchmark; its report goes beside it (.json)")
    sub.set_defaults(call=_run_annotate)


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
    sub.add_argument("--params", default="params.yaml", help="settings file (default: params.yaml)")
    sub.add_argument("--out", required=True, help="folder to write; replaced whole, or left as it was")
    sub.set_defaults(call=_run_import_pool)


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


def _add_labelled(sub: argparse.ArgumentParser) -> None:
    for flag, stage in (("seeds", "curate"), ("rollouts", "rollout"), ("labels", "label")):
        folder = f"artifacts/{flag}"
        sub.add_argument(f"--{flag}", default=folder, help=f"folder written by {stage}, or by import (default: {folder})")


def _add_choose(verbs: Any) -> None:
    help = "the solutions to label next, for a budget of tokens: convincing wrong ones, and uncertain ones"
    example = "stepforge choose --seeds artifacts/seeds --rollouts artifacts/rollouts --labels artifacts/labels"
    example += " --prm artifacts/prm --budget-tokens 100000 --out artifacts/chosen"
    sub = verbs.add_parser("choose", help=help, description=help, epilog=f"example: {example}")
    sub.add_argument("--seeds", required=True, help="folder written by curate")
    sub.add_argument("--rollouts", required=True, help="folder written by rollout")
    sub.add_argument("--labels", help="folder written by label: what it knows well is left out")
    sub.add_argument("--prm", required=True, help="folder written by train")
    sub.add_argument("--budget-tokens", type=int, required=True, help="what labelling the chosen solutions may cost")
    sub.add_argument("--convincing-frac", type=float, default=0.8, help="share of convincing wrong ones (default: 0.8)")
    sub.add_argument("--max-per-problem", type=int, default=2, help="solutions of one problem at most (default: 2)")
    sub.add_argument("--max-sd", type=float, default=0.1, help="a label this narrow is good enough (default: 0.1)")
    sub.add_argument(
        "--num-continuations", type=int, default=16, help="expected continuations of a prefix (default: 16, brute force)"
    )
    aggregations = ("min", "product", "mean", "last", "max")
    sub.add_argument("--aggregation", choices=aggregations, default="min", help="of step scores to one score (default: min)")
    sub.add_argument("--params", default="params.yaml", help="settings file (default: params.yaml)")
    sub.add_argument("--out", required=True, help="folder to write; its seeds.parquet is what rollout runs on next")
    sub.set_defaults(call=_run_choose)


def _add_score(verbs: Any) -> None:
    what = "a trained reward model on one solution, or on a file of them: a score a step, a verdict, the first error"
    example = 'stepforge score artifacts/prm --question "How many dots?" --image dots.png --steps solution.txt'
    example += "; stepforge score artifacts/prm solutions.jsonl --out scores.jsonl"
    sub = verbs.add_parser("score", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples: {example}")
    sub.add_argument(
        "prm", metavar="PRM", help="folder written by train, or a registered version: models:/prm.staging@champion"
    )
    sub.add_argument("file", metavar="FILE", nargs="?", help="JSON lines: question, steps or response, image or images")
    sub.add_argument("--question", help="of one solution")
    sub.add_argument("--image", action="append", default=[], metavar="PICTURE", help="shown before it; repeatable")
    sub.add_argument(
        "--steps", metavar="TEXT_FILE", help="the solution: text, or a JSON list of steps; - reads it from stdin"
    )
    sub.add_argument("--picture", metavar="HTML_FILE", help="write a page with the problem and the coloured steps")
    sub.add_argument(
        "--images", metavar="FOLDER", help="where the pictures' paths in FILE start (default: FILE's own folder)"
    )
    sub.add_argument("--task", help="how questions are put and texts fall into steps (default: the reward model's)")
    sub.add_argument("--out", metavar="JSONL_FILE", help="of FILE: where to write a line a row; appears whole or not at all")
    sub.set_defaults(call=_run_score)


def _add_export_vllm(verbs: Any) -> None:
    what = "a trained reward model -> a checkpoint that vLLM serves, a score at every step"
    example = "stepforge export-vllm artifacts/prm served"
    sub = verbs.add_parser("export-vllm", help=what, description=what, epilog=f"example: {example}")
    sub.add_argument(
        "prm", metavar="PRM", help="folder written by train, or a registered version: models:/prm.staging@champion"
    )
    sub.add_argument("out", metavar="OUT", help="folder to write; replaced whole, or left as it was")
    sub.set_defaults(call=_run_export_vllm)


def _run_stage(args: argparse.Namespace) -> int:
    from components.lineage import SUMMARY, publishing, write_receipt
    from components.settings import limit_threads, load_params, load_runtime

    started = time.time()
    params = load_params(Path(args.params))
    runtime = load_runtime()
    limit_threads(runtime.num_threads)
    paths: dict[str, Any] = {}
    inputs: dict[str, Path] = {}
    for arg in (STAGES | BESIDE)[args.verb].args:
        name = arg.flag.removeprefix("--").replace("-", "_")
        value = getattr(args, name)
        if arg.named:
            pairs = [_named_path(arg.flag, text) for text in value]
            paths[name] = dict(pairs)
            inputs |= {f"{name}/{key}": path for key, path in pairs}
        elif arg.many:
            paths[name] = [Path(text) for text in value]
            inputs |= {f"{name}/{i}": path for i, path in enumerate(paths[name])}
        else:
            paths[name] = Path(value) if value is not None else None
            if value is not None:
                inputs[name] = paths[name]
    out = Path(args.out)
    _refuse_foreign(out, SUMMARY, inputs.values())
    module = importlib.import_module(f"components.{args.verb}")
    if runtime.world_size > 1 and args.verb not in TRAINING:
        what = f"{args.verb} was started by a launcher as one of {runtime.world_size} processes"
        raise SettingsError("environment", what, f"only {' and '.join(TRAINING)} train with several: start it alone")
    if runtime.rank > 0:  # helps the first process, which alone writes
        module.run(params, runtime, **paths, out=out)
        return 0
    with publishing(out) as part:
        cost = module.run(params, runtime, **paths, out=part)
    section = getattr(params, args.verb).model_dump(mode="json") if args.verb in STAGES else {}
    write_receipt(
        runtime,
        stage=args.verb,
        inputs=inputs,
        out=out,
        params={"seed": params.seed, args.verb: section},
        started=started,
        cost=cost,
    )
    return 0


def _named_path(flag: str, text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (equals and name and path):
        raise SettingsError(
            "command line", f"{flag} {text!r} is not NAME=FILE", f"for example {flag} test=data/test.parquet"
        )
    return name, Path(path)


def _refuse_foreign(out: Path, ours: str, inputs: Iterable[Path] = ()) -> None:
    """A folder is replaced whole: only one that we wrote, or that is empty, may be named, and none that is read."""
    for read in inputs:
        if read.resolve().is_relative_to(out.resolve()):
            raise SettingsError(
                "command line", f"--out {str(out)!r} would replace its own input {read}", "name a new folder"
            )
    if Path.cwd().is_relative_to(out.resolve()):
        raise SettingsError("command line", f"--out {str(out)!r} holds the folder you are in", "name a folder below it")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / ours).exists())):
        raise SettingsError("command line", f"--out {str(out)!r} holds files of another origin", "name a new folder")


def _run_grade(args: argparse.Namespace) -> int:
    from components.grade import run

    return run(args)


def _run_world(args: argparse.Namespace) -> int:
    from components.scenes import write_scenes
    from components.world import write_world

    _refuse_foreign(Path(args.out), "truth.parquet")
    (write_scenes if args.task == "scene" else write_world)(Path(args.out), seed=args.seed)
    return 0


def _run_choose(args: argparse.Namespace) -> int:
    from components.active import run
    from components.lineage import SUMMARY, publishing, write_receipt
    from components.settings import limit_threads, load_params, load_runtime

    started = time.time()
    params, runtime = load_params(Path(args.params)), load_runtime()
    limit_threads(runtime.num_threads)
    folders: dict[str, Any] = {name: Path(getattr(args, name)) for name in ("seeds", "rollouts", "prm")}
    labels = {"labels": Path(args.labels)} if args.labels else {}
    names = ("budget_tokens", "convincing_frac", "max_per_problem", "max_sd", "num_continuations", "aggregation")
    options = {name: getattr(args, name) for name in names}
    out = Path(args.out)
    _refuse_foreign(out, SUMMARY, (folders | labels).values())
    with publishing(out) as part:
        run(params, runtime, **folders, labels=labels.get("labels"), out=part, **options)
    write_receipt(
        runtime,
        stage="choose",
        inputs=folders | labels,
        out=out,
        params={"choose": options},
        started=started,
        cost={},
    )
    return 0


def _run_search(args: argparse.Namespace) -> int:
    from components.lineage import SUMMARY, publishing, write_receipt
    from components.settings import limit_threads, load_params, load_runtime

    started = time.time()
    params, runtime = load_params(Path(args.params)), load_runtime()
    limit_threads(runtime.num_threads)
    from components.inference import lines_of, run
    from components.records import read_json
    from components.strategies import STRATEGIES

    folders: dict[str, Any] = {"policy": Path(args.policy), "prm": Path(args.prm)}
    name, file = _named_path("--split", args.split)
    how = [part.strip() for part in args.how.split(",")] if args.how is not None else list(STRATEGIES)
    options: dict[str, Any] = {key: getattr(args, key) for key in ("num", "width", "ahead", "confidence", "aggregation")}
    options |= {"how": how, "num_problems": args.problems}
    inputs, out = folders | {f"split/{name}": file}, Path(args.out)
    _refuse_foreign(out, SUMMARY, inputs.values())
    with publishing(out) as part:
        cost = run(params, runtime, split=(name, file), **folders, out=part, **options)
    settings = {"seed": params.seed, "search": options}
    write_receipt(runtime, stage="search", inputs=inputs, out=out, params=settings, started=started, cost=cost)
    print("\n".join(lines_of(read_json(out / "search.json"))))
    return 0


def _run_import_pool(args: argparse.Namespace) -> int:
    from components.lineage import SUMMARY, publishing, write_receipt
    from components.pools import run
    from components.settings import load_params, load_runtime

    started = time.time()
    params, runtime, out = load_params(Path(args.params)), load_runtime(), Path(args.out)
    files = [Path(name) for name in args.file]
    split = dict(_named_path("--split", text) for text in args.split)
    inputs = {f"file/{i}": path for i, path in enumerate(files)} | {f"split/{n}": path for n, path in split.items()}
    _refuse_foreign(out, SUMMARY, inputs.values())
    options = {"form": args.format, "verdicts": args.verdicts, "scorer": args.scorer}
    with publishing(out) as part:
        summary = run(params, runtime, files=files, split=split, out=part, **options)
    settings = {"task": params.task, "import-pool": options}
    write_receipt(runtime, stage="import-pool", inputs=inputs, out=out, params=settings, started=started, cost={})
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in summary["verdict_counts"].items())
    print(f"{out}: {summary['candidates']:,} candidates, {counts}; {summary['num_scored']:,} with scores")
    same, judged = (summary["official"][name] for name in ("num_agreeing", "num_judged"))
    if judged and args.verdicts == "ours":
        print(f"official verdicts, see official.parquet: {same:,} of {judged:,} agree; unknown counts as not right")
    return 0


def _run_score(args: argparse.Namespace) -> int:
    import json

    from components.settings import limit_threads, load_runtime

    single = [flag for flag in ("question", "steps", "picture") if getattr(args, flag) is not None] + args.image
    if (
        bool(args.file) == bool(single)
        or bool(args.file) != bool(args.out)
        or (single and None in (args.question, args.steps))
    ):
        hint = "either --question and --steps, or FILE and --out"
        raise SettingsError("command line", "one solution, or a file of them", hint)
    runtime = load_runtime()
    limit_threads(runtime.num_threads)
    from components.score import open_prm, score_file

    scorer = open_prm(_prm_folder(args.prm, runtime.home), device=runtime.device, task=args.task)
    if args.file:
        folder = Path(args.images) if args.images else None
        fates = score_file(Path(args.file), Path(args.out), scorer, images=folder, runtime=runtime)
        print(f"{args.out}: " + (", ".join(f"{count:,} {fate}" for fate, count in fates.items()) or "no row"))
        return 0
    question, solution, images = args.question, _solution(args.steps), [Path(name) for name in args.image]
    scored = scorer.score(question, solution, images=images)
    if scored.fate != "scored":
        raise DataError("solution", f"{scored.fate}: {scored.detail}", "see docs/scoring.md")
    if args.picture:
        _write_page(Path(args.picture), scorer.page(question, scored, images=images))
    print(json.dumps(scored.row(), ensure_ascii=False, indent=1))
    return 0


def _solution(name: str) -> str | list[str]:
    """The text of a solution, or its steps."""
    import json

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(name, f"cannot be read: {error}", "name a text file, or - for stdin") from error
    try:
        steps = json.loads(text)
    except ValueError:
        return text
    return steps if isinstance(steps, list) and all(isinstance(step, str) for step in steps) else text


def _write_page(path: Path, page: str) -> None:
    from components.records import replacing

    try:
        with replacing(path) as part:
            part.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(str(path), f"cannot be written: {error.strerror}", "check its folder") from error


def _prm_folder(name: str, home: Path) -> Path:
    """The folder of a reward model, or of a registered version."""
    if not name.startswith("models:/"):
        return Path(name)
    from components.score import find_prm
    from components.tracking import Tracking

    digest, folder = Tracking(home).whereabouts(name)
    return find_prm(digest, [folder, Path("artifacts/prm/prm")])


def _run_export_vllm(args: argparse.Namespace) -> int:
    from components.lineage import publishing
    from components.pooling import MANIFEST, export
    from components.score import checkpoint_in
    from components.settings import load_runtime

    out = Path(args.out)
    _refuse_foreign(out, MANIFEST)
    folder = _prm_folder(args.prm, load_runtime().home)
    with publishing(out) as part:
        command = export(checkpoint_in(folder), part)
    print(f"{out}: {command.format(folder=out)}")
    return 0


def _run_import(args: argparse.Namespace) -> int:
    from components.interchange.importing import import_labels
    from components.lineage import SUMMARY, write_receipt
    from components.settings import load_runtime

    started = time.time()
    runtime, files, out = load_runtime(), [Path(name) for name in args.file], Path(args.out)
    _refuse_foreign(out, SUMMARY, files)
    options = {"fmt": args.format, "task": args.task, "max_quarantined_frac": args.max_quarantined_frac}
    summary = import_labels(files, images=Path(args.images) if args.images else None, out=out, **options)
    inputs = {f"file/{i}": path for i, path in enumerate(files)}
    write_receipt(
        runtime,
        stage="import",
        inputs=inputs,
        out=out,
        params={"task": args.task, "import": options},
        started=started,
        cost={},
    )
    names = ("problems", "solutions", "labels", "repeated_solutions")
    print(f"{out}: " + ", ".join(f"{summary[name]:,} {name.replace('_', ' ')}" for name in names))
    if summary["quarantined"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["quarantined"].items())
        print(f"set aside, see {out / 'quarantine.parquet'}: {reasons}")
    return 0


def _run_export(args: argparse.Namespace) -> int:
    from components.interchange.exporting import export_labels
    from components.lineage import SUMMARY

    out = Path(args.out)
    folders = {name: Path(getattr(args, name)) for name in ("seeds", "rollouts", "labels")}
    if not out.suffix:
        _refuse_foreign(out, SUMMARY, folders.values())
    elif out.exists() and out.resolve().parent in [folder.resolve() for folder in folders.values()]:
        raise SettingsError("command line", f"--out {str(out)!r} would replace its own input", "name a new file")
    summary = export_labels(**folders, fmt=args.format, out=out)
    print(
        f"{out}: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in summary.items() if name != "format")
    )
    return 0


def _run_benchmark(args: argparse.Namespace) -> int:
    from components.scoreboard import run

    return run(args)


def _run_annotate(args: argparse.Namespace) -> int:
    from components.lineage import SUMMARY, publishing, write_receipt
    from components.settings import limit_threads, load_runtime

    started, out = time.time(), Path(args.out)
    if args.part == "freeze":
        from components.annotate.freezing import freeze
        from components.annotate.showing import frozen_lines

        if out.suffix != ".parquet" or out.is_dir():
            raise SettingsError("command line", f"--out {str(out)!r} is no Parquet file", "for example --out audit.parquet")
        print("\n".join(frozen_lines(out, freeze(Path(args.audit), out=out))))
        return 0
    from components.annotate.answers import read_answers
    from components.annotate.drawing import draw_audit
    from components.annotate.showing import drawn_lines, read_lines

    runtime = load_runtime()
    limit_threads(runtime.num_threads)
    if args.part == "draw":
        folders: dict[str, Any] = {name: Path(getattr(args, name)) for name in ("seeds", "rollouts", "labels")}
        given = {name: Path(value) for name in ("prm", "scores") if (value := getattr(args, name))}
        names = ("judge", "num", "threshold", "score_threshold", "margin", "seed")
        options: dict[str, Any] = {name: getattr(args, name) for name in names}
        inputs = folders | given
        _refuse_foreign(out, SUMMARY, inputs.values())
        with publishing(out) as part:
            summary = draw_audit(**folders, prm=args.prm, scores=given.get("scores"), **options, out=part)
        lines = drawn_lines(out, summary)
    else:
        files = [Path(name) for name in args.file]
        inputs = {"audit": Path(args.audit)} | {f"file/{i}": path for i, path in enumerate(files)}
        options = {"adjudicator": args.adjudicator}
        _refuse_foreign(out, SUMMARY, inputs.values())
        with publishing(out) as part:
            summary = read_answers(Path(args.audit), files, adjudicator=args.adjudicator, out=part)
        lines = read_lines(out, summary)
    write_receipt(
        runtime,
        stage="annotate",
        inputs=inputs,
        out=out,
        params={args.part: options},
        started=started,
        cost={},
    )
    print("\n".join(lines).encode(errors="replace").decode())
    return 0


def _run_compare(args: argparse.Namespace) -> int:
    from components.compare import run

    return run(args)


def _run_explain(args: argparse.Namespace) -> int:
    from components.explain.page import write_page
    from components.explain.show import lines, verdict_line
    from components.explain.trace import enforce, explain
    from components.settings import load_runtime

    home = load_runtime().home
    folders = {name: Path(getattr(args, name)) for name in ("seeds", "rollouts", "labels")}
    found = explain(args.label_id, **folders, home=home, task=args.task)
    if args.html:
        write_page(Path(args.html), found)
        print(f"{args.html}: {verdict_line(found)}")
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(lines(found, home=home, colour=colour)))
    enforce(found)
    return 0


def guarded(call: Verb, args: argparse.Namespace) -> int:
    """Run a verb; a deliberate error or Ctrl-C becomes its exit code, anything else stays a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return call(args)
    except StepForgeError as error:
        print(error.lines(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: nothing half-written; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 141


def leave(code: int) -> NoReturn:
    """End the process with this exit code.

    Where Ctrl-C arrived while libraries were being imported, one process in twenty was seen to end by SIGINT itself,
    although the interrupt was caught and the exit code was ours: after an interrupt nothing is left to the interpreter.
    """
    if code == INTERRUPTED:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """What `python -m components` does; returns the exit code."""
    parser, _ = build_parser()
    args = parser.parse_args(argv)
    return guarded(args.call, args)
