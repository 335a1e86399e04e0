"""The stage verbs and their arguments; turns every deliberate error into two lines and an exit code.

Starts light: a stage's module is imported when its verb is used, and not before.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from components.errors import SettingsError, StepForgeError
from components.verbs import labels, models, pools
from components.verbs.shared import OUT, PARAMS, Verb, named_path, recorded


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

INTERRUPTED = 130  # the exit code after Ctrl-C or SIGTERM
PARENT = "STEPFORGE_PARENT"  # process id of the command that runs the stages
TIDY_SECONDS = 8.0  # how long an orphan may tidy up before it ends


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
        sub.add_argument("--params", default="params.yaml", help=PARAMS)
        sub.add_argument("--out", required=True, help=OUT)
        sub.set_defaults(call=_run_stage)
    for module in (labels, pools, models):
        module.add(verbs)
    return parser, verbs


def _run_stage(args: argparse.Namespace) -> int:
    from components.settings import limit_threads, load_params, load_runtime

    params = load_params(Path(args.params))
    runtime = load_runtime()
    limit_threads(runtime.num_threads)
    paths: dict[str, Any] = {}
    inputs: dict[str, Path] = {}
    for arg in (STAGES | BESIDE)[args.verb].args:
        name = arg.flag.removeprefix("--").replace("-", "_")
        value = getattr(args, name)
        if arg.named:
            pairs = [named_path(arg.flag, text) for text in value]
            paths[name] = dict(pairs)
            if len(paths[name]) < len(pairs):
                twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
                raise SettingsError("command line", f"{arg.flag} names {twice!r} twice", "give each a name of its own")
            inputs |= {f"{name}/{key}": path for key, path in pairs}
        elif arg.many:
            paths[name] = [Path(text) for text in value]
            inputs |= {f"{name}/{i}": path for i, path in enumerate(paths[name])}
        else:
            paths[name] = Path(value) if value is not None else None
            if value is not None:
                inputs[name] = paths[name]
    if runtime.world_size > 1 and args.verb not in TRAINING:
        what = f"{args.verb} was started by a launcher as one of {runtime.world_size} processes"
        raise SettingsError("environment", what, f"only {' and '.join(TRAINING)} train with several: start it alone")
    module, out = importlib.import_module(f"components.{args.verb}"), Path(args.out)
    if runtime.rank > 0:  # helps the first process, which alone writes
        module.run(params, runtime, **paths, out=out)
        return 0
    section = getattr(params, args.verb).model_dump(mode="json") if args.verb in STAGES else {}
    settings = {"seed": params.seed, args.verb: section}
    with recorded(runtime, args.verb, inputs=inputs, out=out, params=settings) as (part, cost):
        cost.update(module.run(params, runtime, **paths, out=part))
    return 0


def guarded(call: Verb, args: argparse.Namespace) -> int:
    """Run a verb; a deliberate error or Ctrl-C becomes its exit code, anything else stays a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _follow(os.environ.pop(PARENT, ""))
        return call(args)
    except StepForgeError as error:
        print(error.lines(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: nothing half-written; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 141


def _follow(parent: str) -> None:
    """Stop as by Ctrl-C once the process `parent` is gone, however it ended: nobody waits for the result any more."""
    if not parent.isdigit() or not hasattr(os, "pidfd_open"):
        return
    try:
        watched = os.pidfd_open(int(parent))
    except ProcessLookupError as error:
        raise KeyboardInterrupt from error
    except OSError:
        return  # a kernel or sandbox without it

    def wait() -> None:
        select.select([watched], [], [])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIDY_SECONDS)
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


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
