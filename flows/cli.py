"""The `stepforge` command: the stage verbs, and retrain, promote, rollback and registry.

Starts light: what a verb needs is imported when it is used. Knows no stage and no tool itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from components.cli import build_parser, guarded, leave
from components.errors import RefusedError
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
