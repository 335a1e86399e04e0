"""The verb `import-pool`: candidates that were sampled elsewhere -> a folder that stands in for the one of `sample`.

Owns which files are read, how a row finds its problem, and what is kept beside our own verdict: the official one, and the
scores that came along. Samples nothing, and asks no reward model.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.candidates import PoolWriter
from components.elsewhere import SCORES
from components.errors import DataError, SettingsError
from components.grade import official_verdict, read_rows
from components.lineage import SUMMARY
from components.problems import load_benchmark, normal_text
from components.progress import say
from components.records import SCORE, digest, write_json, write_table
from components.sampling import gold_of
from components.settings import Params, Runtime
from components.tasks import Task, load_task
from components.verifier import Asked, Verifier

Row = Mapping[str, Any]
MAX_STEPS = 64  # as in sample
_MAX_COUNT = 2**31 - 1  # what its column holds
VERDICTS = ("ours", "official")
OFFICIAL = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("answer", pa.string()),  # as the file extracted it; null if it does not say
        ("is_right", pa.bool_()),  # as the file says; null if it does not
    ]
)
"""official.parquet: what a file says of its own candidates."""


@dataclass(frozen=True)
class Response:
    """One candidate as a file has it."""

    text: str = ""
    steps: tuple[str, ...] | None = None
    """None: the text falls into the steps of the task."""
    answer: str | None = None
    is_right: bool | None = None
    """The official verdict."""
    scores: tuple[float, ...] = ()
    """Of a reward model: one a step, or one for the whole."""
    logprob: float | None = None
    num_tokens: int | None = None
    is_cut: bool = False
    """Whether it ended because it was too long."""
    is_greedy: bool = False


@dataclass(frozen=True)
class Pooled:
    """A row: a problem as the file names it, and its candidates."""

    names: tuple[str, ...]
    question: str | None
    responses: tuple[Response, ...] = field(repr=False)


class BadRowError(Exception):
    """A row that is not what its format says."""


# --- formats --------------------------------------------------------------------------------------------------------


def _mm_prm(row: Row) -> Pooled:
    """MM-PRM, eval/prm: question, solutions_splits, labels 0 or 1, and prm_scores once it was scored."""
    splits = _list(row, "solutions_splits")
    labels, scores = _beside(row, "labels", splits), _beside(row, "prm_scores", splits)
    responses = []
    for number, (steps, label, scored) in enumerate(zip(splits, labels, scores, strict=True)):
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise BadRowError(f"solution {number} of solutions_splits is no list of texts")
        numbers = _numbers(scored, "prm_scores")
        if numbers and len(numbers) != len(steps):
            raise BadRowError(f"{len(numbers)} prm_scores for the {len(steps)} steps of solution {number}")
        filled = [i for i, step in enumerate(steps) if step.strip()]
        kept = tuple(numbers[i] for i in filled) if numbers else ()
        responses.append(Response(steps=tuple(_text(steps[i]).strip() for i in filled), is_right=_said(label), scores=kept))
    return Pooled(_names(row), _question(row), tuple(responses))


def _qwen(row: Row) -> Pooled:
    """Qwen2.5-Math, evaluation/rm_maj_eval.py: code, pred, score and pred_score, a list of N each."""
    texts = _list(row, "code" if isinstance(row.get("code"), list) else "response")
    preds, verdicts = _beside(row, "pred", texts), _beside(row, "score", texts)
    scores = _beside(row, "pred_score", texts)
    return Pooled(
        _names(row),
        _question(row),
        tuple(
            Response(
                text=_text(text),
                answer=None if pred in (None, "") else _text(str(pred)),
                is_right=_said(verdict),
                scores=_numbers(score, "pred_score"),
            )
            for text, pred, verdict, score in zip(texts, preds, verdicts, scores, strict=True)
        ),
    )


def _jsonl(row: Row) -> Pooled:
    """Any list of objects: id or question; response or responses; logprob, score, correct, num_tokens where there are some.

    A response is a text, or a list of steps. `decoding: greedy` marks a greedy one; rows of one problem add up.
    """
    many = row.get("responses")
    texts = [row.get("response")] if many is None else _list(row, "responses")
    if many is None and texts[0] is None:
        raise BadRowError(f"neither response nor responses; it has: {', '.join(list(row)[:8])}")

    def beside(*names: str) -> list[Any]:
        name = next((name for name in names if row.get(name) is not None), names[0])
        return _beside(row if many is not None else {name: [row.get(name)]}, name, texts)

    responses = []
    columns = (
        beside("logprobs", "logprob"),
        beside("scores", "score"),
        beside("corrects", "correct", "verdicts", "verdict"),
        beside("num_tokens"),
        beside("finish_reasons", "finish_reason"),
    )
    for text, logprob, score, correct, num_tokens, reason in zip(texts, *columns, strict=True):
        steps = tuple(step.strip() for step in text if _text(step).strip()) if isinstance(text, list) else None
        scores = _numbers(score, "score")
        if len(scores) > 1 and steps is not None and len(scores) != len(steps):
            raise BadRowError(f"{len(scores)} scores for {len(steps)} steps")
        responses.append(
            Response(
                text="" if steps is not None else _text(text),
                steps=steps,
                is_right=_said(correct),
                scores=scores,
                logprob=_one_number(logprob, "logprob"),
                num_tokens=_count(num_tokens, "num_tokens"),
                is_cut=reason == "length",
                is_greedy=row.get("decoding") == "greedy",
            )
        )
    return Pooled(_names(row), _question(row), tuple(responses))


FORMATS: dict[str, Callable[[Row], Pooled]] = {"mm-prm": _mm_prm, "qwen-best-of-8": _qwen, "jsonl": _jsonl}
"""Name -> row of a file to candidates; raises BadRowError where it is no such row."""


def _names(row: Row) -> tuple[str, ...]:
    keys = ("id", "idx", "pid", "unique_id", "question_id", "problem_id", "source_id")
    return tuple(dict.fromkeys(str(row[key]) for key in keys if isinstance(row.get(key), str | int)))


def _question(row: Row) -> str | None:
    found = next((row[key] for key in ("question", "problem") if isinstance(row.get(key), str)), None)
    return normal_text(found) or None


def _list(row: Row, name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{name} is {value!r:.60}, no list of candidates; it has: {', '.join(list(row)[:8])}")
    return value


def _beside(row: Row, name: str, texts: Sequence[Any]) -> list[Any]:
    """What a field says of each candidate; None of each where the row does not have it."""
    value = row.get(name)
    if value is None:
        return [None] * len(texts)
    if not isinstance(value, list) or len(value) != len(texts):
        num = len(value) if isinstance(value, list) else "no list"
        raise BadRowError(f"{name}: {num} for {len(texts)} candidates")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"a response is {value!r:.60}, no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"a response has half a character (a lone surrogate): {value!a:.60}") from None
    return value


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    try:
        if all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
            return tuple(map(float, values))
    except OverflowError:  # an integer beyond all floats
        pass
    raise BadRowError(f"{name} holds {value!r:.60}, no finite number")


def _one_number(value: Any, name: str) -> float | None:
    numbers = _numbers(value, name)
    if isinstance(value, list):
        raise BadRowError(f"{name} holds {value!r:.60}, no finite number")
    return numbers[0] if numbers else None


def _count(value: Any, name: str) -> int | None:
    number = _one_number(value, name)
    if number is not None and (number != int(number) or not 0 <= number <= _MAX_COUNT):
        raise BadRowError(f"{name} holds {value!r:.60}, no number of tokens")
    return None if number is None else int(number)


def _said(value: Any) -> bool | None:
    return None if value is None else official_verdict(value)


# --- problems -------------------------------------------------------------------------------------------------------


class Problems:
    """Finds the problem that a row is about: by its question, and by its id where questions do not tell."""

    def __init__(self, splits: Mapping[str, Sequence[Row]], task: Task) -> None:
        self._by_name: dict[str, list[tuple[str, Row]]] = defaultdict(list)
        self._by_question: dict[str, list[tuple[str, Row]]] = defaultdict(list)
        for split, problems in splits.items():
            for problem in problems:
                self._by_name[problem["source_id"]].append((split, problem))
                for question in {problem["question"], task.question(problem["question"])}:
                    self._by_question[_folded(question)].append((split, problem))

    def find(self, row: Pooled) -> tuple[str, Row] | str:
        """(split, problem), or why there is none."""
        named = [found for name in row.names for found in self._by_name.get(name, ())]
        if row.question is None:
            if not row.names:
                return "it has neither id nor question"
            return _only(named, f"id {row.names[0]!r}")
        asked = self._by_question.get(_folded(row.question), [])
        both = [found for found in asked if any(found[1] is other[1] for other in named)]
        if asked:
            return _only(both or asked, f"question {row.question[:60]!r}")
        # A benchmark's file may ask more than its row does: options, a hint.
        inside = [found for found in named if _folded(row.question) in _folded(found[1]["question"])]
        return _only(inside, f"question {row.question[:60]!r}")


def _only(found: Sequence[tuple[str, Row]], said: str) -> tuple[str, Row] | str:
    if len(found) == 1:
        return found[0]
    return f"no problem has the {said}" if not found else f"{len(found)} problems have the {said}"


def _folded(question: str) -> str:
    return " ".join(question.split())


# --- the verb -------------------------------------------------------------------------------------------------------


def run(
    params: Params,
    runtime: Runtime,
    *,
    files: Sequence[Path],
    form: str,
    split: Mapping[str, Path],
    out: Path,
    verdicts: str = "ours",
    scorer: str = "elsewhere",
) -> dict[str, Any]:
    """Write candidates.parquet, official.parquet, scores.parquet and summary.json into `out`; returns the summary.

    Args:
        form: a name in FORMATS.
        split: name -> problem file; every problem of it must have candidates.
        verdicts: ours: candidates are graded by our verifier. official: verdict and answer are those of the file.
        scorer: the name under which scores of the file are kept.
    Raises:
        SettingsError: an unknown format.
        DataError: a row is not what the format says, or a problem has no candidates; with verdicts `official`, a
            candidate without one.
    """
    if form not in FORMATS:
        raise SettingsError("command line", f"--format {form!r} is unknown", f"known: {', '.join(FORMATS)}")
    if verdicts not in VERDICTS:
        raise SettingsError("command line", f"--verdicts {verdicts!r} is unknown", f"known: {', '.join(VERDICTS)}")
    task = load_task(params.task)
    problems = {n: load_benchmark(p, max_image_pixels=params.curate.max_image_pixels) for n, p in split.items()}
    held, unused = _held(files, form, Problems(problems, task))
    if not held:
        what = f"none of {sum(unused.values()):,} rows is about a problem of the splits; the first: {next(iter(unused), '')}"
        raise DataError(str(files[0]), what, "name the problem file of this pool with --split NAME=FILE")
    missing = [(name, p) for name, some in problems.items() for p in some if not held.get((name, p["problem_id"]))]
    if missing:
        name, problem = missing[0]
        what = f"{len(missing):,} problems have no candidates, the first: {problem['source_id']} of split {name!r}"
        raise DataError(str(files[0]), what, "give all files of the pool, or a problem file of what they answer")
    if unused:
        say(
            "import-pool",
            f"{sum(unused.values()):,} rows are about no problem of the splits; the first: {next(iter(unused))}",
        )
    told: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    count: Counter[str] = Counter()
    with Verifier(params.verify, runtime) as verifier, PoolWriter(out, split) as pools:
        for name, some in problems.items():
            for problem in some:
                responses = held.pop((name, problem["problem_id"]))
                rows = _rows(name, problem, responses, task, verifier, form=form, verdicts=verdicts)
                has_scores = any(response.scores for response in responses)
                pools.write(rows)
                for row, response in zip(rows, responses, strict=True):
                    key = row["candidate_id"]
                    told.append({"candidate_id": key, "answer": response.answer, "is_right": response.is_right})
                    if response.scores or (has_scores and not row["steps"]):  # nothing to read is never best
                        scores.append({"candidate_id": key, "scorer": scorer, "step_scores": list(response.scores)})
                    count[row["verdict"]] += 1
                    if response.is_right is not None:
                        count["judged"] += 1
                        count["agreeing"] += (row["verdict"] == "right") == response.is_right
    write_table(out / "official.parquet", told, OFFICIAL)
    write_table(out / SCORES, scores, SCORE)
    summary = {
        "pools": pools.pools(),
        "candidates": pools.num_rows,
        "tokens": pools.num_tokens,
        "format": form,
        "verdicts": verdicts,
        "verdict_counts": {value: count[value] for value in ("right", "wrong", "unknown")},
        "official": {"num_judged": count["judged"], "num_agreeing": count["agreeing"]},
        "num_scored": len(scores),
    }
    write_json(out / SUMMARY, summary)
    return summary


def _held(files: Sequence[Path], form: str, known: Problems) -> tuple[dict[tuple[str, str], list[Response]], dict[str, int]]:
    """((split, problem id) -> its candidates in the order of the files, why rows were left out -> how many)."""
    held: dict[tuple[str, str], list[Response]] = {}
    unused: Counter[str] = Counter()
    for path in files:
        for number, row in enumerate(read_rows(path)):
            try:
                pooled = FORMATS[form](row)
            except BadRowError as error:
                hint = f"is it really {form}? known: {', '.join(FORMATS)}; see docs/inference.md"
                raise DataError(f"{path}, row {number}", str(error), hint) from None
            found = known.find(pooled)
            if isinstance(found, str):
                unused[f"{path.name}, row {number}: {found}"] += 1
                continue
            held.setdefault((found[0], found[1]["problem_id"]), []).extend(pooled.responses)
    return held, unused


def _rows(
    split: str, problem: Row, responses: Sequence[Response], task: Task, verifier: Verifier, *, form: str, verdicts: str
) -> list[dict[str, Any]]:
    """Rows of records.CANDIDATE."""
    texts = [r.text if r.steps is None else task.text(r.steps) for r in responses]
    reasons = ["length" if r.is_cut else "stop" for r in responses]
    if verdicts == "official":
        blank = next((i for i, r in enumerate(responses) if r.is_right is None), None)
        if blank is not None:
            what = f"candidate {blank} of problem {problem['source_id']} has no official verdict"
            raise DataError("official verdicts", what, "leave --verdicts out: our verifier then grades")
        judged = [(r.answer, "right" if r.is_right else "wrong", "official") for r in responses]
    else:
        gold = gold_of(problem, task)
        asked = [Asked(problem["question"], text, gold, why) for text, why in zip(texts, reasons, strict=True)]
        judged = [(verdict.answer, verdict.value, verdict.rule) for verdict in verifier.grade(asked)]
    rows, index = [], Counter[str]()
    for response, text, reason, (answer, verdict, rule) in zip(responses, texts, reasons, judged, strict=True):
        decoding = "greedy" if response.is_greedy else "sample"
        place = index[decoding]
        index[decoding] += 1
        steps = list(response.steps) if response.steps is not None else task.steps(text, max_steps=MAX_STEPS)
        rows.append(
            {
                "candidate_id": digest("candidate", split, problem["problem_id"], "imported", form, decoding, place, text),
                "split": split,
                "problem_id": problem["problem_id"],
                "decoding": decoding,
                "index": place,
                "steps": steps,
                "seed": None,
                "text": text,
                "answer": answer,
                "verdict": verdict,
                "rule": rule,
                "finish_reason": reason,
                "num_tokens": response.num_tokens,
                "logprob": response.logprob,
                "policy_digest": f"imported/{form}",
                "verifier_digest": verifier.digest if verdicts == "ours" else f"official/{form}",
            }
        )
    return rows
