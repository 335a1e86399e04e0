"""Markup whose text is escaped unless it is markup already, and the way numbers are written.

Knows no section of the page: every word from a file passes through `tag`, so no data can become a script.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

_VOID = frozenset({"img", "br", "meta", "link", "input"})
_UNSHOWN = dict.fromkeys([0x00, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
MISSING = "–"


class Html(str):
    """Text that is markup already; plain `str` is text and gets escaped."""

    __slots__ = ()


Child = str | None


def tag(name: str, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """One element. Children that are no `Html` are escaped; `class_` and `data_split` become `class`, `data-split`."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{html.escape(_plain(str(value)))}"')
    parts.append(">")
    if name not in _VOID:
        parts.append(join(children))
        parts.append(f"</{name}>")
    return Html("".join(parts))


def join(children: Iterable[Child], separator: str = "") -> Html:
    """The children one after the other, text escaped, None left out."""
    inside = (child if isinstance(child, Html) else html.escape(_plain(child)) for child in children if child is not None)
    return Html(separator.join(inside))


def _plain(text: str) -> str:
    """`text` without the character that no page may hold and those that turn the text around them."""
    return text.translate(_UNSHOWN)


def num_bytes(markup: str) -> int:
    """What `markup` takes in the file."""
    return len(markup.encode("utf-8", errors="replace"))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], *, caption: str, class_: str = "") -> Html:
    """A table whose first column names the row; wide ones scroll inside their own box."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = []
    for row in rows:
        first, *others = row
        body.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in others)))
    inner = tag(
        "table", tag("caption", tag("span", caption)), tag("thead", header), tag("tbody", *body), class_=class_ or None
    )
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


Cell = tuple[Child, str | float | None]
"""What is shown, and what it is sorted by."""


def sortable(head: Iterable[Child], rows: Iterable[Iterable[Cell]], *, caption: str, class_: str = "") -> Html:
    """A table like `table` whose columns a reader may sort by, where scripts run."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = []
    for row in rows:
        first, *others = row
        named = tag("th", first[0], scope="row", data_value=first[1])
        body.append(tag("tr", named, *(tag("td", shown, data_value=value) for shown, value in others)))
    class_ = f"sortable {class_}".strip()
    inner = tag("table", tag("caption", tag("span", caption)), tag("thead", header), tag("tbody", *body), class_=class_)
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def missing(what: str) -> Html:
    """A line that says what is not there, so that a gap never looks like a zero."""
    return tag("p", what, class_="missing")


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def count(value: Any) -> str:
    """12,345."""
    known = number(value)
    return MISSING if known is None else f"{round(known):,}"


def percent(value: Any) -> str:
    """A share as per cent with one digit and no sign: 0.7275 -> 72.8."""
    known = number(value)
    return MISSING if known is None else f"{100 * known:.1f}"


def points(value: Any) -> str:
    """A difference of shares in signed percentage points: 0.292 -> +29.2."""
    known = number(value)
    return MISSING if known is None else f"{100 * known:+.1f}".replace("-", "−")


def decimal(value: Any, digits: int = 3) -> str:
    """A number with fixed digits: 0.966."""
    known = number(value)
    return MISSING if known is None else f"{known:.{digits}f}".replace("-", "−")


def p_value(value: Any) -> str:
    """A probability as readers of papers know it: 0.034, <0.001."""
    known = number(value)
    if known is None:
        return MISSING
    return "<0.001" if known < 0.001 else f"{known:.3f}"


def duration(seconds: Any) -> str:
    """8.1 s, 84 s, 6 min 20 s, 3 h 5 min."""
    known = number(seconds)
    if known is None:
        return MISSING
    if known < 9.95:
        return f"{known:.1f} s"
    whole = round(known)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(num_bytes: Any) -> str:
    """Bytes as MB or GB, powers of ten."""
    known = number(num_bytes)
    if known is None:
        return MISSING
    return f"{known / 1e9:.2f} GB" if known >= 1e9 else f"{known / 1e6:.0f} MB"


def short(digest: Any) -> Html:
    """The first characters of a digest; the whole is one hover or copy away in the provenance section."""
    if not isinstance(digest, str) or not digest:
        return Html(MISSING)
    return tag("code", digest[:10], title=digest)


def sign(is_good: Any) -> Html:
    """Passed or failed, in sign, word and colour."""
    return tag("span", "✓ passed" if is_good else "✗ failed", class_="good" if is_good else "bad")


def interval(estimate: Mapping[str, Any] | None, form: Any = percent) -> Html | None:
    """low to high, or None where no interval is known."""
    if not estimate or number(estimate.get("low")) is None or number(estimate.get("high")) is None:
        return None
    return tag("span", f"{form(estimate['low'])} to {form(estimate['high'])}", class_="interval")
