"""Promotion and rollback: evidence in, one alias moved, and an audit record before and after.

Owns the order of ledger and registry; does not know how a gate judges (decision.py) nor how MLflow is asked.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from components.decision import Decision, Evidence, Policy, decide, plain
from components.errors import DataError, RefusedError, SettingsError
from components.ledger import append, unfinished, verify_ledger
from components.lineage import exclusive
from components.records import SELECTION, read_json, read_table, tree_sha256, write_json
from components.tracking import ENVIRONMENTS, Environment, Tracking, Version

Gated = Literal["staging", "prod"]
SOURCE: dict[Gated, Environment] = {"staging": "dev", "prod": "staging"}


@dataclass(frozen=True)
class Promotion:
    """What became of a request."""

    environment: Gated
    version: Version
    """The new champion, or the version that was refused."""
    decision: Decision | None
    """None: it is the champion already, nothing was decided or changed."""

    @property
    def is_champion(self) -> bool:
        """The version stands in the environment."""
        return self.decision is None or self.decision.is_promoted


def ledger_path(home: Path) -> Path:
    """Where the ledger of a workspace lies."""
    return home / "ledger.jsonl"


def acting_as(repo: Path, environ: Mapping[str, str] | None = None) -> str:
    """Who gives this command: STEPFORGE_ACTOR, else git's user.name, else the login name."""
    env = os.environ if environ is None else environ
    if actor := env.get("STEPFORGE_ACTOR", "").strip():
        return actor
    try:
        asked = subprocess.run(["git", "config", "user.name"], cwd=repo, capture_output=True, text=True, check=False)
        if name := asked.stdout.strip():
            return name
    except FileNotFoundError:
        pass  # no git here
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())


# Evidence


def collect_evidence(artifacts: Path, folder: Path) -> str:
    """Copy what a gate will judge from the stages' outputs into `folder`; returns the PRM's digest.

    Raises:
        DataError: the evaluation is missing or names no PRM.
    """
    evaluation = artifacts / "evaluation"
    metrics = read_json(evaluation / "metrics.json")
    prm_digest = metrics.get("prm_digest") if isinstance(metrics, dict) else None
    if not isinstance(prm_digest, str) or not prm_digest:
        place = str(evaluation / "metrics.json")
        raise DataError(place, f"prm_digest is {prm_digest!r}, not a digest", "run the stage again: stepforge retrain")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(evaluation / "metrics.json", folder / "metrics.json")
    if (evaluation / "selections.parquet").exists():
        shutil.copyfile(evaluation / "selections.parquet", folder / "selections.parquet")
    gates = {path.parent.name: read_json(path) for path in sorted(artifacts.glob("*/gate.json"))}
    write_json(folder / "gates.json", gates)
    return prm_digest


def read_evidence(folder: Path, *, trainer: str, rolled_back: str = "") -> Evidence:
    """What `collect_evidence` wrote.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    metrics = read_json(folder / "metrics.json")
    selections: dict[tuple[str, str], dict[str, float]] = {}
    if (folder / "selections.parquet").exists():
        for row in read_table(folder / "selections.parquet", SELECTION):
            value = float("nan") if row["value"] is None else row["value"]
            selections.setdefault((row["split"], row["selector"]), {})[row["problem_id"]] = value
    return Evidence(
        prm_digest=metrics["prm_digest"],
        trainer=trainer,
        metrics=metrics,
        data_gates=read_json(folder / "gates.json"),
        selections=selections,
        rolled_back=rolled_back,
    )


def register(
    tracking: Tracking,
    *,
    artifacts: Path,
    run_id: str,
    trainer: str,
    tags: Mapping[str, str] | None = None,
    loader: Path | None = None,
) -> tuple[Version, bool]:
    """The version in `dev` of the PRM and evidence under `artifacts`, and whether it is new.

    One PRM with the same evidence is registered once; with new evidence it is a new version, to be judged again.

    Args:
        run_id: the run that keeps the evidence.
        trainer: who started the training; never the approver for prod.
        loader: the file by which MLflow serves the version; None, or not there: it cannot be served.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prm_digest = collect_evidence(artifacts, folder)
        evidence_sha256 = tree_sha256(folder)
        if found := tracking.version_of("dev", prm_digest, evidence_sha256):
            return found, False
        all_tags = {**(tags or {}), "trainer": trainer, "evidence_sha256": evidence_sha256}
        checkpoint = artifacts / "prm" / "prm"
        made = tracking.register(
            prm_digest=prm_digest,
            run_id=run_id,
            tags=all_tags,
            evidence=folder,
            checkpoint=checkpoint if checkpoint.exists() else None,
            loader=loader if loader and loader.exists() else None,
        )
        return made, True


def _evidence_of(tracking: Tracking, version: Version, rolled_back: str = "") -> Evidence:
    with tempfile.TemporaryDirectory() as name:
        folder = tracking.evidence(version, Path(name))
        seen, registered = tree_sha256(folder), version.evidence_sha256
        if seen != registered:
            what = f"its evidence has SHA-256 {seen}, registered was {registered}"
            raise DataError(str(version), what, "the files in MLflow were changed: register the PRM again from its own run")
        return read_evidence(folder, trainer=version.tags.get("trainer", ""), rolled_back=rolled_back)


# The registry and its ledger


@contextmanager
def _registry(tracking: Tracking, home: Path, environment: Gated) -> Iterator[list[dict[str, Any]]]:
    """The proven ledger, while nobody else may move an alias. What an interrupted command left open is closed first."""
    with exclusive(home, "registry"):
        path = ledger_path(home)
        for record in unfinished(verify_ledger(path), environment):
            champion = tracking.aliased(environment, "champion")
            is_moved = champion is not None and str(champion) == record["version"]
            append(
                path,
                "done",
                {"of": record["seq"], "environment": environment, "moved": is_moved, "note": "found by a later run"},
            )
        yield verify_ledger(path)


def promote(
    tracking: Tracking,
    home: Path,
    policy: Policy,
    *,
    environment: Gated,
    actor: str,
    approver: str | None = None,
    number: int | None = None,
) -> Promotion:
    """Ask whether a version may become the champion of `environment`, and make it so if every gate passes.

    Args:
        approver: who stands for it; kept in the ledger as it reads, without invisible characters.
        number: of the version in the environment before; default: dev's newest, or staging's champion.
    Raises:
        RefusedError: there is no such version, or the ledger does not prove itself.
        TryAgainError: another promotion is under way.
    """
    approver = plain(approver or "") or None
    path = ledger_path(home)
    with _registry(tracking, home, environment) as records:
        version = _chosen(tracking, environment, number)
        champion = tracking.aliased(environment, "champion")
        if champion is not None and _is_same(champion, version):
            return Promotion(environment, champion, None)
        candidate = _evidence_of(tracking, version, _rolled_back(records, environment, version.prm_digest))
        incumbent = _evidence_of(tracking, champion) if champion else None
        decision = decide(candidate, incumbent, policy, environment, approver)
        content = {
            "actor": actor,
            "approver": approver,
            "environment": environment,
            "prm_digest": version.prm_digest,
            "from": str(version),
            "replaces": str(champion) if champion else None,
            "policy_digest": decision.policy_digest,
            "reasons": [asdict(reason) for reason in decision.reasons],
        }
        if not decision.is_promoted:
            if not _is_repeated(records, content):
                append(path, "refuse", {**content, "version": str(version)})
            return Promotion(environment, version, decision)
        target = tracking.copy(version, environment)
        announced = append(path, "promote", {**content, "version": str(target)})
        if champion is not None:
            tracking.point(environment, "previous", champion)
        tracking.point(environment, "champion", target)
        append(path, "done", {"of": announced["seq"], "environment": environment, "moved": True})
        return Promotion(environment, target, decision)


def rollback(tracking: Tracking, home: Path, *, environment: Gated, actor: str, reason: str) -> Version:
    """Make the previous champion the champion again; returns it. A second rollback in a row is refused.

    Raises:
        SettingsError: the reason is blank.
        RefusedError: there is nothing to go back to, or the ledger does not prove itself.
        TryAgainError: a promotion is under way.
    """
    if not plain(reason):
        hint = "say why in a few words: the ledger keeps them, and the next promotion shows them"
        raise SettingsError(f"rollback in {environment}", f"the reason is {reason!r}", hint)
    path = ledger_path(home)
    with _registry(tracking, home, environment):
        champion, previous = tracking.aliased(environment, "champion"), tracking.aliased(environment, "previous")
        if champion is None or previous is None or previous.number == champion.number:
            now = f"champion is {champion}" if champion else "there is no champion"
            raise RefusedError(
                f"rollback in {environment}", f"no previous version to go back to; {now}", "see stepforge registry"
            )
        content = {
            "actor": actor,
            "environment": environment,
            "version": str(previous),
            "prm_digest": previous.prm_digest,
            "replaces": str(champion),
            "rolled_back": champion.prm_digest,
            "reason": reason.strip(),
        }
        announced = append(path, "rollback", content)
        tracking.point(environment, "champion", previous)
        tracking.point(environment, "previous", None)
        append(path, "done", {"of": announced["seq"], "environment": environment, "moved": True})
        return previous


def _is_same(one: Version, other: Version) -> bool:
    return (one.prm_digest, one.evidence_sha256) == (other.prm_digest, other.evidence_sha256)


def _chosen(tracking: Tracking, environment: Gated, number: int | None) -> Version:
    source = SOURCE[environment]
    place = f"promotion to {environment}"
    if number is not None:
        found = {version.number: version for version in tracking.versions(source)}
        if number not in found:
            known = ", ".join(map(str, found)) or "none"
            raise RefusedError(place, f"{source} has no version {number}", f"known versions: {known}")
        return found[number]
    if source == "dev":
        versions = tracking.versions("dev")
        if not versions:
            raise RefusedError(place, "no version is registered in dev", "run stepforge retrain first")
        return versions[-1]
    champion = tracking.aliased(source, "champion")
    if champion is None:
        raise RefusedError(place, f"{source} has no champion", f"promote a version to {source} first")
    return champion


def in_force(records: Sequence[Mapping[str, Any]], environment: str) -> list[Mapping[str, Any]]:
    """The promotions and rollbacks of an environment that did move its champion, oldest first."""
    moved = {record["of"] for record in records if record["action"] == "done" and record["moved"]}
    return [record for record in records if record["seq"] in moved and record["environment"] == environment]


def _rolled_back(records: Sequence[Mapping[str, Any]], environment: str, prm_digest: str) -> str:
    """How this PRM was taken out of the environment, if that was the last thing that happened to it there."""
    said = ""
    for record in in_force(records, environment):
        if record.get("rolled_back") == prm_digest:
            said = f"rolled back on {record['time'][:10]} by {record['actor']}: {record['reason']}"
        elif record["prm_digest"] == prm_digest:
            said = ""
    return said


def _is_repeated(records: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> bool:
    """The last answer of this environment was the same refusal of the same PRM: nothing new to record."""
    here = [r for r in records if r["action"] != "done" and r["environment"] == content["environment"]]
    return bool(here) and here[-1]["action"] == "refuse" and all(here[-1].get(key) == content[key] for key in content)


def strangers(tracking: Tracking, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Champions that the ledger does not know: aliases moved by hand, one sentence each."""
    said = []
    for environment in ENVIRONMENTS[1:]:
        moves = in_force(records, environment)
        expected = moves[-1]["version"] if moves else None
        champion = tracking.aliased(environment, "champion")
        if (str(champion) if champion else None) != expected:
            said.append(f"{environment}: champion is {champion}, the ledger says {expected}: the alias was moved by hand")
    return said
