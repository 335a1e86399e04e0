"""Promotion as the flow and the command line see it: register, ask, and say what came of it.

Owns how a decision and the registry are shown; does not decide (components/decision.py) nor keep records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.decision import Policy, load_policy
from components.ledger import verify_ledger
from components.promote import Promotion, ledger_path, promote, register, strangers
from components.settings import load_runtime
from components.tracking import ALIASES, ENVIRONMENTS, MODEL, Environment, Tracking, Version

LAST_RECORDS = 5
# From what needs no reward model to what none can pass.
SELECTORS = (
    *("greedy", "random", "majority", "likelihood"),
    *("prm", "prm_vote", "blind", "blind_vote", "shuffled", "shuffled_vote"),
    "oracle",
)


def policy_of(repo: Path) -> Policy:
    """The promotion policy of a project."""
    return load_policy(repo / "mlflow" / "policy.yaml")


def loader_of(repo: Path) -> Path:
    """The file by which MLflow serves a project's reward models."""
    return repo / "mlflow" / "reward_model.py"


def opened(repo: Path) -> tuple[Path, Policy, Tracking]:
    """A project's .stepforge folder, its policy and its registry, in that order of being checked.

    Raises:
        SettingsError: `repo` is no project, or a setting is wrong.
    """
    home = repo / load_runtime().home
    return home, policy_of(repo), Tracking(home)


def register_and_ask(
    tracking: Tracking,
    home: Path,
    policy: Policy,
    *,
    artifacts: Path,
    run_id: str,
    actor: str,
    trainer: str,
    tags: Mapping[str, str],
    loader: Path | None = None,
) -> tuple[Promotion, Version | None]:
    """Register the PRM under `artifacts`, unless it is with this evidence, and ask for staging: answer and new version."""
    version, is_new = register(tracking, artifacts=artifacts, run_id=run_id, trainer=trainer, tags=tags, loader=loader)
    answer = promote(tracking, home, policy, environment="staging", actor=actor, number=version.number)
    return answer, version if is_new else None


def promotion_lines(promotion: Promotion) -> list[str]:
    """The answer, with every reason, for a terminal."""
    if promotion.decision is None:
        return [f"{promotion.version} is the champion of {promotion.environment} already"]
    reasons = [f"  {reason}" for reason in promotion.decision.reasons]
    if promotion.is_champion:
        return [f"promoted: {promotion.version} is the champion of {promotion.environment}", *reasons]
    return [f"refused: {promotion.version} does not go to {promotion.environment}", *reasons]


def registry_summary(tracking: Tracking, home: Path) -> dict[str, Any]:
    """The registry for the page: what stands in each environment, and the ledger that says why."""
    standing = {environment: _standing(tracking, environment) for environment in ENVIRONMENTS}
    places = {e: {"version": str(v.number), "digest": v.prm_digest} if v else None for e, v in standing.items()}
    return {"model": MODEL, "environments": places, "ledger": verify_ledger(ledger_path(home))}


def _standing(tracking: Tracking, environment: Environment) -> Version | None:
    if environment != "dev":
        return tracking.aliased(environment, "champion")
    versions = tracking.versions("dev")
    return versions[-1] if versions else None


def registry_lines(tracking: Tracking, home: Path) -> list[str]:
    """Every version with its aliases, newest environment first, and the end of the ledger, for a terminal."""
    rows = [("version", "aliases", "PRM", "registered")]
    for environment in reversed(ENVIRONMENTS):
        names: dict[int, list[str]] = {}
        for alias in ALIASES:
            if named := tracking.aliased(environment, alias):
                names.setdefault(named.number, []).append(alias)
        for version in reversed(tracking.versions(environment)):
            when = datetime.fromtimestamp(version.created_at, UTC).strftime("%Y-%m-%d %H:%M")
            rows.append((str(version), " ".join(names.get(version.number, [])) or "-", version.prm_digest[:12], when))
    if len(rows) == 1:
        return ["no version is registered; stepforge retrain registers the first"]
    records = verify_ledger(ledger_path(home))
    lines = columns(rows)
    if records:
        lines += [
            "",
            f"ledger: {len(records)} records, each follows from the one before; last SHA-256 {records[-1]['sha256']}",
        ]
        moves = [record for record in records if record["action"] != "done"]
        lines += [f"  {_record_line(record)}" for record in moves[-LAST_RECORDS:]]
    return lines + [f"warning: {sentence}" for sentence in strangers(tracking, records)]


def _record_line(record: Mapping[str, Any]) -> str:
    why = record.get("reason") or "; ".join(
        f"{r['gate']}: {r['seen']}" for r in record.get("reasons", []) if not r["passed"]
    )
    who = record["actor"] + (f", approved by {record['approver']}" if record.get("approver") else "")
    when, what = record["time"][:16], f"{record['action']:<8}  {record['environment']:<7}  {record['version']}"
    line = f"{record['seq']:>4}  {when}  {what}  {who}"
    return f"{line}  ({why})" if why else line


def comparison_lines(metrics: Mapping[str, Any], splits: Sequence[str] = ("test", "ood")) -> list[str]:
    """What each selector's pick is worth, with its interval, for a terminal."""
    measured = {split: metrics.get("splits", {}).get(split, {}).get("selectors", {}) for split in splits}
    known = [name for name in SELECTORS if any(name in selectors for selectors in measured.values())]
    rows = [(name, *(_interval(measured[split].get(name)) for split in splits)) for name in known]
    return columns([("selector", *splits), *rows])


def _interval(value: Mapping[str, float] | None) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else "-"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
