"""Which problems are nearly the same? Similar questions over pictures that look alike, found without comparing all pairs.

Exact: no pair within the two limits is missed (prefix filtering of word 3-grams; bands of hash bits by the pigeonhole
principle). Knows nothing of files or reasons.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 256
_GRID = 16  # 16 rows of 16 differences
_DEAD_ZONE = 3  # of 255 grey levels: what JPEG adds to a blank area is no picture content
_CELLS = 32
_MAX_CELL_LEVELS = 96  # of 255; copies at half size stay below it in 99 of 100 real pictures
_MAX_BANDS = 64
_WORD = re.compile(r"[\u4e00-\u9fff]|\w+|[^\w\s.,;:!?'\"$]")  # operators count: a + b is not a - b
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def difference_hash(content: bytes) -> bytes:
    """256 bits that say where a picture gets brighter from left to right, on a 16 x 16 grid; alike pictures share most.

    Source: the difference hash of perceptual hashing (dHash).
    Differs: transparent pixels count as white, and changes below 3 of 255 grey levels as none.
    """
    from PIL import Image

    grey = _on_white(content).convert("L").resize((_GRID + 1, _GRID), Image.Resampling.BOX)
    level = np.asarray(grey, dtype=np.int16)
    return np.packbits(level[:, 1:] > level[:, :-1] + _DEAD_ZONE).tobytes()


def is_same_scene(a: bytes, b: bytes) -> bool:
    """Whether two pictures agree in colour everywhere on a 32 x 32 grid, up to what scaling and JPEG change.

    The difference hash alone takes a bar for one a little longer: it sees neither colour nor one cell in a thousand.
    """
    apart = np.abs(_thumbnail(a) - _thumbnail(b))
    return bool(apart.max() <= _MAX_CELL_LEVELS)


@lru_cache(maxsize=4096)
def _thumbnail(content: bytes) -> NDArray[np.int16]:
    from PIL import Image

    cells = _on_white(content).convert("RGB").resize((_CELLS, _CELLS), Image.Resampling.BOX)
    return np.asarray(cells, dtype=np.int16)


def _on_white(content: bytes) -> Any:
    from PIL import Image

    picture: Image.Image = Image.open(io.BytesIO(content))
    if not picture.has_transparency_data:
        return picture
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture.convert("RGBA"))
    return page


def question_words(question: str) -> list[str]:
    """The words of a question; punctuation, case and width of signs do not count."""
    words: list[str] = _WORD.findall(unicodedata.normalize("NFKC", question).casefold())
    return words


def word_shingles(question: str) -> frozenset[int]:
    """The 3-grams of a question's words as 64-bit hashes."""
    words = question_words(question)
    grams = [words] if len(words) < 3 else [words[i : i + 3] for i in range(len(words) - 2)]
    return frozenset(
        int.from_bytes(hashlib.blake2b("\x1f".join(gram).encode(errors="replace"), digest_size=8).digest(), "big")
        for gram in grams
    )


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Shared members over all members, in [0, 1]."""
    return len(a & b) / len(a | b) if a or b else 1.0


def near_matches(
    questions: Sequence[str],
    looks: Sequence[tuple[bytes, ...]],
    *,
    num_fixed: int,
    min_similarity: float,
    max_image_bits: int,
    confirm: Callable[[int, int], bool] = lambda row, other: True,
) -> dict[int, tuple[int, float, int]]:
    """Rows that nearly equal an earlier row which stays, a fixed one first: {row: (that row, similarity, bits apart)}.

    Args:
        looks: `difference_hash` of each of the problem's pictures.
        num_fixed: the first rows are only compared with: they stay, and say nothing of each other.
        min_similarity: Jaccard of word 3-grams, in [0, 1].
        max_image_bits: each pair of pictures may differ in so many bits; problems with different numbers of
            pictures are never near.
        confirm: a closer look at a pair within both limits.
    """
    if len(questions) <= num_fixed:
        return {}
    texts, text_of = _distinct([word_shingles(question) for question in questions])
    hashes = np.zeros((len(looks), HASH_BITS // 64), dtype=np.uint64)
    for row, look in enumerate(looks):
        if look:
            hashes[row] = np.frombuffer(look[0], dtype=">u8")
    kept: dict[int, list[int]] = defaultdict(list)  # run -> rows that stay
    matches: dict[int, tuple[int, float, int]] = {}
    shared = _shared_runs(
        texts=texts,
        text_of=text_of,
        looks=looks,
        hashes=hashes,
        min_similarity=min_similarity,
        max_image_bits=max_image_bits,
    )
    for row, runs in shared:
        candidates = sorted({other for run in runs for other in kept[run]}) if row >= num_fixed else []
        best = None
        if candidates:
            others = np.array(candidates)
            apart = np.bitwise_count(hashes[others] ^ hashes[row]).sum(axis=1)
            for other in others[apart <= max_image_bits].tolist():
                similarity = 1.0 if text_of[other] == text_of[row] else jaccard(texts[text_of[other]], texts[text_of[row]])
                bits = _bits_apart(looks[other], looks[row])
                near = similarity >= min_similarity and bits is not None and bits <= max_image_bits
                if near and confirm(row, other):
                    best = (other, similarity, bits or 0)
                    break
        if best:
            matches[row] = best
            continue
        for run in runs:
            kept[run].append(row)
    return matches


def _distinct(sets: Sequence[frozenset[int]]) -> tuple[list[frozenset[int]], list[int]]:
    """The different sets, and for each position which of them it has."""
    number: dict[frozenset[int], int] = {}
    return_index = [number.setdefault(each, len(number)) for each in sets]
    return list(number), return_index


def _bits_apart(a: tuple[bytes, ...], b: tuple[bytes, ...]) -> int | None:
    """The largest distance between the pictures of two problems, in their order; None if their numbers differ."""
    if len(a) != len(b):
        return None
    return max(
        ((int.from_bytes(x, "big") ^ int.from_bytes(y, "big")).bit_count() for x, y in zip(a, b, strict=True)), default=0
    )


def _shared_runs(
    *,
    texts: list[frozenset[int]],
    text_of: list[int],
    looks: Sequence[tuple[bytes, ...]],
    hashes: NDArray[np.uint64],
    min_similarity: float,
    max_image_bits: int,
) -> list[tuple[int, list[int]]]:
    """For each row that shares a key with another: the numbers of the keys. Near rows always share one.

    A key is a band of the picture's bits with a rare 3-gram of the question. Two hashes at most d bits apart agree on
    one of d + 1 bands; two sets with Jaccard >= t share one of their |x| - ceil(t |x|) + 1 rarest members.
    """
    bands = _band_values(hashes, max_image_bits)
    prefixes = _rare_prefixes(texts, min_similarity)
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, text in enumerate(text_of):
        rows_of[text, len(looks[row])].append(row)
    all_keys, all_rows = [], []
    for (text, num_pictures), rows in rows_of.items():
        values = bands[rows] if num_pictures else np.zeros((len(rows), 1), dtype=np.uint64)
        keys = _mixed(values[:, :, None] ^ _mixed(prefixes[text] + np.uint64(num_pictures))[None, None, :])
        all_keys.append(keys.reshape(-1))
        all_rows.append(np.repeat(np.array(rows, dtype=np.int64), keys.shape[1] * keys.shape[2]))
    keys, rows_by_key = np.concatenate(all_keys), np.concatenate(all_rows)
    order = np.lexsort((rows_by_key, keys))
    keys, rows_by_key = keys[order], rows_by_key[order]
    run_of = np.cumsum(np.r_[0, keys[1:] != keys[:-1]])
    is_shared = np.bincount(run_of)[run_of] > 1
    runs: dict[int, list[int]] = defaultdict(list)
    for row, run in zip(rows_by_key[is_shared].tolist(), run_of[is_shared].tolist(), strict=True):
        runs[row].append(run)
    return sorted(runs.items())


def _band_values(hashes: NDArray[np.uint64], max_image_bits: int) -> NDArray[np.uint64]:
    """`[rows, bands]`: one value for each band of bits, drawn from all over the picture so that margins do not fill one."""
    num_bands = max_image_bits + 1
    if num_bands > _MAX_BANDS:
        return np.zeros((len(hashes), 1), dtype=np.uint64)
    generator = np.random.default_rng(0)
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(len(hashes), -1), axis=1)
    weights = generator.integers(1, 2**63, HASH_BITS, dtype=np.uint64)
    values = np.empty((len(hashes), num_bands), dtype=np.uint64)
    for band, places in enumerate(np.array_split(generator.permutation(HASH_BITS), num_bands)):
        values[:, band] = _mixed(bits[:, places].astype(np.uint64) @ weights[places] + np.uint64(band))
    return values


def _rare_prefixes(texts: list[frozenset[int]], min_similarity: float) -> list[NDArray[np.uint64]]:
    if min_similarity <= 0:
        return [np.zeros(1, dtype=np.uint64) for _ in texts]
    members, counts = np.unique(np.array([m for text in texts for m in text], dtype=np.uint64), return_counts=True)
    frequency = dict(zip(members.tolist(), counts.tolist(), strict=True))
    prefixes = []
    for text in texts:
        rare_first = sorted(text, key=lambda member: (frequency[member], member))
        length = len(text) - math.ceil(min_similarity * len(text) - 1e-9) + 1
        prefixes.append(np.array(rare_first[:length], dtype=np.uint64))
    return prefixes


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the input in every bit of the output (splitmix64)."""
    values = values + _MIX[0]
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    return values ^ (values >> np.uint64(31))
