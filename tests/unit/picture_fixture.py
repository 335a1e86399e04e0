"""Small pictures and problem files for the tests of reading, deduplication and curating."""

import io
import json
import zlib

import numpy as np
from PIL import Image


def png(pixels) -> bytes:
    """An array of floats in [0, 1] as a PNG."""
    out = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255).astype("uint8")).save(out, "PNG")
    return out.getvalue()


def bars(values, *, noise=0.0, seed=0) -> bytes:
    """A 32 x 32 picture of four coloured bars."""
    generator = np.random.default_rng(seed)
    pixels = np.full((32, 32, 3), 0.95)
    for place, (value, colour) in enumerate(
        zip(values, ([1, 0.2, 0.2], [0.2, 0.2, 1], [0.2, 0.8, 0.2], [1, 1, 0.2]), strict=True)
    ):
        pixels[32 - (3 * value + 1) :, 8 * place + 1 : 8 * place + 7] = colour
    return png(pixels + generator.normal(0, noise, pixels.shape))


def bomb(width=60_000, height=60_000) -> bytes:
    """A PNG whose header promises more pixels than anyone wants; a few hundred bytes."""
    small = bytearray(png(np.zeros((2, 2, 3))))
    small[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


def problem_rows(num, *, seed=0, noise=0.1):
    """Rows with bytes for pictures: (id, question, answer, picture)."""
    generator = np.random.default_rng(seed)
    questions = ["bars : total of red blue and green ?", "bars : red plus blue times green ?", "bars : most minus least ?"]
    rows = []
    for i in range(num):
        values = generator.integers(1, 10, 4).tolist()
        row = {"id": f"p{seed}-{i}", "question": questions[i % 3], "answer": str(sum(values[:3]))}
        rows.append(row | {"picture": bars(values, noise=noise, seed=1000 * seed + i)})
    return rows


def write_json_problems(folder, rows, name="problems.json"):
    """MM-K12 shape: a list of objects beside a folder of pictures."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    out = []
    for given in rows:
        row = dict(given)
        if (picture := row.pop("picture", None)) is not None:
            (folder / "images" / f"{row['id']}.png").write_bytes(picture)
            row.setdefault("image_path", f"images/{row['id']}.png")
        out.append(row)
    path = folder / name
    path.write_text(json.dumps(out), encoding="utf-8")
    return path
