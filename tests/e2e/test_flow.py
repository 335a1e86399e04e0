"""The flow on a real small DVC repository, with a real Prefect server and a real MLflow database."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import psutil
import pytest
import yaml

from components.errors import DataError, SettingsError, TryAgainError
from components.lineage import exclusive
from components.records import tree_sha256
from tests.e2e.conftest import dvc

pytestmark = pytest.mark.usefixtures("prefect_api")


def outcomes(report):
    return {run.name: run.outcome for run in report.stages}


def task_runs(flow_run_id, num_wanted):
    """Name -> (state, tries) of a flow run's tasks, which reach the server a moment later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + 15
    while True:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=wanted)
        ended = [run for run in runs if run.state is not None and run.state.is_final()]
        if len(ended) >= num_wanted or time.monotonic() > deadline:
            return {run.name: (run.state_name, run.run_count) for run in ended}
        time.sleep(0.2)


def mlflow_runs(home):
    """Every run, oldest first."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("stepforge")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def test_executed_unchanged_restored_and_what_is_known_of_each(repo, home):
    from flows.retrain import retrain

    pin = (repo / "data.dvc").read_bytes()
    state = retrain(repo, return_state=True)
    first = state.result()
    assert [run.name for run in first.stages] == ["count", "total"]
    assert outcomes(first) == {"count": "executed", "total": "executed"}
    tasks = task_runs(state.state_details.flow_run_id, 2)
    assert tasks == {"count": ("Executed", 1), "total": ("Executed", 1)}
    assert first.page is None  # no train and evaluate here: nothing to promote
    lock = (repo / "dvc.lock").read_bytes()

    state = retrain(repo, return_state=True)
    assert outcomes(state.result()) == {"count": "unchanged", "total": "unchanged"}
    assert {name for name, _ in task_runs(state.state_details.flow_run_id, 2).values()} == {"Unchanged"}

    shutil.rmtree(repo / "artifacts")
    assert outcomes(retrain(repo)) == {"count": "restored", "total": "restored"}
    assert (repo / "dvc.lock").read_bytes() == lock
    assert (repo / "data.dvc").read_bytes() == pin
    assert "up to date" in dvc(repo, "status")

    (repo / "params.yaml").write_text("total: {scale: 3}\n")
    assert outcomes(retrain(repo)) == {"count": "unchanged", "total": "executed"}

    runs = mlflow_runs(home)
    parents = [run for run in runs if run.info.run_name == "retrain"]
    assert [run.info.status for run in runs] == ["FINISHED"] * 12
    counts = [run for run in runs if run.info.run_name == "count"]
    assert [run.data.tags["mlflow.parentRunId"] for run in counts] == [run.info.run_id for run in parents]
    assert [run.data.tags["outcome"] for run in counts] == ["executed", "unchanged", "restored", "unchanged"]
    assert "produced_by" not in counts[0].data.tags
    assert {run.data.tags["produced_by"] for run in counts[1:]} == {counts[0].info.run_id}
    assert {run.data.tags["output_sha256"] for run in counts} == {tree_sha256(repo / "artifacts" / "counts")}
    total = [run for run in runs if run.info.run_name == "total"][-1]
    assert total.data.params == {"total.scale": "3"}
    assert total.data.metrics["chars"] == len((repo / "artifacts" / "counts" / "summary.json").read_text())
    locked = {
        entry["path"]: entry["md5"] for entry in yaml.safe_load((repo / "dvc.lock").read_text())["stages"]["total"]["deps"]
    }
    assert {given.dataset.name: given.dataset.digest for given in total.inputs.dataset_inputs} == locked
    assert total.data.tags["input_sha256.artifacts/counts"] == counts[0].data.tags["output_sha256"]


def test_exit_code_75_heals_by_trying_again(repo):
    from flows.retrain import retrain

    (repo / "behaviour").write_text("75 75")
    state = retrain(repo, return_state=True)
    assert outcomes(state.result()) == {"count": "executed", "total": "executed"}
    assert task_runs(state.state_details.flow_run_id, 2) == {"count": ("Executed", 3), "total": ("Executed", 1)}


def test_exit_code_3_stops_at_once_with_the_stages_own_two_lines(repo, home, capfd):
    from flows.retrain import retrain

    (repo / "behaviour").write_text("3")
    state = retrain(repo, return_state=True)
    assert state.is_failed()
    assert task_runs(state.state_details.flow_run_id, 1) == {"count": ("Failed", 1)}
    with pytest.raises(DataError) as caught:
        state.result()
    assert caught.value.lines() == "error: data/words.txt: row 3 is 'x', not a word\nhint: correct it"
    assert not (repo / "artifacts" / "counts").exists()
    assert [(run.info.run_name, run.info.status) for run in mlflow_runs(home)] == [
        ("retrain", "FAILED"),
        ("count", "FAILED"),
    ]


def test_data_comes_back_from_the_cache_and_unsaved_data_is_never_overwritten(repo, home):
    from flows.stages import ensure_data

    said = []
    words = repo / "data" / "words.txt"
    assert ensure_data(repo, home, log=said.append) == "unchanged"
    shutil.rmtree(repo / "data")
    assert ensure_data(repo, home, log=said.append) == "restored"
    assert words.read_text() == "one two three\n"
    words.unlink()
    words.write_text("mine\n")
    with pytest.raises(DataError, match=r"has MD5 \w+\.dir, data\.dvc pins \w+\.dir"):
        ensure_data(repo, home, log=said.append)
    assert words.read_text() == "mine\n"
    (repo / "data.dvc").unlink()
    with pytest.raises(SettingsError, match=r"data\.dvc: no such file"):
        ensure_data(repo, home, log=said.append)


def test_data_that_no_cache_holds_is_made_again_and_checked_against_its_pin(repo, home):
    from flows.stages import ensure_data

    said = []
    shutil.rmtree(repo / "data")
    shutil.rmtree(repo / ".dvc" / "cache")
    with pytest.raises(DataError, match=r"what was made has MD5 \w+\.dir, data\.dvc pins") as caught:
        ensure_data(repo, home, log=said.append)
    assert not (repo / "data").exists()
    made, pinned = re.findall(r"\w+\.dir", caught.value.what)
    pin = (repo / "data.dvc").read_text().replace(pinned, made)
    (repo / "data.dvc").write_text(pin)
    assert ensure_data(repo, home, log=said.append) == "executed"
    assert (repo / "data.dvc").read_text() == pin
    assert "up to date" in dvc(repo, "status", "data.dvc")


def test_a_second_retrain_in_the_same_folder_is_told_to_try_again(repo, home):
    from flows.retrain import retrain

    with exclusive(home, "retrain"), pytest.raises(TryAgainError, match="another retrain is running"):
        retrain(repo)


@pytest.fixture
def command(repo, home, monkeypatch):
    """Starts `stepforge retrain` in a session of its own, against the session's server or its own embedded one."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL

    def start(*, is_embedded):
        if is_embedded:  # tables that exist already save the server seconds
            made = PREFECT_SERVER_DATABASE_CONNECTION_URL.value().removeprefix("sqlite+aiosqlite:///")
            with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(home / "prefect.db")) as target:
                source.backup(target)
        else:
            monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
        words = [sys.executable, "-m", "flows.cli", "retrain"]
        return subprocess.Popen(words, cwd=repo, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return start


@pytest.mark.parametrize("is_ctrl_c", [True, False])
def test_an_interrupt_ends_everything_within_seconds_and_the_next_run_resumes(repo, command, is_ctrl_c):
    from flows.retrain import retrain

    (repo / "behaviour").write_text("wait")
    # Ctrl-C reaches the whole group, an embedded server too; a service manager's SIGTERM reaches one process.
    with command(is_embedded=is_ctrl_c) as process:
        assert any(line == "waiting\n" for line in process.stderr)
        below = psutil.Process(process.pid).children(recursive=True)
        assert any("stage.py" in child.cmdline() for child in below)
        started = time.monotonic()
        (os.killpg if is_ctrl_c else os.kill)(process.pid, signal.SIGINT if is_ctrl_c else signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 130
    assert time.monotonic() - started < 10
    assert "the same command resumes" in rest
    assert "Traceback" not in rest
    _, alive = psutil.wait_procs(below, timeout=2)
    assert alive == []
    assert outcomes(retrain(repo)) == {"count": "executed", "total": "executed"}


def test_the_command_prints_two_lines_and_the_exit_code_of_the_stage(repo, command):
    (repo / "behaviour").write_text("3")
    with command(is_embedded=False) as process:
        said = process.stderr.read()
        assert process.wait(30) == 3
    assert said == "error: data/words.txt: row 3 is 'x', not a word\nhint: correct it\n"
