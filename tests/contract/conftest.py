"""Engines to test, by name: models, scripts, a server that is an imitation, and vLLM where it is installed."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from components.records import read_json
from components.settings import TinyBase
from tests.conftest import name_policy
from tests.contract.engine_fixture import ImitatedServer, write_script, write_served

HAS_VLLM = importlib.util.find_spec("vllm") is not None
START_SECONDS = 180
DIE_WITH_PARENT = (
    "import ctypes, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "sys.argv[0] = 'vllm'; from vllm.entrypoints.cli.main import main; main()"
)


@pytest.fixture
def opened(checkpoint, tmp_path, request):
    """name of an engine -> an engine of its own, but for vLLM, which is started once."""
    from components.engines.hf import HfEngine
    from components.engines.journaled import JournaledEngine
    from components.engines.scripted import ScriptedEngine
    from components.engines.server import ServerEngine
    from components.store import Journal

    engines = []

    def call(name):
        if name.startswith("journaled "):
            engine = JournaledEngine(call(name.removeprefix("journaled ")), Journal(tmp_path / "journal"), name="test")
        elif name == "scripted":
            engine = ScriptedEngine(write_script(tmp_path / "script"))
        elif name == "server":
            imitation = request.getfixturevalue("imitation")
            engine = ServerEngine(write_served(tmp_path / "served"), url=imitation.url)
        elif name == "server vllm":
            engine = ServerEngine(request.getfixturevalue("wide"), url=request.getfixturevalue("vllm_server"))
        elif name == "vllm":
            return request.getfixturevalue("vllm_engine")
        else:
            engine = HfEngine(checkpoint(name.removeprefix("hf ")), device="cpu")
        engines.append(engine)
        return engine

    yield call
    for engine in engines[::-1]:
        engine.journal.close() if isinstance(engine, JournaledEngine) else engine.close()


@pytest.fixture
def imitation():
    """An OpenAI-compatible server that plays back a script."""
    with ImitatedServer() as server:
        yield server


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A tiny policy whose attention heads are wide enough for vLLM: 32."""
    from components.tiny import write_base

    folder = tmp_path_factory.mktemp("wide")
    write_base(folder, TinyBase(type="tiny", hidden_size=128, num_layers=2), seed=1)
    name_policy(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_engine(wide):
    """vLLM in this process."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from components.engines.vllm import VllmEngine

    engine = VllmEngine(wide)
    yield engine
    engine.close()
    engine.close()
    assert engine.llm is None


@pytest.fixture(scope="session")
def vllm_server(wide, tmp_path_factory):
    """The address of a `vllm serve` of its own; it never outlives the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = read_json(wide / "policy.json")["digest"]
    command = [sys.executable, "-c", DIE_WITH_PARENT, "serve", str(wide), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--no-enable-chunked-prefill"]  # on processors vLLM breaks when a seeded prompt is read in two parts
    log = tmp_path_factory.mktemp("vllm") / "serve.log"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        _await(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(timeout=15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


def _await(process, url, log) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"vllm serve is not up after {START_SECONDS} s, or ended:\n{log.read_text()[-3000:]}")
