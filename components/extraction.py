r"""Which part of a response is its answer: the last box, else what it states as its answer, else a bare closing line.

Knows nothing of what the right answer is. Every search is linear in the text; whatever is not stated is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.closing import FAREWELL, closing_number, closing_option
from components.letters import LETTERS, ends_in_options, folded, leading_letter

_MAX_BARE = 120  # characters of a whole response that may be an answer without saying so
_MAX_STATED = 1000
_MAX_STATEMENTS = 40
_MAX_CHARS = 20_000  # of a response's end that are searched

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
    rf"|(?i:\b(?:options?|choices?)\s*[:：])(?P<named>\s*[\s*_(]*[{LETTERS}]\b[^\n]*)"
    rf"|(?i:\b(?:option|choice|answer|letter)\s*)[*_(\s]*(?P<praised>[{LETTERS}])[)*_\s]*(?i:[^.,;\n]{{0,60}}?\bis\s+(?:the\s+)?"
    r"(?:correct|right|best|true|answer|only\s+(?:correct|right|option|choice|answer)|most)\b(?!-))"
    rf"|\b(?P<crowned>[{LETTERS}])[)*_]*\s+is\s+(?i:the\s+(?:correct|right)\s+(?:answer|option|choice)\b)"
    r"|(?<!n't )(?<!n’t )(?<!not )(?<!might )(?i:\b(?:choose|select|pick|go\s+with|chose|selected"
    r"|(?:would|have\s+to|must)\s+say)\s+(?:the\s+)?"
    rf"(?:option|choice|answer|letter)?\s*)[*_(]*(?P<picked>[{LETTERS}])\b"
)
_LONE_LETTER = re.compile(rf"{_MARKS}(?:(?i:option|choice)\s*)?[(\[]?(?P<letter>[{LETTERS}])[)\]]?{_MARKS}[.:]?{_MARKS}")
_LISTED_LETTERS = re.compile(rf"{_MARKS}\(?[{LETTERS}]\)?(?:\s*(?:,|and|&|;)\s*(?:and\s+)?\(?[{LETTERS}]\)?)+{_MARKS}\.?")
_OPTION_LINE = re.compile(rf"{_MARKS}\(?[{LETTERS}][).:][ *_].*")
_IN_BRACKETS = re.compile(rf"\(([{LETTERS}])\)|(?i:\b(?:option|choice|figure|picture|image|diagram)\s+)([{LETTERS}])\b")
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
    another = _ANOTHER_QUESTION.search(text)
    if another and not _QUESTION.match(text) and not _SETTLED.search(text, another.start()):
        answer = _kept(text[: another.start()], is_choice, options, is_prose)
        last = _kept(text[another.start() :], is_choice, options, is_prose)
        if answer is not None:
            return answer if last is None or _is_said_again(answer, last, is_choice) else None
    return _kept(text, is_choice, options, is_prose)


_ANOTHER_QUESTION = re.compile(r"\n[ \t*#]*(?:Question|Q)[ \t*]*:")  # after solved examples, a model may go on with its own
_QUESTION = re.compile(r"\s*[*#]*(?:Question|Q)\b")
_SETTLED = re.compile(r"(?i)\\boxed|final answer")


def _kept(text: str, is_choice: bool, options: Sequence[str], is_prose: bool) -> str | None:
    """What `text` states, unless it is only supposed there, or taken back behind."""
    answer = _extracted(text, is_choice, options, is_prose)
    if answer is None:
        return None
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None if _RETRACTED.search(text, text.rfind(answer) + len(answer)) else answer
    end = _brace_end(text, start + len("\\boxed" if text.startswith("\\boxed", start) else "\\fbox"))
    if _is_disowned(text, start) or (end is not None and _is_taken_back(text, end + 1, answer, is_choice)):
        return None
    return answer


_RETRACTED = re.compile(
    r"(?i)\b(?:wait,? no|no,? wait|scratch that|i made an? (?:mistake|error)"
    r"|(?:that|this)(?:['’]s| is| was) (?:wrong|incorrect|not right|not correct))\b"
    r"|(?:[.!?:;…]\s{1,3}|\n[ \t]{0,8})(?:(?:oh|but|so)?,?\s?wait\b|hm+\b|actually\b|correction\b|oops\b|sorry\b"
    r"|on second thought\b"
    r"|let(?: me|['’]s) (?:re-?(?:check|compute|consider|calculate|do|try|examine|think|evaluate)|correct|fix|try again))"
)
_DENIED_BEHIND = re.compile(
    r"(?i)[\s$\\)\].*]*(?:\?|(?:is|was|are|would\s+be)\s+(?:not\b|wrong|incorrect|false|too\b|impossible)|isn['’]t\b|can(?:not|['’]t)\b)"
)
_DISOWNED = re.compile(
    r"(?i)(?:(?:\bnot|n['’]t|\bnever|\bcannot|\bneither|\bnor)(?:\s+(?:be|equal(?:\s+to)?|to\s+be|simply|just))?|\banything\s+but)"
    r"[\s$\\(\[*:\"]*$"
    r"|\b(?:(?:one|you|they|someone)\s+(?:might|may|could|would)|students?|people|many|some|most|others)\s+(?:\w+\s+){0,2}?"
    r"(?:think|believe|guess|assume|expect)\b[^.;]{0,60}$"
    r"|\b(?:students?|people|many|often|commonly|usually|mistakenly|wrongly)\s+(?:\w+\s+){0,2}?(?:choose|pick|select|answer)\b[^.;]{0,20}$"
    r"|\b(?:wrong|incorrect|naive|mistaken|erroneous|flawed)\s+(?:\w+\s+){0,2}?(?:gives?|yields?|leads\s+to|produces?|is|would\s+be)\b"
    r"[^.,;]{0,30}$"
    r"|\b(?:wrong|mistake|error|tempting)\s+(?:is\s+|would\s+be\s+)?to\s+\w+[^.,;]{0,30}$|\b(?:doubt|whether)\b[^.,;]{0,40}$"
    r"|\b(?:if|suppose|supposing|assume|assuming|unless|is)\s+(?:that\s+)?(?:(?:the|your|our|my)\s+)?(?:(?:final|correct|right)\s+)?"
    r"answer\s+(?:(?:is|was|were|be)\s*)?[\s$\\(]*$"
    r"|\bif\b[^.;]{0,80}\bwere\b[^.;]{0,60}\bwould\s+(?:be|have\s+been)\b[^.;]{0,20}$"
)


def _is_disowned(text: str, start: int) -> bool:
    """Whether the sentence denies, doubts or only supposes what stands at `start`: "not 3", "one might think 3"."""
    before = text[max(0, start - 160) : start]
    return _DISOWNED.search(re.split(r"[.!?]\s|\n\s*\n", before)[-1]) is not None


def _is_taken_back(text: str, end: int, answer: str, is_choice: bool) -> bool:
    """Whether the text behind a box takes it back, or calls something else the answer."""
    if _DENIED_BEHIND.match(text, end) or _RETRACTED.search(text, end):
        return True
    stated = [sentence for _, sentence, _ in _statements(text[end:])] if text.find("nswer", end) >= 0 else []
    if not stated:
        return False
    if is_choice and not (leading_letter(answer) and leading_letter(stated[-1])):
        return False  # a letter, and the text of an option
    return not _is_said_again(answer, stated[-1], is_choice)


def _is_said_again(answer: str, other: str, is_choice: bool) -> bool:
    """Whether two statements begin alike: `3` and `3 cm`, `B` and `(B) 12`; but not `3` and `3.5`."""
    if is_choice and (letter := leading_letter(answer)) is not None:
        return letter == leading_letter(other)
    first, second = _unadorned(answer), _unadorned(other)
    shorter, longer = sorted((first, second), key=len)
    return re.match(re.escape(shorter) + r"(?![\d.^/\\]|[a-z](?![a-z]))", longer) is not None


def _unadorned(text: str) -> str:
    text = re.sub(
        r"\\(?:text|mathrm|mathbf|textbf|boxed|left|right|displaystyle|[,;!()])", " ", text.replace("dfrac", "frac")
    )
    return re.sub(r"[\s$*_{}()\[\],]", "", re.sub(r"^\s*[$\\(\s]*[A-Za-z]\s*=", "", text)).casefold()


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
        stated = closing_option(text, options) if is_choice else closing_number(text)
        if stated is None and any(re.search(r"\d", option) for option in options) and not ends_in_options(text):
            stated = closing_number(text)
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
        if _WRONG_BEFORE.search(text[max(0, match.start() - 20) : match.start()]) or _is_disowned(text, match.end()):
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


def _last_choice(text: str, options: Sequence[str]) -> str | None:
    """The last option that the text calls its answer; else a lone letter or option that ends it."""
    found = _statements(text)
    for match in list(_CHOSEN.finditer(text))[-_MAX_STATEMENTS:]:
        if _is_disowned(text, match.end() if match["picked"] else match.start()):
            continue
        letter = match["praised"] or match["crowned"] or match["picked"]
        sentence = letter or _sentence(match["after"] or match["named"] or "")
        if sentence:
            found.append((match.start(), sentence, False))
    for _, stated, is_labelled in sorted(found, reverse=True):
        if _names_option(stated, options) or is_labelled:
            return stated
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while len(lines) > 1 and FAREWELL.match(lines[-1]):
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
    if ends_in_options("\n".join(lines[-2:])):
        return None
    if _LONE_LETTER.fullmatch(last) or _LISTED_LETTERS.fullmatch(last):
        return trimmed(last)
    if len(lines) == 1 or (_OPTION_LINE.fullmatch(last) and not _OPTION_LINE.fullmatch(lines[-2])):
        whole = trimmed(last)
        if whole and len(whole) <= max([_MAX_BARE, *map(len, options)]) and _names_option(whole, options):
            return whole
    if _DISMISSED.search(re.split("[,;]", last)[-1]) or _SUPPOSED.search(last):
        return None
    letters = {a or b for a, b in _IN_BRACKETS.findall(last)}
    if len(letters) == 1:
        return str(letters.pop())
    ends = _ENDS_WITH.search(last)
    return ends[1] if ends and not letters else None


_DISMISSED = re.compile(
    rf"(?:(?i:\b(?:cannot|can\s+not|not|never|neither|nor)|n['’]t)(?i:\s+be)?(?i:\s+(?:the|even|choose|select|pick))*"
    rf"(?i:\s+(?:option|choice|answer|figure))?\s+[*_(]*[{LETTERS}]\b)|(?i:\b(?:rul\w+\s+out|eliminat|exclud|reject|discard)\w*)"
    rf"|\b[{LETTERS}][)*_]*\s+(?i:(?:is|was)\s+(?:not|wrong|incorrect|false)\b)"
)
_SUPPOSED = re.compile(
    r"(?i)\?\W*$|\bif\b.*\bwere\b|\bwould\b.*\bif\b|\b(?:whether|doubt|trap|distractor|tempting)\b|\bmistake\s+is\b"
    r"|\b(?:students?|people)\s+(?:\w+\s+)?(?:think|pick|choose|select|believe|answer)\b"
)
_ENDS_WITH = re.compile(rf"\b(?:is|be)\s+[*_(]*([{LETTERS}])[*_)]*[.!]?[*_]*$")


def _names_option(stated: str, options: Sequence[str]) -> bool:
    return leading_letter(stated) is not None or any(option and folded(option) == folded(stated) for option in options)
