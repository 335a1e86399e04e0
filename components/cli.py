"""The stage verbs and their arguments; turns every deliberate error into two lines and an exit code.

Starts light: a stage's module is imported when its verb is used, and not before.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import SettingsError, StepForgeError


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
    "rollout": Stage("seeds -> solutions and Monte-Carlo continuations of every prefix", (_SEEDS, _POLICY)),
    "label": Stage("rollouts -> step labels with their counts", (_SEEDS, Arg("--rollouts", "folder written by rollout"))),
    "train": Stage(
        "labels -> the process reward model and its blind control",
        (
            _SEEDS,
            Arg("--rollouts", "folder written by rollout"),
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
        ),
    ),
}

Verb = Callable[[argparse.Namespace], int]


def build_parser(program: str = "python -m components") -> tuple[argparse.ArgumentParser, Any]:
    """The parser with one sub-command a stage; `flows.cli` adds its own to it."""
    parser = argparse.ArgumentParser(
        prog=program, description="From raw multimodal problems to a promoted process reward model."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, stage in STAGES.items():
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
    sub.set_defaults(call=_run_world)
    return parser, verbs


def _run_stage(args: argparse.Namespace) -> int:
    from components.lineage import SUMMARY, publishing, write_receipt
    from components.settings import limit_threads, load_params, load_runtime

    started = time.time()
    params = load_params(Path(args.params))
    runtime = load_runtime()
    limit_threads(runtime.num_threads)
    paths: dict[str, Any] = {}
    inputs: dict[str, Path] = {}
    for arg in STAGES[args.verb].args:
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
    _refuse_foreign(out, SUMMARY)
    module = importlib.import_module(f"components.{args.verb}")
    with publishing(out) as part:
        cost = module.run(params, runtime, **paths, out=part)
    section = getattr(params, args.verb).model_dump(mode="json")
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


def _refuse_foreign(out: Path, ours: str) -> None:
    """A folder is replaced whole: only one that we wrote, or that is empty, may be named."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise SettingsError("command line", f"--out {str(out)!r} holds the folder you are in", "name a folder below it")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / ours).exists())):
        raise SettingsError("command line", f"--out {str(out)!r} holds files of another origin", "name a new folder")


def _run_world(args: argparse.Namespace) -> int:
    from components.world import write_world

    _refuse_foreign(Path(args.out), "truth.parquet")
    write_world(Path(args.out), seed=args.seed)
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
        return 130
    except BrokenPipeError:
        return 141


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m components`; returns the exit code."""
    parser, _ = build_parser()
    args = parser.parse_args(argv)
    return guarded(args.call, args)
