"""Verbs about a trained reward model: scoring with it, and serving it.

Owns their arguments; each is computed elsewhere, and imported when it is used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from components.errors import DataError, SettingsError
from components.verbs.shared import OUT, PRM, prm_folder, refuse_foreign


def add(verbs: Any) -> None:
    """Add them to the sub-commands `verbs`."""
    _add_score(verbs)
    _add_export_vllm(verbs)


def _add_score(verbs: Any) -> None:
    what = "a trained reward model on one solution, or on a file of them: a score a step, a verdict, the first error"
    example = 'stepforge score artifacts/prm --question "How many dots?" --image dots.png --steps solution.txt'
    example += "; stepforge score artifacts/prm solutions.jsonl --out scores.jsonl"
    sub = verbs.add_parser("score", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples: {example}")
    sub.add_argument("prm", metavar="PRM", help=PRM)
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

    scorer = open_prm(prm_folder(args.prm, runtime.home), device=runtime.device, task=args.task)
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


def _add_export_vllm(verbs: Any) -> None:
    what = "a trained reward model -> a checkpoint that vLLM serves, a score at every step"
    example = "stepforge export-vllm artifacts/prm served"
    sub = verbs.add_parser("export-vllm", help=what, description=what, epilog=f"example: {example}")
    sub.add_argument("prm", metavar="PRM", help=PRM)
    sub.add_argument("out", metavar="OUT", help=OUT)
    sub.set_defaults(call=_run_export_vllm)


def _run_export_vllm(args: argparse.Namespace) -> int:
    from components.lineage import publishing
    from components.pooling import MANIFEST, export
    from components.score import checkpoint_in
    from components.settings import load_runtime

    out = Path(args.out)
    refuse_foreign(out, MANIFEST)
    folder = prm_folder(args.prm, load_runtime().home)
    with publishing(out) as part:
        command = export(checkpoint_in(folder), part)
    print(f"{out}: {command.format(folder=out)}")
    return 0
