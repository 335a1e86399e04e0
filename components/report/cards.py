"""One card of the gallery: the problem, what the PRM chose, the right answer it missed, and every step's score.

Owns how a problem looks; which are shown, and how many fit, is `gallery`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from components.report.cases import FAULTS, Case
from components.report.comparison import split_name
from components.report.markup import Html, decimal, missing, number, tag

MAX_TEXT_CHARS = 4000  # of one question or step
MAX_BRIEF_CHARS = 240  # of one on a brief card


def card(case: Case, problem: Mapping[str, Any], pictures: Html, *, is_brief: bool) -> Html:
    """One problem.

    Args:
        problem: in the layout of records.PROBLEM; {} if data/ does not hold it.
        pictures: as they are to be shown.
        is_brief: only the candidates that matter, with long texts cut.
    """
    longest = MAX_BRIEF_CHARS if is_brief else MAX_TEXT_CHARS
    source = str(problem.get("source") or "source unknown")
    badge, text = _badge(case)
    link = tag("a", case.problem_id[:8], href=f"#p-{case.problem_id}", class_="sub", title="link to this problem")
    where = tag("span", f"{split_name(case.split)} · {source}", class_="sub")
    question = tag("p", _cut(problem.get("question") or "The question is not in data/.", longest), class_="question user")
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
            pictures,
            tag("div", question, gold),
            class_="problem",
        ),
        _why(case),
        _candidates(case, first, votes, with_blind=not is_brief, longest=longest, is_versus=len(first) > 1),
    ]
    if rest and is_brief:
        parts.append(tag("p", f"{sum(verdicts.values())} more, not shown: {told}", class_="sub"))
    elif rest:
        others = _candidates(case, rest, votes, with_blind=False, longest=longest, is_versus=False)
        parts.append(tag("details", tag("summary", f"{sum(verdicts.values())} more: {told}"), others))
    data = {"data_kind": case.kind, "data_split": case.split, "data_source": source}
    data |= {"data_margin": f"{case.surety:.4f}", "data_faults": " ".join(case.faults)}
    return tag("article", *parts, class_="card", id=f"p-{case.problem_id}", **data)


def _why(case: Case) -> Html | None:
    """What is known of how a miss came about."""
    if case.kind != "miss":
        return None
    told = "; ".join(FAULTS[fault] for fault in case.faults)
    margin = f"margin {decimal(case.surety, 2)}"
    return tag("p", f"{told[:1].upper()}{told[1:]}; {margin}." if told else f"{margin.capitalize()}.", class_="sub")


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


def _candidates(
    case: Case,
    rows: Sequence[Mapping[str, Any]],
    votes: Counter[str],
    *,
    with_blind: bool,
    longest: int,
    is_versus: bool,
) -> Html:
    shown = []
    for row in rows:
        steps = [_step(i, text, row, longest) for i, text in enumerate(row["steps"] or [])]
        body = [_facts(case, row, votes), tag("ol", *steps, class_="steps") if steps else missing("It wrote no step.")]
        if with_blind and row["blind"]:
            scores = " · ".join(decimal(score, 2) for score in row["blind"])
            body.append(tag("p", f"without the picture, step by step: {scores}", class_="sub"))
        shown.append(tag("li", *body))
    return tag("ul", *shown, class_="candidates versus" if is_versus else "candidates")


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
        facts.append(tag("span", "answer ", tag("b", _cut(row["answer"], MAX_BRIEF_CHARS), class_="user"), same))
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


def _step(i: int, text: str, row: Mapping[str, Any], longest: int) -> Html:
    score = number(row["scores"][i]) if i < len(row["scores"]) else None
    level = "none" if score is None else str(min(4, max(0, int(score * 5))))
    is_first_error = i < len(row["truth"]) and row["truth"][i] < 0.5 and all(right >= 0.5 for right in row["truth"][:i])
    mark = tag("span", "✗ ", class_="bad", title="by exact truth the first wrong step") if is_first_error else None
    return tag(
        "li",
        mark,
        tag("span", _cut(text, longest), class_="user"),
        " ",
        tag("b", decimal(score, 2)),
        class_=f"step s{level}",
    )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
