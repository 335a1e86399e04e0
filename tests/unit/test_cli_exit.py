"""Ends of a process: the exit code is ours, and what was registered for the end still runs."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("code", [0, 3, 75, 130])
def test_a_process_leaves_with_its_code_and_runs_what_was_registered_for_the_end(code):
    script = f"import atexit; atexit.register(print, 'at the end'); from components.cli import leave; leave({code})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "at the end\n")
