"""A Prefect server for one workspace, for as long as one command runs.

Owns its start, its end and what of Prefect reaches the terminal; knows nothing of the flow that uses it.
Prefect starts such a server by itself, but in the terminal's process group: Ctrl-C ends the server first, and
the run then waits minutes to report to it.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from components.errors import TryAgainError
from components.lineage import exclusive

START_SECONDS = 120.0
DRAIN_SECONDS = 5.0

_SERVE = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: end with the command, however that ends
import uvicorn
uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


@contextmanager
def prefect_server(home: Path) -> Iterator[None]:
    """The server named by PREFECT_API_URL, or else one of our own with its database in `home`.

    Raises:
        TryAgainError: another command has this workspace's server, or it does not start.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # Their errors are ours: the command prints them as two lines. In the run they stay whole.
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    if PREFECT_API_URL.value():
        yield
        return
    with (
        alone(home, "prefect"),  # its database has one server
        _served(home) as url,
        # Nobody watches for heartbeats here, and waiting for the last one costs a second a run.
        temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        try:
            yield
        finally:
            for worker in (APILogWorker, EventsWorker):  # what is still on its way, before the server goes
                worker.drain_all(timeout=DRAIN_SECONDS, at_exit=False)


@contextmanager
def alone(home: Path, name: str) -> Iterator[None]:
    """Hold what only one retrain of a workspace may hold.

    Raises:
        TryAgainError: another one holds it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(home, name))
        except TryAgainError as error:
            raise TryAgainError("retrain", "another retrain is running in this folder", "wait for it to end") from error
        yield


@contextmanager
def _served(home: Path) -> Iterator[str]:
    port = _free_port()
    environment = {
        **os.environ,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home.absolute() / 'prefect.db'}",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",  # no schedulers: they would outlive nothing
        "PREFECT__SERVER_FINAL": "1",
    }
    log_path = home / "prefect-server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # Ctrl-C is for the run, which still has to report its end
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                hint = f"see {log_path}; or name a running server with PREFECT_API_URL"
                raise TryAgainError("prefect", f"its embedded server did not start on port {port}", hint)
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
