"""The frame of every page: one HTML file with its style and script inside, and nothing outside.

Owns the template's places and that a file appears whole or not at all; does not know what is on a page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from components.errors import DataError
from components.records import replacing
from components.report.markup import Html, join, tag


def section(name: str, title: str, content: Html) -> Html:
    """A section with its heading, to which the navigation can jump."""
    return tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")


def write_page(out: Path, body: Html, *, title: str, links: Mapping[str, str]) -> Path:
    """Write the page and return `out`.

    Args:
        links: name of a section -> what the navigation calls it.
    Raises:
        DataError: `out` cannot be written.
    """
    navigation = join([tag("a", words, href=f"#{name}") for name, words in links.items()])
    page = _filled({"title": join([title]), "body": body, "links": navigation})
    try:
        with replacing(out) as part:
            part.write_bytes(page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise DataError(
            str(out), f"cannot be written: {error.strerror}", "check its permissions and the free space"
        ) from error
    return out


def _filled(content: Mapping[str, Html]) -> str:
    """The template with its places filled, in one pass, so that no text of the data can name a place."""
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    places = {**content, "script": script, "script_hash": f"sha256-{sha}"}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: places[found[1]], template)
