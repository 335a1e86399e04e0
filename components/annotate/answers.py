"""`annotate read`: people's files -> who said what, how far they agree, and the questions of the next round.

Owns what makes a file of answers acceptable and how a step is settled; does not know how a page looks.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.annotate import label_studio, page
from components.annotate.agreement import MARKS, agreement
from components.annotate.drawing import AUDIT, FILE, Row, read_audit, write_questions
from components.errors import DataError, one_line
from components.lineage import SUMMARY
from components.progress import say
from components.records import read_table, replacing, write_json, write_table

ANSWERS = "answers.parquet"
DIFFERING = "differing.jsonl"
REPLY = pa.schema(
    [
        ("annotator", pa.string()),
        ("round", pa.int32()),
        ("solution_id", pa.string()),
        ("marks", pa.list_(pa.string())),  # + | - | 0 | null, one a step
        ("comment", pa.string()),
    ]
)
_HINT = "give the files that the page saved, or Label Studio's JSON export"
_MAX_NAME_CHARS = 80
_MAX_ROUND = 1000


@dataclass(frozen=True)
class Reply:
    """What one person said of one solution in one round."""

    annotator: str
    round: int
    """From 1."""
    solution_id: str
    marks: tuple[str | None, ...]
    """One a step: a key of MARKS, or None where nothing was said."""
    comment: str = ""


@dataclass(frozen=True)
class Settled:
    """What people came to on one step."""

    mark: str | None
    """None: nobody marked it, or there is no majority."""
    votes: tuple[tuple[str, str], ...]
    """(annotator, mark): the last that each said."""

    @property
    def is_differing(self) -> bool:
        """Whether two said different things."""
        return len({mark for _, mark in self.votes}) > 1

    @property
    def is_tied(self) -> bool:
        """Whether it was marked and is not settled."""
        return bool(self.votes) and self.mark is None


# --- files ---------------------------------------------------------------------------------------------------------


def read_replies(paths: Sequence[Path], rows: Sequence[Row], set_name: str) -> list[Reply]:
    """The replies in files of the page or of Label Studio, each person's of a round once.

    Raises:
        DataError: a file is unusable, answers other questions, or denies what another of the same person says.
    """
    steps = {row["solution_id"]: len(row["steps"]) for row in rows}
    found: dict[tuple[str, int, str], tuple[Reply, Path]] = {}
    repeated: Counter[str] = Counter()
    for path in paths:
        for reply in _file_replies(path, steps, set_name):
            key = (reply.annotator, reply.round, reply.solution_id)
            held = found.get(key)
            repeated[reply.annotator] += held is not None
            found[key] = (reply if held is None else _joined(held[0], reply, held[1], path), path)
    for who, count in sorted((+repeated).items()):
        say("annotate", f"{who}: {count:,} solutions answered twice, without contradiction: each counts once")
    return [reply for reply, _ in found.values()]


def _file_replies(path: Path, steps: Mapping[str, int], set_name: str) -> list[Reply]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "check the path") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), f"not JSON: {error}", _HINT) from error
    if label_studio.is_export(content):
        try:
            files = label_studio.as_answers(content)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(str(path), f"not Label Studio's JSON export of these tasks: {error}", _HINT) from error
    elif isinstance(content, dict) and content.get("format") == page.FORMAT:
        files = [content]
    else:
        raise DataError(str(path), "neither answers of the page nor Label Studio's JSON export", _HINT)
    found = []
    for one in files:
        if one.get("set") != set_name:
            what = f"answers set {str(one.get('set'))!r:.60}, not {set_name}"
            raise DataError(str(path), what, "name the folder whose page was answered")
        who, round_, answers = _annotator(one.get("annotator"), path), one.get("round"), one.get("answers")
        if type(round_) is not int or not 1 <= round_ <= _MAX_ROUND or not isinstance(answers, list):  # a bool is none
            raise DataError(str(path), f"round {round_!r:.40} or its answers are unusable", _HINT)
        found += [_reply(answer, who, round_, steps, path) for answer in answers]
    return found


def _annotator(name: Any, path: Path) -> str:
    text = " ".join(unicodedata.normalize("NFC", name).split()) if isinstance(name, str) else ""
    if not text or len(text) > _MAX_NAME_CHARS or not text.isprintable():
        raise DataError(str(path), f"the annotator's name is {name!r:.100}", "put a name into the file's field annotator")
    return text


def _reply(answer: Any, who: str, round_: int, steps: Mapping[str, int], path: Path) -> Reply:
    key = answer.get("solution") if isinstance(answer, dict) else None
    if not isinstance(key, str) or key not in steps:
        raise DataError(str(path), f"answers solution {key!r:.60}, which is not in the set", _HINT)
    marks = answer.get("marks")
    if isinstance(marks, dict) and all(isinstance(step, int) and 0 <= step < steps[key] for step in marks):
        marks = [marks.get(step) for step in range(steps[key])]
    if not isinstance(marks, list) or len(marks) != steps[key]:
        raise DataError(
            str(path), f"solution {key} has {steps[key]} steps, its marks are {one_line(repr(marks), 80)}", _HINT
        )
    strange = next((mark for mark in marks if mark is not None and mark not in MARKS), None)
    if strange is not None:
        raise DataError(str(path), f"a mark of solution {key} is {strange!r:.40}", f"known: {' '.join(MARKS)} and null")
    comment = answer.get("comment")
    comment = comment.encode(errors="replace").decode() if isinstance(comment, str) else ""  # half a character of a pair
    return Reply(who, round_, key, tuple(marks), comment)


def _joined(a: Reply, b: Reply, path_a: Path, path_b: Path) -> Reply:
    """Two files of one person, where neither denies the other."""
    for step, (first, second) in enumerate(zip(a.marks, b.marks, strict=True)):
        if first is not None and second is not None and first != second:
            what = f"{a.annotator} says {second} of step {step + 1} of solution {a.solution_id}, and {first} in {path_a}"
            raise DataError(str(path_b), what, "keep one of the files, or give the other person another name")
    marks = tuple(first if first is not None else second for first, second in zip(a.marks, b.marks, strict=True))
    return replace(a, marks=marks, comment="\n".join(dict.fromkeys(text for text in (a.comment, b.comment) if text)))


# --- what they come to ---------------------------------------------------------------------------------------------


def settled(rows: Sequence[Row], replies: Iterable[Reply], *, adjudicator: str | None = None) -> dict[str, list[Settled]]:
    """Solution -> what people came to on each step: the adjudicator's word, else more than half of what each said last."""
    last: dict[str, dict[str, list[str | None]]] = {row["solution_id"]: {} for row in rows}
    steps = {row["solution_id"]: len(row["steps"]) for row in rows}
    for reply in sorted(replies, key=lambda one: (one.round, one.annotator)):
        held = last[reply.solution_id].setdefault(reply.annotator, [None] * steps[reply.solution_id])
        for step, mark in enumerate(reply.marks):
            held[step] = mark if mark is not None else held[step]
    found: dict[str, list[Settled]] = {}
    for key, people in last.items():
        found[key] = []
        for step in range(steps[key]):
            said = [(who, marks[step]) for who, marks in sorted(people.items())]
            votes = tuple((who, mark) for who, mark in said if mark is not None)
            found[key].append(Settled(_decision(votes, adjudicator), votes))
    return found


def _decision(votes: Sequence[tuple[str, str]], adjudicator: str | None) -> str | None:
    decided = next((mark for who, mark in votes if who == adjudicator), None)
    if decided is not None or not votes:
        return decided
    mark, count = Counter(mark for _, mark in votes).most_common(1)[0]
    return mark if 2 * count > len(votes) else None


def read_answers(
    folder: Path, files: Sequence[Path], *, out: Path, adjudicator: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Write the answers, what they agree on and the next round's questions into `out`; returns the summary.

    Args:
        folder: written by `draw_audit`, or by this: then its answers count too.
        files: what people saved.
        adjudicator: whose word settles a step; None: the adjudicator of `folder`, if it has one.
    Raises:
        DataError: a file is unusable, or nobody answered.
    """
    rows, before = read_audit(folder)
    replies = read_replies(files, rows, before["set"])
    if (folder / ANSWERS).exists():
        replies = _with_earlier(folder, replies)
    if not any(mark is not None for reply in replies for mark in reply.marks):
        raise DataError(str(folder), "no step was marked in any file", _HINT)
    adjudicator = adjudicator if adjudicator is not None else before.get("adjudicator")
    people = sorted({reply.annotator for reply in replies})
    for a, b in combinations(people, 2):
        if a.casefold() == b.casefold():
            what = f"answers of {a!r} and of {b!r}: one person, who would count twice and agree with themselves"
            raise DataError("annotate", what, "write the name alike in all files, or use names that differ in more")
    if adjudicator is not None and adjudicator not in people:
        raise DataError("annotate", f"the adjudicator {adjudicator!r} answered nothing", f"known: {', '.join(people)}")
    last_round = max(reply.round for reply in replies)
    outcome = settled(rows, replies, adjudicator=adjudicator)
    asked = _asked_again(rows, outcome, last_round, adjudicator)
    flat = [one for steps in outcome.values() for one in steps]
    summary = {
        name: before[name] for name in ("set", "num_solutions", "num_steps", "strata", "thresholds", "margin", "seed")
    }
    summary |= {
        "round": last_round,
        "adjudicator": adjudicator,
        "annotators": {who: _num_marked(replies, who) for who in people},
        "agreement": {
            str(n): agreement(_of_round(replies, n, adjudicator), seed=seed) for n in sorted({one.round for one in replies})
        },
        "num_marked": sum(bool(one.votes) for one in flat),
        "num_settled": sum(one.mark is not None for one in flat),
        "num_tied": sum(one.is_tied for one in flat),
        "num_asked_again": sum(map(len, asked.values())),
    }
    write_table(out / FILE, rows, AUDIT)
    write_table(out / ANSWERS, [vars(one) for one in replies], REPLY)
    _write_differing(out / DIFFERING, rows, outcome, replies)
    if asked:
        said = {key: {step: _counted(outcome[key][step]) for step in steps} for key, steps in asked.items()}
        write_questions(out, rows, asked, set_name=summary["set"], round_=last_round + 1, said=said)
    write_json(out / SUMMARY, summary)
    return summary


def _with_earlier(folder: Path, replies: Sequence[Reply]) -> list[Reply]:
    found = {(one.annotator, one.round, one.solution_id): one for one in read_earlier(folder)}
    for one in replies:
        key = (one.annotator, one.round, one.solution_id)
        found[key] = _joined(found[key], one, folder / ANSWERS, folder / ANSWERS) if key in found else one
    return list(found.values())


def read_earlier(folder: Path) -> list[Reply]:
    """The replies that `read_answers` wrote into a folder.

    Raises:
        DataError: there are none.
    """
    if not (folder / ANSWERS).exists():
        raise DataError(str(folder), f"holds no {ANSWERS}", "run annotate read on the files that people saved")
    return [Reply(**row | {"marks": tuple(row["marks"])}) for row in read_table(folder / ANSWERS, REPLY)]


def _num_marked(replies: Iterable[Reply], who: str) -> int:
    marked = {
        (r.solution_id, i) for r in replies if r.annotator == who for i, mark in enumerate(r.marks) if mark is not None
    }
    return len(marked)


def _of_round(
    replies: Iterable[Reply], number: int, adjudicator: str | None
) -> dict[str, dict[str, tuple[str | None, ...]]]:
    """Person -> solution -> marks of one round; whoever adjudicates is no independent judge."""
    found: dict[str, dict[str, tuple[str | None, ...]]] = {}
    for one in replies:
        if one.round == number and one.annotator != adjudicator:
            found.setdefault(one.annotator, {})[one.solution_id] = one.marks
    return {who: found[who] for who in sorted(found)}


def _asked_again(
    rows: Sequence[Row], outcome: Mapping[str, Sequence[Settled]], last_round: int, adjudicator: str | None
) -> dict[str, list[int]]:
    """After the first round every step on which people differ; after later ones what still has no majority."""

    def is_open(one: Settled) -> bool:
        is_decided = any(who == adjudicator for who, _ in one.votes)
        return one.is_tied or (last_round == 1 and one.is_differing and not is_decided)

    found = {row["solution_id"]: [i for i, s in enumerate(outcome[row["solution_id"]]) if is_open(s)] for row in rows}
    return {key: steps for key, steps in found.items() if steps}


def _counted(one: Settled) -> str:
    return ", ".join(f"{count} × {mark}" for mark, count in sorted(Counter(mark for _, mark in one.votes).items()))


def _write_differing(
    path: Path, rows: Sequence[Row], outcome: Mapping[str, Sequence[Settled]], replies: Iterable[Reply]
) -> None:
    """What people differ on, an object a line: the step, who said what, and their comments."""
    comments: dict[str, dict[str, str]] = {}
    for reply in replies:
        if reply.comment:
            comments.setdefault(reply.solution_id, {})[reply.annotator] = reply.comment
    lines = []
    for row in rows:
        key = row["solution_id"]
        for step, one in enumerate(outcome[key]):
            if one.is_differing:
                said = {"solution_id": key, "step": step, "text": row["steps"][step], "votes": dict(one.votes)}
                lines.append(said | {"settled": one.mark, "comments": comments.get(key, {})})
    with replacing(path) as part:
        text = "".join(json.dumps(line, ensure_ascii=True, sort_keys=True) + "\n" for line in lines)
        part.write_text(text, encoding="utf-8")
