"""Which of lettered options does an answer name? By letter, by text, or by value; several letters as a set.

Knows nothing of verdicts or responses. Where letter and text contradict each other, the answer is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.comparison import Closeness, NoSuchAnswer, clean, same_answers, unwrapped
from components.formulas import Unreadable
from components.letters import MAX_LETTERS, folded, leading_letter
from components.quantities import read_quantity, same_quantity
from components.structures import read_labels

ALL_LETTERS = "ABCDEFGHIJ"
ONE_LETTER = re.compile(r"\(?([A-J])\)?[.:]?")
SEVERAL_LETTERS = re.compile(
    r"\(?[A-J]\)?(?:(?:\s*(?:,|;|&|/|、|\band\b|\\text\s*\{\s*and\s*\})\s*(?:and\s+)?|\s+)\(?[A-J]\)?)+"
)
RUN_OF_LETTERS = re.compile(r"[A-J]{2,10}")


def option_of(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a gold answer names, by letter or by its text."""
    letters = ALL_LETTERS[: len(options)] if options else ALL_LETTERS
    match = ONE_LETTER.fullmatch(unwrapped(clean(text)))
    if match:
        return match[1] if match[1] in letters else None
    named = [letter for letter, option in zip(letters, options, strict=False) if option and folded(option) == folded(text)]
    return named[0] if named else None


def same_choice(gold: str, answer: str, options: tuple[str, ...], how: Closeness) -> tuple[bool | None, str]:
    """(Whether an answer names the gold option, the letter it names or its text).

    Args:
        gold: a letter, or the text of an option.
        options: the texts of A, B, ..; empty if only letters count.
    """
    wanted = option_of(gold, options)
    if wanted is None:
        raise NoSuchAnswer
    if len(options) <= 1:
        letter = _letter(answer)
        if letter is None:
            raise Unreadable(answer)
        return letter == wanted, letter
    letters = ALL_LETTERS[: min(len(options), MAX_LETTERS)]
    by_letter, by_text = _letter(answer), _named_options(answer, letters, options)
    if by_letter is not None and len(folded(answer)) == 1:  # where options are letters themselves, the prompt asks for ours
        by_text = []
    if by_text:
        if by_letter is not None and by_letter not in by_text:
            raise Unreadable(f"{answer!r}: option {by_letter}, or the text of option {by_text[0]}?")
        letter = by_letter or (wanted if wanted in by_text else by_text[0])
        return letter in (wanted, *_twins(wanted, letters, options)), letter
    if by_letter is not None:
        _check_text_behind(answer, by_letter, options[letters.index(by_letter)] if by_letter in letters else "")
        return by_letter in (wanted, *_twins(wanted, letters, options)), by_letter
    return _same_as_option(answer, wanted, letters, options, how)


def _check_text_behind(answer: str, letter: str, option: str) -> None:
    """Refuse `(D) 140` where option D is 20: the letter says one thing, the value another."""
    behind = re.sub(rf"^.*?\b{letter}\b(?:[\s)}}\]:.,*$]|[-–—]\s)*", "", answer, count=1, flags=re.DOTALL)
    said, offered = read_quantity(clean(behind)), read_quantity(clean(option))
    if said is not None and offered is not None and same_quantity(offered, said) is False:
        raise Unreadable(f"{answer!r}, but option {letter} is {option!r}")


def _letter(answer: str) -> str | None:
    """The one option that an answer names by its letter."""
    text = unwrapped(answer.strip().strip("$").strip())
    if lower := re.fullmatch(r"\(?([a-j])\)?[.:]?", text):
        return lower[1].upper()
    return leading_letter(text)


def _named_options(answer: str, letters: str, options: tuple[str, ...]) -> list[str]:
    """The letters of the options whose text the answer is, alone or behind a letter."""
    said = folded(answer)
    named = []
    for letter, option in zip(letters, options, strict=False):
        text = folded(option)
        behind = {f"{letter.lower()}{mark}{text}" for mark in ("", ".", ":", ")", ",")} | {f"({letter.lower()}){text}"}
        if text and (said == text or said in behind):
            named.append(letter)
    return named


def _twins(wanted: str, letters: str, options: tuple[str, ...]) -> list[str]:
    text = folded(options[letters.index(wanted)])
    return [letter for letter, option in zip(letters, options, strict=False) if text and folded(option) == text]


def _same_as_option(
    answer: str, wanted: str, letters: str, options: tuple[str, ...], how: Closeness
) -> tuple[bool | None, str]:
    """Compare a value with the value of the right option, and make sure that no other option is as good."""
    results = {
        letter: same_answers(clean(option), clean(answer), how)
        for letter, option in zip(letters, options, strict=False)
        if option.strip()
    }
    equal = [letter for letter, is_same in results.items() if is_same]
    if wanted in equal:
        return (True, wanted) if len(equal) == 1 else (None, answer)
    if equal and results.get(wanted) is False:
        return False, equal[0]
    return (False if results.get(wanted) is False else None), answer


def same_choices(gold: str, answer: str) -> tuple[bool, str]:
    """(Whether an answer names just the gold letters, or numbers of statements; those it names)."""
    wanted = _letter_set(gold) or read_labels(gold)
    if not wanted:
        raise NoSuchAnswer
    found = read_labels(clean(answer)) if next(iter(wanted)).isdigit() else _letter_set(answer)
    if not found:
        raise Unreadable(answer)
    return found == wanted, ", ".join(sorted(found))


def _letter_set(text: str) -> frozenset[str] | None:
    text = unwrapped(clean(text))
    text = re.sub(r"^(?i:options?|choices?|answers?|letters?)\b[\s:]*", "", text)
    if re.match(r"\([A-J]\)\s*[^\s(,;&]", text) and not re.match(r"\([A-J]\)\s*and\b", text):  # (B) A, D, F
        is_one = not set(re.findall(r"\(([A-J])\)", text)) - {text[1]}  # not (A) 2006 (B) 2007, the options themselves
        return frozenset({text[1]}) if is_one else None
    text = text.upper() if re.fullmatch(r"[a-j](?:[\s,]+[a-j])*", text) else text
    if ONE_LETTER.fullmatch(text) or SEVERAL_LETTERS.fullmatch(text) or RUN_OF_LETTERS.fullmatch(text):
        letters = re.findall(r"(?<![A-Za-z])[A-J](?![a-z])|(?<=[A-J])[A-J]", re.sub(r"\\text|and", " ", text))
        return frozenset(letters) if len(set(letters)) == len(letters) else None
    letter = leading_letter(text)
    return frozenset({letter}) if letter else None
