"""Ends of a process: the exit code is ours, what was registered for the end still runs, and no input is replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.cli import main
from components.errors import SettingsError


@pytest.mark.parametrize("code", [0, 3, 75, 130])
def test_a_process_leaves_with_its_code_and_runs_what_was_registered_for_the_end(code):
    script = f"import atexit; atexit.register(print, 'at the end'); from components.cli import leave; leave({code})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "at the end\n")


CHILD = """
import sys, time
from components.cli import guarded, leave
def call(args):
    print("begun", flush=True)
    try:
        time.sleep(60)
    finally:
        open(sys.argv[1], "w").write("tidied up")
leave(guarded(call, None))
"""


def test_a_stage_stops_tidily_when_the_command_that_runs_it_was_killed(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    command = ["sh", "-c", f"{sys.executable} child.py end; true"]  # as DVC does: a shell stands between
    run = "import sys; from pathlib import Path; from flows.stages import _streamed; "
    run += "_streamed(sys.argv[1:], Path('.'), log=lambda line: print(line, flush=True))"
    here = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-c", run, *command], cwd=tmp_path, env=here, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "begun\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while not (tmp_path / "end").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (tmp_path / "end").read_text() == "tidied up"


def test_a_stage_whose_parent_is_gone_already_does_not_begin():
    gone = subprocess.Popen(["true"])
    gone.wait()
    script = "from components.cli import guarded, leave; leave(guarded(lambda args: print('begun'), None))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "STEPFORGE_PARENT": str(gone.pid)},
    )
    assert (done.returncode, done.stdout) == (130, "")


@pytest.mark.parametrize(
    "argv",
    [
        ["label", "--seeds", "{0}/seeds", "--rollouts", "{0}/rollouts", "--out", "{0}/rollouts"],
        ["regrade", "--seeds", "{0}/seeds", "--rollouts", "{0}/rollouts", "--out", "{0}/seeds/../rollouts"],
        ["import", "{0}/seeds/summary.json", "--as", "stepwise", "--out", "{0}/seeds"],
        [
            "export",
            *(f"--{name}={{0}}/{name}" for name in ("seeds", "rollouts", "labels")),
            "--as=parquet",
            "--out={0}/labels",
        ],
        [
            "export",
            *(f"--{name}={{0}}/{name}" for name in ("seeds", "rollouts", "labels")),
            "--as=parquet",
            "--out={0}/labels/labels.parquet",
        ],
    ],
)
def test_no_verb_replaces_what_it_reads(argv, tmp_path, capsys):
    for name in ("seeds", "rollouts", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{}")
        (tmp_path / name / "labels.parquet").write_text("paid for")
    assert main([part.format(tmp_path) for part in argv]) == SettingsError.exit_code
    assert "would replace its own input" in capsys.readouterr().err
    assert all((tmp_path / name / "labels.parquet").read_text() == "paid for" for name in ("seeds", "rollouts", "labels"))
