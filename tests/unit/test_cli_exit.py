"""Ends of a process: the exit code is ours, what was registered for the end still runs, and no input is replaced."""

import subprocess
import sys

import pytest

from components.cli import main
from components.errors import SettingsError


@pytest.mark.parametrize("code", [0, 3, 75, 130])
def test_a_process_leaves_with_its_code_and_runs_what_was_registered_for_the_end(code):
    script = f"import atexit; atexit.register(print, 'at the end'); from components.cli import leave; leave({code})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "at the end\n")


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
