"""An explanation as lines for a terminal, and the facts that every view of it shows.

Knows how numbers and text are written so that nothing in a text steers a terminal; counts nothing.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

from components.errors import one_line
from components.explain.trace import Counted, Explanation, setting
from components.records import bytes_digest, row_images

_TAIL_CHARS = 240
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


def _value(value: Any, digits: int = 4) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"


def facts(found: Explanation) -> list[tuple[str, str]]:
    """The label in (name, text) pairs."""
    row = found.label
    formulation = setting(found.receipts, "label", "formulation") or "formulation unknown: no receipt"
    low_high = f"{_value(row['low'])} to {_value(row['high'])} (5 to 95 %)" if row["low"] is not None else "no interval"
    counts = f"{row['num_right']} right of {row['num_verdicts']} verdicts" if row["num_verdicts"] else "nothing measured"
    out = [
        ("label", f"{_value(row['label'])}  ({formulation}), weight {_value(row['weight'])}"),
        ("mean", f"{_value(row['mean'])}, {low_high}, sd {_value(row['sd'])}"),
        (
            "counts",
            f"{counts}, {row['num_unknown']} unknown, {row['num_reused']} reused; stopping rule {row['stopping_rule']}",
        ),
        ("policy", str(row["policy_digest"])),
        ("verifier", str(row["verifier_digest"])),
        ("task", found.task.name),
    ]
    sampling = setting(found.receipts, "rollout", "sampling")
    if isinstance(sampling, dict):
        out.append(("sampling", ", ".join(f"{name} {value}" for name, value in sampling.items())))
    for stage, receipt in sorted(found.receipts.items()):
        out.append(("receipt", f"{stage}: {receipt['started_at']}, output {receipt['output']['sha256'][:16]}"))
    if not found.receipts:
        out.append(("receipt", "none here: another machine made these folders, or STEPFORGE_HOME is another"))
    return out


def verdict_line(found: Explanation) -> str:
    """What the recount says."""
    if found.mismatch:
        return f"CONTRADICTION: {found.mismatch}"
    if found.is_final:
        return f"the step ends its solution: its own verdict is its worth ({found.solution['verdict']}); no continuation"
    if not found.has_continuations:
        return "the label was made elsewhere: there are no continuations to count again"
    began = sum(not one.is_reused for one in found.counted)
    passed = len(found.counted) - began
    what = f"{began} began behind this step, {passed} passed through it"
    return f"recounted: {found.counts.num_right} of {found.counts.num_verdicts}, as the label says ({what})"


def of_counted(one: Counted) -> dict[str, str]:
    """A continuation in named texts, unescaped."""
    row = one.row
    return {
        "verdict": row["verdict"],
        "rule": str(row["rule"]),
        "answer": "–" if row["answer"] is None else row["answer"],
        "finish": str(row["finish_reason"]),
        "tokens": str(row["num_tokens"]),
        "seed": str(row["seed"]),
        "began": f"behind unit {one.num_units_before}" if one.is_reused else "here",
        "text": "\n".join(one.tail),
    }


def lines(found: Explanation, *, home: Path, colour: bool = False) -> list[str]:
    """The explanation for a terminal; pictures are written below `home`, their paths shown."""
    bold, dim, plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if colour else ("", "", "")
    row, problem = found.label, found.problem
    out = [f"{bold}label {row['label_id']}{plain}", "", f"problem   {problem['problem_id']}"]
    out.append(f"source    {_shown(problem['source'])} {_shown(problem['source_id'])}")
    out += [f"picture   {_shown(text)}" for text in without_bytes(problem)]
    for i, content in enumerate(row_images(problem)):
        out.append(f"picture   {_written_picture(content, home)}" if i < 16 else "picture   …")
    out += _indented("question", found.task.question(problem["question"]))
    out += [f"gold      {_shown(problem['answer'] or '–')} ({problem['answer_type'] or 'no rule'})", ""]
    out.append(f"solution  {row['solution_id']}, step {row['step'] + 1} of {row['num_steps']}")
    for i, step in enumerate(found.solution["steps"]):
        text = _shown(step).replace("\n", "\n      ")
        if i == row["step"]:
            out.append(f"{bold}>{i + 1:>3}  {text}{plain}")
        else:
            out.append(f"{dim if i > row['step'] else ''} {i + 1:>3}  {text}{plain}")
    out.append("")
    out += [f"{name:<9} {_shown(text)}" for name, text in facts(found)]
    out += ["", f"{bold}{verdict_line(found)}{plain}"]
    for i, one in enumerate(found.counted, start=1):
        said = {name: _shown(text) for name, text in of_counted(one).items()}
        sign = {"right": "+", "wrong": "-"}.get(one.row["verdict"], "?")
        out.append(
            f"{i:>4} {sign} {said['verdict']} by {said['rule']}, answer {one_line(said['answer'], 60)}, {said['finish']}, "
            f"{said['tokens']} tokens, seed {said['seed']}, began {said['began']}"
        )
        out.append(f"{dim}       {one_line(said['text'], _TAIL_CHARS)}{plain}")
    return out


def without_bytes(problem: dict[str, Any]) -> list[str]:
    """What to say of pictures that the problem names and does not hold."""
    return [
        f"{p['path'] or 'without a name'}: no bytes in the seeds" for p in problem["images"] or () if p and not p["bytes"]
    ]


def _shown(text: Any) -> str:
    """Text without the characters that would steer a terminal."""
    return _CONTROL.sub("\ufffd", str(text).replace("\r\n", "\n"))


def _indented(name: str, text: str) -> list[str]:
    first, *rest = _shown(text).split("\n")
    return [f"{name:<9} {first}", *(f"{'':<9} {line}" for line in rest)]


def _written_picture(content: bytes, home: Path) -> str:
    kind, size = picture_kind(content)
    path = home / "explain" / f"{bytes_digest(content)}{SUFFIXES.get(kind, '.bin')}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        return f"{size}, cannot be written: {error.strerror}"
    return f"{path} ({size})"


def picture_kind(content: bytes) -> tuple[str, str]:
    """(format, width x height) by the picture's header."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return str(picture.format), f"{picture.width} x {picture.height}"
    except Exception:  # decoders raise anything on damaged bytes
        return "", f"{len(content):,} bytes that are no picture"
