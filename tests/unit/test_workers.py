"""A job may do what it likes: it ends as a result, in its place, and the next job finds a worker."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.errors import EngineError, SettingsError
from components.workers import Pool, Result

ROOT = Path(__file__).parents[2]
JOBS = "tests.unit.hostile_jobs"


@pytest.fixture(scope="module")
def pool():
    with Pool(f"{JOBS}:jobs", num_workers=2, cpu_seconds=0.3, memory_bytes=1 << 29) as pool:
        yield pool


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid, seconds):
    until = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def test_results_come_back_in_the_order_of_the_jobs(pool):
    assert pool.map([["echo", n] for n in range(100)]) == [Result("ok", n) for n in range(100)]
    assert pool.map([]) == []


@pytest.mark.parametrize(
    ("job", "result"),
    [
        (["loop"], Result("timeout")),
        (["big_power"], Result("timeout")),
        (["memory"], Result("out_of_memory")),
        (["segfault"], Result("crashed")),
        (["raise"], Result("crashed", "ValueError: no such luck")),
        (["leave"], Result("crashed", "SystemExit: 0")),
        (["huge_reply"], Result("crashed")),
        (["noise"], Result("ok", "quiet")),
        (["interrupt"], Result("ok", "still here")),
    ],
)
def test_a_hostile_job_is_a_result_and_hurts_no_other(pool, job, result):
    started = time.monotonic()
    assert pool.map([["echo", 1], job, ["echo", 2], ["echo", 3]]) == [
        Result("ok", 1),
        result,
        Result("ok", 2),
        Result("ok", 3),
    ]
    assert time.monotonic() - started < 30.0


def test_endless_recursion_and_what_is_no_json_are_crashes(pool):
    first, second = pool.map([["recurse"], ["no_json"]])
    assert (first.status, second.status) == ("crashed", "crashed")
    assert first.value.startswith("RecursionError") and second.value.startswith("TypeError")


def test_waiting_costs_no_processor_time_so_a_busy_machine_changes_nothing(pool):
    assert pool.map([["sleep", 0.6]]) == [Result("ok", "slept")]  # twice the processor time that it may use


def test_the_clock_ends_a_job_that_uses_no_processor_time():
    with Pool(f"{JOBS}:jobs", num_workers=1, cpu_seconds=1.0, wall_seconds=0.2, memory_bytes=1 << 29) as pool:
        assert pool.map([["sleep", 60], ["echo", 1]]) == [Result("timeout"), Result("ok", 1)]


def test_workers_are_used_again_and_replaced_after_a_kill():
    with Pool(f"{JOBS}:jobs", num_workers=1, cpu_seconds=0.2, memory_bytes=1 << 29) as pool:
        first, again, _, other = (result.value for result in pool.map([["pid"], ["pid"], ["loop"], ["pid"]]))
        assert first == again != other
        assert not is_alive(first) and is_alive(other)
        os.kill(other, signal.SIGKILL)  # while it has nothing to do
        gone_within(other, 5.0)
        assert pool.map([["echo", 1]]) == [Result("ok", 1)]


def test_no_more_workers_start_than_there_is_work():
    with Pool(f"{JOBS}:jobs", num_workers=2, cpu_seconds=0.2, memory_bytes=1 << 29) as pool:
        assert len(pool._workers) == 0
        pool.map([["echo", 1]])
        assert len(pool._workers) == 1


def test_a_worker_that_dies_by_accident_costs_its_job_one_more_try(pool, tmp_path):
    assert pool.map([["die_once", str(tmp_path / "mark")]]) == [Result("ok", "second time")]


def test_closing_ends_the_workers_and_the_pool_can_be_used_again():
    pool = Pool(f"{JOBS}:jobs", num_workers=1, cpu_seconds=0.2, memory_bytes=1 << 29)
    pid = pool.map([["pid"]])[0].value
    pool.close()
    pool.close()
    assert not is_alive(pid)
    assert pool.map([["echo", 1]]) == [Result("ok", 1)]
    last = pool.map([["pid"]])[0].value
    del pool
    assert not is_alive(last)


def test_workers_end_when_their_owner_is_killed():
    code = (
        "import sys, threading, time\n"
        "from components.workers import Pool\n"
        f"pool = Pool('{JOBS}:jobs', num_workers=1, cpu_seconds=60.0, memory_bytes=1 << 29)\n"
        "print(pool.map([['pid']])[0].value, flush=True)\n"
        "if sys.argv[1] == 'busy':\n"
        "    threading.Thread(target=pool.map, args=([['loop']],), daemon=True).start()\n"
        "    time.sleep(0.2)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    for state in ("busy", "idle"):
        owner = subprocess.Popen([sys.executable, "-c", code, state], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with owner, contextlib.suppress(ProcessLookupError):
            pid = int(owner.stdout.readline())
            assert owner.stdout.readline() == "ready\n" and is_alive(pid)
            owner.kill()
            assert gone_within(pid, 5.0), state


def test_an_interrupted_call_leaves_no_answer_for_the_next():
    with Pool(f"{JOBS}:jobs", num_workers=1, cpu_seconds=5.0, memory_bytes=1 << 29) as pool:
        pool.map([["echo", 0]])
        timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.map([["sleep", 0.5]])
            time.sleep(5)
        timer.join()
        assert pool.map([["echo", 1]]) == [Result("ok", 1)]


def test_threads_may_share_a_pool_and_may_end_before_it(pool):
    found = {}

    def work(number):
        found[number] = pool.map([["echo", 10 * number + n] for n in range(10)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [Result("ok", 10 * number + n) for n in range(10)] for number in range(4)}


def test_results_do_not_depend_on_the_seed_of_hashes_and_secrets_stay_here(monkeypatch):
    monkeypatch.setenv("STEPFORGE_JUDGE_KEY", "secret")
    values = []
    for _ in range(2):
        with Pool(f"{JOBS}:jobs", num_workers=1, cpu_seconds=1.0, memory_bytes=1 << 29) as pool:
            values.append(pool.map([["hash", "x"], ["secrets"]]))
    assert values[0] == values[1]
    assert values[0][1] == Result("ok", [])


def test_a_target_may_refuse_to_start_with_one_of_our_errors():
    with pytest.raises(SettingsError, match="here: not today") as caught:
        Pool(f"{JOBS}:refuses", num_workers=1, cpu_seconds=1.0, memory_bytes=1 << 29).map([1])
    assert caught.value.hint == "come back"
    with pytest.raises(EngineError, match="ModuleNotFoundError"):
        Pool("components.nowhere:nothing", num_workers=1, cpu_seconds=1.0, memory_bytes=1 << 29).map([1])
    with pytest.raises(EngineError, match="does not start: exit code 3"):
        Pool(f"{JOBS}:dies", num_workers=2, cpu_seconds=1.0, memory_bytes=1 << 29).map([1, 2])
    with pytest.raises(SettingsError, match="0 workers"):
        Pool(f"{JOBS}:jobs", num_workers=0, cpu_seconds=1.0, memory_bytes=1 << 29)
