r"""Which part of a response is its answer: the last box, else what it states as its answer, else a bare closing line.

Knows nothing of what the right answer is. Every search is linear in the text; whatever is not stated is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_LETTERS = 10  # options are named A to J
_MAX_BARE = 120  # characters of a whole response that may be an answer without saying so
_MAX_STATED = 1000
_MAX_STATEMENTS = 40
_MAX_CHARS = 20_000  # of a response's end that are searched

_LETTERS = "A-J"
_MARKS = r"[\s*_`\"'“”$]*"
_STATED = re.compile(
    r"(?:(?i:\bans(?:wers?)?\b)(?:\s+(?i:choice|option|letter|value))?[ *_\])]*"
    r"(?:(?:\s+(?i:to|for|of)\b[^.\n:=]{0,100}?)?\s*"
    r"(?i:\b(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|becomes)\b(?:\s+(?i:thus|therefore|then|hence|simply|clearly|indeed)\b)?)\s*[:：]?|\s*(?P<colon>[:：=＝]))"
    r"|(?:答案|故选|选择|应选)(?:是|为|选)?\s*[:：]?)"
    r"[ \t]*(?=(?P<stated>[^\n]{0,1000}))"
)
_NO_STATEMENT = re.compile(
    r"(?i)\W*(?:correct|right|wrong|incorrect|not\b|unknown|given|found|obtained|based|as\s+follows|therefore\W*$)"
)
_WRONG_BEFORE = re.compile(r"(?i)\b(?:wrong|incorrect|false|mistaken)\s+$")
_HEADING = re.compile(r"[#>*\s_]*(?i:(?:the\s+)?final\s+answer|answer|solution\s*:\s*answer)[*_\s]*[:：]?[*_\s]*")
_CHOSEN = re.compile(
    r"(?i:\b(?:correct|right|best|proper|appropriate)\s+(?:option|choice|letter|statement|figure|picture|image|diagram|shape|one)"
    r"\s*(?:\([^()\n]{0,40}\)\s*)?(?:is|are|would\s+be|should\s+be|[:：]))(?P<after>[^\n]*)"
    rf"|(?i:\b(?:options?|choices?)\s*[:：])(?P<named>\s*[\s*_(]*[{_LETTERS}]\b[^\n]*)"
    rf"|(?i:\b(?:option|choice|answer|letter)\s*)[*_(\s]*(?P<praised>[{_LETTERS}])[)*_\s]*(?i:[^.,;\n]{{0,60}}?\bis\s+(?:the\s+)?"
    r"(?:correct|right|best|true|answer|only|most)\b)"
    rf"|\b(?P<crowned>[{_LETTERS}])[)*_]*\s+is\s+(?i:the\s+(?:correct|right)\s+(?:answer|option|choice)\b)"
    r"|(?<!n't )(?<!n’t )(?<!not )(?<!might )(?i:\b(?:choose|select|pick|go\s+with|chose|selected)\s+(?:the\s+)?"
    rf"(?:option|choice|answer|letter)?\s*)[*_(]*(?P<picked>[{_LETTERS}])\b"
)
_LONE_LETTER = re.compile(rf"{_MARKS}(?:(?i:option|choice)\s*)?[(\[]?(?P<letter>[{_LETTERS}])[)\]]?{_MARKS}[.:]?{_MARKS}")
_LISTED_LETTERS = re.compile(rf"{_MARKS}\(?[{_LETTERS}]\)?(?:\s*(?:,|and|&|;)\s*(?:and\s+)?\(?[{_LETTERS}]\)?)+{_MARKS}\.?")
_OPTION_LINE = re.compile(rf"{_MARKS}\(?[{_LETTERS}][).:][ *_].*")
_IN_BRACKETS = re.compile(rf"\(([{_LETTERS}])\)|(?i:\b(?:option|choice|figure|picture|image|diagram)\s+)([{_LETTERS}])\b")
_NEXT_SENTENCE = re.compile(r"(?<=[\w)}\]$°%*])\.(?:\*\*)?\s+(?=[A-Z\"'(*])|(?<=[\w)}\]$°%*])[。!]\s*")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_LAST_LINE = re.compile(r"(?:^|\n)[ \t]*[†*]*A:[ \t]*([^\n]+)\s*$")
_JOINT = re.compile(r"[$ ,;.\\)(\]\[]*(?:\b(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\}|&)?[$ ,;\\()\[\]]*")


def extract_answer(text: str, *, is_choice: bool = False, options: Sequence[str] = (), is_prose: bool = False) -> str | None:
    r"""The answer that a response states: its last \boxed{..}, else <answer>..</answer>, else its last "answer is ..".

    Failing those: a `#### 8`, a lone letter at the end (choices), or the whole response if it is one bare value.
    Never the last number of a text. What a model says inside <think> does not count.

    Args:
        is_choice: the question has lettered options: "option B is correct" and a closing "(B)" count as stated.
        options: their texts, if known.
        is_prose: the prompt asks for no form, so the closing sentence's one number, or one option, counts as stated.
    """
    if "<think>" in text:
        if "</think>" not in text:
            return None
        text = text[text.rfind("</think>") + len("</think>") :].partition("<think>")[0]
    text = text[-_MAX_CHARS:]
    answer = _extracted(text, is_choice, options, is_prose)
    return None if answer is not None and _RETRACTED.search(text, text.rfind(answer) + len(answer)) else answer


_RETRACTED = re.compile(
    r"(?i)\b(?:wait,? no|no,? wait|scratch that|i made an? (?:mistake|error)"
    r"|(?:that|this)(?:['’]s| is| was) (?:wrong|incorrect|not right|not correct))\b"
)


def _extracted(text: str, is_choice: bool, options: Sequence[str], is_prose: bool) -> str | None:
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start >= 0:
        return _boxed(text)
    end = text.rfind("</answer>")
    if end >= 0:
        start = text.rfind("<answer>", 0, end)
        return (trimmed(text[start + len("<answer>") : end]) or None) if start >= 0 else None
    hashes = _HASHES.findall(text)
    if hashes:
        return trimmed(hashes[-1]) or None
    stated = _last_choice(text, options) if is_choice else _last_statement(text)
    if stated is None and is_prose:
        stated = _closing_option(text, options) if is_choice else _closing_number(text)
        if stated is None and any(re.search(r"\d", option) for option in options):
            stated = _closing_number(text)
    return stated


# --- boxes ---------------------------------------------------------------------------------------------------------

_NAME_BEFORE = re.compile(r"(?<![A-Za-z\\])([A-Za-z])(?:_\{?\d\}?)?\s*=\s*$")
_NAMED_JOINT = re.compile(
    r"[$ \\)]*(?:,|;|(?:,\s*)?(?:\b(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\}))[$ \\(]*(?:\\quad)?\s*"
    r"([A-Za-z])(?:_\{?\d\}?)?\s*=\s*"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def _boxed(text: str) -> str | None:
    """What the last box holds; boxes joined by a comma, "and" or "or" on one line are one list. None if it never closes."""
    boxes = list(_BOX.finditer(text))[-6:]
    inside = braced(text, boxes[-1].end())
    if inside is None:
        bare = re.compile(r"[-\w.]+").match(text, boxes[-1].end())
        return trimmed(bare.group()) if bare and text[boxes[-1].end() - 1] in " \t" else None
    found = [inside]
    first = boxes[-1].start()
    for box in reversed(boxes[:-1]):
        end = _brace_end(text, box.end())
        if end is None or end >= first:
            break
        if not _JOINT.fullmatch(text, end + 1, first) and not _is_named_again(text, box.start(), end, first):
            break
        found.insert(0, trimmed(text[box.end() : end].lstrip().removeprefix("{")))
        first = box.start()
    return ", ".join(found)


def _is_named_again(text: str, start: int, end: int, first: int) -> bool:
    r"""Whether two boxes are the two values of one name: `x = \boxed{1} or x = \boxed{2}`."""
    before = _NAME_BEFORE.search(text[max(0, start - 20) : start])
    between = _NAMED_JOINT.fullmatch(text, end + 1, first)
    return before is not None and between is not None and before[1] == between[1]


def braced(text: str, start: int) -> str | None:
    """What the brace group at `start` holds; None if it is empty or never closed."""
    end = _brace_end(text, start)
    return None if end is None else trimmed(text[text.find("{", start) + 1 : end]) or None


def _brace_end(text: str, start: int) -> int | None:
    """Where the brace group at `start` closes; None if there is none."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text) or text[start] != "{":
        return None
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "{" and text[at - 1] != "\\":
            depth += 1
        elif text[at] == "}" and text[at - 1] != "\\":
            depth -= 1
            if not depth:
                return at
    return None


def trimmed(text: str) -> str:
    """`text` without blanks, emphasis and closing punctuation."""
    return text.strip().strip("*").rstrip(" .。;；,，\\").strip()  # 3\,


# --- stated answers ------------------------------------------------------------------------------------------------


def _last_statement(text: str) -> str | None:
    """The last value that the text calls its answer."""
    stated = [sentence for _, sentence, _ in _statements(text)]
    if stated:
        return stated[-1]
    found = _under_heading(text)
    if found is None:
        last = _LAST_LINE.search(text[-400:])
        found = _sentence(last[1]) if last else None
    return found if found is not None else _bare(text)


def _statements(text: str) -> list[tuple[int, str, bool]]:
    """(place, what is stated, whether behind a colon) of every "answer is .."."""
    found = []
    for match in list(_STATED.finditer(text))[-_MAX_STATEMENTS:]:
        stated = match["stated"]
        if not stated.strip(" \t*_$"):
            stated = _next_line(text, match.end() + len(stated))
        sentence = _sentence(stated)
        if _WRONG_BEFORE.search(text[max(0, match.start() - 20) : match.start()]):
            continue
        if sentence and not _NO_STATEMENT.match(sentence):
            found.append((match.start(), sentence, bool(match["colon"])))
    return found


def _sentence(text: str) -> str | None:
    text = text[:_MAX_STATED]
    after = _NEXT_SENTENCE.search(text)
    return trimmed(text[: after.start()] if after else text) or None


def _next_line(text: str, start: int) -> str:
    """The next line that says something, if it is the last paragraph's: `**Answer:**` above `8`."""
    lines = [line.strip() for line in text[start : start + _MAX_STATED].splitlines()]
    said = [line for line in lines if line.strip("*_$[]\\ ")]
    return said[0] if said else ""


def _under_heading(text: str) -> str | None:
    lines = text.splitlines()
    for at in range(len(lines) - 1, -1, -1):
        if len(lines[at]) < 60 and _HEADING.fullmatch(lines[at]):
            return _sentence(_next_line("\n".join(lines[at + 1 : at + 5]), 0))
    return None


def _bare(text: str) -> str | None:
    """The whole response, if it is one line that may be a value: no sum, no sentence."""
    line = trimmed(text)
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", line)
    if not line or "\n" in line or len(line) > _MAX_BARE or len(words) > 3 or _VERB.search(line):
        return None
    if len(words) > 1 and re.search(r"\d", line) and re.match(r"[A-Za-z]", line):
        return None
    head, equals, _ = line.partition("=")
    if equals and not re.fullmatch(r"[\s$\\(]*[A-Za-z]\w{0,2}\s*", head):
        return None
    return line


_VERB = re.compile(r"(?i)\b(?:is|are|was|were|has|have|shows?|there|i|it)\b\s")
_FAREWELL = re.compile(
    r"(?i)\W*(?:i hope|let me know|please let|do you (?:have|want)|feel free|is there any|hope this|if you have"
    r"|would you like|---)"
)


def _last_choice(text: str, options: Sequence[str]) -> str | None:
    """The last option that the text calls its answer; else a lone letter or option that ends it."""
    found = _statements(text)
    for match in list(_CHOSEN.finditer(text))[-_MAX_STATEMENTS:]:
        letter = match["praised"] or match["crowned"] or match["picked"]
        sentence = letter or _sentence(match["after"] or match["named"] or "")
        if sentence:
            found.append((match.start(), sentence, False))
    for _, stated, is_labelled in sorted(found, reverse=True):
        if _names_option(stated, options) or is_labelled:
            return stated
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while len(lines) > 1 and _FAREWELL.match(lines[-1]):
        lines.pop()
    if not lines:
        return None
    ending = _closing_line(lines, options)
    if ending is not None:
        return ending
    heading = _under_heading(text)
    if heading is not None:
        return heading
    return max(found)[1] if found else _bare(text)


def _closing_line(lines: Sequence[str], options: Sequence[str]) -> str | None:
    """The option that the last line is, or names alone."""
    last = lines[-1]
    if len(lines) > 1 and _ITEM.match(last) and _ITEM.match(lines[-2]):  # the options themselves, listed
        return None
    if _LONE_LETTER.fullmatch(last) or _LISTED_LETTERS.fullmatch(last):
        return trimmed(last)
    if len(lines) == 1 or (_OPTION_LINE.fullmatch(last) and not _OPTION_LINE.fullmatch(lines[-2])):
        whole = trimmed(last)
        if whole and len(whole) <= max([_MAX_BARE, *map(len, options)]) and _names_option(whole, options):
            return whole
    if _DISMISSED.search(re.split("[,;]", last)[-1]):
        return None
    letters = {a or b for a, b in _IN_BRACKETS.findall(last)}
    if len(letters) == 1:
        return str(letters.pop())
    ends = _ENDS_WITH.search(last)
    return ends[1] if ends and not letters else None


_DISMISSED = re.compile(
    rf"(?:(?i:\b(?:cannot|can\s+not|not|never|neither|nor)|n['’]t)(?i:\s+be)?(?i:\s+(?:the|even|choose|select|pick))*"
    rf"(?i:\s+(?:option|choice|answer|figure))?\s+[*_(]*[{_LETTERS}]\b)|(?i:\b(?:rul\w+\s+out|eliminat|exclud|reject|discard)\w*)"
    rf"|\b[{_LETTERS}][)*_]*\s+(?i:(?:is|was)\s+(?:not|wrong|incorrect|false)\b)"
)
_ITEM = re.compile(rf"\W*(?:\d+[.)]\s*.*|(?i:option\s+|choice\s+)?\(?[{_LETTERS}][).:]\s*\S.*|[{_LETTERS}]\W*$)")
_ENDS_WITH = re.compile(rf"\b(?:is|be)\s+[*_(]*([{_LETTERS}])[*_)]*[.!]?[*_]*$")


def _names_option(stated: str, options: Sequence[str]) -> bool:
    return leading_letter(stated) is not None or any(option and folded(option) == folded(stated) for option in options)


_LEADING = re.compile(
    rf"(?:[\s*_`\"'“”$\[{{]|\\(?:text|textbf|mathrm|mathbf|bf|rm)\b|\\\()*(?:(?i:the\s+)?"
    rf"(?i:option|choice|letter|answer|figure|picture|image)s?\b\s*)?"
    rf"[\s*_$({{\[]*(?P<letter>[{_LETTERS}])(?P<close>\s?[)}}\]*_$.:]*)(?P<rest>.*)",
    re.DOTALL,
)
_REJECTED = re.compile(
    r"(?i)\W*(?:is|was)\s+(?:not|wrong|incorrect|false)\b|[\s*_$]*\?|\s*\\(?:cup|cap|times|to)(?![A-Za-z])"
)
_LOWER = re.compile(r"\W*\(\s*([a-j])\s*\)(.*)|\W*([a-j])\s*[).]?\W*", re.DOTALL)
_PROSE_AFTER_A = re.compile(r"\s*[a-z]")
_CONFIRMED = re.compile(
    r"(?i)\s*(?:$|[-–—(,:;=]|\\|is\b|because\b|since\b|as\b|which\b|with\b|and\s+not\b|for\b|due\b|in\b)"
)
_ANOTHER = re.compile(rf"^\W*(?:or|and|and/or|/|,|&|to|-)?\W*(?:option\s*|choice\s*)?\(?[{_LETTERS}]\)?(?![A-Za-z'’.\d])")


def leading_letter(text: str) -> str | None:
    """The option that a stated answer begins with: `(B) 12`, `B. 12`, `option B`; None for `a bird`, `B or C`, `12`."""
    lower = _LOWER.fullmatch(text.strip())
    if lower:
        letter = str(lower[1] or lower[3]).upper()
        return None if lower[2] and re.search(rf"(?i)\([{_LETTERS}]\)", lower[2]) else letter
    match = _LEADING.fullmatch(text.strip())
    if match is None:
        return None
    rest, is_closed, letter = match["rest"], bool(match["close"].strip()), str(match["letter"])
    if _REJECTED.match(rest):
        return None
    if not match["close"] and re.match(r"[A-Za-z0-9_'’^]", rest):
        return None
    if not (is_closed and ")" in match["close"] and not re.match(r"\W*\(|\W*(?:and|or|&)\b", rest)) and _ANOTHER.match(rest):
        return None
    if set(re.findall(rf"\(([{_LETTERS}])\)|[,;]\s*([{_LETTERS}])\s*[:)]", rest)) - {(letter, ""), ("", letter)}:
        return None
    if not is_closed and letter in "AI" and _PROSE_AFTER_A.match(rest) and not _CONFIRMED.match(rest):
        return None
    return letter


def folded(text: str) -> str:
    """`text` in lower case without mathematics delimiters, emphasis, blanks and a closing full stop."""
    text = re.sub(r"\\text(?:bf|rm)?\s*\{([^{}]*)\}|\\mathrm\s*\{([^{}]*)\}", r"\1\2", text)
    return re.sub(r"[\s$*_~]|\\[,;:!() ]", "", text).strip("\"'“”").rstrip(".").casefold()


# --- closing sentences: only where the prompt asks for no form --------------------------------------------------------

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
_DENIED = re.compile(r"(?i)\b(?:not|no|neither|nor|cannot)\b|n't\b")


def _sentences(text: str) -> list[str]:
    """The last sentences, the last one first, without farewells."""
    parts = [part for part in re.split(r"\n+|(?<=[\w)}\]$°%*])[.!?]\s+", text[-4000:]) if part.strip()]
    return [part for part in reversed(parts) if not _FAREWELL.match(part)]


def _closing_number(text: str) -> str | None:
    """The number that the last sentence with a number states."""
    for sentence in _sentences(text)[:4]:
        if _REFUSED.search(sentence):
            return None
        plain = sentence.replace("−", "-")
        if bold := re.findall(r"\*\*\$?([-\d.,]*\d)\$?\*\*", plain):
            return str(bold[-1])
        found = list(_NUMBER.finditer(plain))
        numbers = [number.group().strip().lstrip("$").rstrip(",") for number in found]
        if len({number.replace(",", "").lower() for number in numbers}) == 1:
            start = found[-1].start()
            return None if _NOT_THE_NUMBER.search(plain[max(0, start - 60) : start]) else numbers[-1]
        if numbers:
            stated = _IS_NUMBER.findall(plain)
            return str(stated[-1]).lstrip("$").strip(",") if stated else None
    return None


def _closing_option(text: str, options: Sequence[str]) -> str | None:
    """The one option that the last sentence that names an option names, by its text or as `Set B`."""
    sentences = _sentences(text)[:3]
    if len(sentences) > 1 and _ITEM.match(sentences[0]) and _ITEM.match(sentences[1]):
        return None
    for sentence in sentences:
        said = [
            option
            for option in options
            if option.strip() and re.search(rf"(?<![\w.]){re.escape(option.strip())}(?![\w]|\.\d)", sentence, re.IGNORECASE)
        ]
        longest = [o for o in said if not any(o != p and o.casefold() in p.casefold() for p in said)]
        if len({folded(option) for option in longest}) == 1 and not _DENIED.search(sentence.replace(longest[0], "")):
            return longest[0]
        if longest:
            return None
        letters = set(_NAMED_LETTER.findall(sentence))
        if len(letters) == 1 and not options and not _DENIED.search(sentence):
            return str(letters.pop())
    return None
