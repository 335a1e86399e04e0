"""The gallery: every problem that fits as a card, the PRM's errors first, to be filtered, searched and sorted.

Owns what fits into the page; how a problem looks is `cards`' business, which are misses is `cases`'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.metrics import AGGREGATIONS
from components.records import row_images
from components.report.cards import card
from components.report.cases import FAULTS, FILES, KINDS, Case, ranked, read_cases, read_problems, shortlist
from components.report.comparison import shown_splits, split_name
from components.report.markup import Html, count, join, missing, num_bytes, number, tag
from components.report.pictures import THUMBNAILS, Picture, picture_of, pictures_of, shown

__all__ = ["gallery", "pictures_of"]
ORDERS = {
    "": "errors first",
    "sure": "largest margin",
    "close": "smallest margin",
}


@dataclass(frozen=True)
class _Shown:
    """A case with what its card is made from."""

    case: Case
    problem: Mapping[str, Any]
    pictures: Sequence[Picture]
    is_whole: bool
    """With every candidate, if it fits."""


def gallery(artifacts: Path, data: Path, metrics: Mapping[str, Any], max_bytes: int) -> Html:
    """Filters and cards, at most `max_bytes` long: what does not fit is left out and counted.

    Raises:
        DataError: a file is there and cannot be read.
    """
    absent = [name for name in FILES if not (artifacts / name).exists()]
    if absent:
        return missing(f"No gallery: {', '.join(absent)} not found.")
    aggregation, splits = metrics.get("aggregation"), list(shown_splits(metrics))
    if aggregation not in AGGREGATIONS:
        return missing(f"No gallery: the aggregation {aggregation!r} is not one of {', '.join(AGGREGATIONS)}.")
    cases = read_cases(artifacts, aggregation, splits=splits, threshold=number(metrics.get("threshold")))
    if any(row["steps"] and row["score"] is None for case in cases for row in case.sampled):
        return missing("No gallery: these candidates are not those that were evaluated. Run evaluate again.")
    first = shortlist(cases, splits)
    whole = {(case.split, case.problem_id) for case in first}
    order = first + [case for case in ranked(cases, splits) if (case.split, case.problem_id) not in whole]
    cards, num_whole = _fitting_cards(_with_problems(data, order, whole), max_bytes)
    found = Counter(case.kind for case in cases)
    told = ", ".join(f"{count(found[kind])} {name}" for kind, name in KINDS.items())
    left = len(cases) - len(cards)
    beyond = f" {count(left)} problems did not fit into the page; the surest errors were taken first." if left else ""
    note = (
        f"{count(len(cards))} of {count(len(cases))} problems ({told}), {count(num_whole)} with every candidate.{beyond} "
        "A miss: the PRM chose a wrong answer although a right one was there. A rescue: it is right where the majority is "
        "wrong. Both begin with the surest; the others stand in no order. So the first page looks worse than the PRM is: "
        "the shares are above."
    )
    more = tag("button", "show more", type="button", id="more", hidden=True)
    filters = _filters(splits, {fault for case in cases for fault in case.faults})
    return join([tag("p", note, class_="note"), _key(cases), filters, tag("div", *cards, class_="cards"), more])


def _with_problems(data: Path, order: Sequence[Case], whole: set[tuple[str, str]]) -> list[_Shown]:
    """The cases with their problems; pictures are made small at once, because there may be thousands."""
    problems: dict[tuple[str, str], tuple[dict[str, Any], list[Picture]]] = {}
    for key, problem in read_problems(data, order):
        pictures = [picture_of(content, is_shown_whole=key in whole) for content in row_images(problem)]
        problems[key] = ({name: value for name, value in problem.items() if name != "images"}, pictures)
    out = []
    for case in order:
        key = (case.split, case.problem_id)
        problem, pictures = problems.get(key, ({}, []))
        out.append(_Shown(case, problem, pictures, key in whole))
    return out


def _fitting_cards(wanted: Sequence[_Shown], max_bytes: int) -> tuple[list[Html], int]:
    """The cards in the order of the gallery, and how many of them are whole.

    Words come first, so that as many problems as possible can be found by search; then thumbnails, the largest size that
    all have room for; then, from the first on, every candidate and the picture as it is.
    """
    cards: list[Html] = []
    left = max_bytes
    for one in wanted:
        made = card(one.case, one.problem, shown(one.pictures, None), is_brief=True)
        if num_bytes(made) > left:
            break
        cards.append(made)
        left -= num_bytes(made)
    level = _thumbnail_level(wanted[: len(cards)], left)
    num_whole = 0
    for is_brief in (True, False):
        for i, one in enumerate(wanted[: len(cards)]):
            if not is_brief and not one.is_whole:
                continue
            sizes = (lambda picture: _thumbnail(picture, level),) if is_brief else (_whole, lambda p: _thumbnail(p, level))
            for size in (*sizes, None):
                made = card(one.case, one.problem, shown(one.pictures, size), is_brief=is_brief)
                more = num_bytes(made) - num_bytes(cards[i])
                if more <= left and (size is not None or not is_brief):
                    left -= more
                    cards[i] = made
                    num_whole += not is_brief
                    break
    kinds = list(KINDS)
    in_order = sorted(range(len(cards)), key=lambda i: (kinds.index(wanted[i].case.kind), i))
    return [cards[i] for i in in_order], num_whole


def _thumbnail_level(wanted: Sequence[_Shown], left: int) -> int:
    """The largest of THUMBNAILS that there is room for in two thirds of what is left, or the smallest."""
    for level in range(len(THUMBNAILS)):
        taken = sum(len(_thumbnail(picture, level)) for one in wanted for picture in one.pictures)
        if 4 / 3 * taken <= 2 / 3 * left:
            return level
    return len(THUMBNAILS) - 1


def _thumbnail(picture: Picture, level: int) -> bytes:
    return picture.thumbnails[level] if picture.thumbnails else picture.whole


def _whole(picture: Picture) -> bytes:
    return picture.whole or _thumbnail(picture, 0)


def _key(cases: Sequence[Case]) -> Html:
    """What the tints of the steps mean; the number stands in every step too."""
    levels = [tag("span", f"{level / 5:.1f} to {(level + 1) / 5:.1f}", class_=f"step s{level}") for level in range(5)]
    meaning = "The PRM's score of a step, how likely the solution is to end right from here: "
    has_truth = any(row["truth"] for case in cases for row in case.sampled)
    truth = tag("span", "✗ before a step: by exact truth the first wrong one", class_="sub") if has_truth else None
    return tag("p", meaning, *levels, truth, class_="key")


def _filters(splits: Sequence[str], faults: set[str]) -> Html:
    """Buttons and boxes; hidden until the script runs, because they do nothing without it."""
    kinds = {"all": "all", **KINDS}
    buttons = [
        tag("button", name, type="button", data_kind=kind, aria_pressed=str(kind == "all").lower())
        for kind, name in kinds.items()
    ]
    parts = [
        tag("div", *buttons, role="group", aria_label="which problems"),
        _select("split", [("", "every split"), *((split, split_name(split)) for split in splits)]),
        _select("source", [("", "every source")]),
        _select("fault", [("", "every kind of miss"), *((name, told) for name, told in FAULTS.items() if name in faults)]),
        _select("order", list(ORDERS.items())),
        tag("label", "search ", tag("input", type="search", id="search", autocomplete="off")),
        tag("output", id="shown", aria_live="polite"),
    ]
    return tag("div", *parts, class_="filters", id="filters", hidden=True)


def _select(name: str, options: Sequence[tuple[str, str]]) -> Html:
    inside = [tag("option", label, value=value) for value, label in options]
    label = {"fault": "kind of miss"}.get(name, name)
    return tag("label", f"{label} ", tag("select", *inside, id=name))
