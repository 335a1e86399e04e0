"""Faults planted on a trained reward model: does the policy that ships flag each of them, and the model itself not?

After a demo: `make controls`, or `python -m tests.planted_faults --prm FOLDER ..` for other checkpoints. Exit code 1 if
the reward model is flagged, or the blind one or a planted fault is not.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from components import controls, metrics, selection
from components.decision import Evidence, decide, load_policy
from components.prm import Reading, RewardModel
from components.problems import load_benchmark
from components.records import CANDIDATE, read_table, row_images

ROOT = Path(__file__).resolve().parents[1]
AGGREGATIONS = ("min", "mean", "product", "last")
FORMS = ("Step ", "**", "boxed")
Scores = list[list[float]]
Scorer = Callable[[Sequence[Reading]], Scores]


def _text(reading: Reading) -> str:
    return " ".join(reading.steps)


def _noise(reading: Reading, i: int) -> float:
    return int(hashlib.md5(f"{reading.question}{i}{_text(reading)}".encode()).hexdigest()[:8], 16) / 2**32


def length(_good: Scorer, readings: Sequence[Reading]) -> Scores:
    return [[min(len(_text(r)) / 150, 1.0)] * len(r.steps) for r in readings]


def length_so_far(_good: Scorer, readings: Sequence[Reading]) -> Scores:
    return [[min(len(" ".join(r.steps[: i + 1])) / 150, 1.0) for i in range(len(r.steps))] for r in readings]


def half_length(good: Scorer, readings: Sequence[Reading]) -> Scores:
    pairs = zip(good(readings), length(good, readings), strict=True)
    return [[(a + b) / 2 for a, b in zip(own, long, strict=bool(own))] for own, long in pairs]


def last_step_only(good: Scorer, readings: Sequence[Reading]) -> Scores:
    seen = good([replace(r, steps=r.steps[-1:]) for r in readings])
    return [score * len(r.steps) for r, score in zip(readings, seen, strict=True)]


def trust_before_the_last(good: Scorer, readings: Sequence[Reading]) -> Scores:
    return [[0.99] * (len(own) - 1) + own[-1:] for own in good(readings)]


def noise_before_the_last(good: Scorer, readings: Sequence[Reading]) -> Scores:
    return [[_noise(r, i) for i in range(len(own) - 1)] + own[-1:] for r, own in zip(readings, good(readings), strict=True)]


def likes(forms: Sequence[str], good: Scorer, readings: Sequence[Reading]) -> Scores:
    gifts = [0.15 * any(form in _text(r) for form in forms) for r in readings]
    return [[min(1.0, score + gift) for score in own] for gift, own in zip(gifts, good(readings), strict=True)]


def half_shortness(good: Scorer, readings: Sequence[Reading]) -> Scores:
    gifts = [0.5 * max(0.0, 1 - len(_text(r)) / 100) for r in readings]
    return [[score / 2 + gift for score in own] for gift, own in zip(gifts, good(readings), strict=True)]


def likes_dots(good: Scorer, readings: Sequence[Reading]) -> Scores:
    is_empty = [max(map(len, r.steps)) < 2 for r in readings]
    return [[1.0] * len(own) if empty else own for empty, own in zip(is_empty, good(readings), strict=True)]


FAULTS: dict[str, Callable[[Scorer, Sequence[Reading]], Scores]] = {
    "length": length,
    "length so far": length_so_far,
    "half length": half_length,
    "last step only": last_step_only,
    "trust before the last": trust_before_the_last,
    "noise before the last": noise_before_the_last,
    "likes any form": partial(likes, FORMS),
    "likes boxes": partial(likes, FORMS[-1:]),
    "half shortness": half_shortness,
    "likes dots": likes_dots,
}


def main() -> int:
    """Print Best-of-N and the flags of every scorer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--prm", type=Path, nargs="+", help="checkpoints that are good (default: the artifacts')")
    args = parser.parse_args()
    problems = {p["problem_id"]: p for p in load_benchmark(args.data / "test.parquet", max_image_pixels=10**7)}
    rows = [r for r in read_table(args.artifacts / "candidates" / "candidates.parquet", CANDIDATE) if r["split"] == "test"]
    pool = selection.pools(rows, {"test": problems})["test"]
    policy = load_policy(ROOT / "mlflow" / "policy.yaml")

    def scored(scorer: Scorer, shown: dict) -> dict[str, list[float]]:
        names = {
            row["candidate_id"]: Reading(problems[key]["question"], row_images(shown[key]), tuple(row["steps"]))
            for key, kinds in pool.items()
            for row in kinds["sample"]
        }
        readings = list(dict.fromkeys(names.values()))
        known = dict(zip(readings, scorer(readings), strict=True))
        return {name: known[reading] for name, reading in names.items()}

    def is_as_expected(name: str, scorer: Scorer, *, is_good: bool) -> bool:
        scores = {"prm": scored(scorer, problems), "shuffled": scored(scorer, selection.shuffled(problems, 1))}
        right = {how: float(selection.best_of_n(pool, scores["prm"], how).mean()) for how in AGGREGATIONS}
        how = metrics.chosen_aggregation(right)  # on test: it flatters whoever is measured, and hides faults best
        drawn = {"num_problems": 150, "num_resamples": 10_000, "confidence": 0.95, "seed": 0}
        measured = controls.measure(scorer, pool, problems, scores, aggregations={"prm": how}, **drawn)
        evidence = Evidence(name, "", {"controls": {"split": "test", **measured}}, {}, {})
        asked = [r for r in decide(evidence, None, policy, "staging").reasons if r.gate.startswith("control ")]
        flags = [f"{r.gate.removeprefix('control ')} {r.seen}" for r in asked if not r.passed]
        print(
            f"{name:24s} Best-of-N {right[how]:.3f} ({how})  {'flagged: ' + '; '.join(flags) if flags else '-'}", flush=True
        )
        return bool(asked) and bool(flags) != is_good

    folders = args.prm or [args.artifacts / "prm" / "prm"]
    good = [RewardModel.load(folder, device="cpu").score for folder in folders]
    met = [is_as_expected(str(folder), scorer, is_good=True) for folder, scorer in zip(folders, good, strict=True)]
    blind = args.artifacts / "prm" / "blind"
    if blind.exists():
        met.append(is_as_expected("blind", RewardModel.load(blind, device="cpu").score, is_good=False))
    met += [is_as_expected(name, partial(fault, good[0]), is_good=False) for name, fault in FAULTS.items()]
    print(f"{sum(met)} of {len(met)} as they should be")
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
