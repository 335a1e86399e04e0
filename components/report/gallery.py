"""The gallery: cards with picture, question and every step's score, the PRM's errors first.

Owns how a problem looks; which problems are shown is `cases`' business.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.metrics import AGGREGATIONS
from components.records import row_images
from components.report.cases import FILES, KINDS, Case, read_cases, read_problems, shortlist
from components.report.comparison import SHOWN_SPLITS, split_name
from components.report.markup import Html, count, decimal, join, missing, num_bytes, number, tag

MAX_TEXT_CHARS = 4000  # of one question or step
SMALL_PIXELS = 128  # pictures up to this wide are enlarged with crisp edges


def gallery(artifacts: Path, data: Path, aggregation: str | None, max_bytes: int) -> Html:
    """Filters and cards, at most `max_bytes` long: pictures that do not fit are left out, then problems.

    Raises:
        DataError: a file is there and cannot be read.
    """
    absent = [name for name in FILES if not (artifacts / name).exists()]
    if absent:
        return missing(f"No gallery: {', '.join(absent)} not found.")
    if aggregation not in AGGREGATIONS:
        return missing(f"No gallery: the aggregation {aggregation!r} is not one of {', '.join(AGGREGATIONS)}.")
    cases = read_cases(artifacts, aggregation)
    if any(row["steps"] and row["score"] is None for case in cases for row in case.sampled):
        return missing("No gallery: these candidates are not those that were evaluated. Run evaluate again.")
    shown = shortlist(cases)
    problems = read_problems(data, shown)
    cards = _fitting_cards([(case, problems.get((case.split, case.problem_id), {})) for case in shown], max_bytes)
    found = Counter(case.kind for case in cases)
    told = ", ".join(f"{count(found[kind])} {name}" for kind, name in KINDS.items())
    note = (
        f"{len(cards)} of {count(len(cases))} problems ({told}). A miss: the PRM chose a wrong answer although a right one "
        "was there. A rescue: it is right where the majority is wrong. Both begin with the surest; the others stand in no "
        "order. So the gallery looks worse than the PRM is: the shares are above."
    )
    more = tag("button", "show more", type="button", id="more", hidden=True)
    return join([tag("p", note, class_="note"), _key(shown), _filters(), tag("div", *cards, class_="cards"), more])


def _fitting_cards(shown: Sequence[tuple[Case, Mapping[str, Any]]], max_bytes: int) -> list[Html]:
    """Cards from the first on while their words fit, then pictures from the first on while they fit."""
    cards: list[Html] = []
    left = max_bytes
    for case, problem in shown:
        card = _card(case, problem, with_pictures=False)
        if num_bytes(card) > left:
            break
        cards.append(card)
        left -= num_bytes(card)
    for i, (case, problem) in enumerate(shown[: len(cards)]):
        card = _card(case, problem, with_pictures=True)
        if num_bytes(card) - num_bytes(cards[i]) <= left:
            left -= num_bytes(card) - num_bytes(cards[i])
            cards[i] = card
    return cards


def _key(cases: Sequence[Case]) -> Html:
    """What the tints of the steps mean; the number stands in every step too."""
    levels = [tag("span", f"{level / 5:.1f} to {(level + 1) / 5:.1f}", class_=f"step s{level}") for level in range(5)]
    meaning = "The PRM's score of a step, how likely the solution is to end right from here: "
    has_truth = any(row["truth"] for case in cases for row in case.sampled)
    truth = tag("span", "✗ before a step: by exact truth the first wrong one", class_="sub") if has_truth else None
    return tag("p", meaning, *levels, truth, class_="key")


def _filters() -> Html:
    """Buttons and boxes; hidden until the script runs, because they do nothing without it."""
    kinds = {"all": "all", **KINDS}
    buttons = [
        tag("button", name, type="button", data_kind=kind, aria_pressed=str(kind == "all").lower())
        for kind, name in kinds.items()
    ]
    parts = [
        tag("div", *buttons, role="group", aria_label="which problems"),
        _select("split", [(split, split_name(split)) for split in SHOWN_SPLITS]),
        _select("source", []),
        tag("label", "search ", tag("input", type="search", id="search", autocomplete="off")),
        tag("output", id="shown", aria_live="polite"),
    ]
    return tag("div", *parts, class_="filters", id="filters", hidden=True)


def _select(name: str, options: Sequence[tuple[str, str]]) -> Html:
    inside = [tag("option", f"every {name}", value=""), *(tag("option", label, value=value) for value, label in options)]
    return tag("label", f"{name} ", tag("select", *inside, id=name))


def _card(case: Case, problem: Mapping[str, Any], *, with_pictures: bool) -> Html:
    source = str(problem.get("source") or "source unknown")
    badge, text = _badge(case)
    link = tag("a", case.problem_id[:8], href=f"#p-{case.problem_id}", class_="sub", title="link to this problem")
    where = tag("span", f"{split_name(case.split)} · {source}", class_="sub")
    question = tag("p", _cut(problem.get("question") or "The question is not in data/."), class_="question user")
    gold = tag("p", "gold answer ", tag("b", str(problem.get("answer", "unknown")), class_="user"))
    votes: Counter[str] = Counter()
    for row in case.sampled:
        if row["answer"] is not None:
            votes[row["answer"]] += row["copies"]
    first = _shown_first(case, votes)
    rest = [row for row in [*case.sampled, *case.greedy] if all(row is not other for other in first)]
    verdicts: Counter[str] = Counter()
    for row in rest:
        verdicts[row["verdict"]] += row["copies"]
    told = ", ".join(f"{verdicts[name]} {name}" for name in ("right", "wrong", "unknown") if verdicts[name])
    parts = [
        tag("header", tag("h3", tag("span", text, class_=f"badge {badge}")), where, link),
        tag(
            "div",
            pictures_of(row_images(problem), with_pictures=with_pictures),
            tag("div", question, gold),
            class_="problem",
        ),
        _candidates(case, first, votes, with_blind=True),
    ]
    if rest:
        others = _candidates(case, rest, votes, with_blind=False)
        parts.append(tag("details", tag("summary", f"{sum(verdicts.values())} more: {told}"), others))
    data = {"data_kind": case.kind, "data_split": case.split, "data_source": source}
    return tag("article", *parts, class_="card", id=f"p-{case.problem_id}", **data)


def _badge(case: Case) -> tuple[str, str]:
    if case.kind == "miss":
        return "control", "PRM missed it"
    if case.kind == "rescue":
        return "prm", "PRM right, majority wrong"
    if not case.is_solvable:
        return "plain", "no right candidate to choose"
    return "plain", "not selected" if case.prm is None else "PRM right"


def _shown_first(case: Case, votes: Counter[str]) -> list[dict[str, Any]]:
    """The chosen candidates, and what a reader wants beside them: the right one missed, or what the majority wrote."""
    first = [row for row in case.sampled if row["candidate_id"] in case.chosen][:2]
    if case.kind == "miss":
        first += [row for row in case.sampled if row["verdict"] == "right" and row not in first][:1]
    elif case.kind == "rescue":
        wrong = [row for row in case.sampled if row["verdict"] != "right" and row["answer"] is not None]
        first += sorted(wrong, key=lambda row: -votes[row["answer"]])[:1]
    return first or case.sampled[:1]


def _candidates(case: Case, rows: Sequence[Mapping[str, Any]], votes: Counter[str], *, with_blind: bool) -> Html:
    shown = []
    for row in rows:
        steps = [_step(i, text, row) for i, text in enumerate(row["steps"] or [])]
        body = [_facts(case, row, votes), tag("ol", *steps, class_="steps") if steps else missing("It wrote no step.")]
        if with_blind and row["blind"]:
            scores = " · ".join(decimal(score, 2) for score in row["blind"])
            body.append(tag("p", f"without the picture, step by step: {scores}", class_="sub"))
        shown.append(tag("li", *body))
    return tag("ul", *shown, class_="candidates")


def _facts(case: Case, row: Mapping[str, Any], votes: Counter[str]) -> Html:
    verdict = row["verdict"] or "unknown"
    sign = {"right": "✓", "wrong": "✗"}.get(verdict, "?")
    is_sampled = row["decoding"] == "sample"
    facts: list[Html] = [tag("span", f"{sign} {verdict}", class_=f"verdict {verdict}")]
    if row["answer"] is None:
        facts.append(tag("span", "no answer"))
    else:
        num_sampled = sum(one["copies"] for one in case.sampled)
        same = f" ({votes[row['answer']]} of {num_sampled} say so)" if is_sampled else ""
        facts.append(tag("span", "answer ", tag("b", _cut(row["answer"]), class_="user"), same))
    facts.append(tag("span", "PRM ", tag("b", decimal(row["score"], 2))))
    if row["candidate_id"] in case.chosen:
        name = "chosen by the PRM" if len(case.chosen) == 1 else f"one of {len(case.chosen)} tied at the top"
        facts.append(tag("span", name, class_="badge prm"))
    if row["copies"] > 1:
        facts.append(tag("span", f"written {row['copies']} times", class_="sub"))
    if not is_sampled:
        facts.append(tag("span", f"{row['decoding']}, not in the choice", class_="sub"))
    if row["finish_reason"] == "length":
        facts.append(tag("span", "cut off", class_="sub"))
    return tag("p", *facts, class_="facts")


def _step(i: int, text: str, row: Mapping[str, Any]) -> Html:
    score = number(row["scores"][i]) if i < len(row["scores"]) else None
    level = "none" if score is None else str(min(4, max(0, int(score * 5))))
    is_first_error = i < len(row["truth"]) and row["truth"][i] < 0.5 and all(right >= 0.5 for right in row["truth"][:i])
    mark = tag("span", "✗ ", class_="bad", title="by exact truth the first wrong step") if is_first_error else None
    return tag("li", mark, tag("span", _cut(text), class_="user"), " ", tag("b", decimal(score, 2)), class_=f"step s{level}")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def pictures_of(pictures: Sequence[bytes], *, with_pictures: bool = True) -> Html:
    """The pictures of a problem, inside the page; one that browsers may not show is named instead."""
    shown = []
    for i, content in enumerate(pictures, 1):
        kind = next((name for magic, name in _MAGIC.items() if content.startswith(magic)), None)
        if kind is None or not with_pictures:
            why = "is of an unknown kind" if kind is None else f"({count(len(content) / 1000)} kB) did not fit"
            shown.append(tag("p", f"picture {i} {why}", class_="nopicture"))
            continue
        is_small = kind == "png" and int.from_bytes(content[16:20], "big") <= SMALL_PIXELS
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        alt = f"picture {i} of {len(pictures)} that belongs to the question"
        shown.append(tag("img", src=source, alt=alt, class_="small" if is_small else None))
    return tag("div", *(shown or [tag("p", "no picture", class_="nopicture")]), class_="pictures")
