"""Receipts: what one run of one stage read, wrote and cost.

Owns how a stage's outputs are published (whole or not at all) and how they are tied, by SHA-256, to the
inputs and settings that made them. Knows nothing of what a stage computes. Receipts live outside the
outputs, because outputs hold no time and no host: equal inputs give equal bytes.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.errors import DataError, TryAgainError
from components.records import read_json, tree_sha256, write_json
from components.settings import Runtime

SUMMARY = "summary.json"


@contextmanager
def publishing(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well; otherwise nothing is left behind.

    Raises:
        DataError: the folder above `out` cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.{os.getpid()}-", suffix=".part"))
    except OSError as error:
        raise DataError(
            str(out.parent), f"cannot be written: {error.strerror}", "check its permissions and the free space"
        ) from error
    try:
        part.chmod(0o755)
        yield part
        with _one_at_a_time(out.parent):
            _swap(part, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        what = f"cannot be written: {error.strerror}"
        raise DataError(str(out), what, "check permissions and the free space; then run the stage again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two runs that end at once put their outputs in place one after the other."""
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _swap(part: Path, out: Path) -> None:
    """Put `part` where `out` is; an `out` of before is gone only once the new one stands."""
    if not out.exists():
        part.replace(out)
        return
    stale = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".stale"))
    old = out.replace(stale / out.name)
    try:
        part.replace(out)
    except BaseException:  # Ctrl-C between the two renames too
        old.replace(out)
        raise
    finally:
        shutil.rmtree(stale)


def _sweep(out: Path) -> None:
    """Remove what killed runs of the same stage left beside `out`."""
    for left in out.parent.glob(f".{out.name}.*-*.part"):
        pid = left.name.removeprefix(f".{out.name}.").partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def receipt_path(home: Path, stage: str, output_sha256: str) -> Path:
    """Where the receipt of the run that made these bytes lies."""
    return home / "receipts" / stage / f"{output_sha256}.json"


def write_receipt(
    runtime: Runtime,
    *,
    stage: str,
    inputs: Mapping[str, Path],
    out: Path,
    params: Any,
    started: float,
    cost: Mapping[str, Any],
) -> Path:
    """Record one run of a stage; returns the receipt's path.

    Args:
        started: `time.time()` at the start of the stage.
        cost: what only this run knows, such as the tokens it sampled and those the journal gave back.
    """
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = tree_sha256(out)
    path = receipt_path(runtime.home, stage, output)
    _write(
        path,
        {
            "stage": stage,
            "inputs": {name: {"path": str(p), "sha256": tree_sha256(p)} for name, p in sorted(inputs.items())},
            "output": {"path": str(out), "sha256": output},
            "params": params,
            "summary": read_json(out / SUMMARY) if (out / SUMMARY).exists() else {},
            "started_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.time() - started, 3),
            "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
            "peak_memory_bytes": max(own.ru_maxrss, children.ru_maxrss) * 1024,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "num_threads": runtime.num_threads,
            "num_workers": runtime.num_workers,
            **cost,
        },
    )
    return path


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        write_json(path, content)
    except OSError as error:
        what = f"the output is in place, but its receipt cannot be written: {error.strerror}"
        raise DataError(str(path), what, "check STEPFORGE_HOME and the free space; then run the stage again") from error


def find_receipt(home: Path, stage: str, out: Path) -> dict[str, Any] | None:
    """The receipt of the run that made what lies at `out`, or None if another machine made it."""
    path = receipt_path(home, stage, tree_sha256(out))
    content: dict[str, Any] | None = read_json(path) if path.exists() else None
    return content


@contextmanager
def work_folder(runtime: Runtime, name: str) -> Iterator[Path]:
    """The folder of unfinished work of processes that a launcher started together: the first holds it for all."""
    if runtime.rank == 0:
        with exclusive(runtime.home, name) as folder:
            yield folder
    else:
        yield runtime.home / "work" / name


@contextmanager
def exclusive(home: Path, name: str) -> Iterator[Path]:
    """A work folder under `home` that one process at a time may use; it outlives a killed run.

    Raises:
        TryAgainError: another process holds it.
    """
    import fcntl

    folder = home / "work" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(
            str(folder), f"cannot be written: {error.strerror}", "check STEPFORGE_HOME and the free space"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryAgainError(str(folder), "another run of the same work is in progress", "wait for it to end") from error
        yield folder
