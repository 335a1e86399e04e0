"""What `label` needs for millions of step labels: seconds and memory. Run it with `make label-scale`.

Writes solutions and prefixes with synthetic counts (half a million solutions of six steps by default), then runs the
stage as a user would, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from components.records import PREFIX, PROBLEM, SOLUTION, TableWriter, digest, prefix_id

STEPS, SOLUTIONS_PER_PROBLEM, PROBLEMS_AT_ONCE = 6, 4, 2048
DIGESTS = {"policy_digest": "policy", "verifier_digest": "verifier"}


def write_rollouts(folder: Path, num_labels: int) -> None:
    """Solutions whose steps' values walk, and two to six verdicts at some prefixes."""
    rng = np.random.default_rng(0)
    num_problems = num_labels // STEPS // SOLUTIONS_PER_PROBLEM
    with (
        TableWriter(folder / "seeds.parquet", PROBLEM) as seeds,
        TableWriter(folder / "solutions.parquet", SOLUTION) as solutions,
        TableWriter(folder / "prefixes.parquet", PREFIX) as prefixes,
    ):
        for start in range(0, num_problems, PROBLEMS_AT_ONCE):
            solution_rows, prefix_rows = [], []
            seeds.write(
                [{"problem_id": digest("problem", i)} for i in range(start, min(start + PROBLEMS_AT_ONCE, num_problems))]
            )
            for number in range(start, min(start + PROBLEMS_AT_ONCE, num_problems)):
                problem, root = digest("problem", number), rng.beta(0.8, 0.8)
                row = {"problem_id": problem, "prefix_id": prefix_id(problem, ()), "num_units": 0, "num_right": 0}
                row |= {"num_verdicts": 0, "num_unknown": 0, "num_reused": 0, "stopping_rule": "adaptive"}
                prefix_rows.append(row | DIGESTS)
                for index in range(SOLUTIONS_PER_PROBLEM):
                    steps = [f"solution {index} of {number} says in step {step}: 3 + 4 = 7" for step in range(STEPS)]
                    value = root
                    for cut in range(1, STEPS):
                        value = value if rng.random() < 0.7 else float(rng.beta(3 * value + 1e-3, 3 * (1 - value) + 1e-3))
                        n = int(rng.choice([0, 2, 4, 6], p=[0.4, 0.3, 0.2, 0.1]))
                        row = {"problem_id": problem, "prefix_id": prefix_id(problem, steps[:cut]), "num_units": cut}
                        row |= {
                            "num_right": int(rng.binomial(n, value)),
                            "num_verdicts": n,
                            "num_unknown": 0,
                            "num_reused": 0,
                        }
                        prefix_rows.append(row | {"stopping_rule": "adaptive"} | DIGESTS)
                    row = {
                        "solution_id": digest("solution", number, index),
                        "problem_id": problem,
                        "index": index,
                        "seed": 1,
                    }
                    row |= {"steps": steps, "text": "\n\n".join(steps), "answer": "7", "rule": "integer", "num_tokens": 60}
                    row |= {
                        "verdict": "right" if rng.random() < value else "wrong",
                        "finish_reason": "stop",
                        "logprob": -1.0,
                    }
                    solution_rows.append(row | DIGESTS)
            solutions.write(solution_rows)
            prefixes.write(prefix_rows)


def main() -> None:
    """Print how long it took and what it held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, default=3_000_000)
    parser.add_argument("--folder", type=Path, help="keep the synthetic rollouts here, and use them if they are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "rollouts"
        if not (folder / "solutions.parquet").exists():
            started = time.time()
            write_rollouts(folder, args.labels)
            print(f"synthetic rollouts written in {time.time() - started:.0f} s", flush=True)
        command = [sys.executable, "-m", "components", "label", "--seeds", str(folder), "--rollouts", str(folder)]
        command += ["--out", f"{scratch}/labels"]
        environment = {**os.environ, "STEPFORGE_HOME": f"{scratch}/home"}
        started = time.time()
        subprocess.run(command, check=True, env=environment)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        took = f"{time.time() - started:.0f} s wall, {cpu:.0f} s CPU, peak {used.ru_maxrss / 2**20:.2f} GiB"
        print(f"label: {args.labels:,} steps, {took}")


if __name__ == "__main__":
    main()
