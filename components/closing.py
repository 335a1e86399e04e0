"""The answer that a closing sentence states, for prompts that ask for no form: its one number, or the one option it names.

A sentence that denies, doubts, asks, or names a bound or a range states nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from components.letters import ends_in_options, folded

FAREWELL = re.compile(
    r"(?i)\W*(?:i hope|let me know|please let|do you (?:have|want)|feel free|is there any|hope this|if you have"
    r"|would you like|---)"
)
_NUMBER_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    "|eighteen|nineteen|twenty"
)
_NUMBER = re.compile(rf"(?<![\w.])[-−]?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?(?![\d]|\.\d)|(?i:\b(?:{_NUMBER_WORDS})\b)")
_IS_NUMBER = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?(?:\s+to)?|equal\s+to|total\s+of|has|have|had|only|about|approximately|around|exactly)\b"
    rf"|=|≈|:)\s*[*$\\(]*\s*([-−]?\$?\d[\d,]*(?:\.\d+)?|(?i:\b(?:{_NUMBER_WORDS})\b))"
)
_NOT_THE_NUMBER = re.compile(
    r"(?i)(?:(?:\b(?:not|never|cannot|no)\b|n['’]t\b)[^.,;:\d]{0,30}|\b(?:fewer|less|more|greater) than|\bat (?:most|least)"
    r"|\b(?:figure|fig\.|problem|step|page|table|equation))\s*$"
)
_NAMED_LETTER = re.compile(
    r"\b(?i:set|scenario|situation|figure|option|shape|diagram|picture|image|box|choice|design|object|line)s?\s+\(?([A-J])\b(?!\s*(?:,|and\b|or\b|&)\s*[A-J]\b)"
)
_REFUSED = re.compile(
    r"(?i)\b(?:cannot|can't|can not|unable|impossible|sorry|undetermined|unclear|n/a)\b"
    r"|\bnot (?:possible|provide|enough|specif\w+|given|clear)\b|doesn't (?:provide|specify|give)"
)
_DENIED = re.compile(
    r"(?i)\b(?:not|no|neither|nor|cannot|never|whether)\b|n['’]t\b|\?\W*$"
    r"|(?:\b(?:rather|other|more|less|fewer|greater|larger|smaller|higher|lower)\s+than|\binstead\s+of|\bexcept|\bunlike"
    r"|\bfail(?:s|ed)?\s+to|\bat\s+(?:most|least))\s+(?:the\s+)?_"
)
_SAYS_SO = re.compile(
    r"(?i)\W*(?:yes|no)\W*(?:$|[,.;:!](?!\s*(?:wait|sorry))|\bbecause\b|\bsince\b)|.*\b(?:is|say|be)\s*:?\s*\W*(?:yes|no)\W*$"
)


def _without(sentence: str, option: str) -> str:
    """`sentence` with a dash where it names the option."""
    return _naming(option).sub("_", sentence)


_SENTENCE_END = re.compile(r"\n+|(?<=[\w)}\]$°%*][.!?])\s+")


def _sentences(text: str) -> list[str]:
    """The last sentences, the last one first, without farewells."""
    parts = [part for part in _SENTENCE_END.split(text[-4000:]) if part.strip()]
    return [part for part in reversed(parts) if not FAREWELL.match(part)]


def closing_number(text: str) -> str | None:
    """The number in bold that opens the text; else the one that the last sentence with a number states."""
    if (opening := _opening_bold_number(text)) is not None:
        return opening
    for sentence in _sentences(text)[:4]:
        if _REFUSED.search(sentence):
            return None
        plain = sentence.replace("−", "-")
        if bold := list(_BOLD_NUMBER.finditer(plain)):
            is_one = len({number[1] for number in bold}) == 1
            return str(bold[-1][1]) if is_one and _is_plain_claim(plain, bold[-1]) else None
        found = list(_NUMBER.finditer(plain))
        numbers = [number.group().strip().lstrip("$").rstrip(",") for number in found]
        if len({number.replace(",", "").lower() for number in numbers}) == 1:
            return numbers[-1] if _is_plain_claim(plain, found[-1]) else None
        if numbers:
            stated = list(_IS_NUMBER.finditer(plain))
            if not stated or not _is_plain_claim(plain, stated[-1]):
                return None
            return str(stated[-1][1]).lstrip("$").strip(",")
    return None


_BOLD_NUMBER = re.compile(
    r"\*\*\$?(?:(?:week|month|year|day|grade|level|question|number|group)\s+)?([-\d.,]*\d)\$?(?:\s?°|\s+[A-Za-z]+){0,2}[.!]?\*\*"
)
_A_BOUND = re.compile(
    r"(?i)[\s*]*(?:(?:,|,?\s*\band\b|\bor\b|\bto\b|[-–:/])\s*(?:and\s+)?[*$]*\d(?![\d.]*\s?\\?%)|or\s+(?:more|fewer|less|greater|above|below|higher|lower|so)\b"
    r"|(?:\w+\s+)?(?:for\s+every|for\s+each|out\s+of)\b|(?:is|was)\s+(?:wrong|incorrect|not)\b|,?\s*(?:maybe|perhaps|or(?!\s+[\d.]+\s?\\?%))\b)"
)
_ONLY_SUPPOSED = re.compile(r"(?i)\?\W*$|\bif\b.*\b(?:were|was|had)\b|\bwould\b.*\bif\b")


def _is_plain_claim(sentence: str, number: re.Match[str]) -> bool:
    """Whether a sentence claims a number, and does not deny it, ask for it, or name it as a bound, a range or a ratio."""
    start = number.start(1) if number.re.groups else number.start()
    end = number.end(1) if number.re.groups else number.end()
    return not (
        _NOT_THE_NUMBER.search(re.sub(r"[*$\\(]+$", "", sentence[max(0, start - 60) : start]))
        or re.search(r"\d\s*(?:[:/–-]|\bto\b|\bor\b)\s*[*$]*$", sentence[:start])
        or _A_BOUND.match(sentence, end)
        or _ONLY_SUPPOSED.search(sentence)
    )


_CONCLUSION = re.compile(
    r"(?i)\W*(?:so|therefore|thus|hence|finally|in\s+total|altogether|overall|however|but|this\s+means)\b"
)


def _opening_bold_number(text: str) -> str | None:
    """The number that the first sentence sets in bold, if the text sets no other in bold and concludes nothing later."""
    parts = [part for part in _SENTENCE_END.split(text[:4000].strip()) if part.strip()]
    bold = list(_BOLD_NUMBER.finditer(parts[0])) if parts else []
    if len(bold) != 1 or {number[1] for number in _BOLD_NUMBER.finditer(text)} != {bold[0][1]} or _REFUSED.search(parts[0]):
        return None
    for part in parts[1:]:
        if _CONCLUSION.match(part) and bold[0][1] not in [number.group().strip("$ ") for number in _NUMBER.finditer(part)]:
            return None
    return str(bold[0][1]) if _is_plain_claim(parts[0], bold[0]) else None


def closing_option(text: str, options: Sequence[str]) -> str | None:
    """The one option that the last sentence that names an option names, by its text or as `Set B`."""
    sentences = _sentences(text)[:3]
    if ends_in_options(text):
        return None
    for sentence in sentences:
        said = [option for option in options if option.strip() and _naming(option).search(sentence)]
        said = [option for option in said if folded(option) not in ("yes", "no") or _SAYS_SO.match(sentence)]
        longest = [o for o in said if not any(o != p and o.casefold() in p.casefold() for p in said)]
        if len({folded(option) for option in longest}) == 1 and not _DENIED.search(_without(sentence, longest[0])):
            return longest[0]
        if longest:
            return None
        letters = set(_NAMED_LETTER.findall(sentence))
        if len(letters) == 1 and not options and not _DENIED.search(sentence):
            return str(letters.pop())
    return _opening_option(text, options)


def _opening_option(text: str, options: Sequence[str]) -> str | None:
    """The option that the first sentence names by its text, if the whole text names no other."""
    named = [option for option in options if len(folded(option)) > 3 and _naming(option).search(text)]
    first = next((part for part in _SENTENCE_END.split(text[:2000].strip()) if part.strip()), "")
    if len(named) != 1 or not _naming(named[0]).search(first) or _DENIED.search(_without(first, named[0])):
        return None
    return named[0]


@lru_cache(maxsize=4096)
def _naming(option: str) -> re.Pattern[str]:
    """Finds an option's text in a sentence, that of a word in the plural also in the singular."""
    text = option.strip().rstrip(".")
    is_plural = re.fullmatch(r"[A-Za-z]{3,}[a-rt-z]s", text) is not None  # Frogs, but not decrease: decreases is a verb
    pattern = re.escape(text[:-1]) + "s?" if is_plural else re.escape(text)
    return re.compile(rf"(?<![\w.]){pattern}(?![\w]|\.\d)", re.IGNORECASE)
