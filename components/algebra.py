r"""Formulas with sums, products, binomials, floors and ceilings: read, written out for another reader, and evaluated.

Knows nothing of answers. A text that may be meant in two ways (1/2x, 2^3^2, 5 5, 2 1/2, sum k + 1, f(x)) is refused.

    tree: as in components.formulas, and ("floor" | "ceil", tree) | ("binom", tree, tree) | ("log", tree, base)
          | ("sum" | "prod", index, first, last, tree)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from components.formulas import Tree, Unreadable

_MAX_TERMS = 2000
_PRODUCT_LETTERS = set("abcknpqrxyz")  # runs of these are products, no words and no units
_CALLED_LETTERS = set("abckmnx")  # before a bracket these are factors; f(x), P(A), y(0) are something else
_INDEX_LETTERS = set("ijkmnrt")
_GREEK = {"alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "rho", "sigma", "tau", "phi", "omega"}
_FUNCTIONS = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "exp")


# --- reading -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<letters>[A-Za-z]+)|(?P<sign>[-+*/^_(){}\[\]|!=]))"
)
_FRAMES = (
    ("(", ")", ""),
    ("[", "]", ""),
    ("{", "}", ""),
    (r"\lfloor", r"\rfloor", "floor"),
    (r"\lceil", r"\rceil", "ceil"),
)
_STARTS = (r"\frac", r"\sqrt", r"\pi", r"\binom", r"\lfloor", r"\lceil", r"\sum", r"\prod", r"\log", "(", "[", "{")


def read(text: str, *, choices: bool = False) -> Tree:
    """The formula in `text`, if it can be read in one way only.

    Args:
        choices: read C_5^2 and A_5^2 as numbers of choices, not as powers of a variable.
    Raises:
        Unreadable: it cannot.
    """
    tokens: list[tuple[str, str]] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(text[at : at + 10])
        kind, token = str(match.lastgroup), match[0].strip()
        if kind == "letters" and len(token) > 1:
            if len(token) > 3 or not set(token) <= _PRODUCT_LETTERS:
                raise Unreadable(token)
            tokens.extend(("name", letter) for letter in token)
        elif kind == "command" and token[1:] in _GREEK:
            tokens.append(("name", token[1:]))
        else:
            tokens.append(("name" if kind == "letters" else kind, token))
        at = match.end()
    reader = _Reader(tokens, choices=choices)
    tree = reader.sum()
    if reader.at < len(tokens):
        raise Unreadable(tokens[reader.at][1])
    return tree


class _Reader:
    """Recursive descent. What may be meant in two ways is refused: 1/2x, 2^3^2, 5 5, 2 1/2, sum k + 1, f(x)."""

    def __init__(self, tokens: list[tuple[str, str]], *, choices: bool) -> None:
        self.tokens, self.at, self.bars, self.choices = tokens, 0, 0, choices
        self.bound: list[str] = []

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, token: str) -> bool:
        found = self.peek()[1] == token
        self.at += found
        return found

    def need(self, token: str) -> None:
        if not self.take(token):
            raise Unreadable(f"{token} is missing")

    def sum(self) -> Tree:
        tree = self.signed()
        while self.peek()[1] in ("+", "-"):
            tree = ("add", tree, self.signed())
        return tree

    def signed(self) -> Tree:
        if self.take("-"):
            return "neg", self.product()
        self.take("+")
        return self.product()

    def product(self) -> Tree:
        tree = factor = self.power()
        is_divided = False
        while True:
            kind, token = self.peek()
            if token in ("*", r"\times", r"\cdot", "/", r"\div"):
                self.at += 1
                is_divided = token in ("/", r"\div")
                factor = self.power()
                tree = ("div" if is_divided else "mul", tree, factor)
            elif self.starts_atom(kind, token):
                if is_divided or kind == "number" or (factor[0] == "num" and token == r"\frac"):
                    raise Unreadable(f"{token} without a sign before it")
                if factor[0] == "name" and token in ("(", "[") and not set(factor[1]) <= _CALLED_LETTERS:
                    raise Unreadable(f"the function {factor[1]}")
                factor = self.power()
                tree = ("mul", tree, factor)
            else:
                return tree

    def starts_atom(self, kind: str, token: str) -> bool:
        return kind in ("number", "name") or token in _STARTS or token[1:] in _FUNCTIONS or (token == "|" and not self.bars)

    def power(self) -> Tree:
        tree = self.atom()
        if self.take("!"):
            tree = ("factorial", tree)
        if self.take("^"):
            tree = ("pow", tree, self.argument())
        if self.peek()[1] in ("^", "!", "_"):
            raise Unreadable("a power of a power without brackets")
        return tree

    def argument(self) -> Tree:
        """A brace group, or one sign."""
        if self.take("{"):
            tree = self.sum()
            self.need("}")
            return tree
        kind, token = self.peek()
        if kind == "name" or token == r"\pi" or (kind == "number" and len(token) == 1):
            return self.atom()
        raise Unreadable(f"{token} as an argument")

    def group(self, opening: str, closing: str) -> Tree:
        self.need(opening)
        bars, self.bars = self.bars, 0
        tree = self.sum()
        self.bars = bars
        self.need(closing)
        return tree

    def atom(self) -> Tree:
        kind, token = self.peek()
        for opening, closing, name in _FRAMES:
            if token == opening:
                tree = self.group(opening, closing)
                return (name, tree) if name else tree
        self.at += 1
        if kind == "number":
            return "num", Fraction(token)
        if kind == "name":
            return self.name(token)
        if token == "|" and not self.bars:
            self.bars = 1
            tree = self.sum()
            self.need("|")
            self.bars = 0
            return "abs", tree
        if token == r"\pi":
            return ("pi",)
        if token in (r"\frac", r"\binom"):
            return ("div" if token == r"\frac" else "binom"), self.argument(), self.argument()
        if token == r"\sqrt":
            index: Tree = self.group("[", "]") if self.peek()[1] == "[" else ("num", Fraction(2))
            return "root", self.argument(), index
        if token in (r"\sum", r"\prod"):
            return self.series(token[1:])
        if token == r"\log" and self.take("_"):
            base = self.argument()
            return "log", self.inside(), base
        if kind == "command" and token[1:] in _FUNCTIONS:
            return "fn", token[1:], self.inside()
        raise Unreadable(f"{token or 'the end'} where a value was due")

    def name(self, letter: str) -> Tree:
        if letter == "e":
            return ("e",)
        if letter in ("i", "j") and letter not in self.bound:
            raise Unreadable("an imaginary number, or a variable?")
        if letter == "d":
            raise Unreadable("a differential, or a variable?")
        if not self.take("_"):
            return "name", letter
        braced = self.take("{")
        kind, subscript = self.peek()
        self.at += 1
        if kind not in ("number", "name") or "." in subscript:
            raise Unreadable("a subscript")
        if braced:
            self.need("}")
        if self.choices and letter in "CA" and kind == "number":
            self.need("^")
            chosen = self.argument()
            if chosen[0] != "num" or not 0 <= chosen[1] <= int(subscript):
                raise Unreadable(f"{letter}_{subscript}")
            choice: Tree = ("binom", ("num", Fraction(subscript)), chosen)
            return choice if letter == "C" else ("mul", choice, ("factorial", chosen))
        return "name", f"{letter}_{{{subscript}}}"

    def inside(self) -> Tree:
        """The argument of a function: in brackets, or a single sign; nothing may follow that could belong to it."""
        kind, token = self.peek()
        if kind not in ("name", "number") and token not in ("(", "[", "{", r"\pi", r"\frac", r"\sqrt"):
            raise Unreadable("a function of nothing")
        tree = self.atom()
        kind, token = self.peek()
        if (self.starts_atom(kind, token) and token[1:] not in _FUNCTIONS) or token in ("^", "!"):
            raise Unreadable("where does the argument end?")
        return tree

    def series(self, name: str) -> Tree:
        self.need("_")
        self.need("{")
        kind, index = self.peek()
        if kind != "name" or index not in _INDEX_LETTERS or index in self.bound:
            raise Unreadable("the index")
        self.at += 1
        self.need("=")
        first = self.sum()
        self.need("}")
        self.need("^")
        last = self.argument()
        if index in names(first) | names(last):
            raise Unreadable("a sum whose ends depend on its index")
        self.bound.append(index)
        body = self.product()
        self.bound.pop()
        if self.peek()[1] in ("+", "-"):
            raise Unreadable("where does the sum end?")
        return name, index, first, last, body


def names(tree: Tree, bound: tuple[str, ...] = ()) -> set[str]:
    """The variables of a formula, without the indices of its sums."""
    if tree[0] == "name":
        return set() if tree[1] in bound else {tree[1]}
    inner = (*bound, tree[1]) if tree[0] in ("sum", "prod") else bound
    return set().union(*(names(part, inner) for part in tree[1:] if isinstance(part, tuple)))


def is_discrete(tree: Tree) -> bool:
    """Whether the formula makes sense for whole numbers only."""
    if tree[0] in ("sum", "prod", "factorial", "binom"):
        return True
    return any(is_discrete(part) for part in tree[1:] if isinstance(part, tuple))


# --- LaTeX that leaves no choice -----------------------------------------------------------------------------------


def latex(tree: Tree) -> str:
    """The formula for another reader: every product written out, every group in brackets, no decimals."""
    kind = tree[0]
    if kind == "num":
        value = tree[1]
        return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    if kind == "name":
        return tree[1] if len(tree[1]) == 1 or "_" in tree[1] else rf"\{tree[1]}"  # type: ignore[no-any-return]
    if kind in ("pi", "e"):
        return r"\pi" if kind == "pi" else "e"
    if kind in ("sum", "prod"):
        return rf"\{kind}_{{{tree[1]}={latex(tree[2])}}}^{{{latex(tree[3])}}} ({latex(tree[4])})"
    if kind == "fn":
        return rf"\{tree[1]}({latex(tree[2])})"
    parts = [latex(part) for part in tree[1:]]
    form = {
        "neg": "(-({0}))", "abs": "|{0}|", "factorial": "({0})!",
        "floor": r"\lfloor {0} \rfloor", "ceil": r"\lceil {0} \rceil",
        "add": "({0})+({1})", "mul": r"({0}) \cdot ({1})", "div": r"\frac{{{0}}}{{{1}}}", "pow": "({0})^{{{1}}}",
        "binom": r"\binom{{{0}}}{{{1}}}", "root": r"\sqrt[{1}]{{{0}}}", "log": r"\log_{{{1}}}({0})",
    }[kind]  # fmt: skip
    return form.format(*parts)


# --- values -----------------------------------------------------------------------------------------


class Undefined(ArithmeticError):
    """The formula has no real value here."""


def value(mp: Any, tree: Tree, at: dict[str, Any]) -> Any:
    """The real value of a formula.

    Args:
        mp: an mpmath context.
        at: the values of its variables.
    Raises:
        ArithmeticError: it has none here: `Undefined`, or a division by zero.
    """
    kind = tree[0]
    if kind == "num":
        return mp.mpf(tree[1].numerator) / tree[1].denominator
    if kind == "name":
        return at[tree[1]]
    if kind in ("pi", "e"):
        return +getattr(mp, kind)
    if kind in ("sum", "prod"):
        first, last = (_whole(mp, value(mp, part, at)) for part in tree[2:4])
        if not first - 1 <= last <= first + _MAX_TERMS:
            raise Undefined("an empty or a long sum")
        terms = [value(mp, tree[4], {**at, tree[1]: mp.mpf(k)}) for k in range(first, last + 1)]
        return mp.fsum(terms) if kind == "sum" else mp.fprod(terms)
    if kind == "fn":
        return _real(mp, _functions(mp)[tree[1]](value(mp, tree[2], at)))
    a, *rest = (value(mp, part, at) for part in tree[1:])
    if kind == "pow" and a == 0 and rest[0] <= 0:
        raise Undefined("0^0")
    if kind in ("pow", "root") and a < 0 and (kind == "root" or rest[0] != mp.floor(rest[0])):
        raise Undefined("a root of a negative number")
    if kind in ("factorial", "binom"):
        [_whole(mp, part) for part in (a, *rest)]
    return _real(mp, _OPERATIONS[kind](mp, a, *rest))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "neg": lambda mp, a: -a,
    "abs": lambda mp, a: abs(a),
    "factorial": lambda mp, a: mp.factorial(a),
    "floor": lambda mp, a: mp.floor(a),
    "ceil": lambda mp, a: mp.ceil(a),
    "add": lambda mp, a, b: a + b,
    "mul": lambda mp, a, b: a * b,
    "div": lambda mp, a, b: a / b,
    "pow": lambda mp, a, b: mp.power(a, b),
    "binom": lambda mp, a, b: mp.binomial(a, b),
    "root": lambda mp, a, index: mp.power(a, 1 / index),
    "log": lambda mp, a, base: mp.log(a) / mp.log(base),
}


def _functions(mp: Any) -> dict[str, Callable[[Any], Any]]:
    return {name: getattr(mp, {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)) for name in _FUNCTIONS}


def _real(mp: Any, value: Any) -> Any:
    if not mp.isfinite(value) or mp.im(value) != 0:
        raise Undefined("no real number")
    return mp.re(value)


def _whole(mp: Any, value: Any) -> int:
    if value != mp.floor(value) or value < 0:
        raise Undefined("no whole number")
    return int(value)
