"""Shared by the end-to-end tests: one Prefect server a session, one migrated MLflow database, one small DVC repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import prepare_environment

prepare_environment()  # before anything imports prefect or mlflow

ROOT = Path(__file__).parents[2]

# Listed against its order, so that only DVC's graph can put it right.
DVC_YAML = """
stages:
  total:
    cmd: python stage.py total artifacts/counts/summary.json artifacts/total
    deps: [stage.py, artifacts/counts]
    params: [total]
    outs: [artifacts/total]
  count:
    cmd: python stage.py count data/words.txt artifacts/counts
    deps: [stage.py, data/words.txt]
    outs: [artifacts/counts]
"""

# `behaviour` is no dependency: it makes a stage fail, or wait, without changing what it computes.
STAGE = """
import json, pathlib, sys, time
name, source, out = sys.argv[1:]
behaviour = pathlib.Path("behaviour")
codes = behaviour.read_text().split() if behaviour.exists() else []
if codes:
    behaviour.write_text(" ".join(codes[1:]))
    if codes[0] == "wait":
        print("waiting", flush=True)
        time.sleep(120)
    print("error: data/words.txt: row 3 is 'x', not a word\\nhint: correct it", file=sys.stderr)
    raise SystemExit(int(codes[0]))
folder = pathlib.Path(out)
folder.mkdir(parents=True)
(folder / "summary.json").write_text(json.dumps({"chars": len(pathlib.Path(source).read_text())}))
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """No test reports to another's MLflow: the library leaves the address in the environment."""
    for name in [*os.environ]:
        if name == "MLFLOW_TRACKING_URI" or name.startswith("STEPFORGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def prefect_api():
    """A Prefect server in a temporary folder, for the whole session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    """An empty MLflow database with its tables, which take seconds to make."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.MlflowClient().search_experiments()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return path


@pytest.fixture
def home(tmp_path, migrated_database):
    """A workspace's .stepforge folder."""
    folder = tmp_path / "repo" / ".stepforge"
    folder.mkdir(parents=True)
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def repo(home, monkeypatch):
    """A DVC repository of two trivial stages, with data/ pinned."""
    folder = home.parent
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("total: {scale: 2}\n")
    (folder / "stage.py").write_text(STAGE)
    (folder / "data").mkdir()
    (folder / "data" / "words.txt").write_text("one two three\n")
    (folder / ".dvcignore").write_text(".stepforge\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc(folder, "init", "-q", "-f")
    dvc(folder, "add", "-q", "data")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    """What a dvc command prints, as in an activated environment: `python` in a stage is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=True, capture_output=True, text=True)
    return done.stdout
