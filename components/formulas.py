"""Reads one formula, LaTeX or plain, into a tree. Knows nothing of what a formula is worth, or of answers.

A text that may be read in two ways (1/2x, 5 5, 2^3^2) is refused, not guessed. Nothing is evaluated here.

    tree: ("num", Fraction) | ("name", str) | ("pi",) | ("e",) | ("neg" | "abs" | "factorial", tree)
          | ("add" | "mul" | "div" | "pow", tree, tree) | ("root", tree, index) | ("fn", function, tree)
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import comb
from typing import Any

MAX_CHARS = 400
_MAX_DEPTH = 40
_MAX_TOKENS = 150

Tree = tuple[Any, ...]


class Unreadable(ValueError):
    """The text is no formula that we read one way only."""


class TooComplex(Unreadable):
    """The formula needs numbers too large, or too close to each other, to be sure."""


# --- text -> normal text -------------------------------------------------------------------------------------------

_RAISED = str.maketrans({**dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n", strict=True))})
_LOWERED = str.maketrans(dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)))
_SIGNS = {
    "−": "-", "–": "-", "－": "-", "×": r"\times ", "·": r"\times ", "⋅": r"\times ", "∙": r"\times ", "＊": "*",
    "÷": r"\div ", "∕": "/", "⁄": "/", "π": r"\pi ", "°": r"\degree ", "º": r"\degree ", "∞": r"\infty ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
    "∠": r"\angle ", "≈": r"\approx ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ",
    "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "φ": r"\phi ", "ω": r"\omega ", "（": "(", "）": ")", "，": ",",
    "＝": "=", "％": "%", "．": ".", "；": ";", "：": ":", "\u00a0": " ", "\u2009": " ", "\u200b": "", "′": "'", "’": "'",
    "＋": "+",
}  # fmt: skip
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:\\,\d{3})+(?![\d,])")
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"&lt;", "<"),
        (r"&gt;", ">"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"√\s*\{", r"\\sqrt{"),
        (r"√", r"\\sqrt "),
        (r"\\(?:left|right|displaystyle|textstyle|limits|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])", ""),
        (r"(\d)\s*,\s*\\!\s*(?=\d{3})|(\d)\{,\}(?=\d{3})", r"\1\2,"),
        (r"\\[,;:!> ]|\\q?quad(?![A-Za-z])|~|\\thinspace(?![A-Za-z])", " "),
        (r"\\(?:d|t|c|nice|s|x|flat)frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:d|t)binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:number|num)\s*\{\s*(-?[\d.]+)\s*\}", r"\1"),
        (r"\\(?:mathrm|mathit|mathbf|bm|rm|bf|it)(?![A-Za-z])\s*(?=\\)", ""),
        (
            r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\textdegree(?![A-Za-z])|\{degrees?\}|(?<=\d)\s*\^\s*(?:\{\s*o\s*\}|o)(?![A-Za-z])",
            r"\\degree ",
        ),
        (r"\{\s*\}", ""),
        (r"\\(?:textbf|textit|textrm|emph)(?=\s*\{)", r"\\text"),
        (r"\\(?:textcolor|color)\s*\{[A-Za-z]+\}|\\(?:bm|underline)(?=\s*\{)|\\bf(?=\s*-?\d)", ""),
        (r"\\degree\s*\\degree", r"\\degree "),
        (r"\\(?:vartriangle|triangle|bigtriangleup)(?![A-Za-z])|△", r"\\triangle "),
        (r"\\(?:geqslant|geq)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:leqslant|leq)(?![A-Za-z])", r"\\le "),
        (r"\\(?:cdot|ast)(?![A-Za-z])", r"\\times "),
        (r"([A-Za-z])\^(\d|\{[^{}]*\})_(\w|\{[^{}]*\})", r"\1_\3^\2"),
        (r"\^\s*\{\s*\\prime\s*\}|\^\s*\\prime(?![A-Za-z])", "'"),
        (r"\\(vec|hat|bar|overrightarrow)\s+([A-Za-z])", r"\\\1{\2}"),
        (r"\*\*", "^"),
    ]
]


def normal_text(text: str) -> str:
    """`text` with unicode signs, spacing commands and spelling variants of LaTeX brought to one form."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda run: "^{" + run.group().translate(_RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda run: "_{" + run.group().translate(_LOWERED) + "}", text)
    text = _SPACED_THOUSANDS.sub(lambda number: number.group().replace(r"\,", ","), text)
    text = _SIGN.sub(lambda sign: _SIGNS[sign.group()], text)
    text = (
        text.replace("\\\\", r"\cr ") if "\\begin" in text else re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    )  # rows; escaped twice
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _without_over(text).strip()


_OVER = re.compile(r"\\over(?![A-Za-z])")
_MAX_OVERS = 8
_NO_SIDE_OF_OVER = re.compile(r"[,;&<>]|\\(?:le|ge|ne|cr|pm|cup|text)(?![A-Za-z])")


def _without_over(text: str) -> str:
    r"""`{1 \over 2}` -> `{\frac{1}{2}}`; left as it is where it is not clear what stands over what."""
    for _ in range(_MAX_OVERS):
        match = _OVER.search(text)
        if match is None:
            return text
        start, end = _group_around(text, match.start(), match.end())
        if re.search(r"\d\s*\{$", text[:start]):
            return text  # 2{1 \over 2}: a product, or a mixed number?
        start += text[start : match.start()].rfind("=") + 1  # x = 1 \over 2
        if (about := re.search(r"\\approx(?![A-Za-z])", text[match.end() : end])) is not None:
            end = match.end() + about.start()
        over, under = text[start : match.start()].strip(), text[match.end() : end].strip()
        if not over or not under or _NO_SIDE_OF_OVER.search(over + under) or _OVER.search(under) or "=" in under:
            return text
        text = rf"{text[:start]}\frac{{{over}}}{{{under}}}{text[end:]}"
    return text


def _group_around(text: str, before: int, after: int) -> tuple[int, int]:
    """The inside of the innermost bracket pair around a place; the whole text if there is none."""
    depth, start = 0, before
    while start and depth >= 0:
        start -= 1
        depth += (text[start] in ")]}") - (text[start] in "([{")
    start += depth < 0
    depth, end = 0, after
    while end < len(text) and depth >= 0:
        depth += (text[end] in "([{") - (text[end] in ")]}")
        end += 1
    return start, end - (depth < 0)


# --- normal text -> tree -------------------------------------------------------------------------------------------

_FUNCTIONS = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "lg", "exp")
_GREEK = re.findall(
    r"\w+",
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi"
    " varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar",
)
_BARE = re.compile(rf"(?<![A-Za-z\\])({'|'.join(_FUNCTIONS)}|sqrt|pi)(?=[^A-Za-z]|[A-Zabckntxyz](?![A-Za-z])|$)")
_UNWRAPPED = re.compile(
    r"\\(text|mathrm|mathit|mathbf|operatorname|rm|boldsymbol|overrightarrow|vec|hat|bar|overline)\s*\{\s*"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<letters>[A-Za-z]+)|(?P<sign>[-+*/^_(){}\[\]|!'])|(?P<bad>\S))"
)
_SHORT_WORDS = re.findall(r"\w+", "an as at am by my and any all day cm mm km dm kg mg ml ms ft")
_CALLED = set("fghFGHP")  # f(x) is no product


def read(text: str, *, segments: bool = True) -> Tree:
    """The formula in `text`.

    Args:
        segments: read a run of capitals (AB) as one name, a segment or an angle; otherwise as a product.
    Raises:
        Unreadable: the text is prose, incomplete, or may be read in two ways (1/2x, 5 5, 2^3^2).
    """
    if len(text) > MAX_CHARS:
        raise TooComplex(f"{len(text)} characters")
    tokens = _tokens(text, segments)
    if len(tokens) > _MAX_TOKENS:
        raise TooComplex(f"{len(tokens)} signs")
    return _Reader(tokens).whole()


def _tokens(text: str, segments: bool) -> list[tuple[str, str]]:
    """(kind, text) of every token; a name comes with its subscript and primes."""
    text = _BARE.sub(r"\\\1 ", _unwrap(text))
    tokens: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text):
        kind, token = str(match.lastgroup), match.group().strip()
        if kind == "bad":
            raise Unreadable(f"{token!r}")
        if kind == "command" and token[1:] in _GREEK:
            kind, token = "name", token[1:]
        elif kind == "command" and token == r"\mathrm":
            continue
        if kind != "letters":
            tokens.append((kind, token))
            continue
        if len(token) > 1 and token.isupper() and segments:
            tokens.append(("name", "".join(sorted(token)) if len(token) == 2 else token))
        elif _is_word(token):
            raise Unreadable(f"the word {token!r}")
        else:
            tokens.extend(("name", letter) for letter in token)
    return _with_subscripts(tokens)


def _is_word(letters: str) -> bool:
    """Whether a run of letters is prose rather than a product of variables."""
    if letters.islower() and len(letters) > 1:
        return len(letters) > 3 or bool(set(letters) & set("eiou")) or letters in _SHORT_WORDS
    return len(letters) > 4 or re.search("[A-Z][a-z]", letters) is not None


def _unwrap(text: str) -> str:
    r"""`\text{n}` -> `n`; a word inside is no name, so it stays a word."""
    while match := _UNWRAPPED.search(text):
        end, depth = match.end(), 1
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        if depth:
            raise Unreadable("a brace is not closed")
        inside = text[match.end() : end - 1].strip()
        if match.group(1) in ("bar", "overline") and not re.fullmatch(r"\d+|[A-Z]{2}", inside):
            if not re.fullmatch(r"[A-Za-z]", inside):
                raise Unreadable(f"a line over {inside}")  # a conjugate, or digits
            inside += "_{bar}"
        if len(inside) > 1 and match.group(1) in ("overrightarrow", "vec"):
            raise Unreadable(f"the vector {inside}")  # AB = -BA
        text = f"{text[: match.start()]} {inside} {text[end:]}"
    return text


def _with_subscripts(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    merged: list[tuple[str, str]] = []
    at = 0
    while at < len(tokens):
        kind, token = tokens[at]
        at += 1
        if kind == "command" and token == r"\angle":
            start = at
            while at < len(tokens) and tokens[at][0] in ("name", "number"):
                at += 1
            if at == start:
                raise Unreadable("an angle without a name")
            kind, token = "name", "∠" + "".join(text for _, text in tokens[start:at])
        while kind == "name" and at < len(tokens):
            if tokens[at] == ("sign", "'"):
                token += "'"
                at += 1
            elif tokens[at] == ("sign", "_"):
                subscript, at = _subscript(tokens, at + 1)
                token += "_" + subscript
            else:
                break
        merged.append((kind, token))
    return merged


def _subscript(tokens: list[tuple[str, str]], at: int) -> tuple[str, int]:
    """The text of the subscript that starts at token `at`, and the place behind it."""
    if at >= len(tokens):
        raise Unreadable("an empty subscript")
    if tokens[at] != ("sign", "{"):
        return tokens[at][1], at + 1
    end = at + 1
    while end < len(tokens) and tokens[end] != ("sign", "}"):
        end += 1
    if end >= len(tokens):
        raise Unreadable("a brace is not closed")
    return "".join(text for _, text in tokens[at + 1 : end]), end + 1


class _Reader:
    """Recursive descent: sum > product > power > atom. A reading that is not unique is refused."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0

    def whole(self) -> Tree:
        tree = self.sum()
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.at][1]!r} where a sign was due")
        return tree

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, text: str) -> bool:
        if self.peek()[1] == text and self.at < len(self.tokens):
            self.at += 1
            return True
        return False

    def need(self, text: str) -> None:
        if not self.take(text):
            raise Unreadable(f"{text!r} is missing")

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise TooComplex("nested too deeply")
        negative = False
        if self.take("-"):
            negative = True
        elif self.take("+"):
            pass
        tree = self.product()
        if negative:
            tree = ("neg", tree)
        while self.peek()[1] in ("+", "-"):
            sign = self.peek()[1]
            self.at += 1
            term = self.product()
            tree = ("add", tree, term if sign == "+" else ("neg", term))
        self.depth -= 1
        return tree

    def product(self) -> Tree:
        tree = factor = self.power()
        divided = False
        while True:
            kind, token = self.peek()
            if token in ("*", r"\times"):
                self.at += 1
                tree, divided = ("mul", tree, self.signed_power()), False
            elif token in ("/", r"\div"):
                self.at += 1
                tree, divided = ("div", tree, self.signed_power()), True
            elif self.starts_atom(kind, token):
                if divided:
                    raise Unreadable("1/2x may be read in two ways")
                if kind == "number" and factor[0] != "pow":
                    raise Unreadable("a number where a sign was due")
                factor = self.power()
                tree = ("mul", tree, factor)
            else:
                return tree

    def starts_atom(self, kind: str, token: str) -> bool:
        if kind in ("number", "name"):
            return True
        if kind == "command":
            return token[1:] in (*_FUNCTIONS, "frac", "sqrt", "pi", "binom")
        return token in ("(", "[", "{") or (token == "|" and not self.bars)

    def signed_power(self) -> Tree:
        if self.take("-"):
            return ("neg", self.power())
        return self.power()

    def power(self) -> Tree:
        tree = self.atom()
        while True:
            if self.take("!"):
                tree = ("factorial", tree)
            elif self.take(r"\degree"):
                tree = ("mul", tree, ("div", ("pi",), ("num", Fraction(180))))
            else:
                break
        if self.take("^"):
            tree = ("pow", tree, self.argument(signed=True))
            if self.peek()[1] in ("^", "!"):
                raise Unreadable("a power of a power without brackets")
        return tree

    def argument(self, *, signed: bool = False) -> Tree:
        """A brace group, or the one token that stands for it."""
        if self.take("{"):
            tree = self.sum()
            self.need("}")
            return tree
        if signed and self.take("-"):
            return ("neg", self.argument())
        kind, token = self.peek()
        if kind in ("number", "name") or token in ("(", r"\pi"):
            return self.atom()
        raise Unreadable(f"{token!r} as an argument")

    def atom(self) -> Tree:
        kind, token = self.peek()
        self.at += 1
        if kind == "number":
            return self.number(token)
        if kind == "name":
            if re.fullmatch(r"[CAP]_\d+", token) and self.peek()[1] == "^":
                raise Unreadable(f"{token}^..: a number of combinations, or a power?")
            if token in _CALLED and self.peek()[1] == "(":
                raise Unreadable(f"the function {token}")
            return ("e",) if token == "e" else ("name", token)
        for opening, closing in (("(", ")"), ("[", "]"), ("{", "}")):
            if token == opening:
                bars, self.bars = self.bars, 0
                tree = self.sum()
                self.bars = bars
                self.need(closing)
                return tree
        if token == "|":
            self.bars += 1
            tree = self.sum()
            self.need("|")
            self.bars -= 1
            return ("abs", tree)
        if token == r"\pi":
            return ("pi",)
        if token == r"\frac":
            return self.fraction()
        if token == r"\binom":
            return self.binomial()
        if token == r"\sqrt":
            return self.root()
        if kind == "command" and token[1:] in _FUNCTIONS:
            return self.function(token[1:])
        raise Unreadable(f"{token or 'the end'!r} where a value was due")

    def number(self, token: str) -> Tree:
        whole = Fraction(token)
        if self.peek()[1] != r"\frac" or "." in token:
            return ("num", whole)
        self.at += 1
        part = self.fraction()
        over, under = part[1], part[2]
        if over[0] != "num" or under[0] != "num":
            return ("mul", ("num", whole), part)
        if not 0 < over[1] < under[1]:
            raise Unreadable("a mixed number, or a product?")
        return ("num", whole + over[1] / under[1])

    def fraction(self) -> Tree:
        kind, token = self.peek()
        if kind == "number":  # \frac12
            self.at += 1
            if len(token) == 2 and token.isdigit():
                return ("div", ("num", Fraction(token[0])), ("num", Fraction(token[1])))
            if len(token) > 1:
                raise Unreadable(rf"\frac{token}")
            over: Tree = ("num", Fraction(token))
        else:
            over = self.argument()
        if self.peek()[0] == "number" and len(self.peek()[1]) > 1:
            raise Unreadable(rf"\frac..{self.peek()[1]}")
        return ("div", over, self.argument())

    def binomial(self) -> Tree:
        over, under = self.argument(), self.argument()
        if over[0] != "num" or under[0] != "num" or over[1].denominator != 1 or under[1].denominator != 1 or over[1] > 1000:
            raise Unreadable("a binomial coefficient of more than numbers")
        return ("num", Fraction(comb(int(over[1]), int(under[1]))))

    def root(self) -> Tree:
        index: Tree = ("num", Fraction(2))
        if self.take("["):
            index = self.sum()
            self.need("]")
        if self.peek()[0] == "number" and len(self.peek()[1]) > 1:
            raise Unreadable(rf"\sqrt{self.peek()[1]}")
        return ("root", self.argument(), index)

    def function(self, name: str) -> Tree:
        base: Tree | None = None
        if name == "log" and self.take("_"):
            if self.peek()[0] == "number" and len(self.peek()[1]) > 1:
                raise Unreadable("which part is the base?")
            base = self.argument()
        exponent = None
        if self.take("^"):
            exponent = self.argument(signed=True)
            if exponent == ("neg", ("num", Fraction(1))):
                if name not in ("sin", "cos", "tan"):
                    raise Unreadable("an inverse, or a reciprocal?")
                name, exponent = f"arc{name}", None
        kind, token = self.peek()
        if token in ("(", "[", "{", "|"):
            inside = self.atom()
            if self.peek()[1] in ("^", "!"):
                raise Unreadable("a power of the argument, or of the function?")
        else:
            if not self.starts_atom(kind, token) or token[1:] in _FUNCTIONS:
                raise Unreadable(f"{name} of nothing")
            inside = self.power()
            while self.peek()[0] == "name" or self.peek()[1] in (r"\pi", r"\frac", r"\sqrt"):
                inside = ("mul", inside, self.power())
            if self.peek()[1] in ("(", "["):
                raise Unreadable("where does the argument end?")
        if base is not None:
            tree: Tree = ("div", ("fn", "ln", inside), ("fn", "ln", base))
        else:
            tree = ("fn", name, inside)
        return tree if exponent is None else ("pow", tree, exponent)
