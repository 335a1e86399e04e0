"""Small inline SVG charts. Owns shapes and scales; does not know what the numbers mean.

A track is one row of a table: its x positions are per cent, so it fits any width and its text never shrinks.
Colours are classes of the style sheet; every value drawn here also stands in the page as text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.report.markup import Html, count, join, number, tag

_MARKS = {
    "ring": Html('<circle r="4.5" class="ring"></circle>'),
    "dot": Html('<circle r="5.5"></circle>'),
    "diamond": Html('<path d="M-6 0 0-6 6 0 0 6z"></path>'),
    "bar": Html('<path d="M-2-7h4v14h-4z"></path>'),
}


@dataclass(frozen=True)
class Scale:
    """A straight axis from `low` to `high`, in the unit of the data."""

    low: float
    high: float
    step: float

    def at(self, value: float) -> float:
        """Where `value` lies, in per cent of the width; a margin keeps marks at the ends whole."""
        inside = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return 3.0 + 94.0 * inside

    def ticks(self) -> list[float]:
        """The marked values, ends included."""
        num_steps = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(num_steps + 1)]


def scale_for(values: Sequence[float], *, floor: float | None = None, ceiling: float | None = None) -> Scale:
    """The smallest round axis that holds all `values` and has at most six steps."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    for step in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0):
        start, end = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        start = start if floor is None else max(start, floor)
        end = end if ceiling is None else min(end, ceiling)
        if end <= start:
            end = start + step
        if (end - start) / step <= 6.01:
            break
    return Scale(start, end, step)


def track(
    scale: Scale,
    marks: Sequence[tuple[str, Mapping[str, Any] | None, str]],
    *,
    guide: float | None = None,
    height: int = 24,
) -> Html:
    """One row: grid, dashed guide, and for each (mark, estimate, class) its interval and its mark.

    Args:
        marks: mark is ring | dot | diamond | bar; the estimate has mean and perhaps low and high.
        guide: value of a dashed line through all rows, such as a baseline or zero.
    """
    middle = height // 2
    parts: list[Html] = [_line(scale.at(tick), 0, height, "grid") for tick in scale.ticks()]
    if guide is not None:
        parts.append(_line(scale.at(guide), 0, height, "guide"))
    drawn = []
    for name, estimate, kind in marks:
        mean = number((estimate or {}).get("mean"))
        if estimate is None or mean is None:
            continue
        low, high = number(estimate.get("low")), number(estimate.get("high"))
        if low is not None and high is not None:
            x1, x2 = f"{scale.at(low):.2f}%", f"{scale.at(high):.2f}%"
            parts.append(tag("line", x1=x1, x2=x2, y1=middle, y2=middle, class_=f"span {kind}"))
        drawn.append(
            tag("svg", _MARKS[name], x=f"{scale.at(mean):.2f}%", y=middle, overflow="visible", class_=f"mark {kind}")
        )
    return tag("svg", *parts, *drawn, class_="track", width="100%", height=height, aria_hidden="true")


def axis(scale: Scale, form: Any, *, most: int = 5) -> Html:
    """The tick labels above a column of tracks; every second one where there are more than `most`."""
    ticks = scale.ticks()
    every = 2 if len(ticks) > most else 1
    labels = [
        tag("text", form(tick), x=f"{scale.at(tick):.2f}%", y=12, text_anchor="middle")
        for tick in ticks
        if round(tick / scale.step) % every == 0  # so that zero is always named
    ]
    return tag("svg", *labels, class_="track axis", width="100%", height=16, aria_hidden="true")


def _line(percent_x: float, y1: float, y2: float, kind: str) -> Html:
    x = f"{percent_x:.2f}%"
    return tag("line", x1=x, x2=x, y1=y1, y2=y2, class_=kind)


def reliability(bins: Sequence[Mapping[str, Any]], *, title: str) -> Html:
    """Mean score against what came of it, one dot a bin, its area the number of steps; the diagonal is honest."""
    left, top, side = 44, 12, 280

    def x(value: float) -> float:
        return round(left + side * value, 1)

    def y(value: float) -> float:
        return round(top + side * (1 - value), 1)

    parts = [tag("title", title)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(tag("line", x1=x(0), x2=x(1), y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(tag("line", x1=x(tick), x2=x(tick), y1=y(0), y2=y(1), class_="grid"))
        parts.append(tag("text", f"{tick:g}", x=x(tick), y=y(0) + 17, text_anchor="middle"))
        parts.append(tag("text", f"{tick:g}", x=left - 8, y=y(tick) + 4, text_anchor="end"))
    parts.append(tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="guide"))
    parts.append(tag("text", "score says", x=x(0.5), y=y(0) + 34, text_anchor="middle"))
    middle = y(0.5)
    parts.append(
        tag("text", "solution ends right", x=11, y=middle, text_anchor="middle", transform=f"rotate(-90 11 {middle})")
    )
    known = [b for b in bins if number(b.get("mean_score")) is not None and number(b.get("right_frac")) is not None]
    most = max((number(b.get("num_steps")) or 0.0 for b in known), default=0.0)
    path = " ".join(f"{x(b['mean_score'])},{y(b['right_frac'])}" for b in known)
    parts.append(tag("polyline", points=path, class_="curve"))
    for one in known:
        radius = 3 + 8 * math.sqrt((number(one.get("num_steps")) or 0.0) / most) if most else 4.0
        tip = f"{count(one.get('num_steps'))} steps: score {one['mean_score']:.2f}, ended right {one['right_frac']:.2f}"
        cx, cy = x(one["mean_score"]), y(one["right_frac"])
        parts.append(tag("circle", tag("title", tip), cx=cx, cy=cy, r=round(radius, 1), class_="prm"))
    return tag("svg", *parts, class_="figure", viewBox="0 0 340 334", role="img", aria_label=title)


def histogram(bars: Sequence[tuple[float, float, int]], *, title: str, x_label: str) -> Html:
    """Bars over [low, high) with their counts written on top."""
    left, top, width, height = 10, 24, 320, 268
    most = max((num for _, _, num in bars), default=0)
    slot = width / max(1, len(bars))
    parts = [tag("title", title)]
    for i, (low, high, num) in enumerate(bars):
        tall = round(height * num / most, 1) if most else 0.0
        x, y = round(left + i * slot, 1), round(top + height - tall, 1)
        parts.append(tag("rect", x=x + 1.5, y=y, width=round(slot - 3, 1), height=tall, class_="prm"))
        parts.append(tag("text", _brief(num), x=x + slot / 2, y=y - 5, text_anchor="middle", class_="small"))
        if i % 2 == 0:
            parts.append(tag("text", f"{low:g}", x=x, y=top + height + 16, text_anchor="middle" if i else "start"))
        if i == len(bars) - 1:
            parts.append(tag("text", f"{high:g}", x=left + width, y=top + height + 16, text_anchor="end"))
    base = top + height
    parts.append(tag("line", x1=left, x2=left + width, y1=base, y2=base, class_="base"))
    parts.append(tag("text", x_label, x=left + width / 2, y=base + 34, text_anchor="middle"))
    return tag("svg", join(parts), class_="figure", viewBox="0 0 340 334", role="img", aria_label=title)


def _brief(num: int) -> str:
    if num >= 10_000:
        return f"{num / 1000:.0f}k"
    return f"{num / 1000:.1f}k" if num >= 1000 else str(num)


@dataclass(frozen=True)
class Line:
    """One curve of `lines`: its name is written at its end, so that no legend has to be looked up."""

    name: str
    kind: str
    """Class of the style sheet: prm | baseline | control | ceiling | other."""
    points: Sequence[tuple[float, Mapping[str, Any]]]
    """(x, estimate with mean and perhaps low and high), x above 0 and rising."""
    is_dashed: bool = False
    mark: str = "dot"
    """dot, or diamond, square or triangle for what was measured in another way: without a band, which would hide others."""


_LEFT, _TOP, _WIDE, _TALL = 40, 14, 268, 250
_GAP = 15.0  # between two names
_SHAPES = {"diamond": "M-5 0 0-5 5 0 0 5z", "square": "M-3.8-3.8h7.6v7.6h-7.6z", "triangle": "M0-5 4.8 3.8h-9.6z"}


def lines(curves: Sequence[Line], scale: Scale, *, title: str, x_label: str, x_ticks: Sequence[float], form: Any) -> Html:
    """Curves over a logarithmic x axis, each with its band from low to high and its name at its end."""
    known = [x for curve in curves for x, _ in curve.points] + list(x_ticks)
    first, last = math.log(min(known)), math.log(max(known))

    def x(value: float) -> float:
        return round(_LEFT + _WIDE * ((math.log(value) - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        inside = min(max((value - scale.low) / (scale.high - scale.low), 0.0), 1.0)
        return round(_TOP + _TALL * (1 - inside), 1)

    base = _TOP + _TALL
    parts = [tag("title", title)]
    for tick in scale.ticks():
        parts.append(tag("line", x1=_LEFT, x2=_LEFT + _WIDE, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(tag("text", form(tick), x=_LEFT - 7, y=y(tick) + 4, text_anchor="end"))
    for tick in x_ticks:
        parts.append(tag("line", x1=x(tick), x2=x(tick), y1=base, y2=base + 4, class_="base"))
        parts.append(tag("text", _brief(round(tick)), x=x(tick), y=base + 18, text_anchor="middle"))
    parts.append(tag("line", x1=_LEFT, x2=_LEFT + _WIDE, y1=base, y2=base, class_="base"))
    parts.append(tag("text", x_label, x=_LEFT + _WIDE / 2, y=base + 37, text_anchor="middle"))
    for curve in (one for one in curves if one.mark == "dot"):
        ends = [(x(at), y(one["low"]), y(one["high"])) for at, one in curve.points if _has_ends(one)]
        if len(ends) > 1:
            around = [f"{at},{high}" for at, _, high in ends] + [f"{at},{low}" for at, low, _ in reversed(ends)]
            parts.append(tag("polygon", points=" ".join(around), class_=f"band {curve.kind}"))
    names = []
    for curve in curves:
        places = [(x(at), y(one["mean"]), one) for at, one in curve.points if number(one.get("mean")) is not None]
        if not places:
            continue
        dash = " dashed" if curve.is_dashed else ""
        path = " ".join(f"{at},{height}" for at, height, _ in places)
        parts.append(tag("polyline", points=path, class_=f"line {curve.kind}{dash}"))
        for at, height, one in places:
            told = tag("title", f"{curve.name}: {form(one['mean'])}")
            if curve.mark == "dot":
                parts.append(tag("circle", told, cx=at, cy=height, r=2.8, class_=curve.kind))
            else:
                shape = tag("path", d=_SHAPES[curve.mark])
                parts.append(tag("g", told, shape, transform=f"translate({at} {height})", class_=curve.kind))
        names.append((places[-1][1], places[-1][0], curve))
    right = _LEFT + _WIDE
    for height, (end, at, curve) in zip(_apart([end for end, _, _ in names]), names, strict=True):
        if abs(height - end) > 3 or at < right - 3:
            parts.append(tag("line", x1=at + 4, y1=end, x2=right + 9, y2=height, class_="leader"))
        parts.append(tag("text", curve.name, x=right + 12, y=round(height + 4, 1), class_=f"name {curve.kind}"))
    return tag("svg", *parts, class_="figure wide", viewBox="0 0 420 308", role="img", aria_label=title)


def _has_ends(estimate: Mapping[str, Any]) -> bool:
    return number(estimate.get("low")) is not None and number(estimate.get("high")) is not None


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights, moved as little as keeps names `_GAP` apart and inside the chart."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for _ in range(60):  # neighbours push each other: few names, so this settles at once
        for i in range(1, len(placed)):
            lack = _GAP - (placed[i] - placed[i - 1])
            if lack > 0:
                placed[i - 1] -= lack / 2
                placed[i] += lack / 2
        if placed:
            placed[0] = max(placed[0], float(_TOP))
            placed[-1] = min(placed[-1], float(_TOP + _TALL))
    out = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        out[i] = round(height, 1)
    return out
