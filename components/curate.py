"""Stage `curate`: raw problems -> seeds, and a quarantine with a reason for every row that is none.

Owns which rows become seeds: input rows = seeds + quarantined, always. Does not know how files are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.duplicates import difference_hash, is_same_scene, near_matches, question_words
from components.errors import DataError, SettingsError
from components.lineage import SUMMARY
from components.problems import Quarantined, load_problems
from components.progress import Progress, say
from components.records import PROBLEM, QUARANTINE, bytes_digest, row_images, seed_for, write_json, write_table
from components.settings import Curate, Params, Runtime
from components.tasks import load_task

Row = dict[str, Any]
_SAY_EVERY = 20_000  # rows


def run(
    params: Params, runtime: Runtime, *, problems: list[Path], holdout: list[Path], policy: Path | None, out: Path
) -> dict[str, Any]:
    """Write seeds.parquet and quarantine.parquet into `out`, both in the order of the input.

    Raises:
        SettingsError: the difficulty filter is on and no policy is named.
        DataError: a file cannot be read, too many rows are quarantined, no seed is left, or a gate found the rows wrong.
    """
    import pyarrow as pa

    from components.quality import check_seeds, enforce

    settings = params.curate
    if settings.difficulty is not None and policy is None:
        raise SettingsError("params.yaml", "curate.difficulty needs a policy", "name one with --policy, or set it to null")
    held = Held(holdout, settings.max_image_pixels)
    intake = Intake(held)
    for path in problems:
        intake.read(path, settings.max_image_pixels)
    intake.drop_near(settings, unit=load_task(params.task).unit)
    cost: dict[str, Any] = {}
    if settings.difficulty is not None and policy is not None:
        rates, cost = success_rates(params, runtime, intake.seeds(), policy)
        intake.drop_by_success(rates, settings.difficulty.min_right_frac, settings.difficulty.max_right_frac)
    seeds, quarantine = intake.seeds(), intake.quarantine()
    if len(seeds) + len(quarantine) != intake.num_rows:
        what = f"{intake.num_rows} rows in, but {len(seeds)} seeds and {len(quarantine)} quarantined"
        raise DataError("curate", what, "this is a fault of StepForge: please report it")
    reasons = dict(sorted(Counter(row["reason"] for row in quarantine).items()))
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    say("curate", f"{intake.num_rows:,} rows: {len(seeds):,} seeds" + (f", quarantined: {told}" if told else ""))
    if len(quarantine) > settings.max_quarantined_frac * intake.num_rows or not seeds:
        first = quarantine[0]
        what = f"{len(quarantine):,} of {intake.num_rows:,} rows are unusable ({told})"
        hint = f"first: row {first['row']} of {first['file']}: {first['detail']}; the limit is curate.max_quarantined_frac"
        raise DataError(", ".join(map(str, problems)), what, hint)
    write_table(out / "seeds.parquet", seeds, PROBLEM)
    write_table(out / "quarantine.parquet", quarantine, QUARANTINE)
    gate = check_seeds(
        pa.Table.from_pylist(seeds, schema=PROBLEM),
        pa.Table.from_pylist(quarantine, schema=QUARANTINE),
        intake.num_rows,
        pa.Table.from_pylist(held.problems, schema=PROBLEM),
    )
    enforce(gate, out)
    summary = {"rows_in": intake.num_rows, "seeds": len(seeds), "quarantined": len(quarantine), "reasons": reasons}
    write_json(out / SUMMARY, summary | {"holdout_problems": len(held.problems), "holdout_unread": held.num_unread})
    return cost


class Held:
    """The test problems that no seed may overlap. A problem whose answer cannot be checked is held out all the same."""

    def __init__(self, paths: Sequence[Path], max_image_pixels: int) -> None:
        self.problems: list[Row] = []
        self.num_unread = 0
        for path in paths:
            before = len(self.problems), self.num_unread
            for _, problem in load_problems(path, max_image_pixels=max_image_pixels):
                found = problem.problem if isinstance(problem, Quarantined) else problem
                if found is None:
                    self.num_unread += 1
                else:
                    self.problems.append(found)
            unread = self.num_unread - before[1]
            tail = f"; {unread:,} rows CANNOT be read and are not compared with" if unread else ""
            say("curate", f"{path}: {len(self.problems) - before[0]:,} problems held out{tail}")
        self.problem_ids = {problem["problem_id"]: problem["source_id"] for problem in self.problems}
        self.pictures = {bytes_digest(picture): p["source_id"] for p in self.problems for picture in row_images(p)}

    def overlap(self, problem: Row) -> str | None:
        """What this problem shares with a held-out one, if anything."""
        if problem["problem_id"] in self.problem_ids:
            return f"the same problem as {self.problem_ids[problem['problem_id']]}"
        for picture in row_images(problem):
            if (key := bytes_digest(picture)) in self.pictures:
                return f"the same picture as {self.pictures[key]}"
        return None


class Intake:
    """Every input row and its fate."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.num_rows = 0
        self._kept: dict[int, Row] = {}  # place in the input -> problem
        self._dropped: dict[int, Row] = {}  # place in the input -> row of QUARANTINE
        self._where: list[tuple[str, int]] = []  # file, row
        self._first: dict[str, str] = {}  # problem id -> where it was first seen

    def read(self, path: Path, max_image_pixels: int) -> None:
        """Take in one file: sets aside what cannot be used, duplicates by id or content, and test problems."""
        name = path.name if path.is_absolute() else path.as_posix()
        ids: dict[str, int] = {}
        for row, problem in load_problems(path, max_image_pixels=max_image_pixels):
            place = self.num_rows
            self.num_rows += 1
            self._where.append((name, row))
            if self.num_rows % _SAY_EVERY == 0:
                say("curate", f"{name}: {row + 1:,} rows read")
            if isinstance(problem, Quarantined):
                self._drop(place, problem.source_id, problem.reason, problem.detail)
                continue
            source_id, key = problem["source_id"], problem["problem_id"]
            if (overlap := self.held.overlap(problem)) is not None:
                self._drop(place, source_id, "holdout_overlap", overlap)
            elif key in self._first:
                self._drop(place, source_id, "exact_duplicate", f"the same problem as {self._first[key]}")
            elif source_id in ids:
                self._drop(place, source_id, "duplicate_id", f"row {ids[source_id]} has the same id and another content")
            else:
                self._kept[place] = problem
                self._first[key] = f"{source_id} (row {row} of {name})"
            ids.setdefault(source_id, row)

    def drop_near(self, settings: Curate, *, unit: str = "problem") -> None:
        """Set aside near duplicates of earlier rows and of held-out problems.

        Args:
            unit: `picture`: whatever is asked of a picture that looks like a held-out one goes, and another question about
                a seed's picture is another problem, however alike the two questions are.
        """
        places = list(self._kept)
        rows = [*self.held.problems, *self._kept.values()]
        progress = Progress("curate", len(rows), unit="pictures hashed")
        looks = []
        for row in rows:
            looks.append(tuple(difference_hash(picture) for picture in row_images(row)))
            progress.advance(1)
        num_fixed = len(self.held.problems)
        leaked: set[int] = set()
        if unit == "picture":
            shown = [i for i, look in enumerate(looks) if look]
            num_shown_fixed = sum(i < num_fixed for i in shown)
            held = near_matches(
                [""] * len(shown),
                [looks[i] for i in shown],
                num_fixed=num_shown_fixed,
                min_similarity=1.0,
                max_image_bits=settings.near_duplicate_image_bits,
                confirm=lambda a, b: b < num_shown_fixed and _look_the_same(rows[shown[a]], rows[shown[b]]),
            )
            for index, (other, _, bits) in held.items():
                row, like = rows[shown[index]], rows[shown[other]]
                detail = f"its picture is {bits} bits from that of {like['source_id']}"
                self._drop(places[shown[index] - num_fixed], row["source_id"], "holdout_overlap", detail)
            leaked = {shown[index] for index in held}
        left = [i for i in range(len(rows)) if i not in leaked]
        words = [question_words(row["question"]) if unit == "picture" else [] for row in rows]
        matches = near_matches(
            [rows[i]["question"] for i in left],
            [looks[i] for i in left],
            num_fixed=num_fixed,
            min_similarity=settings.near_duplicate_similarity,
            max_image_bits=settings.near_duplicate_image_bits,
            confirm=lambda a, b: words[left[a]] == words[left[b]] and _look_the_same(rows[left[a]], rows[left[b]]),
        )
        for index, (other, similarity, bits) in matches.items():
            row, like = rows[left[index]], rows[left[other]]
            reason = "holdout_overlap" if other < num_fixed else "near_duplicate"
            detail = f"question {similarity:.2f} like {like['source_id']}, pictures {bits} bits apart"
            self._drop(places[left[index] - num_fixed], row["source_id"], reason, detail)

    def drop_by_success(self, rates: Sequence[float | None], lowest: float, highest: float) -> None:
        """Set aside what the policy solves less often than `lowest` or more often than `highest`."""
        for (place, problem), rate in zip(list(self._kept.items()), rates, strict=True):
            if rate is not None and not lowest <= rate <= highest:
                reason = "too_hard" if rate < lowest else "too_easy"
                self._drop(place, problem["source_id"], reason, f"the policy solves {rate:.3f} of its tries")

    def seeds(self) -> list[Row]:
        """The problems that stay, in input order."""
        return list(self._kept.values())

    def quarantine(self) -> list[Row]:
        """Rows of QUARANTINE, in input order."""
        return [self._dropped[place] for place in sorted(self._dropped)]

    def _drop(self, place: int, source_id: str, reason: str, detail: str) -> None:
        self._kept.pop(place, None)
        file, row = self._where[place]
        self._dropped[place] = {"source_id": source_id, "file": file, "row": row, "reason": reason, "detail": detail}


def _look_the_same(a: Row, b: Row) -> bool:
    return all(map(is_same_scene, row_images(a), row_images(b)))


def success_rates(
    params: Params, runtime: Runtime, problems: Sequence[Row], policy: Path
) -> tuple[list[float | None], dict[str, Any]]:
    """The share of the policy's own solutions that are right, per problem (None: no verdict), and what it cost.

    Samples as `rollout` does. Unknown verdicts are in neither count.
    """
    from components.sampling import Ask, Sampler

    difficulty = params.curate.difficulty
    assert difficulty is not None
    indices = range(difficulty.num_solutions)
    asks = [Ask(row, tuple(seed_for(params.seed, row["problem_id"], "difficulty", i) for i in indices)) for row in problems]
    rates: list[float | None] = []
    with Sampler(params, runtime, policy, name="curate") as sampler:
        for graded in sampler.rows(asks, params.rollout.sampling):
            verdicts = [row["verdict"] for row in graded]
            num_right, num_wrong = verdicts.count("right"), verdicts.count("wrong")
            rates.append(num_right / (num_right + num_wrong) if num_right + num_wrong else None)
        cost = sampler.cost()
    return rates, cost
