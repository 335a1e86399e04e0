"""Outputs are published whole or not at all, work is held by one process, receipts are found by the bytes they tell of."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.errors import DataError, TryAgainError
from components.lineage import SUMMARY, exclusive, find_receipt, publishing, receipt_path, write_receipt
from components.records import tree_sha256, write_json
from components.settings import load_runtime


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "artifacts" / "seeds"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def published(out, **files):
    with publishing(out) as part:
        for name, text in files.items():
            (part / name).write_text(text)


def test_a_new_output_appears_whole_when_the_block_ends(out):
    with publishing(out) as part:
        (part / "a").write_text("1")
        assert not out.exists()
        assert part.parent == out.parent  # a rename within one file system is atomic
    assert content(out) == {"a": "1"}
    assert names(out.parent) == ["seeds"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_old_output_is_replaced_whole_and_its_files_are_gone(out):
    published(out, a="1", b="2")
    published(out, b="3")
    assert content(out) == {"b": "3"}
    assert names(out.parent) == ["seeds"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), DataError("p", "w", "h"), OSError(5, "I/O")])
def test_an_exception_leaves_the_old_output_and_nothing_beside_it(out, error):
    published(out, a="old")
    with pytest.raises(type(error)), publishing(out) as part:
        (part / "a").write_text("half")
        raise error
    assert content(out) == {"a": "old"}
    assert names(out.parent) == ["seeds"]


def test_a_first_run_that_fails_leaves_nothing(out):
    with pytest.raises(RuntimeError), publishing(out) as part:
        (part / "a").write_text("half")
        raise RuntimeError
    assert names(out.parent) == []


def test_a_full_disk_is_said(out):
    with pytest.raises(DataError, match=r"seeds: cannot be written: No space left"), publishing(out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(out.parent) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), publishing(tmp_path / "file" / "seeds"):
        pytest.fail("the block must not run")


def test_an_output_that_cannot_be_put_in_place_leaves_the_old_one(out):
    published(out, a="old")
    with pytest.raises(OSError), publishing(out) as part:
        (part / "a").write_text("new")
        part.rename(part.with_name("moved away"))  # someone cleans up behind our back
    assert content(out) == {"a": "old"}


def test_an_interruption_between_the_two_renames_leaves_the_old_output(out, monkeypatch):
    published(out, a="old")
    rename = Path.replace

    def interrupted(path, target):
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return rename(path, target)

    with pytest.raises(KeyboardInterrupt), publishing(out) as part:
        (part / "a").write_text("new")
        monkeypatch.setattr(Path, "replace", interrupted)
    assert content(out) == {"a": "old"}
    assert names(out.parent) == ["seeds"]


# argv: home, name; holds the work folder until its input ends
HOLDER = """
import sys
from pathlib import Path
from components.lineage import exclusive
with exclusive(Path(sys.argv[1]), sys.argv[2]) as work:
    (work / "unfinished").write_text("42")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    processes = []

    def call(name="train"):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield call
    for process in processes:
        process.kill()
        process.wait()


def test_work_that_another_process_does_is_refused_and_other_work_is_not(tmp_path, holder):
    holder("train")
    refused = pytest.raises(TryAgainError, match="another run of the same work is in progress")
    with refused as caught, exclusive(tmp_path, "train"):
        pytest.fail("the block must not run")
    assert caught.value.exit_code == 75
    with exclusive(tmp_path, "sft") as work:
        assert work == tmp_path / "work" / "sft"


def test_a_killed_holder_leaves_its_work_to_the_next(tmp_path, holder):
    process = holder()
    process.kill()
    process.wait()
    with exclusive(tmp_path, "train") as work:
        assert (work / "unfinished").read_text() == "42"
    process.stdin.close()


def test_work_is_free_again_after_the_block_however_it_ended(tmp_path):
    with pytest.raises(RuntimeError), exclusive(tmp_path, "x"):
        raise RuntimeError
    for _ in range(2):
        with exclusive(tmp_path, "x"):
            pass


def test_a_home_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), exclusive(tmp_path / "file", "x"):
        pytest.fail("the block must not run")


def test_a_receipt_is_found_by_the_bytes_it_tells_of(out, tmp_path):
    runtime = load_runtime({"STEPFORGE_HOME": str(tmp_path / "home"), "STEPFORGE_THREADS": "3"})
    source = tmp_path / "problems.json"
    source.write_text("[]")
    with publishing(out) as part:
        (part / "seeds.parquet").write_text("rows")
        write_json(part / SUMMARY, {"seeds": 5})
    started = time.time() - 2
    path = write_receipt(
        runtime,
        stage="curate",
        inputs={"problems/0": source},
        out=out,
        params={"seed": 1},
        started=started,
        cost={"tokens": 9},
    )
    assert path == receipt_path(tmp_path / "home", "curate", tree_sha256(out))
    receipt = find_receipt(tmp_path / "home", "curate", out)
    assert receipt["output"] == {"path": str(out), "sha256": tree_sha256(out)}
    assert receipt["inputs"] == {"problems/0": {"path": str(source), "sha256": tree_sha256(source)}}
    assert receipt["params"] == {"seed": 1}
    assert receipt["summary"] == {"seeds": 5}
    assert receipt["tokens"] == 9
    assert receipt["num_threads"] == 3
    assert 2 <= receipt["wall_seconds"] < 10
    assert receipt["peak_memory_bytes"] > 2**20

    moved = tmp_path / "elsewhere"
    out.rename(moved)
    assert find_receipt(tmp_path / "home", "curate", moved) == receipt  # the bytes count, not the place
    (moved / "seeds.parquet").write_text("other rows")
    assert find_receipt(tmp_path / "home", "curate", moved) is None


def test_an_output_that_another_machine_made_has_no_receipt(out, tmp_path):
    published(out, a="1")
    assert find_receipt(tmp_path / "home", "curate", out) is None


def test_a_receipt_is_no_part_of_the_output(out, tmp_path):
    published(out, a="1")
    before = tree_sha256(out)
    runtime = load_runtime({"STEPFORGE_HOME": str(tmp_path / "home")})
    for _ in range(2):
        write_receipt(runtime, stage="curate", inputs={}, out=out, params={}, started=time.time(), cost={})
    assert tree_sha256(out) == before
    assert len(list((tmp_path / "home" / "receipts" / "curate").iterdir())) == 1


PUBLISH_OFTEN = """
import sys
from pathlib import Path
from components.lineage import publishing
for _ in range(40):
    with publishing(Path(sys.argv[1])) as part:
        (part / "who").write_text(sys.argv[2])
"""


def test_runs_that_end_at_once_replace_one_another_whole(tmp_path):
    out = tmp_path / "out"
    runs = [subprocess.Popen([sys.executable, "-c", PUBLISH_OFTEN, str(out), str(i)]) for i in range(4)]
    assert [run.wait(60) for run in runs] == [0] * 4
    assert (out / "who").read_text() in "0123"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
