"""What verbs share: their arguments, folders that may be replaced, and the record of a run.

Knows no verb.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import SettingsError

if TYPE_CHECKING:
    from components.settings import Runtime

Verb = Callable[[argparse.Namespace], int]
OUT = "folder to write; replaced whole, or left as it was"
PARAMS = "settings file (default: params.yaml)"
PRM = "folder written by train, or a registered version: models:/prm.staging@champion"


@contextmanager
def recorded(
    runtime: Runtime, verb: str, *, inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder that becomes `out` when the block ends well, and the cost for its receipt, to be filled in.

    Raises:
        SettingsError: `out` holds what is none of ours, or an input.
        DataError: it cannot be written.
    """
    from components.lineage import SUMMARY, publishing, write_receipt

    started = time.time()
    cost: dict[str, Any] = {}
    refuse_foreign(out, SUMMARY, inputs.values())
    with publishing(out) as part:
        yield part, cost
    write_receipt(runtime, stage=verb, inputs=inputs, out=out, params=params, started=started, cost=cost)


def named_path(flag: str, text: str) -> tuple[str, Path]:
    """NAME=FILE, taken apart."""
    name, equals, path = text.partition("=")
    if not (equals and name and path):
        raise SettingsError(
            "command line", f"{flag} {text!r} is not NAME=FILE", f"for example {flag} test=data/test.parquet"
        )
    return name, Path(path)


def refuse_foreign(out: Path, ours: str, inputs: Iterable[Path] = ()) -> None:
    """A folder is replaced whole: only one that we wrote, or that is empty, may be named, and none that is read."""
    for read in inputs:
        if read.resolve().is_relative_to(out.resolve()):
            raise SettingsError(
                "command line", f"--out {str(out)!r} would replace its own input {read}", "name a new folder"
            )
    if Path.cwd().is_relative_to(out.resolve()):
        raise SettingsError("command line", f"--out {str(out)!r} holds the folder you are in", "name a folder below it")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / ours).exists())):
        raise SettingsError("command line", f"--out {str(out)!r} holds files of another origin", "name a new folder")


def add_labelled(sub: argparse.ArgumentParser) -> None:
    """The three folders that labelled solutions lie in."""
    for flag, stage in (("seeds", "curate"), ("rollouts", "rollout"), ("labels", "label")):
        folder = f"artifacts/{flag}"
        sub.add_argument(f"--{flag}", default=folder, help=f"folder written by {stage}, or by import (default: {folder})")


def prm_folder(name: str, home: Path) -> Path:
    """The folder of a reward model, or of a registered version."""
    if not name.startswith("models:/"):
        return Path(name)
    from components.score import find_prm
    from components.tracking import Tracking

    digest, folder = Tracking(home).whereabouts(name)
    return find_prm(digest, [folder, Path("artifacts/prm/prm")])


def add_gold(sub: argparse.ArgumentParser) -> None:
    """Where the gold rows of a file of outputs are."""
    sub.add_argument("--gold", metavar="FILE", help="file of the gold rows, joined by id, if FILE lacks their fields")
    sub.add_argument("--on", metavar="FIELD", help="the id field to join by (default: the first that both have)")
