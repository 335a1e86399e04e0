"""The ablate flow: every (variant, seed) of a sweep is the whole pipeline, in a workspace of its own over shared caches.

Owns which runs there are, what is said of them in MLflow, and what is left when one fails; computes nothing, and runs a
stage as `retrain` does. The user's own workspace is read and never written.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prefect import flow

from components.ablations.declared import DEFAULT, Sweep, overridden
from components.ablations.estimates import Measured, Value, check_problems, means, sweep_rows
from components.ablations.page import markdown_lines, text_lines, write_sweep
from components.ablations.readings import read_run
from components.errors import SettingsError, StepForgeError
from components.lineage import exclusive
from components.progress import say
from components.promote import acting_as
from components.records import digest, write_json
from components.report.markup import duration
from components.settings import load_params
from components.tracking import Tracking
from flows.retrain import stage_task
from flows.stages import Outcome, ensure_data, read_pipeline
from flows.workspaces import RESTORE_SECONDS, Known, Step, is_complete, make_workspace, seeded_stages, use_params


@dataclass
class Run:
    """The pipeline under one variant's settings and one seed."""

    sweep: str
    variant: str
    seed: int
    overrides: Mapping[str, Any]
    folder: Path
    steps: list[Step]
    is_there: bool
    """An earlier call brought it: the workspace holds every output."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Stage -> what became of it in this call."""
    error: StepForgeError | None = None

    def __str__(self) -> str:
        """As it is called in every line about it."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def to_execute(self) -> list[Step]:
        """The steps whose output no earlier run has made."""
        return [] if self.is_there else [step for step in self.steps if step.seconds is not None]

    @property
    def seconds(self) -> float:
        """What it is to take; nan if no receipt tells."""
        num_known = len(self.steps) - len(self.to_execute)
        if self.is_there:
            return 0.0
        return num_known * RESTORE_SECONDS + sum(step.seconds or 0.0 for step in self.to_execute)


@dataclass
class Swept:
    """What a sweep brought."""

    name: str
    content: dict[str, Any]
    """What ablations/NAME.json holds."""
    page: Path
    failed: list[Run]


def planned(repo: Path, home: Path, sweeps: Mapping[str, Sweep], seeds: Sequence[int]) -> list[Run]:
    """Every run of the sweeps; all variants of a seed come before the next seed, so that pairs are there early.

    Raises:
        SettingsError: no pipeline that evaluates, or a sweep is seeded from a stage that there is not.
    """
    pipeline = read_pipeline(repo)
    names = [stage.name for stage in pipeline]
    if "evaluate" not in names:
        raise SettingsError("dvc.yaml", "has no stage `evaluate`", "an ablation compares what evaluate measures")
    declared = yaml.safe_load((repo / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    base = yaml.safe_load((repo / "params.yaml").read_text(encoding="utf-8"))
    known = Known(repo, home)
    runs = []
    for name, sweep in sweeps.items():
        if sweep.seeded not in names:
            raise SettingsError(f"sweep {name!r}", f"seeded from {sweep.seeded!r}", f"the stages: {', '.join(names)}")
        reached = seeded_stages(pipeline, sweep.seeded)
        for seed in seeds:
            for variant, overrides in sweep.runs.items():
                settings = overridden(base, overrides, place=f"{name}/{variant}")
                params = {one: settings | ({"seed": seed} if one in reached else {}) for one in names}
                steps = known.steps(pipeline, declared, params)
                folder = home / "ablations" / digest([[one, params[one]] for one in names])[:16]
                runs.append(Run(name, variant, seed, overrides, folder, steps, is_complete(folder, steps)))
    return runs


def plan_lines(runs: Sequence[Run]) -> list[str]:
    """What would run, and how long by the receipts of earlier runs."""
    lines = []
    for name in dict.fromkeys(run.sweep for run in runs):
        own = [run for run in runs if run.sweep == name]
        width = max(len(str(run)) for run in own)
        lines.append(name)
        for run in own:
            todo = " ".join(step.name for step in run.to_execute)
            if run.is_there:
                what = "there"
            elif not todo:
                what = "restored"
            else:
                what = f"executes {todo}, {_about(run.seconds)}"
            lines.append(f"  {run!s:<{width}}  {what}")
    executed = sum(len(run.to_execute) for run in runs)
    restored = sum(len(run.steps) for run in runs) - executed
    total = _about(sum(run.seconds for run in runs))
    lines.append(f"{len(runs)} runs: {executed} stages to execute, {restored} known already; {total}")
    return lines


def _about(seconds: float) -> str:
    return "no receipt tells how long" if math.isnan(seconds) else f"about {duration(seconds)}"


def swept_lines(swept: Sequence[Swept], form: str) -> list[str]:
    """What a call brought, as text | markdown | json."""
    if form == "json":
        return [json.dumps({one.name: one.content for one in swept}, indent=2, ensure_ascii=False)]
    lines = []
    for one in swept:
        lines += [*(markdown_lines if form == "markdown" else text_lines)(one.content), ""]
    return [*lines, *(f"page      {one.page}" for one in swept)] if form == "text" else lines


@flow(name="ablate", persist_result=False, validate_parameters=False)
def ablate(repo: Path, sweeps: Mapping[str, Sweep], seeds: Sequence[int], out: Path) -> list[Swept]:
    """Run the sweeps in the project `repo` and write `out`/NAME.json and NAME.html for each.

    A run that fails ends no other; it is missing in the table. Interrupted, the next call goes on where this one was.

    Raises:
        StepForgeError: what is wrong before any run, or another ablation is running here (exit code 75).
    """
    from components.settings import load_runtime

    repo = repo.absolute()
    home = (repo / load_runtime().home).absolute()
    settings = load_params(repo / "params.yaml").evaluate
    with exclusive(home, "ablate"), _told(STEPFORGE_HOME=str(home)):
        ensure_data(repo, home, log=_unheard)
        runs = planned(repo, home, sweeps, seeds)
        tracking, actor = Tracking(home), acting_as(repo)
        failed: dict[str, StepForgeError] = {}  # a step's key -> how it failed: not tried again by the next run
        swept = []
        for name, sweep in sweeps.items():
            tags = {"sweep": name, "question": sweep.question, "seeds": " ".join(map(str, seeds)), "actor": actor}
            with _closing(tracking, tracking.start_run(f"ablate {name}", tags=tags)) as parent:
                measured: dict[tuple[str, int], Mapping[str, Value]] = {}
                own = [run for run in runs if run.sweep == name]
                for number, run in enumerate(runs):
                    if run.sweep != name:
                        continue
                    left = sum(other.seconds for other in runs[number:])
                    say("ablate", f"{number + 1}/{len(runs)} runs  {name}: {run}  {_about(left)} left")
                    measured |= _measured(repo, home, sweep, run, measured, failed, tracking, parent, actor)
                content = _content(name, sweep, own, measured, seeds, settings.num_resamples, settings.confidence)
                page = write_sweep(out, content)
                with tempfile.TemporaryDirectory() as folder:
                    for kind in ("json", "html"):
                        shutil.copyfile(page.with_suffix(f".{kind}"), Path(folder) / f"{name}.{kind}")
                    tracking.log_files(parent, Path(folder), "ablation")
            swept.append(Swept(name, content, page, [run for run in own if run.error]))
        return swept


def _measured(
    repo: Path,
    home: Path,
    sweep: Sweep,
    run: Run,
    before: Measured,
    failed: dict[str, StepForgeError],
    tracking: Tracking,
    parent: str,
    actor: str,
) -> dict[tuple[str, int], Mapping[str, Value]]:
    """(variant, seed) -> what one run measured, with a child run in MLflow; nothing if it failed."""
    tags = {"sweep": run.sweep, "variant": run.variant, "seed": str(run.seed), "actor": actor}
    child = tracking.start_run(str(run), parent=parent, tags=tags)
    seconds = 0.0
    try:
        if run.is_there:
            run.outcomes = {step.name: "unchanged" for step in run.steps}
        else:
            seconds = _executed(repo, home, run, failed, tracking, child, actor)
        found = read_run(sweep, {step.name: run.folder / step.stage.outs[0] for step in run.steps})
        check_problems(before, found)
    except StepForgeError as error:
        run.error = error
        say("ablate", f"{run.sweep}: {run} failed: {error}; hint: {error.hint}")
        tracking.log(child, tags={"outcome": "failed", "error": str(error)})
        tracking.end_run(child, "FAILED")
        return {}
    except BaseException:
        tracking.end_run(child, "KILLED")
        raise
    of_run = found if sweep.reads else {run.variant: found[DEFAULT]}
    metrics = {
        f"{variant}/{name}" if sweep.reads else name: value
        for variant, values in means(of_run).items()
        for name, value in values.items()
    }
    num = Counter(run.outcomes.values())
    outcome = "executed" if num["executed"] else "restored" if num["restored"] else "unchanged"
    tracking.log(
        child,
        params={"seed": run.seed, **run.overrides},
        metrics={_metric_name(name): value for name, value in metrics.items()} | {"seconds": seconds},
        tags={"outcome": outcome, **{f"outcome.{stage}": said for stage, said in run.outcomes.items()}},
    )
    tracking.end_run(child, "FINISHED")
    return {(variant, run.seed): values for variant, values in of_run.items()}


def _executed(
    repo: Path, home: Path, run: Run, failed: dict[str, StepForgeError], tracking: Tracking, child: str, actor: str
) -> float:
    """Have DVC bring every step of a run; the seconds it took."""
    make_workspace(repo, run.folder, [step.stage for step in run.steps])
    about = {"variant": run.variant, "seed": run.seed, "sweep": run.sweep, "overrides": dict(run.overrides)}
    write_json(run.folder / "about.json", about)
    seconds = 0.0
    for step in run.steps:
        if step.key in failed:
            raise failed[step.key]
        use_params(run.folder, step.params)
        called = f"{run.sweep}: {run}: {step.name}".replace("{", "{{").replace("}", "}}")  # Prefect fills in templates
        task = stage_task.with_options(task_run_name=called)
        try:
            done = task(run.folder, step.name, step.stage.outs[0], home).result()
        except StepForgeError as error:
            failed[step.key] = error
            raise
        run.outcomes[step.name] = done.outcome
        seconds += done.seconds
        if done.outcome == "executed":  # so that whoever restores these bytes later knows who made them
            tags = {"stage": step.name, "outcome": "executed", "actor": actor, "output_sha256": done.output_sha256}
            tracking.end_run(tracking.start_run(step.name, parent=child, tags=tags), "FINISHED")
    return seconds


def _content(
    name: str,
    sweep: Sweep,
    runs: Sequence[Run],
    measured: Mapping[tuple[str, int], Mapping[str, Value]],
    seeds: Sequence[int],
    num_resamples: int,
    confidence: float,
) -> dict[str, Any]:
    variants = list(sweep.variants or dict.fromkeys(variant for variant, _ in measured))
    rows = sweep_rows(measured, variants, seeds, sweep.shown, num_resamples=num_resamples, confidence=confidence)
    for row in rows:
        row["overrides"] = (sweep.variants or {}).get(row["variant"], {})
    return {
        "name": name,
        "question": sweep.question,
        "source": sweep.source,
        "seeds": list(seeds),
        "seeded": sweep.seeded,
        "reads": sweep.reads,
        "confidence": confidence,
        "num_resamples": num_resamples,
        "shown": [one.model_dump() for one in sweep.shown],
        "rows": rows,
        "missing": [{"variant": run.variant, "seed": run.seed, "error": str(run.error)} for run in runs if run.error],
    }


def _metric_name(name: str) -> str:
    """As MLflow takes it: no sign but these."""
    return "".join(c if c.isalnum() or c in "_-./ " else "" for c in name)


@contextmanager
def _closing(tracking: Tracking, parent: str) -> Iterator[str]:
    """A parent run that is closed as what the block became."""
    try:
        yield parent
    except BaseException as error:
        tracking.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracking.end_run(parent, "FINISHED")


@contextmanager
def _told(**variables: str) -> Iterator[None]:
    """Variables of the environment, for the stages that are started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _unheard(_line: str) -> None:
    pass
