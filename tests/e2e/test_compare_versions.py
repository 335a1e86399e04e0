"""Comparing registered versions on a real MLflow registry in SQLite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.decision import Policy
from components.promote import promote, register
from components.records import SELECTION, write_json, write_table
from flows.cli import main

GATES = {
    "min_problems": {"test": 4},
    "data_gates": [],
    "differences": [],
    "step_metrics": [],
    "incumbent": {"split": "test", "selector": "prm", "max_loss": 0.25, "confidence": 0.95},
    "approver": False,
}
POLICY = Policy.model_validate({"version": 1, "environments": {"staging": GATES, "prod": GATES}})
LOCK = """
stages:
  label:
    deps: [{path: components/label.py, md5: CODE}, {path: data/train.parquet, md5: '22', size: 3}]
    params: {params.yaml: {label: {threshold: THRESHOLD}}}
    outs: [{path: artifacts/labels, md5: 33.dir, size: 1, nfiles: 1}]
"""


@pytest.fixture
def versions(home, tmp_path, monkeypatch):
    """Two versions: 8 of 16 and 16 of 16 picks right, other settings, other code, other counts of labels."""
    from components.tracking import Tracking

    tracking = Tracking(home)
    for name, picks, threshold, labels in (("a", [1.0, 0.0] * 8, 0.0, 10), ("b", [1.0] * 16, 0.5, 20)):
        artifacts = tmp_path / "artifacts"
        shutil.rmtree(artifacts, ignore_errors=True)
        mean = {"mean": sum(picks) / 16, "low": 0.0, "high": 1.0}
        splits = {"test": {"num_problems": 16, "selectors": {"prm": mean}, "differences": []}}
        metrics = {"prm_digest": name * 32, "pools": {"test": "pool-1"}, "splits": splits}
        write_json(artifacts / "evaluation" / "metrics.json", metrics)
        rows = [{"split": "test", "problem_id": f"p{i}", "selector": "prm", "value": v} for i, v in enumerate(picks)]
        write_table(artifacts / "evaluation" / "selections.parquet", rows, SELECTION)
        run = tracking.start_run("retrain")
        child = tracking.start_run("label", parent=run, tags={"stage": "label"})
        tracking.log(child, metrics={"labels": float(labels)})
        pins = tmp_path / f"pins-{name}"
        pins.mkdir()
        (pins / "dvc.lock.txt").write_text(LOCK.replace("CODE", f"'{name}'").replace("THRESHOLD", str(threshold)))
        tracking.log_files(run, pins, "pins")
        register(tracking, artifacts=artifacts, run_id=run, trainer="Ada")
    promote(tracking, home, POLICY, environment="staging", actor="Ada")
    monkeypatch.chdir(home.parent)


def compared(capsys: pytest.CaptureFixture[str], *names: str) -> dict:
    assert main(["compare", *names, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_two_versions_are_compared_by_what_registry_and_ledger_keep(versions, capsys):
    found = compared(capsys, "prm.dev/1", "prm.staging@champion")
    assert found["runs"]["b"]["prm_digest"] == "b" * 32
    assert [line.partition(" ")[2] for line in found["runs"]["b"]["decisions"]] == [
        "prm.staging/1 promoted to staging by Ada"
    ]
    assert found["runs"]["a"]["decisions"] == []
    assert [(row["what"], row["a"], row["b"]) for row in found["settings"]["differ"]] == [("label.threshold", "0.0", "0.5")]
    assert found["code"]["files"] == [{"file": "components/label.py", "stages": ["label"]}]
    assert {row["what"]: (row["a"], row["b"]) for row in found["labels"]} == {"labels": (10.0, 20.0)}
    (row,) = found["metrics"]["test"]["selectors"]
    assert row["difference"]["mean"] == 0.5
    assert row["p"] == pytest.approx(2 * 0.5**8, abs=1e-6)


def test_a_version_is_compared_with_a_folder(versions, tmp_path, capsys):
    found = compared(capsys, "models:/prm.dev/2", str(tmp_path / "artifacts"))
    assert found["metrics"]["test"]["is_paired"]
    assert found["runs"]["a"]["name"] == "prm.dev/2"


@pytest.mark.parametrize("name", ["prm.dev/9", "prm.staging@previous"])
def test_a_version_that_is_not_there_is_a_mistake(versions, name, capsys):
    assert main(["compare", name, "prm.dev/1"]) == 2
    assert "is not registered" in capsys.readouterr().err


def test_a_mistake_of_the_command_line_makes_no_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "nowhere", "nothing"]) == 2
    assert not list(Path().rglob("*.db"))
