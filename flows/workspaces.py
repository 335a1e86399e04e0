"""Workspaces beside the user's: the same pipeline under other settings, over the same DVC cache, data and code.

Owns what such a folder consists of, and what DVC's run cache knows of a stage before it runs; does not know what for.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from components.records import digest, read_json, replacing, tree_sha256
from flows.stages import Stage, opened_repo

RESTORE_SECONDS = 1.5  # what DVC takes to find a stage in its run cache and check it out
_CONFIG = """[core]
    no_scm = true
    analytics = false
[cache]
    dir = {cache}
    type = "reflink,hardlink,symlink,copy"
"""


@dataclass(frozen=True)
class Step:
    """A stage of one run."""

    name: str
    stage: Stage
    params: Mapping[str, Any]
    """The whole params.yaml that it is run with."""
    key: str
    """Of everything that decides its output."""
    seconds: float | None
    """What it is to take: None if its output is known already; nan if no receipt tells."""


def seeded_stages(pipeline: Sequence[Stage], first: str) -> set[str]:
    """`first`, and every stage that reads what one of these wrote."""
    reached, written = {first}, set[str]()
    for stage in pipeline:
        if stage.name == first or written & set(stage.deps):
            reached.add(stage.name)
            written |= set(stage.outs)
    return reached


def make_workspace(repo: Path, folder: Path, pipeline: Sequence[Stage]) -> None:
    """A folder in which DVC runs `repo`'s pipeline: its dvc.yaml, links to what no stage writes, its cache. Idempotent.

    Restored outputs are links into the cache where the file system has them: what runs share takes room once.
    """
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    _put(folder / ".dvc" / "config", _CONFIG.format(cache=cache_folder(repo).parents[1]))
    _put(folder / "dvc.yaml", (repo / "dvc.yaml").read_text(encoding="utf-8"))
    written = {out for stage in pipeline for out in stage.outs}
    tops = {Path(dep).parts[0] for stage in pipeline for dep in stage.deps if not _is_below(dep, written)}
    for name in sorted(tops):
        link, target = folder / name, (repo / name).absolute()
        if not link.is_symlink() or link.readlink() != target:  # the project was moved: its old place may hold another
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def use_params(folder: Path, params: Mapping[str, Any]) -> None:
    """Have the next stage of a workspace run with these settings."""
    _put(folder / "params.yaml", yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True))


def _put(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")


def _is_below(path: str, folders: set[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


class Known:
    """What the shared run cache holds, and what earlier runs took. Asks DVC's files, runs nothing."""

    def __init__(self, repo: Path, home: Path) -> None:
        self.repo = repo
        self.home = home
        self.cache = cache_folder(repo)
        self.entries = {_entry_key(entry): entry for entry in self._entries()}
        self.promised: set[str] = set()
        self._md5 = cache(self._file_md5)
        self._seconds = cache(self._usual_seconds)

    def steps(
        self, pipeline: Sequence[Stage], declared: Mapping[str, Any], params: Mapping[str, Mapping[str, Any]]
    ) -> list[Step]:
        """The steps of a run in order; what an earlier run of the same plan will have made counts as known."""
        written: dict[str, str] = {}  # path -> MD5 of what is cached, else the key of the step that will write it
        steps = []
        for stage in pipeline:
            said = declared[stage.name]
            values = {name: _at(params[stage.name], name) for name in said.get("params", [])}
            deps = {path: written.get(path) or self._md5(path) for path in stage.deps}
            key = _key(said["cmd"], deps, values)
            entry = self.entries.get(key)
            seconds = None if entry or key in self.promised else self._seconds(stage.name)
            self.promised.add(key)
            outs = {out["path"]: out["md5"] for out in entry["outs"]} if entry else {}
            written |= {path: outs.get(path, f"{key}/{path}") for path in stage.outs}
            steps.append(Step(stage.name, stage, params[stage.name], key, seconds))
        return steps

    def _entries(self) -> Iterator[Mapping[str, Any]]:
        """What DVC's run cache lists, where the outputs are still in the cache."""
        for path in sorted((self.cache.parent.parent / "runs").glob("*/*/*")):
            try:
                entry = _yaml(path)
                outs = [out["md5"] for out in entry["outs"]]
            except (OSError, yaml.YAMLError, KeyError, TypeError):
                continue  # DVC does not use what it cannot read either
            if all((self.cache / md5[:2] / md5[2:]).exists() for md5 in outs):
                yield entry

    def _file_md5(self, path: str) -> str:
        file = self.repo / path
        if not file.is_file():  # a folder that no stage writes: its digest names it, although DVC names it otherwise
            return tree_sha256(file) if file.exists() else "missing"
        with file.open("rb") as content:
            return hashlib.file_digest(content, "md5").hexdigest()

    def _usual_seconds(self, stage: str) -> float:
        receipts = (self.home / "receipts" / stage).glob("*.json")
        known = [read_json(path).get("wall_seconds") for path in receipts]
        return statistics.median([float(s) for s in known if s is not None]) if any(known) else float("nan")


def is_complete(folder: Path, steps: Sequence[Step]) -> bool:
    """Whether a workspace holds the output of every step, by its own dvc.lock."""
    path = folder / "dvc.lock"
    content = _yaml(path) if path.exists() else {}
    locked = (content or {}).get("stages") or {}
    return all(
        step.name in locked
        and _entry_key(locked[step.name]) == step.key
        and all((folder / out).exists() for out in step.stage.outs)
        for step in steps
    )


def cache_folder(repo: Path) -> Path:
    """Where DVC keeps the bytes of this repository, by MD5."""
    with opened_repo(repo) as dvc:
        return Path(dvc.cache.local.path).absolute()


def _yaml(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _entry_key(entry: Mapping[str, Any]) -> str:
    deps = {dep["path"]: dep.get("md5", "") for dep in entry.get("deps", [])}
    params = {name: value for section in entry.get("params", {}).values() for name, value in section.items()}
    return _key(entry["cmd"], deps, params)


def _key(cmd: str, deps: Mapping[str, str], params: Mapping[str, Any]) -> str:
    return digest(" ".join(cmd.split()), dict(sorted(deps.items())), json.dumps(params, sort_keys=True))


def _at(params: Mapping[str, Any], dotted: str) -> Any:
    inside: Any = params
    for part in dotted.split("."):
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    return inside
