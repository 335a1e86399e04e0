"""DVC in the user's workspace: the order of the stages, running one, and putting data/ in place.

Owns what DVC's words and exit codes mean; does not know Prefect, MLflow or what a stage computes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from components.cli import PARENT
from components.errors import DataError, EngineError, RefusedError, SettingsError, StepForgeError, TryAgainError
from components.lineage import exclusive
from flows import ENVIRONMENT

Outcome = Literal["executed", "restored", "unchanged"]
Log = Callable[[str], None]

STOP_SECONDS = 8.0  # how long an interrupted stage may tidy up before it is killed

_ERRORS: dict[int, type[StepForgeError]] = {
    error.exit_code: error for error in (SettingsError, DataError, EngineError, RefusedError, TryAgainError)
}
_UNCHANGED = re.compile(r"^Stage '.+' didn't change, skipping$")
_RESTORED = re.compile(r"^Stage '.+' is cached - skipping run, checking out outputs$")
_EXECUTED = re.compile(r"^Running stage '.+':$")
_EXIT_CODE = re.compile(r"exited with (-?\d+)$")
_BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by|failed to acquire lock", re.IGNORECASE)
# What DVC says for its own sake; the stage's lines are the others.
_CHATTER = re.compile(
    r"^(Running stage '|> |Stage '|Updating lock file|Generating lock file|Use `dvc push`|Data and pipelines are up to date"
    r"|To track the changes with git|To enable auto staging|\s+(git add|dvc config) |ERROR: |error: |hint: |\s*$)"
)


@dataclass(frozen=True)
class Stage:
    """A stage as dvc.yaml declares it."""

    name: str
    deps: tuple[str, ...]
    """Paths it reads, relative to the repository."""
    outs: tuple[str, ...]
    """Paths it writes."""


@dataclass(frozen=True)
class Locked:
    """A stage as dvc.lock remembers it after a run."""

    md5: dict[str, str]
    """Path -> DVC's hash, for dependencies and outputs."""
    params: dict[str, Any]
    """The settings it was run with."""


def read_pipeline(repo: Path) -> list[Stage]:
    """The stages in the order of DVC's own graph: every stage after those it reads from, else as dvc.yaml lists them.

    Raises:
        SettingsError: no DVC repository, or a dvc.yaml that DVC refuses.
    """
    from networkx import lexicographical_topological_sort  # type: ignore[import-untyped]

    with opened_repo(repo) as dvc:
        listed = [stage for stage in dvc.index.stages if stage.path_in_repo == "dvc.yaml"]
        place = {stage.name: number for number, stage in enumerate(listed)}
        graph = dvc.index.graph.subgraph(listed).reverse()  # DVC's edges point from a stage to what it needs
        ordered = lexicographical_topological_sort(graph, key=lambda stage: place[stage.name])
        return [
            Stage(
                name=stage.name,
                deps=tuple(dep.def_path for dep in stage.deps if not hasattr(dep, "params")),
                outs=tuple(out.def_path for out in stage.outs),
            )
            for stage in ordered
        ]


def read_lock(repo: Path, name: str) -> Locked:
    """What dvc.lock holds of a stage; empty if it holds nothing."""
    path = repo / "dvc.lock"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    stage = (content.get("stages") or {}).get(name) or {}
    entries = [*stage.get("deps", []), *stage.get("outs", [])]
    params = {key: value for section in stage.get("params", {}).values() for key, value in section.items()}
    return Locked({entry["path"]: entry.get("md5", "") for entry in entries}, params)


@contextmanager
def opened_repo(repo: Path) -> Iterator[Any]:
    """DVC's view of a folder; what it refuses becomes an error of ours."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(repo)) as dvc:
            yield dvc
    except NotDvcRepoError as error:
        raise SettingsError(str(repo), "no DVC repository", "run in the project's folder") from error
    except LockError as error:
        raise _busy("dvc") from error
    except DvcException as error:
        raise SettingsError("dvc.yaml", f"DVC refuses it: {error}", "run dvc status to see it in full") from error


def _busy(place: str) -> TryAgainError:
    return TryAgainError(place, "another DVC process uses this workspace", "wait for it to end")


# Running one stage


def run_stage(repo: Path, name: str, *, log: Log) -> tuple[Outcome, float]:
    """Let DVC run, restore or skip one stage: the outcome and the seconds it took.

    Its lines appear on the terminal as they come; `log` gets every line, DVC's own too.

    Raises:
        StepForgeError: of the class that the stage's own error line and exit code name.
    """
    started = time.monotonic()
    code, lines = _dvc(repo, ["--wait-for-lock", "repro", "--single-item", name], log=log)
    if code != 0:
        raise failure(name, code, lines)
    return outcome(name, lines), time.monotonic() - started


def outcome(name: str, lines: Sequence[str]) -> Outcome:
    """What DVC did, from what it said."""
    for line in lines:
        if _UNCHANGED.match(line):
            return "unchanged"
        if _RESTORED.match(line):
            return "restored"
        if _EXECUTED.match(line):
            return "executed"
    what = f"DVC ended well but said neither executed, restored nor unchanged: {lines[-1] if lines else 'nothing'}"
    raise StepForgeError(f"stage {name}", what, "flows/stages.py knows the words of DVC 3; which version is installed?")


def failure(name: str, code: int, lines: Sequence[str]) -> StepForgeError:
    """A failed stage as the error that it reported itself. DVC's own exit code says only that something failed."""
    said = next((found[1] for line in reversed(lines) if (found := _EXIT_CODE.search(line))), None)
    own_code = int(said) if said else code
    for number in range(len(lines) - 1, -1, -1):
        place, colon, what = lines[number].removeprefix("error: ").partition(": ")
        if lines[number].startswith("error: ") and colon:
            hint = lines[number + 1] if number + 1 < len(lines) else ""
            kind = _ERRORS.get(own_code, StepForgeError)
            return kind(place, what, hint.removeprefix("hint: ") if hint.startswith("hint: ") else "see the lines above")
    if any(_BUSY.search(line) for line in lines):
        return _busy(f"stage {name}")
    if said is None:  # the stage did not run: DVC itself refused
        words = " ".join(line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
        missing = any(sign in words for sign in ("missing data", "does not exist", "No such file"))
        kind = DataError if missing else StepForgeError
        return kind(f"stage {name}", words or f"DVC ended with exit code {code}", "run dvc status to see what is missing")
    if own_code < 0:
        what = f"was killed by signal {-own_code}"
        return StepForgeError(f"stage {name}", what, "out of memory? fewer STEPFORGE_WORKERS need less")
    kind = _ERRORS.get(own_code, StepForgeError)
    return kind(f"stage {name}", f"ended with exit code {own_code}", "the lines above say why")


def _dvc(repo: Path, arguments: Sequence[str], *, log: Log, is_shown: bool = True) -> tuple[int, list[str]]:
    return _streamed([sys.executable, "-m", "dvc", *arguments], repo, log=log, is_shown=is_shown)


def _streamed(command: Sequence[str], repo: Path, *, log: Log, is_shown: bool = True) -> tuple[int, list[str]]:
    """Exit code and lines of a command that writes to the terminal as it goes, and dies when we are interrupted.

    The child stays in our process group and session: whoever stops the group stops it too.
    """
    own = str(Path(sys.executable).parent)
    environment = {**ENVIRONMENT, **os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    environment["PATH"] = os.pathsep.join([own, environment.get("PATH", "")])  # `python` in a stage is this one
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=repo,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.rstrip("\r\n")
                lines.append(line)
                log(line)
                if is_shown and not _CHATTER.match(line):
                    print(line, file=sys.stderr, flush=True)
            code = process.wait()
        except BaseException:
            _stop(process.pid)
            raise
    return code, lines


def _stop(pid: int) -> None:
    """End a process and all below it: one second on their own (Ctrl-C reached them too), then asked, then killed."""
    import psutil  # type: ignore[import-untyped]

    try:
        root = psutil.Process(pid)
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    _, alive = psutil.wait_procs(tree, timeout=1.0)
    for process in alive:
        if process.pid != pid or len(alive) == 1:  # DVC itself ends, and tidies its locks, when its stage has ended
            _signal(process.terminate)
    _, alive = psutil.wait_procs(alive, timeout=STOP_SECONDS)
    for process in alive:
        _signal(process.kill)
    psutil.wait_procs(alive, timeout=1.0)


def _signal(send: Callable[[], None]) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        send()


# data/


def ensure_data(repo: Path, home: Path, *, log: Log) -> Outcome:
    """Have data/ as data.dvc pins it: kept, restored from DVC's cache or remote, or made again and checked.

    data.dvc itself never changes here. A data/ that holds other, unsaved bytes is never overwritten.

    Raises:
        SettingsError: there is no data.dvc.
        DataError: data/ is not what data.dvc pins, or what is made is not.
        TryAgainError: another process makes it.
    """
    pin = _pinned(repo)
    data = repo / "data"
    is_here = _hash_of(repo, data) == pin
    if is_here and _is_cached(repo, pin):
        return "unchanged"
    with exclusive(home, "data"):
        if not is_here:
            if _restored(repo, log=log):
                return "restored"
            _refuse_unsaved(repo, data, pin)
            _make(repo, home, data, pin, log=log)
        _commit(repo, pin)
    return "unchanged" if is_here else "executed"


def _pinned(repo: Path) -> str:
    path = repo / "data.dvc"
    hint = "restore it: git checkout data.dvc; or pin your own data: dvc add data"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(content["outs"][0]["md5"])
    except FileNotFoundError as error:
        raise SettingsError(str(path), "no such file", hint) from error
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise SettingsError(str(path), f"pins no folder: {error!r}", hint) from error


def _hash_of(repo: Path, folder: Path) -> str | None:
    """DVC's hash of a folder as it would be added, or None if it is absent or empty."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    from dvc_data.hashfile.build import build
    from dvc_objects.fs.local import localfs

    with opened_repo(repo) as dvc:
        _, _, tree = build(dvc.cache.local, str(folder), localfs, "md5", dry_run=True)
        return str(tree.hash_info.value)


def _is_cached(repo: Path, value: str) -> bool:
    with opened_repo(repo) as dvc:
        return bool(dvc.cache.local.exists(value))


def _restored(repo: Path, *, log: Log) -> bool:
    """Ask DVC's cache, then its remote. Without --force DVC does not touch bytes that it cannot give back."""
    for verb in ("checkout", "pull"):
        code, _ = _dvc(repo, [verb, "data.dvc"], log=log, is_shown=False)
        if code == 0:
            return True
    return False


def _refuse_unsaved(repo: Path, data: Path, pin: str) -> None:
    found = _hash_of(repo, data)
    if found is not None and not _is_cached(repo, found):
        what = f"has MD5 {found}, data.dvc pins {pin}"
        raise DataError("data", what, "your own data? pin it: dvc add data. Otherwise remove data/ and it is made again")


def _make(repo: Path, home: Path, data: Path, pin: str, *, log: Log) -> None:
    """Make the known-truth world beside its place and move it there only if it is the pinned one."""
    part = (home / "work" / "data" / "data").absolute()
    shutil.rmtree(part, ignore_errors=True)
    code, lines = _streamed([sys.executable, "-m", "components", "world", "--out", str(part)], repo, log=log)
    if code != 0:
        raise failure("data", code, lines)
    made = _hash_of(repo, part)
    if made != pin:
        shutil.rmtree(part, ignore_errors=True)
        what = f"what was made has MD5 {made}, data.dvc pins {pin}"
        raise DataError("data", what, "git checkout data.dvc; if the world was changed on purpose, pin it: dvc add data")
    shutil.rmtree(data, ignore_errors=True)  # nothing, an empty folder, or bytes that DVC can give back
    part.rename(data)


def _commit(repo: Path, pin: str) -> None:
    """Put data/ into DVC's cache; data.dvc is read, never written."""
    with opened_repo(repo) as dvc, dvc.lock:
        stage = dvc.stage.load_one(path=str(repo / "data.dvc"))
        assert stage.outs[0].hash_info.value == pin
        stage.outs[0].commit()
