"""What a roll-out says it cost is what it sampled, whichever search asked; and nothing is rolled out for nothing."""

import pytest

from components import rollout
from components.errors import DataError
from components.records import PROBLEM, read_json, tree_sha256, write_json, write_table
from components.settings import load_params, load_runtime

QUESTION = "2 + 1 ?"
TEXTS = [f"{first}\n\n{second}\n\n\\boxed{{{answer}}}" for first in "ab" for second in "cd" for answer in (3, 4)]


@pytest.fixture
def rolled_out(tmp_path):
    """A search -> (what the stage says it cost, its summary), with an engine that plays back texts."""
    write_json(tmp_path / "policy" / "script.json", {QUESTION: TEXTS})
    digest = tree_sha256(tmp_path / "policy")[:32]
    write_json(tmp_path / "policy" / "policy.json", {"path_or_id": None, "revision": None, "digest": digest})

    def run(search, num_problems=3):
        problem = {
            "source": "made",
            "question": QUESTION,
            "images": [],
            "answer": "3",
            "answer_type": "integer",
            "options": None,
        }
        problems = [problem | {"problem_id": f"{i:032x}", "source_id": str(i)} for i in range(num_problems)]
        write_table(tmp_path / "seeds" / "seeds.parquet", problems, PROBLEM)
        params = load_params()
        content = params.model_dump()
        content["rollout"]["search"] = search
        params = type(params).model_validate(content)
        runtime = load_runtime({"STEPFORGE_HOME": str(tmp_path / "home"), "STEPFORGE_ENGINE": "scripted"})
        out = tmp_path / search["type"]
        out.mkdir()
        cost = rollout.run(params, runtime, seeds=tmp_path / "seeds", policy=tmp_path / "policy", out=out)
        return sum(cost.values()), read_json(out / "summary.json")

    return run


@pytest.mark.parametrize(
    "search",
    [
        {"type": "monte_carlo", "num_continuations": 4},
        {"type": "joint", "price": 0.003},
        {"type": "first_errors", "num_continuations": 4},
        {"type": "omegaprm", "num_root": 8, "num_probe": 4, "max_searches": 5},
    ],
    ids=lambda search: search["type"],
)
def test_the_tokens_in_the_summary_are_those_that_were_sampled(rolled_out, search):
    cost, summary = rolled_out(search)
    assert summary["solutions"] > 0
    assert summary["continuations"] > 0
    assert summary["tokens"] == cost


def test_no_seeds_are_an_error(rolled_out):
    with pytest.raises(DataError, match="no rows"):
        rolled_out({"type": "monte_carlo"}, num_problems=0)
