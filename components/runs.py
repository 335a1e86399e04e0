"""What is known of one run: its numbers, settings, code, data and the registry's answers, from a folder or a version.

Owns where these are found and what to say where they are not; does not know what a difference between two runs means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import DataError, RefusedError, SettingsError
from components.records import SELECTION, digest, file_sha256, read_json, read_table
from components.report.evidence import FOLDERS

_VERSION = re.compile(r"(?:models:/)?([^/@\s]+)(?:@([^/@\s]+)|/(\d+))")
_CODE = "components/"


@dataclass
class Run:
    """One side of a comparison; what is not known is empty, and `unknown` says why."""

    name: str
    metrics: dict[str, Any] = field(default_factory=dict)
    selections: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """(split, selector) -> problem -> the chance in [0, 1] that its pick is right."""
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """stage -> what it says of its output."""
    settings: dict[str, Any] = field(default_factory=dict)
    """`label.threshold` -> value."""
    described: set[str] = field(default_factory=set)
    """Stages whose settings are all among them."""
    code: dict[str, dict[str, str]] = field(default_factory=dict)
    """stage -> file -> digest."""
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    """file of data/ -> its md5 or sha256, and num_rows where they can be counted."""
    decisions: list[str] = field(default_factory=list)
    """What the ledger says of this PRM, oldest first."""
    folder: Path | None = None
    """Of the artifacts; None for a version."""
    unknown: list[str] = field(default_factory=list)

    @property
    def prm_digest(self) -> str | None:
        """Of the reward model."""
        found = self.metrics.get("prm_digest") or self.summaries.get("train", {}).get("prm_digest")
        return found if isinstance(found, str) else None

    @property
    def code_digest(self) -> str | None:
        """Of all code that its stages ran with."""
        return digest("code", self.code) if self.code else None


def read_run(name: str, *, home: Path) -> Run:
    """The run that `name` names.

    Args:
        name: a folder of artifacts, a workspace that holds one, what evaluate wrote, or a registered version:
            `prm.staging@champion`, `prm.dev/3`.
        home: of the workspace whose registry is asked for versions.
    Raises:
        SettingsError: it is none of these.
        DataError: a file is there and cannot be read.
    """
    if _is_folder(name):
        return _of_folder(name, Path(name))
    if not (named := _VERSION.fullmatch(name)) or not named[1].startswith("prm."):
        what = f"{name!r} is neither a folder nor a registered version"
        raise SettingsError("command line", what, "for example artifacts, prm.staging@champion or prm.dev/3")
    return _of_version(name.removeprefix("models:/"), home)


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # a name too long for any file
        return False


# A folder


def _of_folder(name: str, given: Path) -> Run:
    folder = given / "artifacts" if (given / "artifacts").is_dir() else given
    run = Run(name, folder=folder)
    evaluation = folder if (folder / "metrics.json").exists() else folder / FOLDERS["evaluate"]
    for stage, inside in FOLDERS.items():
        place = evaluation if stage == "evaluate" else folder / inside
        if found := _object(place / "summary.json"):
            run.summaries[stage] = found
    run.metrics = _object(evaluation / "metrics.json")
    if not run.summaries and not run.metrics:
        what = f"holds none of {', '.join(FOLDERS.values())}, and no metrics.json"
        raise DataError(name, what, "name a folder of artifacts, or what evaluate wrote")
    if not run.metrics:
        run.unknown.append("its metrics: it was not evaluated")
    run.selections = _selections(evaluation / "selections.parquet")
    workspace = folder.resolve().parent
    described = _read_lock(run, workspace / "dvc.lock", folder)
    if not described:
        _read_settings_beside(run, [folder / "params.yaml", workspace / "params.yaml"])
        run.unknown.append("its code: no dvc.lock that describes it lies beside it")
    _read_data(run, workspace / "data")
    run.decisions = _decisions(workspace / ".stepforge" / "ledger.jsonl", run.prm_digest)
    return run


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(str(path), f"holds {type(content).__name__}, not an object", "run its stage again")
    return content


def _selections(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_table(path, SELECTION) if path.exists() else ():
        value = float("nan") if row["value"] is None else row["value"]
        found.setdefault((row["split"], row["selector"]), {})[row["problem_id"]] = value
    return found


def _read_lock(run: Run, path: Path, folder: Path | None) -> bool:
    """Settings, code and data of the stages that a dvc.lock describes; whether it describes any.

    Args:
        folder: where the outputs lie: a stage whose output has another size than the lock says is left out. None: the lock
            was kept with them.
    """
    import yaml

    if not path.exists():
        return False
    try:
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        for stage, inside in FOLDERS.items():
            if stage not in stages:
                continue
            if folder is not None and not _is_described(stages[stage], folder / inside):
                if stage in run.summaries:
                    run.unknown.append(f"what {stage} ran with: dvc.lock is of another run of it")
                continue
            run.described.add(stage)
            for params in stages[stage].get("params", {}).values():
                run.settings |= _flat(params)
            for one in stages[stage]["deps"]:
                if one["path"].startswith(_CODE):
                    run.code.setdefault(stage, {})[one["path"]] = one["md5"]
                elif one["path"].startswith("data/"):
                    run.data[one["path"]] = {"md5": one["md5"], "num_bytes": one.get("size")}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise DataError(str(path), f"no lock of DVC: {error!r}", "restore it, or move it away") from error
    return bool(run.described)


def _is_described(stage: Mapping[str, Any], place: Path) -> bool:
    """The output has the number of files and bytes that the lock says: its digest would take as long as reading it all."""
    wanted = stage["outs"][0]
    files = [path for path in place.rglob("*") if path.is_file()]
    return [wanted.get("nfiles"), wanted.get("size")] == [len(files), sum(path.stat().st_size for path in files)]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b: value`; lists stay values."""
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        is_inner = isinstance(value, Mapping) and value
        leaves |= _flat(value, f"{prefix}{key}.") if is_inner else {f"{prefix}{key}": value}
    return leaves


def _read_settings_beside(run: Run, paths: list[Path]) -> None:
    import yaml

    path = next((path for path in paths if path.exists()), None)
    if path is None:
        run.unknown.append("its settings: neither dvc.lock nor params.yaml lies beside it")
        return
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(str(path), f"not YAML: {error}", "correct it, or move it away") from error
    run.settings = _flat(content) if isinstance(content, dict) else {}
    run.described = set(FOLDERS)
    run.unknown.append(f"whether its settings are those of {path}: nothing says so")


def _read_data(run: Run, folder: Path) -> None:
    """Rows of the files in data/ that are those of the lock; without one, their digests too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_locked = bool(run.data)
    for path in sorted(folder.glob("*.parquet")):
        name = f"data/{path.name}"
        known = run.data.get(name)
        if known is None and is_locked:
            continue  # no stage read it
        if known is not None and known.get("num_bytes") != path.stat().st_size:
            continue  # another file by now
        try:
            num_rows = int(pq.read_metadata(path).num_rows)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(str(path), f"not a readable Parquet file: {error}", "restore it: dvc checkout") from error
        run.data.setdefault(name, {"sha256": file_sha256(path)})["num_rows"] = num_rows


def _decisions(ledger: Path, prm_digest: str | None) -> list[str]:
    from components.ledger import verify_ledger

    words = {"promote": "promoted to", "refuse": "refused for", "rollback": "brought back in"}
    if prm_digest is None:
        return []
    try:
        records = verify_ledger(ledger)
    except RefusedError as error:
        return [f"the ledger does not prove itself: {error.what}"]
    told = []
    for record in records:
        if record.get("prm_digest") != prm_digest or record["action"] not in words:
            continue
        failed = [str(reason.get("gate")) for reason in record.get("reasons") or [] if not reason.get("passed")]
        why = record.get("reason") or ", ".join(failed)
        line = f"{record['time'][:10]} {record['version']} {words[record['action']]} {record['environment']}"
        told.append(f"{line} by {record['actor']}" + (f": {why}" if why else ""))
    return told


# A registered version


def _of_version(name: str, home: Path) -> Run:
    import tempfile

    from components.tracking import Tracking

    tracking = Tracking(home)
    version = tracking.find(f"models:/{name}")
    run = Run(name)
    with tempfile.TemporaryDirectory() as place:
        evidence = tracking.evidence(version, Path(place) / "evidence")
        run.metrics = _object(evidence / "metrics.json")
        run.selections = _selections(evidence / "selections.parquet")
        pins = tracking.pins(version, Path(place) / "pins")
        if pins is None or not _read_lock(run, pins / "dvc.lock.txt", None):
            run.unknown.append("its settings, code and data: the registry keeps no dvc.lock for it")
    run.summaries = tracking.stage_numbers(version)
    if not run.summaries:
        run.unknown.append("its labels: no run of its stages is kept")
    run.decisions = _decisions(home / "ledger.jsonl", version.prm_digest)
    return run
