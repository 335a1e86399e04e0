"""One scored solution as a page: the problem with its picture, and every step in the colour of its score.

Owns how that looks; what the scores are, and which step is the first error, is told by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.report.markup import Html, decimal, join, tag
from components.report.pictures import pictures_of

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2126; --soft: #59636c; --line: #dfe2dd;
  --s0: #f6b48a; --s1: #fbd3b8; --s2: #efeee6; --s3: #dfe9f8; --s4: #cfe0f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9eb; --soft: #a0abb4; --line: #333b42;
  --s0: #8a3f0c; --s1: #623614; --s2: #32363a; --s3: #223a5a; --s4: #24487c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; } h2 { font-size: 1rem; margin-top: 2rem; } .note { color: var(--soft); font-size: .85rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .6rem; } .pictures img { max-width: 100%; background: #fff; }
.pictures img.small { width: 12rem; image-rendering: pixelated; }
.question, .step span { white-space: pre-wrap; overflow-wrap: anywhere; }
ol { padding-left: 2rem; }
.step { border: 1px solid var(--line); border-radius: 4px; padding: .3rem .6rem; margin: .3rem 0; }
.step b { font-variant-numeric: tabular-nums; float: right; margin-left: 1rem; } .first { outline: 2px solid; }
.key span { display: inline-block; border: 1px solid var(--line); border-radius: 4px; padding: 0 .5rem; }
.s0 { background: var(--s0); } .s1 { background: var(--s1); } .s2 { background: var(--s2); }
.s3 { background: var(--s3); } .s4 { background: var(--s4); }
"""


def solution_page(
    question: str,
    images: Sequence[bytes],
    steps: Sequence[str],
    scores: Sequence[float],
    *,
    weights: Sequence[float],
    facts: Sequence[tuple[str, str]],
    first_error: int | None,
) -> str:
    """The page: pictures inside, no script, no link, every text escaped.

    Args:
        scores: one a step.
        weights: of the reward model's classes: scores lie between the least and the largest, and so do the colours.
        facts: what else to say of the solution, as (name, text).
        first_error: the step, from 0, that is marked as such.
    """
    low, high = min(weights), max(weights)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", "a scored solution"),
        tag("style", Html(_STYLE)),
    )
    bounds = [low + (high - low) * level / 5 for level in range(6)]
    key = [tag("span", f"{decimal(bounds[i], 1)} to {decimal(bounds[i + 1], 1)}", class_=f"s{i}") for i in range(5)]
    body = tag(
        "body",
        tag("h1", " · ".join(f"{name} {text}" for name, text in facts)),
        pictures_of(images),
        tag("p", question, class_="question"),
        tag("h2", "Solution"),
        tag("p", "The score of a step: ", *key, class_="key note"),
        tag("ol", *(_step(i, text, scores, low, high, first_error) for i, text in enumerate(steps))),
        tag("p", "The outlined step is the first that counts as wrong.", class_="note") if first_error is not None else None,
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _step(i: int, text: str, scores: Sequence[float], low: float, high: float, first_error: int | None) -> Html:
    level = min(4, max(0, int((scores[i] - low) / (high - low) * 5)))
    mark = "✗ " if i == first_error else None
    return tag(
        "li", join([tag("b", decimal(scores[i], 3)), tag("span", mark, text)]), class_=_classes(level, i == first_error)
    )


def _classes(level: int, is_first_error: bool) -> str:
    return f"step s{level} first" if is_first_error else f"step s{level}"
