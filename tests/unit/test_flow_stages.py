"""What DVC's words mean; the texts are those of DVC 3.67."""

from __future__ import annotations

import pytest

from components.errors import DataError, EngineError, RefusedError, SettingsError, StepForgeError, TryAgainError
from flows.stages import failure, outcome, read_lock

EXECUTED = """Running stage 'count':
> python stage.py count data/words.txt artifacts/counts
Stage 'b' is cached - skipping run, checking out outputs? no, this is the stage talking
count   10/10 words
Updating lock file 'dvc.lock'

To track the changes with git, run:

\tgit add dvc.lock out/.gitignore

To enable auto staging, run:

\tdvc config core.autostage true
Use `dvc push` to send your updates to remote storage."""
RESTORED = """Stage 'count' is cached - skipping run, checking out outputs
Updating lock file 'dvc.lock'
Use `dvc push` to send your updates to remote storage."""
UNCHANGED = """Stage 'count' didn't change, skipping
Data and pipelines are up to date."""

FAILED = """Running stage 'one':
> python one.py
one starts
error: data/x: bad row 3
hint: fix it
ERROR: failed to reproduce 'one': failed to run: python one.py, exited with {code}"""
CRASHED = """Running stage 'one':
> python one.py
Traceback (most recent call last):
  File "one.py", line 1, in <module>
ZeroDivisionError: division by zero
ERROR: failed to reproduce 'one': failed to run: python one.py, exited with {code}"""
BUSY = """ERROR: failed to reproduce 'one': '/repo/out/one' is busy, it is being blocked by:
  (PID 12674): /env/dvc/__main__.py --wait-for-lock repro -s one

If there are no processes with such PIDs, you can manually remove '/repo/.dvc/tmp/rwlock' and try again."""
LOCKED = "ERROR: Unable to acquire lock. Most likely another DVC process is running or was terminated abruptly."
MISSING = "ERROR: failed to reproduce 'one': [Errno 2] No such file or directory: '/repo/one.py'"


@pytest.mark.parametrize(("text", "expected"), [(EXECUTED, "executed"), (RESTORED, "restored"), (UNCHANGED, "unchanged")])
def test_the_three_outcomes_are_told_apart(text, expected):
    assert outcome("count", text.splitlines()) == expected


def test_words_that_say_none_of_the_three_are_an_error_and_no_guess():
    with pytest.raises(StepForgeError, match="neither"):
        outcome("count", ["Everything is wonderful."])


@pytest.mark.parametrize(
    ("code", "kind"), [(2, SettingsError), (3, DataError), (4, EngineError), (5, RefusedError), (75, TryAgainError)]
)
def test_a_stage_that_reports_its_error_fails_with_its_own_two_lines_and_class(code, kind):
    error = failure("one", 255, FAILED.format(code=code).splitlines())
    assert type(error) is kind
    assert error.exit_code == code
    assert error.lines() == "error: data/x: bad row 3\nhint: fix it"


def test_of_several_reported_errors_the_last_counts():
    lines = ["error: a: first", "hint: one", *FAILED.format(code=3).splitlines()]
    assert failure("one", 255, lines).place == "data/x"


@pytest.mark.parametrize(
    ("code", "expected", "words"), [(1, 1, "exit code 1"), (75, 75, "exit code 75"), (-9, 1, "signal 9")]
)
def test_a_stage_that_crashes_says_how_it_ended(code, expected, words):
    error = failure("one", 255, CRASHED.format(code=code).splitlines())
    assert error.exit_code == expected
    assert words in error.what


@pytest.mark.parametrize("text", [BUSY, LOCKED])
def test_a_lock_held_by_another_process_may_pass(text):
    assert isinstance(failure("one", 255, text.splitlines()), TryAgainError)


def test_a_missing_dependency_is_a_data_error():
    error = failure("one", 255, MISSING.splitlines())
    assert isinstance(error, DataError)
    assert "/repo/one.py" in error.what


def test_an_error_outside_dvc_keeps_its_own_exit_code():
    error = failure("data", 3, ["error: data: disk is full", "hint: free some space"])
    assert (type(error), error.hint) == (DataError, "free some space")


def test_the_lock_file_gives_hashes_and_settings_and_an_absent_stage_gives_none(tmp_path):
    lock = """schema: '2.0'
stages:
  count:
    cmd: python stage.py
    deps:
    - {path: data/words.txt, hash: md5, md5: 3da904d79fb03e6e3936ff2127039b1a, size: 6}
    params:
      params.yaml:
        count: {scale: 2}
        seed: 0
    outs:
    - {path: artifacts/counts, hash: md5, md5: 10c6ddc7f0a814730a6bc760cc9b14bc.dir, size: 10, nfiles: 1}
"""
    (tmp_path / "dvc.lock").write_text(lock)
    locked = read_lock(tmp_path, "count")
    assert locked.md5 == {
        "data/words.txt": "3da904d79fb03e6e3936ff2127039b1a",
        "artifacts/counts": "10c6ddc7f0a814730a6bc760cc9b14bc.dir",
    }
    assert locked.params == {"count": {"scale": 2}, "seed": 0}
    assert read_lock(tmp_path, "sum").md5 == {}
