"""A trained reward model in use: questions, pictures and solutions -> scores, a verdict and the first error.

Owns what a row may look like, what becomes of a bad one, and how a file is scored so that nothing is lost or done twice.
Does not know how a score comes about (prm.py), nor registries: a reward model is a folder here.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from components.contract import read_contract
from components.errors import DataError, EngineError, StepForgeError, one_line
from components.lineage import exclusive
from components.metrics import aggregate
from components.progress import Progress, say
from components.records import digest, file_sha256, replacing, write_json
from components.settings import Runtime, load_runtime
from components.tasks import Task, load_task

if TYPE_CHECKING:  # torch is imported where it is needed
    from components.prm import Reading, RewardModel

FATES = ("scored", "not_json", "incomplete", "picture", "no_steps", "too_long")
"""What becomes of a row; every fate but the first comes with a detail and without scores."""
MAX_STEPS = 12  # of a solution that is given as text (VisualPRM, section 3), where the contract names no other
_WINDOW_ROWS = 128  # read together: they share what pictures, questions and first steps they have in common
_WINDOW_BYTES = 64 * 2**20  # of lines and pictures
_PICTURE_STARTS = (
    "iVBORw0KGgo",
    "/9j/",
    "R0lGOD",
    "UklGR",
    "Qk",
    "SUkq",
    "TU0A",
)  # PNG, JPEG, GIF, WebP, BMP, TIFF in base64
_MIN_PICTURE_CHARS = 64  # of base64: shorter text is a path


@dataclass(frozen=True)
class Asked:
    """A solution to be scored."""

    question: str
    steps: tuple[str, ...]
    images: tuple[bytes, ...] = ()
    """Encoded pictures, shown before the question."""


@dataclass(frozen=True)
class Scored:
    """What the reward model says about a solution."""

    fate: str
    """One of FATES."""
    detail: str = ""
    """Why there are no scores."""
    steps: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    """One a step, between the least and the largest weight of the contract."""
    concentrations: tuple[float, ...] = ()
    """One a step: how many continuations the score is worth. Of formulation `count` alone."""
    score: float | None = None
    """The steps' scores as one, by the contract's aggregation."""
    threshold: float | None = None
    """At or below it a step counts as wrong."""
    verdict: str = "unknown"
    """right: every step lies above the threshold. wrong. unknown: not scored."""
    first_error: int | None = None
    """The first step, from 0, that does not lie above the threshold. Of formulation `outcome` never known."""

    def row(self) -> dict[str, Any]:
        """As JSON, without what does not apply."""
        said = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.fate != "scored":
            return {"fate": self.fate, "detail": self.detail, "verdict": self.verdict}
        return {key: value for key, value in said.items() if key != "detail" and value != []}


class Scorer:
    """A reward model with its contract: what to call to have solutions scored."""

    def __init__(self, model: RewardModel, contract: Mapping[str, Any], task: Task) -> None:
        self.model, self.contract, self.task = model, contract, task
        self.aggregation: str = contract["aggregation"]
        self.threshold: float = contract["threshold"]
        self.max_steps: int = contract.get("max_steps") or MAX_STEPS

    def score(self, question: str, solution: str | Sequence[str], *, images: Sequence[bytes | str | Path] = ()) -> Scored:
        """Score one solution.

        Args:
            question: as it stands in the data; the task's prompt is put around it.
            solution: its text, which the task splits into steps, or its steps.
            images: encoded pictures, or files.
        Raises:
            DataError: a file cannot be read.
        """
        return self.score_all([Asked(question, self.steps(solution), _contents(images))])[0]

    def steps(self, solution: str | Sequence[str]) -> tuple[str, ...]:
        """The steps of a solution given as text, as in training; steps stay as they are."""
        return tuple(self.task.steps(solution, max_steps=self.max_steps) if isinstance(solution, str) else solution)

    def score_all(self, asked: Sequence[Asked]) -> list[Scored]:
        """Score solutions, in their order. Those of one problem share its picture and question, and common steps.

        A solution that cannot be scored says so in its `fate`; nothing is raised for it.
        """
        from components.prm import Reading

        readings = [Reading(self.task.question(one.question), one.images, one.steps) for one in asked]
        out: list[Scored | None] = [self._refused(reading) for reading in readings]
        left = [i for i, refused in enumerate(out) if refused is None]
        for i, logits in zip(left, self.model.read([readings[i] for i in left]), strict=True):
            out[i] = self._scored(readings[i].steps, logits)
        return [one for one in out if one is not None]

    def page(self, question: str, scored: Scored, *, images: Sequence[bytes | str | Path] = ()) -> str:
        """A scored solution as one self-contained HTML page: the problem with its pictures, the steps coloured."""
        from components.report.solution import solution_page

        said = [("verdict", scored.verdict), (f"{self.aggregation} of its steps", f"{scored.score:.3f}")]
        return solution_page(
            self.task.question(question),
            _contents(images),
            scored.steps,
            scored.scores,
            weights=self.contract["weights"],
            facts=[*said, ("threshold", f"{self.threshold:.2f}")],
            first_error=scored.first_error,
        )

    def _refused(self, reading: Reading) -> Scored | None:
        """Why a solution cannot be read, or None."""
        if not reading.steps or not all(step.strip() for step in reading.steps):
            return Scored("no_steps", "there is no step" if not reading.steps else "a step is blank", reading.steps)
        renderer = self.model.renderer
        if reading.images and not hasattr(renderer.processor, "image_processor"):
            return Scored("picture", "this model takes no pictures", reading.steps)
        try:
            num_prompt = len(renderer.prompt(reading.question, reading.images).ids)
        except DataError as error:
            return Scored("picture", error.what, reading.steps)
        except (ValueError, TypeError, OSError, ZeroDivisionError) as error:  # of the processor: too narrow, for instance
            return Scored("picture", one_line(f"the processor refuses it: {error}", 200), reading.steps)
        num_tokens = num_prompt + len(renderer.solution(reading.steps).ids)
        if num_tokens > self.model.max_tokens:
            what = f"{num_tokens:,} tokens with its prompt, at most {self.model.max_tokens:,} can be read"
            return Scored("too_long", what, reading.steps)
        return None

    def _scored(self, steps: tuple[str, ...], logits_SC: Any) -> Scored:
        from components.formulations import concentration

        formulation = self.model.formulation
        scores = [round(score, 6) for score in formulation.scores(logits_SC).tolist()]
        if not scores or not all(map(math.isfinite, scores)):
            raise EngineError("reward model", f"its scores are {scores}", "the checkpoint is broken: train again")
        judged = scores[-1:] if formulation.last_only else scores
        below = [i for i, score in enumerate(judged) if score <= self.threshold]
        sure = concentration(logits_SC).tolist() if formulation.name == "count" else []
        return Scored(
            fate="scored",
            steps=steps,
            scores=tuple(scores),
            concentrations=tuple(round(value, 3) for value in sure),
            score=round(aggregate(scores, self.aggregation), 6),
            threshold=self.threshold,
            verdict="wrong" if below else "right",
            first_error=below[0] if below and not formulation.last_only else None,
        )


def open_prm(folder: str | Path, *, device: str | None = None, task: str | None = None) -> Scorer:
    """The reward model in a folder written by train, ready to score.

    Args:
        folder: a checkpoint, or the folder that holds it and its controls.
        device: `cpu`, `cuda`...; None: what STEPFORGE_DEVICE says, else a GPU if there is one.
        task: how questions are put and texts fall into steps; None: the task that it was trained for.
    Raises:
        EngineError: it cannot be loaded or breaks its contract.
        SettingsError: the task is unknown.
    """
    from components.prm import RewardModel

    checkpoint = checkpoint_in(Path(folder))
    contract = read_contract(checkpoint)
    named = task or contract.get("task") or "maths"
    chosen = load_task(named)
    if contract.get("task") == named and contract.get("task_digest", chosen.digest) != chosen.digest:
        what = f"task {named!r} is {chosen.digest} here, but the contract says {contract['task_digest']}"
        raise EngineError(str(checkpoint), what, "score with the version of the task that trained it")
    return Scorer(RewardModel.load(checkpoint, device=device or load_runtime().device), contract, chosen)


def find_prm(prm_digest: str, folders: Sequence[Path | None]) -> Path:
    """The first of the folders that holds the reward model with this digest.

    Raises:
        EngineError: none does; the message says what each holds.
    """
    seen = []
    for folder in dict.fromkeys(folder.absolute() for folder in folders if folder is not None):
        try:
            found = read_contract(folder)["digest"]
        except StepForgeError as error:
            seen.append(f"{folder}: {error.what}")
            continue
        if found == prm_digest:
            return folder
        seen.append(f"{folder} holds {found}")
    what = f"its checkpoint is not here: {'; '.join(seen) or 'no folder is known'}"
    hint = "check out the commit that trained it, then dvc checkout artifacts/prm"
    raise EngineError(f"reward model {prm_digest}", what, hint)


def checkpoint_in(folder: Path) -> Path:
    """The folder of the reward model itself, where the folder around it may be named too."""
    return folder / "prm" if not (folder / "prm.json").exists() and (folder / "prm" / "prm.json").exists() else folder


def _contents(images: Sequence[bytes | str | Path]) -> tuple[bytes, ...]:
    return tuple(_file(Path(image)) if isinstance(image, (str, Path)) else image for image in images)


# --- rows ---------------------------------------------------------------------------------------------------------


def asked_of(row: Any, scorer: Scorer, *, images: Path | None) -> Asked | Scored:
    """What a row asks for, or its fate.

    Args:
        row: an object with `question`, with `steps` (a list) or `response` (text), and with pictures or none:
            `image` or `images`, each a path, base64 or a data address, or `image_base64` or `images_base64`.
        images: the folder that paths start at; None: no path is followed.
    """
    if not isinstance(row, Mapping):
        return Scored("not_json", f"a row is an object, this is {type(row).__name__}")
    question, steps, response = row.get("question"), row.get("steps"), row.get("response")
    if not isinstance(question, str):
        return Scored("incomplete", f"question is {_shown(question)}, not text")
    if isinstance(steps, (list, tuple)):
        wrong = [step for step in steps if not isinstance(step, str)]
        if wrong:
            return Scored("incomplete", f"a step is {_shown(wrong[0])}, not text")
        solution: str | list[str] = list(steps)
    elif steps is not None:
        return Scored("incomplete", f"steps is {_shown(steps)}, not a list of texts")
    elif isinstance(response, str):
        solution = response
    else:
        return Scored("incomplete", f"neither steps nor response: response is {_shown(response)}")
    try:
        contents = tuple(_pictures(row, images))
    except DataError as error:
        return Scored("picture", error.what)
    return Asked(question, scorer.steps(solution), contents)


def _pictures(row: Mapping[str, Any], folder: Path | None) -> Iterator[bytes]:
    for name in ("image", "images", "image_base64", "images_base64"):
        value = row.get(name)
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise DataError("row", f"{name} is {_shown(text)}, not text", "give a path or base64")
            yield _decoded(text) if name.endswith("_base64") else picture_of(text, folder)


def picture_of(text: str, folder: Path | None) -> bytes:
    """The encoded picture that a text names or holds.

    Args:
        text: a path below `folder` or anywhere if absolute, base64, or `data:image/..;base64,..`.
        folder: None: no path is followed.
    Raises:
        DataError: there is no such file, or the base64 is broken.
    """
    if text.startswith("data:") or (len(text) >= _MIN_PICTURE_CHARS and text.startswith(_PICTURE_STARTS)):
        return _decoded(text)
    if folder is None:
        raise DataError("row", f"picture {_shown(text)} is no base64", "send the picture itself")
    return _file(folder / text)


def _decoded(text: str) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise DataError("row", f"a picture begins with {_shown(head)}, not data:image/..;base64", "use base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("row", f"a picture is no base64: {error}", "encode its bytes anew") from error


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        what = f"{one_line(str(path), 120)!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataError("picture", what, "check the path") from error


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)


def score_rows(rows: Iterable[Any], scorer: Scorer, *, images: Path | None) -> list[dict[str, Any]]:
    """Rows -> what came of each, in their order; see `asked_of`. An `id` comes back with its row."""
    given = list(rows)
    asked = [asked_of(row, scorer, images=images) for row in given]
    scored = iter(scorer.score_all([one for one in asked if isinstance(one, Asked)]))
    out = []
    for row, one in zip(given, asked, strict=True):
        told = (next(scored) if isinstance(one, Asked) else one).row()
        if isinstance(row, Mapping):
            told = {"id": row["id"], **told} if row.get("id") is not None else told
            if row.get("steps") is not None:
                told.pop("steps", None)  # whoever gave them has them
        out.append(told)
    return out


# --- files --------------------------------------------------------------------------------------------------------


def score_file(
    file: Path, out: Path, scorer: Scorer, *, images: Path | None = None, runtime: Runtime | None = None
) -> dict[str, int]:
    """Score a file of JSON lines into another, a line a line; returns how often each fate came.

    What is done is kept below STEPFORGE_HOME while it grows: after a kill the same command goes on, and the output is
    that of one run, to the byte. It appears whole or not at all. Memory does not grow with the file.

    Args:
        images: the folder that paths start at; None: the file's own.
    Raises:
        DataError: the file cannot be read, or the output not be written.
        TryAgainError: another process is scoring the same file with the same model.
    """
    where = runtime or load_runtime()
    folder = images or file.parent
    try:
        named = digest("score-1", file_sha256(file), scorer.contract["digest"], scorer.task.digest, str(folder.resolve()))
        num_lines = _num_lines(file)
    except OSError as error:
        raise DataError(str(file), f"cannot be read: {error.strerror}", "name a file of JSON lines") from error
    if out.exists() and out.samefile(file):
        raise DataError(str(out), "is the file to be scored", "name another --out")
    with exclusive(where.home, f"score-{named}") as work:
        part, state_file = work / "part.jsonl", work / "done.json"
        done = _done(state_file, part)
        progress = Progress("score", num_lines, unit="rows")
        if done["rows"]:
            say("score", f"{done['rows']:,} rows are there from an earlier run")
            progress.skip(done["rows"])
        with file.open("rb") as source, part.open("r+b" if part.exists() else "w+b") as target:
            source.seek(done["offset"])
            target.truncate(done["bytes"])
            target.seek(done["bytes"])
            for lines in _windows(source, folder):
                told = _scored_lines(lines, done["rows"], scorer, folder)
                target.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in told).encode())
                target.flush()
                os.fsync(target.fileno())
                for row in told:
                    done["fates"][row["fate"]] = done["fates"].get(row["fate"], 0) + 1
                done |= {"rows": done["rows"] + len(lines), "bytes": target.tell(), "offset": source.tell()}
                write_json(state_file, done)
                progress.advance(len(lines))
        try:
            with replacing(out) as published:
                shutil.copyfile(part, published)
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise DataError(str(out), what, "check permissions and space; the same command then only copies") from error
        shutil.rmtree(work, ignore_errors=True)
    return {fate: done["fates"][fate] for fate in FATES if fate in done["fates"]}


def _done(state: Path, part: Path) -> dict[str, Any]:
    """How far an earlier run came; nothing, if what it wrote is not there any more."""
    if state.exists() and part.exists():
        found = json.loads(state.read_text())
        if part.stat().st_size >= found["bytes"]:
            return dict(found)
    return {"rows": 0, "bytes": 0, "offset": 0, "fates": {}}


def _num_lines(file: Path) -> int:
    with file.open("rb") as source:
        return sum(1 for _ in source)


def _windows(source: IO[bytes], folder: Path) -> Iterator[list[bytes]]:
    """Lines, so many at a time that they and their pictures are of bounded size; the same windows in every run."""
    lines: list[bytes] = []
    size = 0
    while line := source.readline():
        lines.append(line)
        size += len(line) + _picture_bytes(line, folder)
        if len(lines) >= _WINDOW_ROWS or size >= _WINDOW_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _picture_bytes(line: bytes, folder: Path) -> int:
    """Bytes of the files that a line names."""
    if b'"image' not in line or len(line) > 2**20:  # so long a line holds its pictures itself
        return 0
    try:
        row = json.loads(line)
        named = row.get("images") or row.get("image") or ()
        return sum((folder / name).stat().st_size for name in ([named] if isinstance(named, str) else named))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return 0  # scoring the row says what is wrong with it


def _scored_lines(lines: Sequence[bytes], first: int, scorer: Scorer, folder: Path) -> list[dict[str, Any]]:
    """What came of each line, its row number first."""
    rows: list[Any] = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            rows.append(Scored("not_json", one_line(str(error), 200)))
    told = iter(score_rows([row for row in rows if not isinstance(row, Scored)], scorer, images=folder))
    return [{"row": first + i, **(row.row() if isinstance(row, Scored) else next(told))} for i, row in enumerate(rows)]
