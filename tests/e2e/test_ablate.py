"""Ablations on a real small DVC pipeline, with a real Prefect server and MLflow: shared, killed, resumed, failing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from components.ablations.declared import load_sweeps
from components.errors import DataError, TryAgainError
from components.lineage import exclusive
from flows.stages import read_pipeline
from flows.workspaces import make_workspace
from tests.e2e.conftest import ROOT, dvc
from tests.e2e.test_flow import mlflow_runs

pytestmark = pytest.mark.usefixtures("prefect_api")

PIPELINE = """
stages:
  rollout:
    cmd: python stage.py rollout data/words.txt artifacts/rollouts
    deps: [stage.py, data/words.txt]
    params: [seed, rollout]
    outs: [artifacts/rollouts]
  train:
    cmd: python stage.py train artifacts/rollouts/summary.json artifacts/prm
    deps: [stage.py, artifacts/rollouts]
    params: [seed, label.formulation]
    outs: [artifacts/prm]
  sample:
    cmd: python stage.py sample data/words.txt artifacts/candidates
    deps: [stage.py, data/words.txt]
    params: [seed, sample]
    outs: [artifacts/candidates]
  evaluate:
    cmd: python stage.py evaluate artifacts/prm/summary.json artifacts/evaluation
    deps: [stage.py, artifacts/prm, artifacts/candidates]
    params: [seed, evaluate]
    outs: [artifacts/evaluation]
"""

# The folder NOTES is no dependency: it keeps count of what really ran, and makes one stage wait or fail.
STAGE = """
import json, os, pathlib, sys, time, yaml
name, source, out = sys.argv[1:]
params = yaml.safe_load(open("params.yaml"))
notes, own = pathlib.Path(os.environ["NOTES"]), f"{name} {params['label']['formulation']} {params['seed']}"
with (notes / "ran").open("a") as ran:
    ran.write(own + chr(10))
if (notes / "wait").exists() and (notes / "wait").read_text() == own:
    print("waiting", flush=True)
    time.sleep(120)
if (notes / "fail").exists() and (notes / "fail").read_text() == own:
    print("error: labels: row 3 is 'x', not a label\\nhint: correct it", file=sys.stderr)
    raise SystemExit(3)
before = json.loads(pathlib.Path(source).read_text()) if source.endswith("json") else {}
folder = pathlib.Path(out)
folder.mkdir(parents=True)
if name == "evaluate":
    import pyarrow as pa, pyarrow.parquet as pq
    levels = {"random": [0.5, 0.0, 0.5, 1.0], "prm": [before["level"], 0.0, 1.0, 1.0]}
    rows = [("test", f"p{i}", s, v) for s, values in levels.items() for i, v in enumerate(values)]
    columns = dict(zip(("split", "problem_id", "selector", "value"), map(list, zip(*rows))))
    pq.write_table(pa.table(columns), folder / "selections.parquet")
    (folder / "metrics.json").write_text(json.dumps({"calibration": {"ece": before["level"] / 10}}))
level = {"soft": 0.5, "value": 0.75}.get(params["label"]["formulation"], 0.0) + params["seed"] / 8
(folder / "summary.json").write_text(json.dumps({"level": level, "tokens": 100}))
"""

SWEEPS = """
formulation:
  question: Which label teaches best?
  source: a test
  seeded: train
  variants:
    soft: {label.formulation: soft}
    value: {label.formulation: value}
  shown: ["test: prm - random", {value: evaluate.calibration.ece, better: lower}]
"""


@pytest.fixture
def notes(tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("NOTES", str(folder))
    return folder


@pytest.fixture
def project(repo, home, notes):
    """A pipeline that is seeded, labelled and evaluated in milliseconds, and a sweep of two variants."""
    (repo / "dvc.yaml").write_text(PIPELINE)
    (repo / "stage.py").write_text(STAGE)
    shutil.copyfile(ROOT / "params.yaml", repo / "params.yaml")
    (repo / "ablations.yaml").write_text(SWEEPS)
    return repo


def ablated(project: Path, seeds):
    from flows.ablate import ablate

    sweeps = load_sweeps(project / "ablations.yaml", project / "params.yaml")
    return ablate(project, sweeps, seeds, project / "ablations")


def ran(notes: Path) -> Counter:
    return Counter((notes / "ran").read_text().splitlines()) if (notes / "ran").exists() else Counter()


ONCE = Counter(
    ["rollout soft 0", "sample soft 0"]  # shared by all: they know neither the label nor the seed of training
    + [f"{stage} {label} {seed}" for stage in ("train", "evaluate") for label in ("soft", "value") for seed in (0, 1)]
)
STOPPED = Counter(["train value 0", "evaluate value 0"])


def test_a_sweep_killed_midway_goes_on_and_then_all_is_there(project, home, notes, monkeypatch):
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    own = {name: (project / name).read_bytes() for name in ("params.yaml", "dvc.yaml", "data.dvc")}
    words = [sys.executable, "-m", "flows.cli", "ablate", "--seeds", "0", "1", "--file", "ablations.yaml"]
    for stage, sent, code in (("train value 0", signal.SIGINT, 130), ("evaluate value 0", signal.SIGKILL, -9)):
        (notes / "wait").write_text(stage)
        with subprocess.Popen(words, cwd=project, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert any(line == "waiting\n" for line in process.stderr)
            os.killpg(process.pid, sent)
            assert "Traceback" not in process.stderr.read()
        assert process.returncode == code
    (notes / "wait").unlink()

    (swept,) = ablated(project, [0, 1])
    assert swept.failed == []
    assert ran(notes) == ONCE + STOPPED  # only what was stopped ran again
    rows = {row["variant"]: row["values"]["test: prm - random"] for row in swept.content["rows"]}
    assert rows["soft"]["seeds"] == {"0": 0.125, "1": 0.15625}
    assert rows["value"]["difference"]["seeds"] == {"0": 0.0625, "1": 0.0625}
    assert rows["value"]["is_best"]
    assert not rows["soft"]["is_best"]

    started = time.monotonic()
    (again,) = ablated(project, [0, 1])
    assert time.monotonic() - started < 8
    assert ran(notes) == ONCE + STOPPED
    assert again.content == swept.content == json.loads((project / "ablations/formulation.json").read_text())
    assert "<script" not in (project / "ablations/formulation.html").read_text()

    assert {name: (project / name).read_bytes() for name in own} == own
    assert not (project / "dvc.lock").exists()  # the user's own workspace has run nothing
    assert not (project / "artifacts").exists()
    runs = mlflow_runs(home)
    parents = [run for run in runs if run.info.run_name == "ablate formulation"]
    assert [run.info.status for run in parents] == ["KILLED", "RUNNING", "FINISHED", "FINISHED"]  # kill -9 leaves no word
    for parent, outcomes in zip(parents[2:], ({"unchanged", "executed"}, {"unchanged"}), strict=True):
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert {run.info.run_name for run in children} == {f"{v}, seed {s}" for v in ("soft", "value") for s in (0, 1)}
        assert {run.data.tags["outcome"] for run in children} == outcomes
        assert {run.data.params["label.formulation"] for run in children} == {"soft", "value"}
        value = next(run for run in children if run.info.run_name == "value, seed 1")
        assert value.data.metrics["test prm - random"] == pytest.approx(0.21875)

    # What was found in the caches serves the user's own pipeline too, and the other way round.
    dvc(project, "repro", "-q")
    assert ran(notes) == ONCE + STOPPED


def test_a_failing_variant_is_one_line_and_the_others_go_on(project, notes, capfd, monkeypatch):
    from flows import cli

    (notes / "fail").write_text("train value 1")
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    monkeypatch.chdir(project)
    assert (
        cli.main(["ablate", "--seeds", "0", "1", "--file", "ablations.yaml", "--format", "markdown"]) == DataError.exit_code
    )
    told = capfd.readouterr()
    said = "labels: row 3 is 'x', not a label"
    assert told.err.count(f"formulation: value, seed 1 failed: {said}; hint: correct it") == 1
    assert f"- missing: value, seed 1: {said}" in told.out
    assert "Traceback" not in told.err
    content = json.loads((project / "ablations/formulation.json").read_text())
    assert [row["num_seeds"] for row in content["rows"]] == [2, 1]
    value = content["rows"][1]["values"]["test: prm - random"]
    assert value["over_seeds"] is None
    assert value["difference"]["seeds"] == {"0": 0.0625}  # paired: the seed that both have
    assert not value["is_best"]


def test_a_variant_that_measures_other_problems_is_missing_and_the_next_sweep_runs(project, notes):
    words = 'f"p{i}"'
    assert words in STAGE
    (project / "stage.py").write_text(STAGE.replace(words, "f\"p{i}{params['label']['formulation'][:1]}\""))
    (project / "ablations.yaml").write_text(SWEEPS + SWEEPS.replace("formulation:\n", "again:\n", 1))
    first, second = ablated(project, [0])
    for swept in (first, second):
        assert [(run.variant, run.error.what) for run in swept.failed] == [
            ("value", "the runs of a sweep measured other problems")
        ]
        assert [row["num_seeds"] for row in swept.content["rows"]] == [1, 0]


def test_a_workspace_follows_its_project_when_that_is_moved(project, tmp_path):
    pipeline = read_pipeline(project)
    make_workspace(project, tmp_path / "space", pipeline)
    moved = project.rename(tmp_path / "moved")
    project.mkdir()
    (project / "stage.py").write_text("raise SystemExit('of another project')")
    make_workspace(moved, tmp_path / "space", pipeline)
    assert (tmp_path / "space/stage.py").read_text() == STAGE
    assert (tmp_path / "space/data").resolve() == moved / "data"


def test_a_plan_names_the_stages_and_runs_nothing(project, notes, monkeypatch, capsys):
    from flows import cli

    monkeypatch.chdir(project)
    words = ["ablate", "formulation", "--seeds", "0", "1", "--file", "ablations.yaml", "--plan"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out.splitlines()
    executed = [line.split("executes ")[1].split(",")[0] for line in told[1:5]]
    assert sorted(executed[0].split()) == ["evaluate", "rollout", "sample", "train"]
    assert executed[1:] == ["train evaluate"] * 3
    assert told[5].startswith("4 runs: 10 stages to execute, 6 known already; ")
    assert ran(notes) == Counter()
    assert not (project / ".stepforge" / "ablations").exists()

    dvc(project, "repro", "-q")  # the user's own run is the first variant's
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["soft,", "seed", "0", "restored"]


def test_a_plan_counts_no_stage_of_a_run_that_is_there(tmp_path):
    from flows.ablate import Run, plan_lines
    from flows.stages import Stage
    from flows.workspaces import Step

    step = Step("train", Stage("train", (), ("out",)), {}, "key", 60.0)  # DVC's cache was emptied, the workspace was not
    runs = [Run("labels", "soft", seed, {}, tmp_path, [step], is_there=seed == 0) for seed in (0, 1)]
    assert plan_lines(runs)[1:] == [
        "  soft, seed 0  there",
        "  soft, seed 1  executes train, about 60 s",
        "2 runs: 1 stages to execute, 1 known already; about 60 s",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["formulations"],
            "ablations.yaml: no sweep 'formulations'\nhint: did you mean 'formulation'? there are: formulation",
        ),
        (["--seeds", "1", "1"], "command line: --seeds 1 1\nhint: each from 0 on, each once"),
    ],
)
def test_a_mistake_is_two_lines_before_anything_runs(project, notes, monkeypatch, capsys, words, said):
    from flows import cli

    monkeypatch.chdir(project)
    assert cli.main(["ablate", "--file", "ablations.yaml", *words]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert ran(notes) == Counter()


def test_two_at_once_are_told_to_try_again(project, home, notes):
    with exclusive(home, "ablate"), pytest.raises(TryAgainError, match="another run of the same work"):
        ablated(project, [0])


def test_the_shipped_sweeps_fit_the_shipped_settings_and_stages():
    sweeps = load_sweeps(ROOT / "infra/ablations.yaml", ROOT / "params.yaml")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {sweep.seeded for sweep in sweeps.values()} <= set(stages)
    assert {"formulation", "learning_rate", "num_solutions", "diversity", "continuations", "aggregation"} <= set(sweeps)
