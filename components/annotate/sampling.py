"""A stratified sample of solutions: how many of each stratum, and which, so that every chance of being drawn is known.

Owns strata, shares and the draw; does not know what a solution says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from components.errors import DataError, SettingsError
from components.records import digest

DISAGREEMENT, NEAR, REST = "disagreement", "near", "rest"
SHARES = {DISAGREEMENT: 0.5, NEAR: 0.25, REST: 0.25}
"""Of the sample; what a kind of stratum cannot fill goes to the others."""
OTHERS = "others"
"""Sources too small for a stratum of their own."""
MIN_DRAWN = 2  # of a stratum: one alone has no spread
MIN_OF_SOURCE = 5  # of the rest: a source that would get fewer shares a stratum with others like it
MIN_SAMPLE = MIN_DRAWN * len(SHARES)


@dataclass(frozen=True)
class Drawn:
    """A solution that was drawn, and from how many."""

    solution_id: str
    stratum: str
    num_drawn: int
    """Solutions drawn from its stratum."""
    num_in_stratum: int

    @property
    def probability(self) -> float:
        """The chance in (0, 1] with which it was drawn."""
        return self.num_drawn / self.num_in_stratum


def is_near(value: float, low: float | None, high: float | None, *, threshold: float, margin: float) -> bool:
    """Whether a label may as well lie on the other side of the threshold.

    Its interval says so; without one, its distance from the threshold, but for 0 and 1, which may be signs and no estimates.
    """
    if low is not None and high is not None:
        return low <= threshold <= high
    return 0 < value < 1 and abs(value - threshold) <= margin


def kind_of(
    values: Sequence[float | None],
    others: Sequence[Sequence[float] | None],
    *,
    threshold: float,
    other_thresholds: Sequence[float],
    any_near: bool,
) -> str:
    """disagreement, near or rest: what makes a solution worth a look.

    Args:
        values: the label of each step, in [0, 1]; None where there is none.
        others: for each other judge of the steps its scores, or None if it said nothing.
        threshold: a step with a label at or below it counts as wrong; `other_thresholds` are those of the other judges.
        any_near: whether a label is near the threshold, see `is_near`.
    """
    said = [[score > limit for score in row] for row, limit in zip(others, other_thresholds, strict=True) if row is not None]
    for step, value in enumerate(values):
        claims = {row[step] for row in said} | ({value > threshold} if value is not None else set())
        if len(claims) > 1:
            return DISAGREEMENT
    return NEAR if any_near else REST


def strata(kinds: Mapping[str, str], sources: Mapping[str, str], num: int) -> dict[str, list[str]]:
    """Stratum -> its solutions: the first two kinds as they are, the rest by source where a source is large enough.

    Args:
        kinds: solution -> its kind.
        sources: solution -> its source.
        num: how many will be drawn, which decides what is large enough.
    """
    found: dict[str, list[str]] = {kind: [key for key, one in kinds.items() if one == kind] for kind in (DISAGREEMENT, NEAR)}
    by_source: dict[str, list[str]] = {}
    rest = [key for key, kind in kinds.items() if kind == REST]
    for key in rest:
        by_source.setdefault(sources[key], []).append(key)
    small: list[str] = []
    for source in sorted(by_source):
        members = by_source[source]
        if SHARES[REST] * num * len(members) / len(rest) >= MIN_OF_SOURCE:
            found[f"{REST}/{source}"] = members
        else:
            small += members
    if small:
        found[REST if len(small) == len(rest) else f"{REST}: {OTHERS}"] = small  # of sources: rest/NAME
    return {name: sorted(members) for name, members in found.items() if members}


def allocation(sizes: Mapping[str, int], num: int) -> dict[str, int]:
    """How many to draw of each stratum: by SHARES, the rest in proportion to its sizes, at least two of each.

    Args:
        sizes: stratum -> how many solutions it has.
        num: in total; everything is drawn where there are no more.
    Raises:
        SettingsError: too few to draw two of each.
    """
    if num >= sum(sizes.values()):
        return dict(sizes)
    least = {name: min(MIN_DRAWN, size) for name, size in sizes.items()}
    if num < sum(least.values()):
        what = f"{num} solutions for {len(sizes)} strata"
        raise SettingsError("annotate", what, f"--num of at least {sum(least.values())}: two of each")
    fixed = (DISAGREEMENT, NEAR)
    num_rest = sum(size for name, size in sizes.items() if name not in fixed)
    weights = {name: SHARES[name] if name in fixed else SHARES[REST] * size / num_rest for name, size in sizes.items()}
    wanted: dict[str, float] = {}
    left, still = float(num), dict(weights)
    while still:  # what is full gives its surplus to the others
        total = sum(still.values())
        full = [name for name in still if left * still[name] / total >= sizes[name]]
        if not full:
            wanted |= {name: left * weight / total for name, weight in still.items()}
            break
        for name in full:
            wanted[name] = float(sizes[name])
            left -= sizes[name]
            del still[name]
    found = {name: max(least[name], int(wanted[name] + 1e-9)) for name in sizes}
    while (missing := num - sum(found.values())) != 0:
        step = 1 if missing > 0 else -1
        can = [name for name in sizes if (found[name] < sizes[name] if step > 0 else found[name] > least[name])]
        found[max(can, key=lambda name: step * (wanted[name] - found[name]))] += step
    return found


def draw(members: Mapping[str, Collection[str]], num: int, *, seed: int) -> list[Drawn]:
    """The sample: simple random in each stratum, without replacement, in an order that says nothing of the strata.

    Raises:
        SettingsError: too few for two of each stratum.
        DataError: there is nothing to draw from.
    """
    if not members:
        raise DataError("annotate", "no labelled solution to draw from", "name the folders of one run")
    numbers = allocation({name: len(keys) for name, keys in members.items()}, num)

    def rank(key: str) -> str:
        return digest("audit-draw-1", seed, key)

    found = [
        Drawn(key, name, numbers[name], len(keys))
        for name, keys in members.items()
        for key in sorted(keys, key=rank)[: numbers[name]]
    ]
    return sorted(found, key=lambda one: digest("audit-order-1", seed, one.solution_id))
