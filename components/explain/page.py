"""An explanation as one HTML page: pictures inside, no script, no link, every text escaped.

Knows markup; what is said comes from `show`.
"""

from __future__ import annotations

import base64
from pathlib import Path

from components.errors import DataError
from components.explain.show import SUFFIXES, facts, of_counted, picture_kind, verdict_line, without_bytes
from components.explain.trace import Explanation
from components.records import replacing, row_images
from components.report.markup import Html, join, table, tag

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin-top: 2rem; }
img { max-width: 100%; min-width: 8rem; image-rendering: pixelated; background: #fff; }
.text, td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.rest { opacity: .55; } .here { outline: 2px solid; padding: .2rem .4rem; font-weight: 600; }
.bad { color: #fff; background: #a00; padding: .5rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; } th, td { border: 1px solid #8888; padding: .2rem .5rem; }
th, td { text-align: left; vertical-align: top; } caption { text-align: left; font-weight: 600; }
dt { font-weight: 600; float: left; clear: left; width: 6rem; } dd { margin-left: 7rem; overflow-wrap: anywhere; }
"""


def page(found: Explanation) -> str:
    """The explanation as one HTML page: pictures inside, no script, no link; every text escaped."""
    row, problem = found.label, found.problem
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"label {row['label_id'][:10]}"),
        tag("style", Html(_STYLE)),
    )
    steps = []
    for i, step in enumerate(found.solution["steps"]):
        place = "here" if i == row["step"] else "rest" if i > row["step"] else ""
        steps.append(tag("li", step, class_=f"text {place}".strip()))
    said = [of_counted(one) for one in found.counted]
    columns = ("verdict", "rule", "answer", "began", "finish", "tokens", "seed", "text")
    rows = [[str(i), *(tag("span", one[name], class_="text") for name in columns)] for i, one in enumerate(said, start=1)]
    body = tag(
        "body",
        tag("h1", f"label {row['label_id']}"),
        tag("p", verdict_line(found), class_="bad" if found.mismatch else None),
        tag("dl", *(join([tag("dt", name), tag("dd", text)]) for name, text in facts(found))),
        tag("h2", "Problem"),
        tag("p", f"{problem['problem_id']} from {problem['source']}, {problem['source_id']}"),
        *(tag("p", text) for text in without_bytes(problem)),
        *(_embedded(content) for content in row_images(problem)),
        tag("p", found.task.question(problem["question"]), class_="text"),
        tag("p", f"gold answer {problem['answer'] or '–'} ({problem['answer_type'] or 'no rule'})"),
        tag("h2", f"Solution {row['solution_id']}, step {row['step'] + 1} of {row['num_steps']}"),
        tag("ol", *steps),
        tag("h2", "Continuations that count"),
        table(["", *columns], rows, caption=f"{len(rows)} continuations") if rows else None,
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def write_page(path: Path, found: Explanation) -> None:
    """Write the page whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    try:
        with replacing(path) as part:
            part.write_text(page(found), encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(str(path), f"cannot be written: {error.strerror}", "check its folder") from error


def _embedded(content: bytes) -> Html:
    kind, size = picture_kind(content)
    if kind not in SUFFIXES:
        return tag("p", size)
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
    return tag("p", tag("img", src=source, alt=f"picture of the problem, {size}"))
