"""Lettered options: the letter that a stated answer begins with, texts folded for comparing, and options that are listed.

Knows nothing of where in a response an answer stands.
"""

from __future__ import annotations

import re

MAX_LETTERS = 10  # options are named A to J
LETTERS = "A-J"

_LEADING = re.compile(
    rf"(?:[\s*_`\"'“”$\[{{]|\\(?:text|textbf|mathrm|mathbf|bf|rm)\b|\\\()*(?:(?i:the\s+)?"
    rf"(?i:option|choice|letter|answer|figure|picture|image)s?\b\s*)?"
    rf"[\s*_$({{\[]*(?P<letter>[{LETTERS}])(?P<close>\s?[)}}\]*_$.:]*)(?P<rest>.*)",
    re.DOTALL,
)
_REJECTED = re.compile(
    r"(?i)\W*(?:is|was|can\s+be|must\s+be|would\s+be)\s+(?:not|wrong|incorrect|false|too|impossible|invalid|excluded|eliminated|rejected|ruled\s+out)\b"
    r"|[\s*_$),]*(?:isn['’]t|wasn['’]t|cannot|can['’]t|doesn['’]t|does\s+not|won['’]t|wouldn['’]t|fails)\b|[\s*_$]*\?"
    r"|[\s*_)]*(?:would\s+(?:be|have\s+been)|if|unless)\b|\s*\\(?:cup|cap|times|to)(?![A-Za-z])|[\s)]*(?:[+^<>→]|-\s*>|[*/]\s*\d)|-\d"
)
_ALSO = re.compile(
    rf"(?i:^[\W_]*(?:or|vs\.?|versus)\b[^.\n]{{0,30}}?)\b[{LETTERS}]\b(?!['’])"
    rf"|(?i:[,;]?\s*\b(?:but|though|although|however)\b[^.\n]{{0,20}}?)\b[{LETTERS}]\)?\s+(?i:is|may|might|could|seems)\s+(?i:also|possible|correct|right|plausible|be)\b"
)
_LOWER = re.compile(r"\W*\(\s*([a-j])\s*\)(.*)|\W*([a-j])\s*[).]?\W*", re.DOTALL)
_PROSE_AFTER_A = re.compile(r"\s*[a-z]")
_CONFIRMED = re.compile(
    r"(?i)\s*(?:$|[-–—(,:;=]|\\|is\b|because\b|since\b|as\b|which\b|with\b|and\s+not\b|for\b|due\b|in\b)"
)
_ANOTHER = re.compile(rf"^\W*(?:or|and|and/or|/|,|&|to|-)?\W*(?:option\s*|choice\s*)?\(?[{LETTERS}]\)?(?![A-Za-z'’.\d])")


def leading_letter(text: str) -> str | None:
    """The option that a stated answer begins with: `(B) 12`, `B. 12`, `option B`; None for `a bird`, `B or C`, `12`."""
    lower = _LOWER.fullmatch(text.strip())
    if lower:
        letter = str(lower[1] or lower[3]).upper()
        return None if lower[2] and re.search(rf"(?i)\([{LETTERS}]\)", lower[2]) else letter
    match = _LEADING.fullmatch(text.strip())
    if match is None:
        return None
    rest, is_closed, letter = match["rest"], bool(match["close"].strip()), str(match["letter"])
    if _REJECTED.match(rest) or _ALSO.search(rest[:200]):
        return None
    if not match["close"] and re.match(r"[A-Za-z0-9_'’^]", rest):
        return None
    if not (is_closed and ")" in match["close"] and not re.match(r"\W*\(|\W*(?:and|or|&)\b", rest)) and _ANOTHER.match(rest):
        return None
    if set(re.findall(rf"\(([{LETTERS}])\)|[,;]\s*([{LETTERS}])\s*[:)]", rest)) - {(letter, ""), ("", letter)}:
        return None
    if not is_closed and letter in "AI" and _PROSE_AFTER_A.match(rest) and not _CONFIRMED.match(rest):
        return None
    return letter


def folded(text: str) -> str:
    """`text` in lower case without mathematics delimiters, emphasis, blanks and a closing full stop."""
    text = re.sub(r"\\text(?:bf|rm)?\s*\{([^{}]*)\}|\\mathrm\s*\{([^{}]*)\}", r"\1\2", text)
    return re.sub(r"[\s$*_~]|\\[,;:!() ]", "", text).strip("\"'“”").rstrip(".").casefold()


_ITEM = re.compile(rf"\W*(?:\d+[.)]\s*.*|(?i:option\s+|choice\s+)?\(?[{LETTERS}][).:]\s*\S.*|[{LETTERS}]\W*$)")


def ends_in_options(text: str) -> bool:
    """Whether the text ends with the options themselves, listed."""
    lines = [line for line in text[-4000:].splitlines() if line.strip()]
    return len(lines) > 1 and _ITEM.match(lines[-1]) is not None and _ITEM.match(lines[-2]) is not None
