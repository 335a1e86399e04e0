"""The retrain flow: one Prefect task a DVC stage, mirrored in MLflow, then promotion and the page.

Owns order, retries and what is shown of a run; computes nothing, and knows DVC only through flows/stages.py.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from components.errors import TryAgainError
from components.lineage import SUMMARY, find_receipt
from components.progress import say
from components.promote import Promotion, acting_as
from components.records import read_json, tree_sha256
from components.settings import load_runtime
from components.tracking import DatasetInput, Tracking, flat, numbers
from flows.embedded import alone
from flows.promotion import loader_of, policy_of, promotion_lines, register_and_ask, registry_summary
from flows.stages import Outcome, Stage, ensure_data, read_lock, read_pipeline, run_stage

RETRY_SECONDS = [1.0, 5.0, 20.0]
PAGE = "report.html"

# The one count of a stage's summary that says how much it made.
_ROWS = {
    "curate": "seeds",
    "sft": "demonstrations",
    "rollout": "continuations",
    "label": "labels",
    "train": "labels",
    "sample": "candidates",
}
_PINS = ("dvc.yaml", "dvc.lock", "data.dvc", "params.yaml")


@dataclass(frozen=True)
class StageRun:
    """What became of one stage."""

    name: str
    outcome: Outcome
    seconds: float
    output_sha256: str
    summary: Mapping[str, Any]
    receipt: Mapping[str, Any] | None
    """Of the run that made the output; None if another machine made it."""


@dataclass
class Report:
    """What a retrain brought."""

    stages: list[StageRun] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    promotion: Promotion | None = None
    page: Path | None = None


@dataclass
class _Mirror:
    """The MLflow side of one flow run."""

    tracking: Tracking
    repo: Path
    actor: str
    parent: str
    sha256: dict[str, str] = field(default_factory=dict)
    """Path -> SHA-256, computed once: a path does not change after the stage that writes it."""

    def digest(self, path: str) -> str:
        if path not in self.sha256:
            self.sha256[path] = tree_sha256(self.repo / path)
        return self.sha256[path]

    def stage(self, stage: Stage, run: StageRun) -> None:
        """A child run: settings, numbers, inputs by digest, and who really made the output."""
        locked = read_lock(self.repo, stage.name)
        tags = {"stage": stage.name, "outcome": run.outcome, "actor": self.actor, "output_sha256": run.output_sha256}
        tags |= {f"input_sha256.{path}": self.digest(path) for path in stage.deps}
        if run.outcome != "executed" and (made := self.tracking.producer(stage.name, run.output_sha256)):
            tags["produced_by"] = made.run_id
        metrics = numbers(run.summary)
        if run.outcome == "executed" and run.receipt:
            cost = {name: run.receipt.get(name) for name in ("wall_seconds", "cpu_seconds", "peak_memory_bytes")}
            metrics |= numbers({"cost": cost})
        if stage.name == "evaluate":
            metrics |= _main_numbers(read_json(self.repo / stage.outs[0] / "metrics.json"))
        child = self.tracking.start_run(stage.name, parent=self.parent, tags=tags)
        inputs = [DatasetInput(path, locked.md5.get(path, ""), self.digest(path)) for path in stage.deps]
        self.tracking.log(child, params=flat(locked.params), metrics={**metrics, "seconds": run.seconds}, inputs=inputs)
        self.tracking.end_run(child, "FINISHED")

    def failed(self, name: str, error: Exception) -> None:
        tags = {"stage": name, "outcome": "failed", "actor": self.actor, "error": str(error)}
        self.tracking.end_run(self.tracking.start_run(name, parent=self.parent, tags=tags), "FAILED")

    def pins(self) -> None:
        """Keep the files that fix what was computed: a run that nobody commits has its lineage here."""
        with tempfile.TemporaryDirectory() as name:
            for pin in _PINS:
                if (self.repo / pin).exists():
                    shutil.copyfile(self.repo / pin, Path(name) / f"{pin}.txt")  # DVC reads every dvc.yaml it finds
            self.tracking.log_files(self.parent, Path(name), "pins")


def _may_pass(_task: Any, _run: Any, state: State) -> bool:
    """Only exit code 75 is worth another try."""
    return isinstance(state.data, TryAgainError)


@task(
    name="stage",
    task_run_name="{name}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,  # DVC is the cache: two caches could disagree
    persist_result=False,
)
def stage_task(repo: Path, name: str, out: str, home: Path) -> State[StageRun]:
    """Run one stage; the state's name says whether it was executed, restored or unchanged."""
    try:
        outcome, seconds = run_stage(repo, name, log=get_run_logger().info)
    except TryAgainError as error:
        say(name, f"{error}; it may pass, so it is tried up to {len(RETRY_SECONDS)} times again")
        raise
    say(name, f"{outcome} in {seconds:.1f} s")
    folder = repo / out
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
    run = StageRun(name, outcome, seconds, tree_sha256(folder), summary, find_receipt(home, name, folder))
    return Completed(name=outcome.capitalize(), message=f"output {run.output_sha256}", data=run)


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote_task(mirror: _Mirror, home: Path, artifacts: Path, runs: Sequence[StageRun]) -> Promotion:
    """Register the PRM and ask for staging. A refusal is an answer: the task completes."""
    trained = next(run for run in runs if run.name == "train")
    made = mirror.tracking.producer("train", trained.output_sha256)
    promotion, new = register_and_ask(
        mirror.tracking,
        home,
        policy_of(mirror.repo),
        artifacts=artifacts,
        run_id=mirror.parent,
        actor=mirror.actor,
        trainer=made.actor if made and made.actor else mirror.actor,
        tags={"output_sha256": trained.output_sha256, "trained_by_run": made.run_id if made else mirror.parent},
        loader=loader_of(mirror.repo),
    )
    if new:
        say("promote", f"registered {new}")
    for line in promotion_lines(promotion):
        get_run_logger().info(line)
        say("promote", line)
    return promotion


@flow(name="retrain", persist_result=False)
def retrain(repo: Path = Path()) -> Report:
    """Everything from data/ to a promoted version and a page, in the folder `repo`.

    Raises:
        StepForgeError: what the first failing stage reported, or another retrain is running here (exit code 75).
    """
    repo = repo.absolute()
    home = repo / load_runtime().home
    with alone(home, "retrain"):
        if ensure_data(repo, home, log=get_run_logger().info) != "unchanged":
            say("data", "is as data.dvc pins it")
        pipeline = read_pipeline(repo)
        names = {stage.name for stage in pipeline}
        is_whole = {"train", "evaluate"} <= names
        if is_whole:
            policy_of(repo)  # a mistake there shows now, not after the training
        report = Report()
        with _mirrored(repo, home) as mirror:
            try:
                for stage in pipeline:
                    report.stages.append(_run(mirror, stage, home))
            finally:
                _table(report.stages)
            mirror.pins()
            if is_whole:
                _conclude(report, mirror, home, {stage.name: stage.outs[0] for stage in pipeline})
        return report


def _run(mirror: _Mirror, stage: Stage, home: Path) -> StageRun:
    try:
        run = stage_task(mirror.repo, stage.name, stage.outs[0], home).result()
    except Exception as error:
        mirror.failed(stage.name, error)
        raise
    mirror.sha256[stage.outs[0]] = run.output_sha256
    mirror.stage(stage, run)
    return run


def _conclude(report: Report, mirror: _Mirror, home: Path, outs: Mapping[str, str]) -> None:
    from components.report import write_report

    repo = mirror.repo
    artifacts = (repo / outs["evaluate"]).parent
    report.metrics = read_json(repo / outs["evaluate"] / "metrics.json")
    report.promotion = promote_task(mirror, home, artifacts, report.stages)
    receipts = [dict(run.receipt) for run in report.stages if run.receipt]
    registry = registry_summary(mirror.tracking, home)
    report.page = write_report(
        artifacts / PAGE, artifacts=artifacts, data=repo / "data", receipts=receipts, registry=registry
    )


@contextmanager
def _mirrored(repo: Path, home: Path) -> Iterator[_Mirror]:
    """A parent run in MLflow that is closed as what the block became."""
    tracking = Tracking(home)
    actor = acting_as(repo)
    tags = {"actor": actor, "prefect_flow_run": str(flow_run.id or ""), "git_commit": _git_commit(repo)}
    parent = tracking.start_run("retrain", tags=tags)
    try:
        yield _Mirror(tracking, repo, actor, parent)
    except BaseException as error:
        tracking.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracking.end_run(parent, "FINISHED")


def _git_commit(repo: Path) -> str:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _table(runs: Sequence[StageRun]) -> None:
    rows = [
        {
            "stage": run.name,
            "outcome": run.outcome,
            "seconds": round(run.seconds, 1),
            "rows": run.summary.get(_ROWS.get(run.name, ""), ""),
            "output": run.output_sha256,
        }
        for run in runs
    ]
    create_table_artifact(key="retrain", table=rows, description="Stages of this run, in order")


def _main_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of metrics.json: selectors, differences and gap closed for each split, and the step metrics."""
    chosen: dict[str, Any] = {"steps": metrics.get("steps", {})}
    for split, content in metrics.get("splits", {}).items():
        differences = {f"{row['a']}_minus_{row['b']}": row for row in content.get("differences", [])}
        wanted = {
            "selectors": content.get("selectors", {}),
            "differences": differences,
            "gap_closed": content.get("gap_closed", {}),
        }
        chosen[split] = wanted
    return numbers(chosen)
