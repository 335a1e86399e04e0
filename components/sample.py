"""Stage `sample`: benchmarks -> frozen candidate pools, a greedy answer beside N sampled ones.

Owns the pools and their digests. A pool depends on the policy, not on any reward model: a new PRM is
evaluated on it by scoring alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.candidates import FILE, PoolWriter
from components.lineage import SUMMARY
from components.records import CANDIDATE, digest, read_arrow, seed_for, write_json
from components.sampling import BLOCK, Ask, Sampler
from components.settings import Params, Runtime, Sampling

MAX_STEPS = 64  # candidates keep their own steps; only a runaway text is grouped
ROWS_AT_ONCE = 65_536  # completions that are held in memory


def run(params: Params, runtime: Runtime, *, split: dict[str, Path], policy: Path, out: Path) -> dict[str, Any]:
    """Write candidates.parquet into `out`; returns tokens sampled and reused.

    Raises:
        DataError: a benchmark file is wrong, or a gate found the pools wrong.
        EngineError: the policy cannot be loaded or asked.
    """
    from components import quality
    from components.problems import load_benchmark

    settings = params.sample
    greedy = Sampling(temperature=0.0, top_k=0, max_tokens=settings.sampling.max_tokens)
    with Sampler(params, runtime, policy, name="sample", continues=False) as sampler, PoolWriter(out, split) as pools:
        size = BLOCK if sampler.engine.seeding == "request" else settings.num_candidates
        for name, path in split.items():
            problems = load_benchmark(path, max_image_pixels=params.curate.max_image_pixels)
            for decoding, sampling, num in (("greedy", greedy, 1), ("sample", settings.sampling, settings.num_candidates)):
                made_by = (sampler.policy_digest, sampler.task.digest, sampling.model_dump(mode="json"))
                at_once = max(1, ROWS_AT_ONCE // num)
                for start in range(0, len(problems), at_once):
                    some = problems[start : start + at_once]
                    asks = [
                        Ask(
                            p,
                            tuple(seed_for(params.seed, p["problem_id"], decoding, i) for i in range(a, min(a + size, num))),
                        )
                        for p in some
                        for a in range(0, num, size)
                    ]
                    rows = {p["problem_id"]: list[dict[str, Any]]() for p in some}
                    for ask, graded in zip(asks, sampler.rows(asks, sampling), strict=True):
                        rows[ask.problem["problem_id"]] += graded
                    pools.write(
                        [
                            {
                                "candidate_id": digest("candidate", name, problem, *made_by, row["seed"]),
                                "split": name,
                                "problem_id": problem,
                                "decoding": decoding,
                                "index": i,
                                "steps": sampler.task.steps(row["text"], max_steps=MAX_STEPS),
                                **row,
                            }
                            for problem, graded in rows.items()
                            for i, row in enumerate(graded)
                        ]
                    )
        cost = sampler.cost()
    written = read_arrow(out / FILE, CANDIDATE, [n for n in CANDIDATE.names if n not in ("text", "steps")])
    quality.enforce(quality.check_candidates(written, settings.num_candidates), out)
    summary = {"pools": pools.pools(), "candidates": pools.num_rows, "tokens": pools.num_tokens}
    write_json(out / SUMMARY, summary)
    return cost
