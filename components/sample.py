"""Stage `sample`: benchmarks -> frozen candidate pools, a greedy answer beside N sampled ones.

Owns the pools and their digests. A pool depends on the policy, not on any reward model: a new PRM is
evaluated on it by scoring alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.lineage import SUMMARY
from components.records import CANDIDATE, digest, seed_for, write_json, write_table
from components.sampling import Ask, Sampler
from components.settings import Params, Runtime, Sampling

MAX_STEPS = 64  # candidates keep their own steps; only a runaway text is grouped


def run(params: Params, runtime: Runtime, *, split: dict[str, Path], policy: Path, out: Path) -> dict[str, Any]:
    """Write candidates.parquet into `out`; returns tokens sampled and reused.

    Raises:
        DataError: a benchmark file is wrong, or a gate found the pools wrong.
        EngineError: the policy cannot be loaded or asked.
    """
    import pyarrow as pa

    from components import quality
    from components.problems import load_benchmark

    settings = params.sample
    greedy = Sampling(temperature=0.0, top_k=0, max_tokens=settings.sampling.max_tokens)
    rows: list[dict[str, Any]] = []
    with Sampler(params, runtime, policy, name="sample") as sampler:
        for name, path in split.items():
            problems = load_benchmark(path, max_image_pixels=params.curate.max_image_pixels)
            for decoding, sampling, num in (("greedy", greedy, 1), ("sample", settings.sampling, settings.num_candidates)):
                made_by = (sampler.policy_digest, sampler.task.digest, sampling.model_dump(mode="json"))
                asks = [
                    Ask(p, tuple(seed_for(params.seed, p["problem_id"], decoding, i) for i in range(num))) for p in problems
                ]
                for problem, graded in zip(problems, sampler.rows(asks, sampling), strict=True):
                    rows += [
                        {
                            "candidate_id": digest("candidate", name, problem["problem_id"], *made_by, row["seed"]),
                            "split": name,
                            "problem_id": problem["problem_id"],
                            "decoding": decoding,
                            "index": i,
                            "steps": sampler.task.steps(row["text"], max_steps=MAX_STEPS),
                            **row,
                        }
                        for i, row in enumerate(graded)
                    ]
        cost = sampler.cost()
    write_table(out / "candidates.parquet", rows, CANDIDATE)
    quality.enforce(quality.check_candidates(pa.Table.from_pylist(rows, schema=CANDIDATE), settings.num_candidates), out)
    pools = {
        name: digest("pool", [[r["candidate_id"], r["steps"], r["verdict"]] for r in rows if r["split"] == name])
        for name in split
    }
    write_json(out / SUMMARY, {"pools": pools, "candidates": len(rows), "tokens": sum(row["num_tokens"] for row in rows)})
    return cost
