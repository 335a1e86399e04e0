"""A registered reward model behind `mlflow models serve`, on the loopback, and found again by its name in the registry."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from components.cli import main
from components.errors import EngineError, SettingsError
from components.prm import RewardModel
from components.promote import register
from components.records import SELECTION, read_json, write_json, write_table
from components.score import find_prm, open_prm
from tests.conftest import picture

ROOT = Path(__file__).parents[2]
QUESTION, STEPS = "bars : total of red and blue ?", ["red: 3", "blue: 5", "3 + 5 = 8", "answer: 8"]
START_SECONDS = 120


@pytest.fixture
def registered(home, tiny_policy, monkeypatch):
    """A tiny reward model, registered in dev and the champion there: its folder and the registry."""
    from components.tracking import Tracking

    artifacts = home.parent / "artifacts"
    model = RewardModel.from_policy(tiny_policy, device="cpu").eval()
    prm_digest = model.save(artifacts / "prm" / "prm", tiny_policy, {"task": "maths"})
    write_json(artifacts / "evaluation" / "metrics.json", {"prm_digest": prm_digest})
    write_table(artifacts / "evaluation" / "selections.parquet", [], SELECTION)
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    tracking = Tracking(home)
    loader = ROOT / "mlflow" / "reward_model.py"
    run = tracking.start_run("retrain")
    version, _ = register(tracking, artifacts=artifacts, run_id=run, trainer="Ada", loader=loader)
    tracking.point("staging", "champion", tracking.copy(version, "staging"))
    return artifacts / "prm" / "prm", tracking


def test_a_registered_version_leads_to_its_checkpoint(registered, tmp_path):
    folder, tracking = registered
    for name in ("models:/prm.staging@champion", "models:/prm.staging/1", "models:/prm.dev/1"):
        prm_digest, where = tracking.whereabouts(name)
        assert find_prm(prm_digest, [where]) == folder
    for name in ("models:/prm.staging@nobody", "models:/prm.dev/7", "models:/nothing/1", "models:/prm.dev"):
        with pytest.raises(SettingsError):
            tracking.whereabouts(name)
    shutil.copytree(folder, tmp_path / "other")
    contract = read_json(folder / "prm.json")
    write_json(folder / "prm.json", contract | {"digest": "0" * 32})  # trained anew in the meantime
    with pytest.raises(EngineError, match="holds 0000"):
        find_prm(prm_digest, [where])
    assert find_prm(prm_digest, [where, tmp_path / "other"]) == tmp_path / "other"


def test_the_command_scores_with_the_champion_by_its_name(registered, home, tmp_path, monkeypatch, capsys):
    folder, _ = registered
    monkeypatch.setenv("STEPFORGE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    Path("solution.txt").write_text("\n\n".join(STEPS))
    asked = ["--question", QUESTION, "--steps", "solution.txt"]
    assert main(["score", "models:/prm.staging@champion", *asked]) == 0
    assert json.loads(capsys.readouterr().out) == open_prm(folder, device="cpu").score(QUESTION, STEPS).row()
    assert main(["score", "models:/prm.prod@champion", *asked]) == 2
    assert "is not registered" in capsys.readouterr().err


def test_the_model_loads_as_a_pyfunc_and_scores_as_we_do(registered):
    import mlflow

    folder, tracking = registered
    mlflow.set_tracking_uri(tracking.uri)
    model = mlflow.pyfunc.load_model("models:/prm.staging@champion")
    rows = [{"question": QUESTION, "steps": STEPS}, {"question": QUESTION, "response": "red: 3\n\nblue: 5"}]
    whole, split = model.predict(rows)
    assert whole["scores"] == pytest.approx(open_prm(folder, device="cpu").score(QUESTION, STEPS).scores, abs=1e-5)
    assert split["steps"] == ["red: 3", "blue: 5"]


@pytest.mark.server
@pytest.mark.slow
def test_mlflow_serves_the_champion(registered, tmp_path):
    folder, tracking = registered
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/prm.staging@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking.uri, "STEPFORGE_DEVICE": "cpu", "STEPFORGE_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # as in an activated environment
    log = tmp_path / "serve.log"
    with log.open("w") as out:  # in the project's folder, where a folder named mlflow lies
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_up(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        good = {"question": QUESTION, "image_base64": base64.b64encode(picture(0)).decode(), "steps": STEPS}
        rows = [good, {"question": QUESTION, "image_base64": "@", "steps": STEPS, "id": "b"}, {**good, "id": "c"}]
        told = ask(port, {"dataframe_records": rows})["predictions"]
        expected = open_prm(folder, device="cpu").score(QUESTION, STEPS, images=[picture(0)])
        assert [one["fate"] for one in told] == ["scored", "picture", "scored"]
        assert [one.get("id") for one in told] == [None, "b", "c"]
        for one in (told[0], told[2]):
            assert one["scores"] == pytest.approx(expected.scores, abs=1e-4)
            assert (one["verdict"], one["first_error"]) == (expected.verdict, expected.first_error)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(port, {"dataframe_records": [{"steps": STEPS}]})
        stolen = ask(port, {"dataframe_records": [{**good, "image_base64": str(tmp_path / "serve.log")}]})["predictions"]
        assert stolen[0]["fate"] == "picture"  # no path of the server's is followed
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


def is_up(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def ask(port, content):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps(content).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
