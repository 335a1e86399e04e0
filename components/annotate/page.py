"""The questions as one self-contained page: it asks nobody, keeps what was answered in the browser, and saves a file.

Owns how data get into the page without becoming markup; what the page does with them is `page.js`'s business.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.records import replacing, row_images

FILE = "annotate.html"
FORMAT = "stepforge audit answers 1"
"""What the page's files call themselves."""
_SHOWN = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}  # as they are, in every browser


def write_page(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Sequence[int]],
    *,
    set_name: str,
    round_: int,
    said: Mapping[str, Mapping[int, str]],
) -> None:
    """Write the page whole or not at all; equal questions give equal bytes.

    Raises:
        DataError: it cannot be written.
    """
    solutions = [
        {
            "id": row["solution_id"],
            "question": row["question"],
            "answer": row["answer"] or "",
            "pictures": picture_urls(row_images(row)),
            "steps": list(row["steps"]),
            "asked": list(asked[row["solution_id"]]),
            "said": {str(step): words for step, words in said.get(row["solution_id"], {}).items()},
        }
        for row in rows
    ]
    content = {"format": FORMAT, "set": set_name, "round": round_, "solutions": solutions}
    try:
        with replacing(path) as part:
            part.write_bytes(_fill(content).encode("utf-8", errors="replace"))
    except OSError as error:
        raise DataError(str(path), f"cannot be written: {error.strerror}", "check its folder") from error


def _fill(content: Any) -> str:
    """The template with its places filled, in one pass, so that no text of the data can name a place."""
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(content, ensure_ascii=True, sort_keys=True)
    for char in "<>&":  # no text can end the element it stands in, nor begin another
        data = data.replace(char, f"\\u{ord(char):04x}")
    places = {"script": script, "script_hash": f"sha256-{sha}", "data": data}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: places[found[1]], template)


def picture_urls(pictures: Sequence[bytes]) -> list[str]:
    """Pictures as data URLs; what some browsers cannot show becomes a PNG.

    Raises:
        DataError: a picture does not decode.
    """
    return [_url(content) for content in pictures]


def _url(content: bytes) -> str:
    kind = next((name for magic, name in _SHOWN.items() if content.startswith(magic)), None)
    if kind is None:
        from PIL import Image

        out = io.BytesIO()
        try:
            with Image.open(io.BytesIO(content)) as picture:
                picture.convert("RGBA").save(out, "PNG")
        except Exception as error:  # decoders raise anything on damaged bytes
            raise DataError("picture", f"cannot be decoded: {error}", "run curate: it quarantines such rows") from error
        kind, content = "png", out.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
