"""Are two formulas the same function? Exact for rational numbers, to 150 digits at fixed points for the rest.

Knows nothing of text. Every operation is bounded, so that hostile formulas (2^(10^12), towers of powers) end as
"too complex" within milliseconds, on any thread: nothing here needs a clock to stop it.
"""

from __future__ import annotations

import hashlib
import math
import threading
from fractions import Fraction
from typing import Any

from components.errors import SettingsError
from components.formulas import TooComplex, Tree

_MAX_EXACT_BITS = 20_000
_DIGITS = 250  # working precision of an evaluation
_SAME_DIGITS = 150  # values that agree to so many digits are equal
_MAX_ABSORBED_DIGITS = 100  # a + b with |b| that much smaller than |a| is refused: it could hide in the rounding
_NUM_POINTS = 6  # the last two give some variables negative values


def names(tree: Tree) -> set[str]:
    """The variables of a formula."""
    if tree[0] == "name":
        return {tree[1]}
    return set().union(*(names(part) for part in tree[1:] if isinstance(part, tuple)))


def exact(tree: Tree) -> Fraction | None:
    """The value of a formula of rational numbers; None if it has variables, roots or functions, or grows too large."""
    kind = tree[0]
    if kind == "num":
        return Fraction(tree[1])
    if kind not in ("neg", "add", "mul", "div", "pow", "abs", "factorial"):
        return None
    parts = [exact(part) for part in tree[1:]]
    if parts[0] is None or parts[-1] is None:
        return None
    return _exact_step(kind, parts[0], parts[-1])


def _exact_step(kind: str, a: Fraction, b: Fraction) -> Fraction | None:
    if kind == "neg":
        return -a
    if kind == "abs":
        return abs(a)
    if kind == "factorial":
        return Fraction(math.factorial(int(a))) if a.denominator == 1 and 0 <= a <= 1000 else None
    bits = _num_bits(a)
    if kind in ("add", "mul", "div") and bits + _num_bits(b) > 3 * _MAX_EXACT_BITS:
        return None
    if kind == "add":
        return a + b
    if kind == "mul":
        return a * b
    if kind == "div":
        return a / b if b else None
    if b.denominator != 1 or bits * abs(b) > _MAX_EXACT_BITS or (a == 0 and b <= 0):
        return None
    return a ** int(b)


def _num_bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def same(gold: Tree, other: Tree) -> bool | None:
    """Whether two formulas are the same function of their variables; None if that stays open.

    Rational numbers are compared exactly. Anything else is evaluated at fixed points with 250 digits: equal to
    150 digits at every point is equal (an algebraic identity that fails hits a random point with probability 0).
    Formulas that agree for positive variables only, like |x| and x, stay open.

    Raises:
        TooComplex: a value is too large, or a summand too small beside its neighbour, to be sure.
    """
    a, b = exact(gold), exact(other)
    if a is not None and b is not None:
        return a == b
    with _lock:
        return _same_at_points(gold, other)


def _same_at_points(gold: Tree, other: Tree) -> bool | None:
    variables = sorted(names(gold) | names(other))
    num_same, is_open = 0, False
    for point in range(_NUM_POINTS if variables else 1):
        values = {name: _coordinate(name, point) for name in variables}
        positive = all(value > 0 for value in values.values())
        a, b = _evaluate(gold, values), _evaluate(other, values)
        if a is None and b is None:
            continue
        if a is None or b is None:
            is_open = True
        elif _equal(a, b):
            num_same += 1
        elif positive and _is_real(a):
            return False
        elif positive or _is_real(a):  # at negative points, roots of the gold formula need not make sense
            is_open = True
    if is_open or num_same < min(2, len(variables) + 1):
        return None
    return True


def approximation(tree: Tree) -> Fraction | None:
    """The value of a formula without variables to 30 digits; None if it has variables, or no real value.

    Raises:
        TooComplex: a value is too large, or a summand too small beside its neighbour, to be sure.
    """
    value = exact(tree)
    if value is not None or names(tree):
        return value
    with _lock:
        found = _evaluate(tree, {})
        if found is None or not _is_real(found):
            return None
        return Fraction(_mp().nstr(_mp().re(found), 30))


def same_equation(gold: tuple[Tree, Tree], other: tuple[Tree, Tree]) -> bool | None:
    """Whether two equations hold for the same values; None if that stays open.

    `x = ...` is compared by its right side, others by whether left minus right differ by a constant factor.
    """
    if gold[0][0] == "name" and gold[0] == other[0] and not {gold[0][1]} & (names(gold[1]) | names(other[1])):
        return same(gold[1], other[1])
    a: Tree = ("add", gold[0], ("neg", gold[1]))
    b: Tree = ("add", other[0], ("neg", other[1]))
    variables = sorted(names(a) | names(b))
    if not names(a) or not names(b):
        return None
    lefts, ratios = [], []
    with _lock:
        for point in range(_NUM_POINTS - 2):
            values = {name: _coordinate(name, point) for name in variables}
            over, under = _evaluate(a, values), _evaluate(b, values)
            if over is None or under is None or over == 0 or under == 0:
                return None
            lefts.append(over)
            ratios.append(over / under)
        if all(_equal(lefts[0], left) for left in lefts):
            return None  # x = x + 1 holds nowhere
        if all(_equal(ratios[0], ratio) for ratio in ratios):
            return _is_same_for_negatives(a, b, variables, ratios[0])
    return False if _is_polynomial(a) and _is_polynomial(b) else None


def _is_same_for_negatives(a: Tree, b: Tree, variables: list[str], ratio: Any) -> bool | None:
    """True, or None: |y| = x and y = x hold for the same positive values only."""
    for point in range(_NUM_POINTS - 2, _NUM_POINTS):
        values = {name: _coordinate(name, point) for name in variables}
        over, under = _evaluate(a, values), _evaluate(b, values)
        if over and under and not _equal(ratio, over / under):
            return None
    return True


def _is_polynomial(tree: Tree) -> bool:
    kind = tree[0]
    if not names(tree) or kind == "name":
        return True
    if kind == "pow":
        power = exact(tree[2])
        return power is not None and power.denominator == 1 and power >= 0 and _is_polynomial(tree[1])
    if kind == "div":
        return _is_polynomial(tree[1]) and not names(tree[2])
    return kind in ("add", "mul", "neg") and all(_is_polynomial(part) for part in tree[1:])


_lock = threading.Lock()  # mpmath keeps its working precision in the context
_context: Any = None


def _mp() -> Any:
    global _context  # noqa: PLW0603 - one context, made on first use: importing mpmath costs 30 ms
    if _context is None:
        try:
            from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped,unused-ignore]
        except ImportError as error:
            raise SettingsError("environment", f"mpmath is missing: {error}", "pip install 'stepforge[grading]'") from error

        _context = MPContext()
        _context.dps = _DIGITS
    return _context


def _coordinate(name: str, point: int) -> Fraction:
    """A fixed value in [0.4, 2.9] for a variable; at the last two points every other variable is negative."""
    word = hashlib.sha256(f"{name}/{point}".encode()).digest()
    value = Fraction(2, 5) + Fraction(5, 2) * Fraction(int.from_bytes(word[:4], "big"), 2**32)
    return -value if point >= _NUM_POINTS - 2 and (word[4] + point) % 2 else value


def _is_real(value: Any) -> bool:
    return bool(abs(_mp().im(value)) <= abs(value) * _mp().mpf(10) ** -_SAME_DIGITS)


def _equal(a: Any, b: Any) -> bool:
    scale = max(abs(a), abs(b))
    return bool(abs(a - b) <= scale * _mp().mpf(10) ** -_SAME_DIGITS)


def _evaluate(tree: Tree, values: dict[str, Fraction]) -> Any:
    """The value at one point, or None where the formula has none (division by zero)."""
    try:
        return _value(tree, values, _mp())
    except ZeroDivisionError:
        return None


def _value(tree: Tree, values: dict[str, Fraction], mp: Any) -> Any:
    kind = tree[0]
    if kind in ("num", "name"):
        number = tree[1] if kind == "num" else values[tree[1]]
        return mp.mpf(number.numerator) / number.denominator
    if kind == "pi":
        return +mp.pi
    if kind == "e":
        return +mp.e
    if kind == "fn":
        return _function(tree[1], _value(tree[2], values, mp), mp)
    parts = [_value(part, values, mp) for part in tree[1:]]
    return _step(kind, parts[0], parts[-1], mp)


def _step(kind: str, a: Any, b: Any, mp: Any) -> Any:
    if kind == "add":
        if a and b and abs(mp.mag(a) - mp.mag(b)) > _MAX_ABSORBED_DIGITS * 3.33:
            raise TooComplex("a summand too small to see")
        total = a + b
        return mp.zero if abs(total) <= max(abs(a), abs(b)) * mp.mpf(10) ** -(_DIGITS - 20) else total
    if kind == "neg":
        return -a
    if kind == "abs":
        return abs(a)
    if kind == "mul":
        return a * b
    if kind == "div":
        return a / b
    if kind == "factorial":
        return mp.gamma(_bounded(a, mp) + 1)
    if kind == "root":
        return mp.sqrt(a) if b == 2 else mp.power(a, 1 / _bounded(b, mp))
    if a == 0:
        if not mp.re(b) > 0:
            raise ZeroDivisionError
        return mp.zero
    _bounded(mp.log(abs(a)), mp, smallest=False)
    return mp.power(a, _bounded(b, mp))


def _function(name: str, x: Any, mp: Any) -> Any:
    if name in ("ln", "lg", "log"):
        if x == 0:
            raise ZeroDivisionError
        return mp.log(x) if name == "ln" else mp.log(x) / mp.log(10)
    x = _bounded(x, mp)
    inverse = {"arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan}
    if name in inverse:
        return inverse[name](x)
    return {"sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc, "exp": mp.exp}[name](x)


def _bounded(x: Any, mp: Any, *, smallest: bool = True) -> Any:
    """`x`, if it is neither so large that work explodes nor so small that 1 + x hides it."""
    size = abs(x)
    if size > 1_000_000 or (smallest and 0 < size < 1e-6):
        raise TooComplex("a number too large or too small to be sure")
    return x
