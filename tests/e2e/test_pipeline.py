"""The whole job at smoke size: the real flow on the real pipeline, then every stage interrupted and resumed elsewhere."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from components.records import CONTINUATION, PROBLEM, SOLUTION, read_table, tree_sha256, write_table
from components.world import write_world

ROOT = Path(__file__).parents[2]
STAGES = ("curate", "sft", "rollout", "label", "train", "sample", "evaluate")
SMOKE_PARAMS = {
    "sft": {
        "align": {"num_steps": 150, "batch_size": 32, "learning_rate": 4e-3},
        "phases": [{"column": "warmup_steps", "num_steps": 90}, {"column": "steps", "num_steps": 30}],
        "optimiser": {"num_steps": 120, "batch_size": 48, "learning_rate": 2e-3, "warmup_steps": 20},
    },
    "rollout": {"num_solutions": 2, "search": {"max_rounds": 4}, "max_failed_frac": 1.0},
    "label": {"unique_prefixes": False},
    "train": {
        "optimiser": {"num_steps": 20, "batch_size": 16, "learning_rate": 1e-3},
        "perception": {"warmup": {"num_steps": 20, "batch_size": 16, "learning_rate": 2e-3}},
    },
    "sample": {"num_candidates": 4},
    "evaluate": {"num_resamples": 500},
}


def merged(base, changes):
    """`base` with `changes` laid over it, section by section."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def make_workspace(folder: Path) -> Path:
    """A copy of the project with smoke-sized data and settings, in a git and DVC repository of its own."""
    folder.mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("components", "flows", "mlflow", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cache", "tmp", "__pycache__"))
    params = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), SMOKE_PARAMS)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    write_world(folder / "data", scale=0.04)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data"], cwd=folder, check=True, env=environment(folder))
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Commands run the copy's own code, with this interpreter, and report to nobody else."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("STEPFORGE_", "MLFLOW_", "PREFECT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{bare['PATH']}"
    return {**bare, "PYTHONPATH": str(folder), "PATH": path, "DVC_NO_ANALYTICS": "1", "STEPFORGE_ACTOR": "ada", **more}


def stepforge(folder: Path, *arguments: str) -> str:
    """What a stepforge command prints, on both streams; it must succeed."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def outcomes(text: str) -> dict[str, str]:
    """Stage -> executed | restored | unchanged, as the run says."""
    return dict(re.findall(r"^(\w+)\s+(executed|restored|unchanged) in ", text, re.MULTILINE))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("flow") / "repo")


@pytest.fixture(scope="module")
def first_run(workspace):
    return stepforge(workspace, "retrain")


@pytest.fixture(scope="module")
def digests(workspace, first_run):
    stages = yaml.safe_load((workspace / "dvc.yaml").read_text())["stages"]
    return {name: tree_sha256(workspace / stage["outs"][0]) for name, stage in stages.items()}


def test_a_fresh_workspace_becomes_data_a_model_metrics_and_a_page(workspace, first_run):
    assert outcomes(first_run) == dict.fromkeys(STAGES, "executed")
    summary = json.loads((workspace / "artifacts/seeds/summary.json").read_text())
    assert summary["rows_in"] == summary["seeds"] + summary["quarantined"] == 87
    metrics = json.loads((workspace / "artifacts/evaluation/metrics.json").read_text())
    for split in ("dev", "test", "ood"):
        selectors = metrics["splits"][split]["selectors"]
        assert selectors["oracle"]["mean"] >= selectors["prm"]["mean"] >= 0
        for interval in selectors.values():
            assert interval["low"] <= interval["mean"] <= interval["high"]
    page = (workspace / "artifacts/report.html").read_text()
    assert "<script src" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status"],
        cwd=workspace,
        env=environment(workspace),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "up to date" in status.stdout


def test_every_run_and_its_inputs_are_in_mlflow(workspace, first_run):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{workspace}/.stepforge/mlflow.db")
    client = mlflow.MlflowClient()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["stage"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1
    assert set(children) == set(STAGES)
    assert children["label"].data.tags["output_sha256"] == tree_sha256(workspace / "artifacts/labels")
    assert children["label"].data.tags["input_sha256.artifacts/rollouts"] == tree_sha256(workspace / "artifacts/rollouts")
    assert {d.dataset.name for d in children["sft"].inputs.dataset_inputs} >= {"data/demonstrations.parquet"}


def test_a_small_model_is_refused_with_reasons_and_the_ledger_keeps_them(workspace, first_run):
    assert "refused" in first_run  # twenty test problems are too few, whatever the model
    records = [json.loads(line) for line in (workspace / ".stepforge/ledger.jsonl").read_text().splitlines()]
    assert records[-1]["action"] == "refuse"


def test_a_second_run_changes_nothing(workspace, first_run, digests):
    pins = {name: (workspace / name).read_bytes() for name in ("dvc.lock", "data.dvc", "artifacts/report.html")}
    assert outcomes(stepforge(workspace, "retrain")) == dict.fromkeys(STAGES, "unchanged")
    assert {name: (workspace / name).read_bytes() for name in pins} == pins


def test_a_label_setting_reruns_label_and_what_follows_only(workspace, first_run):
    before = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(before.replace("unique_prefixes: false", "unique_prefixes: true"))
    try:
        seen = outcomes(stepforge(workspace, "retrain"))
    finally:
        (workspace / "params.yaml").write_text(before)
    assert seen == {
        "curate": "unchanged",
        "sft": "unchanged",
        "rollout": "unchanged",
        "label": "executed",
        "train": "executed",
        "sample": "unchanged",
        "evaluate": "executed",
    }


def test_interrupted_stages_leave_nothing_half_written_and_end_with_the_same_digests(digests, tmp_path):
    """Another folder, one worker, Ctrl-C in every stage: still the bytes of the uninterrupted run."""
    other = make_workspace(tmp_path / "other")
    stages = yaml.safe_load((other / "dvc.yaml").read_text())["stages"]
    for name in STAGES:
        out = Path(stages[name]["outs"][0])
        command = [sys.executable, *shlex.split(stages[name]["cmd"])[1:]]
        code = interrupted(command, other, name)
        assert code == 130, f"{name} ended with {code}"
        assert not (other / out).exists()
        assert [p.name for p in (other / "artifacts").glob(".*")] == []
        subprocess.run(command, cwd=other, env=environment(other, STEPFORGE_WORKERS="1"), check=True, capture_output=True)
        assert tree_sha256(other / out) == digests[name], name


def test_twenty_kills_lose_no_completion_that_was_paid_for(workspace, digests, tmp_path):
    """kill -9 at random moments of rollout: the same bytes in the end, and no completion sampled or kept twice."""
    rng = random.Random(0)
    home, out = tmp_path / "home", tmp_path / "rollouts"
    command = [sys.executable, "-m", "components", "rollout", "--seeds", "artifacts/seeds", "--policy", "artifacts/policy"]
    command += ["--out", str(out)]
    env = environment(workspace, STEPFORGE_HOME=str(home), STEPFORGE_WORKERS="1")
    num_kills, known, work_seconds = 0, 0, 1.5
    while num_kills < 20:
        process = subprocess.Popen(
            command, cwd=workspace, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with closing(process.stderr) as lines:
            next(line for line in lines if line.startswith("rollout"))
            time.sleep(rng.random() * work_seconds)
            os.killpg(process.pid, signal.SIGKILL)
            lines.read()
        if process.wait(30) == 0:  # it was faster: begin anew
            assert tree_sha256(out) == digests["rollout"]
            shutil.rmtree(home)
            shutil.rmtree(out)
            known, work_seconds = 0, work_seconds * 0.7
            continue
        num_kills += 1
        assert not out.exists()
        kept = journal_rows(home)
        assert kept >= known  # what was paid for stays
        known = kept
    subprocess.run(command, cwd=workspace, env=env, check=True, capture_output=True)
    assert tree_sha256(out) == digests["rollout"]
    rows = [
        len(read_table(out / f"{name}.parquet", schema, ["seed"]))
        for name, schema in (("solutions", SOLUTION), ("continuations", CONTINUATION))
    ]
    assert journal_rows(home) == sum(rows)
    assert not list(tmp_path.glob(".*.part"))  # the last run swept up after the killed ones


def journal_rows(home: Path) -> int:
    """Completions that the journal holds."""
    with closing(sqlite3.connect(f"file:{home / 'journal.sqlite'}?mode=ro", uri=True)) as journal:
        return int(journal.execute("SELECT count(*) FROM completion").fetchone()[0])


def test_a_weekly_increment_pays_for_what_is_new_and_a_new_verifier_for_nothing(workspace, digests, tmp_path):
    """Five per cent more problems cost about as many tokens; equal input and another verifier cost none."""
    seeds = read_table(workspace / "artifacts/seeds/seeds.parquet", PROBLEM)
    num_new = max(1, round(len(seeds) * 0.05))

    def tokens(name: str, rows, **params) -> tuple[int, int]:
        folder = tmp_path / name
        write_table(folder / "seeds/seeds.parquet", rows, PROBLEM)
        settings = merged(yaml.safe_load((workspace / "params.yaml").read_text()), params)
        (folder / "params.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "components", "rollout", "--params", str(folder / "params.yaml"), "--seeds"]
        command += [str(folder / "seeds"), "--policy", "artifacts/policy", "--out", str(folder / "rollouts")]
        env = environment(workspace, STEPFORGE_HOME=str(tmp_path / "home"))
        subprocess.run(command, cwd=workspace, env=env, check=True, capture_output=True)
        receipts = sorted((tmp_path / "home/receipts/rollout").glob("*.json"), key=lambda p: p.stat().st_mtime)
        receipt = json.loads(receipts[-1].read_text())
        return receipt["sampled_tokens"], receipt["journal_tokens"]

    old, new = seeds[:-num_new], seeds[-num_new:]
    first, _ = tokens("first", old)
    mixed = [*old[: len(old) // 2], *new, *old[len(old) // 2 :]]  # where the new ones stand decides nothing
    added, reused = tokens("second", mixed)
    own, _ = tokens("alone", new)
    assert (reused, own) == (first, 0)
    assert 0 < added < 3 * 0.05 * first  # four problems: each may be three times as long as the mean
    assert tokens("again", mixed) == (0, first + added)
    assert tokens("other verifier", mixed, verify={"math_verify": False}) == (0, first + added)


def interrupted(command: list[str], folder: Path, name: str) -> int:
    """The exit code of a stage that gets Ctrl-C: amid its work where that takes long, else once it has begun to write."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with closing(process.stderr) as lines:
        if name in ("sft", "rollout", "train"):
            next(line for line in lines if line.startswith(name))
        else:
            while process.poll() is None and not list((folder / "artifacts").glob(".*.part")):
                time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        lines.read()
    return process.wait(30)
