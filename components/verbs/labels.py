"""Verbs about labels: chosen next, read and written in other formats, explained, and judged by people.

Owns their arguments; each is computed elsewhere, and imported when it is used.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from components.errors import SettingsError
from components.verbs.shared import OUT, PARAMS, add_labelled, recorded, refuse_foreign

LABEL_FORMATS = "visualprm400k, visualprm_raw, mmprm_tree, mmprm_rows, prm800k, math_shepherd, stepwise, parquet"


def add(verbs: Any) -> None:
    """Add them to the sub-commands `verbs`."""
    _add_choose(verbs)
    _add_import(verbs)
    _add_export(verbs)
    _add_explain(verbs)
    _add_annotate(verbs)


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
    sub.add_argument("--params", default="params.yaml", help=PARAMS)
    sub.add_argument("--out", required=True, help="folder to write; its seeds.parquet is what rollout runs on next")
    sub.set_defaults(call=_run_choose)


def _run_choose(args: argparse.Namespace) -> int:
    from components.active import run
    from components.settings import limit_threads, load_params, load_runtime

    params, runtime = load_params(Path(args.params)), load_runtime()
    limit_threads(runtime.num_threads)
    folders: dict[str, Any] = {name: Path(getattr(args, name)) for name in ("seeds", "rollouts", "prm")}
    labels = {"labels": Path(args.labels)} if args.labels else {}
    names = ("budget_tokens", "convincing_frac", "max_per_problem", "max_sd", "num_continuations", "aggregation")
    options = {name: getattr(args, name) for name in names}
    inputs, settings = folders | labels, {"choose": options}
    with recorded(runtime, "choose", inputs=inputs, out=Path(args.out), params=settings) as (part, _):
        run(params, runtime, **folders, labels=labels.get("labels"), out=part, **options)
    return 0


def _add_import(verbs: Any) -> None:
    what = "labels from elsewhere -> a folder that stands in for seeds, rollouts and labels"
    example = "stepforge import labels.jsonl --as stepwise --out artifacts/imported"
    sub = verbs.add_parser("import", help=what, description=what, epilog=f"example: {example}")
    sub.add_argument("file", nargs="+", help="JSON, JSONL or Parquet file, or a folder of them")
    sub.add_argument("--as", required=True, dest="format", metavar="FORMAT", help=LABEL_FORMATS)
    sub.add_argument("--images", help="folder below which pictures are looked for (default: the file's own)")
    sub.add_argument("--task", default="maths", help="decides what the units of a solution are (default: maths)")
    sub.add_argument("--max-quarantined-frac", type=float, default=0.1, help="with more bad rows it fails (default: 0.1)")
    sub.add_argument("--out", required=True, help=OUT)
    sub.set_defaults(call=_run_import)


def _run_import(args: argparse.Namespace) -> int:
    from components.interchange.importing import import_labels
    from components.lineage import SUMMARY, write_receipt
    from components.settings import load_runtime

    started = time.time()
    runtime, files, out = load_runtime(), [Path(name) for name in args.file], Path(args.out)
    refuse_foreign(out, SUMMARY, files)
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


def _add_export(verbs: Any) -> None:
    what = "labelled solutions -> a file in another format"
    example = "stepforge export --as visualprm_raw --out exported"
    sub = verbs.add_parser("export", help=what, description=what, epilog=f"example: {example}")
    add_labelled(sub)
    sub.add_argument("--as", required=True, dest="format", metavar="FORMAT", help=LABEL_FORMATS)
    sub.add_argument(
        "--out", required=True, help="folder, or a .jsonl or .parquet file where there are no pictures beside it"
    )
    sub.set_defaults(call=_run_export)


def _run_export(args: argparse.Namespace) -> int:
    from components.interchange.exporting import export_labels
    from components.lineage import SUMMARY

    out = Path(args.out)
    folders = {name: Path(getattr(args, name)) for name in ("seeds", "rollouts", "labels")}
    if not out.suffix:
        refuse_foreign(out, SUMMARY, folders.values())
    elif out.exists() and out.resolve().parent in [folder.resolve() for folder in folders.values()]:
        raise SettingsError("command line", f"--out {str(out)!r} would replace its own input", "name a new file")
    summary = export_labels(**folders, fmt=args.format, out=out)
    print(
        f"{out}: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in summary.items() if name != "format")
    )
    return 0


def _add_explain(verbs: Any) -> None:
    what = "a label -> its problem, its step and every continuation that counted, recounted"
    description = f"{what[0].upper()}{what[1:]}. Exit code 5 if they contradict the label."
    sub = verbs.add_parser(
        "explain", help=what, description=description, epilog="example: stepforge explain 1f0c9a --html x.html"
    )
    sub.add_argument("label_id", help="the id of a label, or its first characters (at least 6)")
    add_labelled(sub)
    sub.add_argument("--task", help="whose units name the prefix (default: the one that fits)")
    sub.add_argument("--html", help="write one self-contained page instead of printing")
    sub.set_defaults(call=_run_explain)


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


def _add_annotate(verbs: Any) -> None:
    what = "a sample of labelled steps for people to judge, and what the labels are worth against them"
    example = "stepforge annotate draw --prm artifacts/prm --out audit"
    example += "; stepforge annotate read audit answers-*.json --out judged"
    example += "; stepforge annotate freeze judged --out audit.parquet"
    sub = verbs.add_parser("annotate", help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples: {example}")
    parts = sub.add_subparsers(dest="part", metavar="PART", required=True)
    what = "a stratified sample -> a page and Label Studio tasks"
    one = parts.add_parser("draw", help=what, description=what)
    add_labelled(one)
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
    one.add_argument("--out", required=True, help=OUT)
    what = "answers of people -> how far they agree, and a page with what they differ on"
    one = parts.add_parser("read", help=what, description=what)
    one.add_argument("audit", metavar="FOLDER", help="written by draw, or by read: then its answers count too")
    one.add_argument("file", metavar="ANSWERS", nargs="+", help="saved by the page, or Label Studio's JSON export")
    one.add_argument("--adjudicator", metavar="NAME", help="the annotator whose word settles a step")
    one.add_argument("--out", required=True, help=OUT)
    what = "what people settled -> a step benchmark, and precision and recall of labels and scores"
    one = parts.add_parser("freeze", help=what, description=what)
    one.add_argument("audit", metavar="FOLDER", help="written by read")
    one.add_argument("--out", required=True, metavar="PARQUET_FILE", help="the benchmark; its report goes beside it (.json)")
    sub.set_defaults(call=_run_annotate)


def _run_annotate(args: argparse.Namespace) -> int:
    from components.settings import limit_threads, load_runtime

    out = Path(args.out)
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
        with recorded(runtime, "annotate", inputs=folders | given, out=out, params={"draw": options}) as (part, _):
            summary = draw_audit(**folders, prm=args.prm, scores=given.get("scores"), **options, out=part)
        lines = drawn_lines(out, summary)
    else:
        files = [Path(name) for name in args.file]
        inputs = {"audit": Path(args.audit)} | {f"file/{i}": path for i, path in enumerate(files)}
        options = {"adjudicator": args.adjudicator}
        with recorded(runtime, "annotate", inputs=inputs, out=out, params={"read": options}) as (part, _):
            summary = read_answers(Path(args.audit), files, adjudicator=args.adjudicator, out=part)
        lines = read_lines(out, summary)
    print("\n".join(lines).encode(errors="replace").decode())
    return 0
