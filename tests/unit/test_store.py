"""The journal survives what happens to processes: two writers at once, a kill in the middle, a file that is no journal."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import DataError, TryAgainError
from components.records import digest
from components.store import Journal

KEYS = [digest("key", i) for i in range(2000)]

rows = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["stop", "length"]),
    st.integers(0, 2**31),
    st.floats(-1e6, 0.0),
)


def row(i, text="text"):
    return (f"{text} {i}", "stop", i, -0.5 * i)


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "home" / "journal.sqlite")
    yield opened
    opened.close()


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(KEYS[:50]), rows, max_size=12))
def test_what_was_put_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    first = Journal(path)
    first.put(content.items())
    first.close()
    again = Journal(path)
    assert again.get(KEYS[:60]) == content
    again.close()


def test_more_keys_than_one_query_holds_come_back(journal):
    journal.put((key, row(i)) for i, key in enumerate(KEYS))
    found = journal.get([*KEYS, digest("unknown"), KEYS[0]])
    assert found == {key: row(i) for i, key in enumerate(KEYS)}
    assert journal.get([]) == {}


def test_the_first_writer_of_a_key_wins(journal):
    journal.put([(KEYS[0], row(0, "first"))])
    journal.put([(KEYS[0], row(0, "second")), (KEYS[1], row(1, "second"))])
    assert journal.get(KEYS[:2]) == {KEYS[0]: row(0, "first"), KEYS[1]: row(1, "second")}


def test_a_batch_that_fails_leaves_nothing_and_the_journal_usable(journal):
    with pytest.raises(DataError):
        journal.put([(KEYS[0], row(0)), (KEYS[1], ("text", None, 1, 0.0))])

    def interrupted():
        yield KEYS[2], row(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.put(interrupted())
    assert journal.get(KEYS[:3]) == {}
    journal.put([(KEYS[0], row(0))])
    assert set(journal.get(KEYS[:3])) == {KEYS[0]}


def test_two_readers_see_what_either_wrote(tmp_path):
    one, two = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    one.put([(KEYS[0], row(0))])
    assert two.get(KEYS[:1]) == {KEYS[0]: row(0)}
    two.put([(KEYS[1], row(1))])
    assert set(one.get(KEYS[:2])) == set(KEYS[:2])
    one.close()
    two.close()


# argv: journal, name, batches, rows a batch, first key; says each batch that `put` returned from
WRITER = """
import sys
from pathlib import Path
from components.records import digest
from components.store import Journal
path, name, batches, size, first = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
sys.stdin.readline()
journal = Journal(Path(path))
for batch in range(batches):
    numbers = range(first + batch * size, first + (batch + 1) * size)
    journal.put((digest("key", i), (f"{name} " + "x" * 500, "stop", i, -1.0)) for i in numbers)
    print(batch, flush=True)
"""


def writer(path, name, *, batches, size, first=0):
    command = [sys.executable, "-c", WRITER, str(path), name, str(batches), str(size), str(first)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    path = tmp_path / "home" / "journal.sqlite"
    writers = [writer(path, name, batches=25, size=20, first=first) for name, first in (("one", 0), ("two", 250))]
    for process in writers:  # both wait for this line, and then open a journal that does not exist yet
        process.stdin.write("\n")
        process.stdin.flush()
    for process in writers:
        assert process.wait(60) == 0, process.stderr.read()
    journal = Journal(path)
    found = journal.get(KEYS[:1000])
    assert set(found) == set(KEYS[:750])  # 0..499 and 250..749
    assert {KEYS.index(key): entry[2] for key, entry in found.items()} == {i: i for i in range(750)}
    assert all(found[KEYS[i]][0].startswith("one") for i in range(250))
    assert all(found[KEYS[i]][0].startswith("two") for i in range(500, 750))
    journal.close()


def test_many_processes_may_open_a_journal_that_does_not_exist_yet(tmp_path):
    path = tmp_path / "journal.sqlite"
    writers = [writer(path, str(i), batches=1, size=2, first=2 * i) for i in range(4)]
    for process in writers:
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [(process.wait(60), process.stderr.read()) for process in writers]
    assert outcomes == [(0, "")] * 4
    journal = Journal(path)
    assert len(journal.get(KEYS[:8])) == 8
    journal.close()


def test_a_killed_writer_leaves_whole_batches_and_all_that_it_had_been_told_of(tmp_path):
    path = tmp_path / "journal.sqlite"
    size = 40
    process = writer(path, "killed", batches=10_000, size=size)
    process.stdin.write("\n")
    process.stdin.flush()
    for _ in range(8):
        told = int(process.stdout.readline())
    time.sleep(0.003)  # into the middle of a batch, more often than not
    os.kill(process.pid, signal.SIGKILL)
    told += len(process.stdout.read().splitlines())
    assert process.wait(10) == -signal.SIGKILL
    journal = Journal(path)
    known = set(journal.get([digest("key", i) for i in range((told + 3) * size)]))
    whole, rest = divmod(len(known), size)
    assert rest == 0
    assert told + 1 <= whole <= told + 2
    assert known == {digest("key", i) for i in range(whole * size)}
    journal.put([(digest("after"), row(1))])
    assert journal.get([digest("after")]) == {digest("after"): row(1)}
    journal.close()


def test_a_file_that_is_no_journal_is_said(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(DataError, match=r"journal\.sqlite: the journal cannot be used"):
        Journal(path)


def test_a_journal_with_a_broken_page_is_said(tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.put((key, row(i, "x" * 200)) for i, key in enumerate(KEYS))
    journal.close()
    content = bytearray(path.read_bytes())
    content[4096:-4096] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(DataError, match="the journal cannot be used"):
        Journal(path).get(KEYS)


CONTENT = {
    key: (f"text {i} " + "é" * (7 * i % 400 if i % 5 == 0 else i % 40), "stop", i, -0.5 * i)
    for i, key in enumerate(KEYS[:60])
}
PAGE_BYTES = 512


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory):
    """(bytes of the file, bytes of its log) -> a journal with so much of CONTENT; None: all, 0 of a log: none.

    Its last two batches are only in the log.
    """
    folder = tmp_path_factory.mktemp("cut")
    source = folder / "source"
    with sqlite3.connect(source) as db:
        db.execute(f"PRAGMA page_size={PAGE_BYTES}")
        db.execute("VACUUM")
    db.close()
    first, live = list(CONTENT.items()), Journal(source)
    live.put(first[:40])
    live._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    live.put(first[40:50])
    live.put(first[50:])
    logged = [(folder / name).read_bytes() for name in ("source", "source-wal")]
    live.close()
    whole = source.read_bytes()

    def call(size=None, log_size=0):
        for left in folder.glob("journal*"):
            left.unlink()
        (folder / "journal").write_bytes((logged[0] if log_size != 0 else whole)[:size])
        if log_size != 0:
            (folder / "journal-wal").write_bytes(logged[1][:log_size])
        return folder / "journal"

    call.whole, call.logged = whole, logged
    return call


def reopened(path):
    """What a journal still knows of CONTENT; it must be right, and the journal as good as new."""
    journal = Journal(path)
    found = journal.get(KEYS[:60])
    assert found.items() <= CONTENT.items()
    journal.put(CONTENT.items())
    assert journal.get(KEYS[:60]) == CONTENT
    assert journal._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    journal.close()
    return len(found)


def test_a_journal_that_was_cut_anywhere_is_mended_as_it_is_opened(cut_short, capsys):
    whole = len(cut_short.whole)
    assert reopened(cut_short()) == 60
    assert "cut short" not in capsys.readouterr().err
    before = 0
    for cut in sorted({*range(0, whole, 509), *range(0, whole, 2 * PAGE_BYTES), *range(whole - PAGE_BYTES, whole, 31)}):
        path = cut_short(cut)
        known = reopened(path)
        assert known >= before  # more of the file, more of its rows
        before = known
        said = capsys.readouterr().err
        assert (f"was cut short: {known} completions are kept" in said) == (cut > 0)  # nothing at all is a new journal
        assert cut == 0 or path.with_name("journal.torn").read_bytes() == cut_short.whole[:cut]
    assert before >= 54


def test_a_log_that_was_cut_anywhere_keeps_whole_batches(cut_short, capsys):
    kept = {reopened(cut_short(None, cut)) for cut in range(1, len(cut_short.logged[1]) + 1, 1999)}
    assert kept == {40, 50}
    assert reopened(cut_short(None, None)) == 60
    assert "cut short" not in capsys.readouterr().err


def test_a_file_that_a_kill_left_short_while_its_log_was_written_back_loses_nothing(cut_short, capsys):
    file = cut_short.logged[0]
    path = cut_short(None, None)
    path.write_bytes(cut_short.whole[: len(file)])  # the first pages are written back, and tell of those that are not yet
    assert len(file) < len(cut_short.whole)
    assert reopened(path) == 60
    assert "cut short" not in capsys.readouterr().err


def test_a_file_that_was_cut_short_beside_a_log_keeps_what_either_has(cut_short):
    file = len(cut_short.logged[0])
    counts = [reopened(cut_short(cut, None)) for cut in range(PAGE_BYTES, file, 1009)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_a_large_journal_that_was_cut_short_is_mended_in_seconds(tmp_path):
    journal = Journal(tmp_path / "journal")
    keys = [digest("large", i) for i in range(20_000)]
    journal.put((key, row(i, "x" * 150)) for i, key in enumerate(keys))
    journal.close()
    size = (tmp_path / "journal").stat().st_size
    os.truncate(tmp_path / "journal", size * 9 // 10 + 100)
    started = time.process_time()
    journal = Journal(tmp_path / "journal")
    assert time.process_time() - started < 10
    found = journal.get(keys)
    assert 0.85 * len(keys) < len(found) < len(keys)
    assert all(found[key] == row(i, "x" * 150) for i, key in enumerate(keys) if key in found)
    journal.close()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="the journal cannot be used"):
        Journal(tmp_path / "file" / "journal.sqlite")


def test_a_journal_that_another_process_holds_for_long_is_to_be_tried_again(tmp_path):
    one, two = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    two._db.execute("PRAGMA busy_timeout=10")
    one._db.execute("BEGIN IMMEDIATE")
    with pytest.raises(TryAgainError, match="the journal is busy"):
        two.put([(KEYS[0], row(0))])
    one._db.execute("COMMIT")
    two.put([(KEYS[0], row(0))])
    assert one.get(KEYS[:1]) == {KEYS[0]: row(0)}
    one.close()
    two.close()


def test_a_full_disk_is_said_and_what_was_there_stays(journal):
    journal.put([(KEYS[0], row(0))])
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(DataError, match="database or disk is full"):
        journal.put((key, row(i, "x" * 500)) for i, key in enumerate(KEYS))
    assert journal.get(KEYS) == {KEYS[0]: row(0)}
    journal._db.execute("PRAGMA max_page_count=100000")
    journal.put([(KEYS[1], row(1))])
    assert set(journal.get(KEYS)) == set(KEYS[:2])


def test_half_a_character_is_kept_as_one_that_can_be_written(journal):
    journal.put([(KEYS[0], row(0, "a\ud83d")), (KEYS[1], row(1, "\ud83d\ude00")), (KEYS[2], row(2, "\ude00b\0é"))])
    assert [journal.get(KEYS)[key][0] for key in KEYS[:3]] == ["a\ufffd 0", "\U0001f600 1", "\ufffdb\0é 2"]
