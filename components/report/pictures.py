"""The pictures of a problem inside the page: as they are, or smaller where room is short.

Owns which bytes a browser may be shown and how they are made small; a picture it cannot read is named, never an error.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.report.markup import Html, count, tag

SMALL_PIXELS = 128  # pictures up to this wide are enlarged with crisp edges
MAX_PREVIEW_BYTES = 30_000  # larger ones are shown as previews
PREVIEW = (640, 75)  # longest side in pixels, quality
THUMBNAILS = ((128, 60), (80, 40))  # the first that fits

_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


@dataclass(frozen=True)
class Picture:
    """One picture in the sizes that the page may use."""

    whole: bytes
    """As it came, or a preview if it was large."""
    thumbnails: tuple[bytes, ...]
    """One for each of THUMBNAILS; none if it cannot be read."""
    is_small: bool
    num_bytes: int
    """Of what came."""


def picture_of(content: bytes, *, is_shown_whole: bool) -> Picture:
    """`content` in the sizes that the page may use.

    Args:
        is_shown_whole: else only thumbnails are kept, which saves memory where there are thousands.
    """
    is_small = _width(content) <= SMALL_PIXELS
    wants_preview = is_shown_whole and len(content) > MAX_PREVIEW_BYTES
    sizes = [PREVIEW, *THUMBNAILS] if wants_preview else list(THUMBNAILS)
    made = smaller(content, sizes)
    thumbnails = tuple(made[-len(THUMBNAILS) :])
    whole = content if is_shown_whole or not made else b""
    if wants_preview and made and len(made[0]) < len(content):
        whole = made[0]
    return Picture(whole, thumbnails, is_small, len(content))


def smaller(content: bytes, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """`content` as WebP, once for each of `sizes`; none if it cannot be read. Metadata is left out.

    Args:
        sizes: (most pixels of the longer side, quality), the largest first.
    """
    from PIL import Image

    made = []
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (2 * sizes[0][0], 2 * sizes[0][0]))  # a JPEG is decoded no larger than needed
            picture = opened.convert("RGBA" if "transparency" in opened.info or opened.mode in ("RGBA", "LA") else "RGB")
        if picture.mode == "RGBA":  # formulas are often black on nothing
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        for side, quality in sizes:
            picture.thumbnail((side, side))
            out = io.BytesIO()
            picture.save(out, "WEBP", quality=quality)
            made.append(out.getvalue())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return []
    return made


def pictures_of(pictures: Sequence[bytes], *, with_pictures: bool = True) -> Html:
    """The pictures of a problem, inside the page; one that browsers may not show is named instead."""
    return shown(
        [Picture(content, (), _width(content) <= SMALL_PIXELS, len(content)) for content in pictures],
        (lambda picture: picture.whole) if with_pictures else None,
    )


def shown(pictures: Sequence[Picture], choose: Callable[[Picture], bytes] | None) -> Html:
    """The pictures in the size that `choose` names, or in words where it is None."""
    parts = []
    for i, picture in enumerate(pictures, 1):
        content = choose(picture) if choose else picture.whole or (picture.thumbnails or (b"",))[0]
        kind = next((name for magic, name in _MAGIC.items() if content.startswith(magic)), None)
        if kind is None or choose is None:
            why = "is of an unknown kind" if kind is None else f"({count(picture.num_bytes / 1000)} kB) did not fit"
            parts.append(tag("p", f"picture {i} {why}", class_="nopicture"))
            continue
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        alt = f"picture {i} of {len(pictures)} that belongs to the question"
        parts.append(tag("img", src=source, alt=alt, class_="small" if picture.is_small else None))
    return tag("div", *(parts or [tag("p", "no picture", class_="nopicture")]), class_="pictures")


def _width(content: bytes) -> int:
    """In pixels, of a PNG; others count as large."""
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big") if is_png else SMALL_PIXELS + 1
