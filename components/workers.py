"""Worker processes that may be killed: work on hostile input comes back as a result, whatever it did.

Knows nothing of the work: a target is named as text, jobs and results are JSON. Nothing here can hang or raise for a job.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import errors
from components.errors import EngineError, SettingsError, StepForgeError

Job = Callable[[Any], Any]

_START_SECONDS = 120.0  # imports on a busy machine, cold
_MAX_STARTS = 3  # in a row, without a worker that says hello
_MAX_REPLY_BYTES = 1 << 20
_JOBS_PER_WORKER = 2000  # then a fresh one: libraries keep caches
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Result:
    """How one job ended."""

    status: str
    """ok | timeout | out_of_memory | crashed"""
    value: Any = None
    """ok: what the target returned. crashed: what it said, if it could."""


class _Worker:
    """One process, and what it is doing."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, bufsize=0
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        self.output, self.input = self.process.stdout, self.process.stdin
        os.set_blocking(self.output.fileno(), False)
        self.is_ready = False
        self.job: int | None = None
        self.num_jobs = 0
        self.deadline = time.monotonic() + _START_SECONDS
        self.received = b""

    def send(self, number: int, text: str, wall_seconds: float) -> None:
        self.job = number
        self.num_jobs += 1
        self.deadline = time.monotonic() + wall_seconds
        with contextlib.suppress(BrokenPipeError):  # it has died: reading will say so
            self.input.write(text.encode() + b"\n")

    def line(self) -> bytes | None:
        """One line of output; b"" at its end: it is dying; None if there is none yet."""
        while b"\n" not in self.received:
            part = self.output.read(1 << 16)
            if part is None:
                return None
            self.received += part
            if len(self.received) > _MAX_REPLY_BYTES:
                self.process.kill()
                return b""
            if not part:
                return b""
        line, _, self.received = self.received.partition(b"\n")
        return line

    def end(self, *, is_dying: bool = False) -> int:
        """Kill it; the code it ended with. One that is dying by itself is waited for: its code says why."""
        if is_dying:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
        self.process.kill()
        code = self.process.wait()
        self.input.close()
        self.output.close()
        return code


class Pool:
    """Runs jobs in processes of their own, one at a time in each, and kills those that pass a limit.

    CPU time decides a timeout, so that a busy machine changes no result; a much longer wall clock is the backstop.
    Workers start when there is work, are used again, and end with `close()`, with the pool, or with this process.

    >>> pool = Pool("components.workers:echo", num_workers=1, cpu_seconds=1.0, memory_bytes=1 << 30)
    >>> pool.map([1, {"a": [2]}])
    [Result(status='ok', value=1), Result(status='ok', value={'a': [2]})]
    >>> pool.close()

    Args:
        target: `module:function`; called once in a worker, without arguments, it returns the function that does a job.
            It may refuse to start with one of our errors.
        num_workers: processes at most.
        cpu_seconds: CPU time of one job.
        memory_bytes: address space of a worker.
        wall_seconds: time of one job by the clock; ten times `cpu_seconds` if not given.
    """

    def __init__(
        self, target: str, *, num_workers: int, cpu_seconds: float, memory_bytes: int, wall_seconds: float | None = None
    ) -> None:
        if num_workers < 1 or cpu_seconds <= 0 or memory_bytes < 1:
            what = f"{num_workers} workers, {cpu_seconds} s, {memory_bytes} bytes"
            raise SettingsError("workers", what, "all three must be positive")
        self.target = target
        self.num_workers = num_workers
        self.wall_seconds = 10 * cpu_seconds if wall_seconds is None else wall_seconds
        self._command = [sys.executable, "-P", "-m", "components.workers", target, repr(cpu_seconds), str(memory_bytes)]
        self._environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONHASHSEED": "0",  # the order of a set must not decide a result
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._num_failed_starts = 0
        self._finalizer = weakref.finalize(self, _end_all, self._workers)

    def map(self, jobs: Sequence[Any]) -> list[Result]:
        """The result of each job, in order.

        A worker that dies for no reason of ours costs its job one more try: an accident of the machine is no result.

        Raises:
            StepForgeError: the target refuses to start; EngineError if it cannot be started at all.
        """
        texts = [json.dumps(job) for job in jobs]
        results: list[Result | None] = [None] * len(texts)
        waiting = deque(range(len(texts)))
        once_dead: set[int] = set()
        with self._lock:
            try:
                while waiting or any(worker.job is not None for worker in self._workers):
                    self._staff(len(waiting))
                    for worker in self._workers:
                        if worker.is_ready and worker.job is None and waiting:
                            number = waiting.popleft()
                            worker.send(number, texts[number], self.wall_seconds)
                    for worker in self._heard():
                        ended = self._step(worker)
                        if ended is None:
                            continue
                        number, result = ended
                        if result.status == "crashed" and result.value is None and number not in once_dead:
                            once_dead.add(number)
                            waiting.appendleft(number)
                        else:
                            results[number] = result
            finally:
                for worker in [worker for worker in self._workers if worker.job is not None]:
                    self._end(worker)  # interrupted: its answer would be taken for that of the next job
        return [result for result in results if result is not None]

    def _staff(self, num_waiting: int) -> None:
        """Start workers, as many as the waiting jobs can use."""
        for worker in [w for w in self._workers if w.job is None and w.is_ready and w.process.poll() is not None]:
            self._end(worker)
        num_free = sum(worker.job is None for worker in self._workers)
        while len(self._workers) < self.num_workers and num_free < num_waiting:
            try:
                self._workers.append(_Worker(self._command, self._environment))
            except OSError as error:
                raise EngineError("workers", f"no process: {error}", "check the limits on processes and memory") from error
            num_free += 1

    def _heard(self) -> Iterator[_Worker]:
        """The workers that said something or are past their deadline; waits until there is one."""
        watched = [worker for worker in self._workers if worker.job is not None or not worker.is_ready]
        with selectors.DefaultSelector() as selector:
            for worker in watched:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            first = min((worker.deadline for worker in watched), default=time.monotonic())
            heard = [key.data for key, _ in selector.select(max(0.0, first - time.monotonic()))]
        yield from heard
        now = time.monotonic()
        yield from (worker for worker in watched if worker not in heard and worker.deadline <= now)

    def _step(self, worker: _Worker) -> tuple[int, Result] | None:
        """Take what a worker said, or its silence; the job that ended by it."""
        line = worker.line()
        if line is None and worker.deadline > time.monotonic():
            return None
        if not worker.is_ready:
            self._hello(worker, line)
            return None
        number = worker.job
        assert number is not None
        if not line:
            code = self._end(worker, is_dying=line is not None)
            is_late = line is None or code == -signal.SIGPROF
            return number, Result("timeout") if is_late else Result("crashed")
        reply = json.loads(line)
        worker.job = None
        if reply["status"] == "out_of_memory" or worker.num_jobs >= _JOBS_PER_WORKER:
            self._end(worker)
        return number, Result(reply["status"], reply.get("value"))

    def _hello(self, worker: _Worker, line: bytes | None) -> None:
        if line == b"ready":
            worker.is_ready = True
            self._num_failed_starts = 0
            return
        code = self._end(worker, is_dying=line is not None)
        if line:
            name, place, what, hint = json.loads(line)
            kind = getattr(errors, name, EngineError)
            raise kind(place, what, hint)
        self._num_failed_starts += 1
        if self._num_failed_starts >= _MAX_STARTS:
            self._num_failed_starts = 0
            why = f"nothing heard for {_START_SECONDS:.0f} s" if line is None else f"exit code {code}"
            raise EngineError("workers", f"{self.target} does not start: {why}", "raise memory_bytes, or free some memory")

    def _end(self, worker: _Worker, *, is_dying: bool = False) -> int:
        self._workers.remove(worker)
        return worker.end(is_dying=is_dying)

    def close(self) -> None:
        """End the workers. The pool may be used again."""
        with self._lock:
            _end_all(self._workers)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


# --- inside a worker -----------------------------------------------------------------------------------------------

_OUT_OF_MEMORY = b'{"status": "out_of_memory"}\n'  # made while there is memory


def echo() -> Job:
    """A target that returns its job."""
    return lambda job: job


def _main(target: str, cpu_seconds: float, memory_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that owns the pool
    for number in (signal.SIGPROF, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)  # the kernel ends this process, whatever it is busy with
    reply_to = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no reply
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    try:
        work = _loaded(target)
    except StepForgeError as error:
        os.write(reply_to, json.dumps([type(error).__name__, error.place, error.what, error.hint]).encode() + b"\n")
        return
    os.write(reply_to, b"ready\n")
    jobs = os.fdopen(0, "rb", closefd=False)
    while line := jobs.readline():
        fcntl.fcntl(
            0, fcntl.F_SETFL, flags | os.O_ASYNC
        )  # SIGIO when the other side is gone: it sends nothing until we reply
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        reply = _reply(work, line)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        fcntl.fcntl(0, fcntl.F_SETFL, flags)
        _write(reply_to, reply)
        if reply is _OUT_OF_MEMORY:
            return


def _loaded(target: str) -> Job:
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)()  # type: ignore[no-any-return]
    except (ImportError, AttributeError, MemoryError) as error:
        what = f"{target}: {type(error).__name__}: {error}"
        raise EngineError("workers", what, "install what is missing, or raise memory_bytes") from error


def _reply(work: Job, line: bytes) -> bytes:
    try:
        value = work(json.loads(line))
        return json.dumps({"status": "ok", "value": value}, allow_nan=False).encode() + b"\n"
    except MemoryError:
        return _OUT_OF_MEMORY
    except BaseException as error:  # a job may raise anything: the worker goes on
        try:
            said = f"{type(error).__name__}: {str(error)[:200]}"
        except Exception:
            said = type(error).__name__
        return json.dumps({"status": "crashed", "value": said}).encode() + b"\n"


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


if __name__ == "__main__":
    if len(sys.argv) != 4 or not math.isfinite(float(sys.argv[2])):
        sys.exit("usage: python -m components.workers MODULE:FUNCTION CPU_SECONDS MEMORY_BYTES")
    _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
