"""The `stepforge` command: the stage verbs, and retrain, ablate, promote, rollback and registry.

Starts light: what a verb needs is imported when it is used. Knows no stage and no tool itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from components.cli import build_parser, guarded, leave
from components.errors import RefusedError, SettingsError, TryAgainError
from flows import prepare_environment


def run() -> NoReturn:
    """Entry point of the installed `stepforge` command."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """What `stepforge` does; returns the exit code."""
    args = whole_parser().parse_args(argv)
    prepare_environment()
    return guarded(args.call, args)


def whole_parser() -> argparse.ArgumentParser:
    """The parser of `stepforge`, every verb included."""
    parser, verbs = build_parser("stepforge")
    _add_verbs(verbs)
    return parser


def _add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "everything from data/ to a promoted version and a page"
    sub = verbs.add_parser("retrain", help=what, description=f"Run {what}; what is unchanged is not run again.")
    sub.add_argument("--require-promotion", action="store_true", help="exit with 5 if the version is refused")
    sub.set_defaults(call=_retrain)

    what = "the declared ablations: every variant of a setting over several seeds, a table and a chart each"
    sub = verbs.add_parser("ablate", help=what, description=f"Run {what}; what is known is not run again.")
    sub.add_argument("name", nargs="*", help="of a sweep (default: all)")
    sub.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every variant (default: 0 1 2)")
    sub.add_argument("--plan", action="store_true", help="say what would run and how long, and run nothing")
    sub.add_argument(
        "--file", default="infra/ablations.yaml", help="where they are declared (default: infra/ablations.yaml)"
    )
    sub.add_argument("--out", default="ablations", help="folder for NAME.json and NAME.html (default: ablations)")
    sub.add_argument("--format", choices=["text", "markdown", "json"], default="text", help="of what is printed")
    sub.set_defaults(call=_ablate)

    what = "ask whether a version may become the champion of an environment"
    sub = verbs.add_parser("promote", help=what, description=f"{what.capitalize()}; exit code 5 if it is refused.")
    sub.add_argument("--to", required=True, choices=["staging", "prod"], help="the environment")
    sub.add_argument("--version", type=int, help="in the environment before (default: dev's newest, staging's champion)")
    sub.add_argument("--approver", help="who stands for it by name; prod needs one who is not the trainer")
    sub.set_defaults(call=_promote)

    what = "make the previous champion the champion again"
    sub = verbs.add_parser("rollback", help=what, description=f"{what.capitalize()}.")
    sub.add_argument("--in", required=True, choices=["staging", "prod"], dest="environment", help="the environment")
    sub.add_argument("--reason", required=True, help="for the ledger")
    sub.set_defaults(call=_rollback)

    what = "show the versions, their aliases and the end of the ledger"
    sub = verbs.add_parser("registry", help=what, description=f"{what.capitalize()}.")
    sub.set_defaults(call=_registry)


def _retrain(args: argparse.Namespace) -> int:
    from components.settings import load_runtime
    from flows.embedded import prefect_server
    from flows.stages import read_pipeline

    repo = Path.cwd()
    read_pipeline(repo)  # in the wrong folder, say so before any server starts
    with prefect_server(repo / load_runtime().home):
        from flows.promotion import comparison_lines
        from flows.retrain import retrain

        report = retrain(repo)
    if report.metrics:
        _print(comparison_lines(report.metrics))
    if report.page is not None:
        print(f"page      {report.page.relative_to(repo)}")
    if report.promotion is not None:
        standing = f"{report.promotion.version} is the champion of staging"
        print(f"promoted  {standing if report.promotion.is_champion else 'no: refused, see the reasons above'}")
    if args.require_promotion and not (report.promotion and report.promotion.is_champion):
        raise RefusedError("promotion to staging", "it was refused", "see the reasons above")
    return 0


def _ablate(args: argparse.Namespace) -> int:
    from components.ablations.declared import chosen, load_sweeps
    from components.settings import load_runtime
    from flows.embedded import prefect_server
    from flows.stages import read_pipeline

    repo = Path.cwd()
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise SettingsError("command line", f"--seeds {' '.join(map(str, args.seeds))}", "each from 0 on, each once")
    read_pipeline(repo)
    sweeps = chosen(load_sweeps(Path(args.file), repo / "params.yaml"), args.name, args.file)
    home = (repo / load_runtime().home).absolute()
    if args.plan:
        from flows.ablate import plan_lines, planned

        _print(plan_lines(planned(repo, home, sweeps, args.seeds)))
        return 0
    with ExitStack() as stack:
        try:
            stack.enter_context(prefect_server(home))
        except TryAgainError as error:
            if error.place != "retrain":
                raise
            raise TryAgainError("ablate", "a retrain or another ablation is running in this folder", error.hint) from error
        from flows.ablate import ablate, swept_lines

        swept = ablate(repo, sweeps, args.seeds, Path(args.out))
    _print(swept_lines(swept, args.format))
    failed = [run for one in swept for run in one.failed]
    return failed[0].error.exit_code if failed and failed[0].error else 0


def _promote(args: argparse.Namespace) -> int:
    from components.promote import acting_as, promote
    from flows.promotion import opened, promotion_lines

    repo = Path.cwd()
    home, policy, tracking = opened(repo)
    actor = acting_as(repo)
    promotion = promote(
        tracking, home, policy, environment=args.to, actor=actor, approver=args.approver, number=args.version
    )
    _print(promotion_lines(promotion))
    return 0 if promotion.is_champion else RefusedError.exit_code


def _rollback(args: argparse.Namespace) -> int:
    from components.promote import acting_as, rollback
    from flows.promotion import opened

    repo = Path.cwd()
    home, _, tracking = opened(repo)
    version = rollback(tracking, home, environment=args.environment, actor=acting_as(repo), reason=args.reason)
    print(f"rolled back: {version} is the champion of {args.environment}")
    return 0


def _registry(_args: argparse.Namespace) -> int:
    from flows.promotion import opened, registry_lines

    home, _, tracking = opened(Path.cwd())
    _print(registry_lines(tracking, home))
    return 0


def _print(lines: Sequence[str]) -> None:
    print("\n".join(lines))


if __name__ == "__main__":
    run()
