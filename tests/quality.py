"""The demo's quality over several seeds: another world, policy and reward model each, pooled over their test problems.

Runs the commands of dvc.yaml as they stand, in a folder of their own for each seed; resumes where it was stopped.
Exit code 1 if a bar of docs/log.md is missed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from components.records import digest, tree_sha256

ROOT = Path(__file__).resolve().parent.parent
NUM_RESAMPLES = 10_000


def run_seed(seed: int, folder: Path) -> None:
    """All stages for one seed, in `folder`; a stage whose output is there is not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["seed"] = seed
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    if not (folder / "data").exists():
        subprocess.run(
            [sys.executable, "-m", "components", "world", "--out", "data", "--seed", str(seed)], cwd=folder, check=True
        )
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        if not (folder / stage["outs"][0]).exists():
            print(f"seed {seed}: {name}", flush=True)
            subprocess.run([sys.executable, *shlex.split(stage["cmd"])[1:]], cwd=folder, check=True)


def values(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Selector -> value of every problem of a split, in one order for all selectors."""
    rows = pq.read_table(folder / "artifacts/evaluation/selections.parquet").to_pylist()
    out: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["split"] == split:
            out.setdefault(row["selector"], {})[row["problem_id"]] = row["value"]
    keys = sorted(out["prm"])
    return {name: np.array([known[key] for key in keys]) for name, known in out.items() if set(known) >= set(keys)}


def interval(differences: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean over seeds with a bootstrap over the problems within each seed."""
    rng = np.random.default_rng(0)
    resampled = np.mean([d[rng.integers(0, len(d), (NUM_RESAMPLES, len(d)))].mean(1) for d in differences], axis=0)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.mean([d.mean() for d in differences])), float(low), float(high)


def report(folders: dict[int, Path]) -> bool:
    """Print every figure; True if all bars are met."""
    met = True

    def bar(name: str, passed: bool, seen: str) -> None:
        nonlocal met
        met = met and passed
        print(f"  {'met   ' if passed else 'MISSED'}  {name}: {seen}")

    for split in ("test", "ood"):
        of_seed = {seed: values(folder, split) for seed, folder in folders.items()}
        size = [len(next(iter(v.values()))) for v in of_seed.values()]
        print(f"\n{split}: {len(of_seed)} seeds, {size} problems")
        for name in (
            "random",
            "greedy",
            "majority",
            "likelihood",
            "prm",
            "prm_vote",
            "blind",
            "blind_vote",
            "shuffled",
            "oracle",
        ):
            means = [v[name].mean() for v in of_seed.values()]
            print(f"  {name:12s} " + "  ".join(f"{m:.3f}" for m in means) + f"   mean {np.mean(means):.3f}")

        def pooled(a: str, b: str, of_seed: dict[int, Any] = of_seed) -> tuple[float, float, float]:
            return interval([v[a] - v[b] for v in of_seed.values()])

        def shown(i: tuple[float, float, float]) -> str:
            return f"{i[0]:+.3f} [{i[1]:+.3f}, {i[2]:+.3f}]"

        if split == "ood":
            gain = pooled("prm", "random")
            bar("out of domain: prm - random above 0", gain[1] > 0, shown(gain))
            continue
        gain = pooled("prm", "random")
        bar("prm - random >= .20", gain[0] >= 0.20, shown(gain))
        for other in ("majority", "greedy", "likelihood"):
            gain = pooled("prm", other)
            bar(f"prm - {other} above 0", gain[1] > 0, shown(gain))
        closed = [(v["prm_vote"] - v["random"]).mean() / (v["oracle"] - v["random"]).mean() for v in of_seed.values()]
        bar("prm_vote closes >= 65 % of random -> oracle", np.mean(closed) >= 0.65, ", ".join(f"{c:.3f}" for c in closed))
        looks = pooled("prm", "blind")
        bar("prm - blind >= .12", looks[0] >= 0.12, shown(looks))
        each = [interval([v["prm"] - v["blind"]]) for v in of_seed.values()]
        bar("prm - blind above 0 in every seed", all(i[1] > 0 for i in each), "; ".join(shown(i) for i in each))
        swapped = pooled("shuffled", "random")
        bar("shuffled - random: interval holds 0", swapped[1] <= 0 <= swapped[2], shown(swapped))
    for seed, folder in folders.items():
        m = json.loads((folder / "artifacts/evaluation/metrics.json").read_text())
        steps = {where: {k: v for k, v in m["steps"][where]["prm"].items() if k != "trivial"} for where in m["steps"]}
        print(f"\nseed {seed}: aggregation {m['aggregation']}, threshold {m['threshold']}, ece {m['calibration']['ece']}")
        print(f"  steps {json.dumps(steps)}")
    return met


def main() -> int:
    """Run the seeds that are missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / ".stepforge" / "quality")
    args = parser.parse_args()
    made_by = digest((ROOT / "params.yaml").read_text(), (ROOT / "dvc.yaml").read_text(), tree_sha256(ROOT / "components"))
    folders = {seed: args.folder.absolute() / made_by[:8] / f"seed-{seed}" for seed in args.seeds}
    for seed, folder in folders.items():
        run_seed(seed, folder)
    return 0 if report(folders) else 1


if __name__ == "__main__":
    raise SystemExit(main())
