"""Published numbers: each names a measure that we compute, and the papers' own means come out of them."""

import pytest

from components.benchmarks import BENCHMARKS, SUITES
from components.published import MM_PRM, PUBLISHED, VISUALPRM, published, published_lines
from components.step_benchmarks import STEP_BENCHMARKS


def test_every_published_number_is_comparable_with_one_of_ours():
    for row in PUBLISHED:
        assert 0 < row.value < 1
        if row.benchmark in STEP_BENCHMARKS:
            assert row.measure == STEP_BENCHMARKS[row.benchmark].metric
        elif row.source == VISUALPRM:
            assert row.measure == BENCHMARKS[row.benchmark].overall
            assert row.benchmark in SUITES["visualprm"]
        else:
            assert row.measure == "accuracy"
            assert row.source == MM_PRM
            assert row.benchmark in SUITES["mm-prm"]
    assert len({(row.benchmark, row.model, row.selector, row.source) for row in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("model", "greedy", "best"),
    [("MiniCPM-V2.6-8B", 29.5, 37.5), ("Qwen2.5-VL-7B", 41.4, 45.1), ("InternVL2.5-8B", 32.8, 41.2)],
)
def test_their_means_are_those_that_the_paper_prints(model, greedy, best):
    for selector, mean in (("greedy", greedy), ("best of 8", best)):
        values = [row.value for row in PUBLISHED if (row.source, row.model, row.selector) == (VISUALPRM, model, selector)]
        assert len(values) == 7
        assert 100 * sum(values) / 7 == pytest.approx(mean, abs=0.06)


def test_lines_are_marked_and_name_their_source():
    lines = published_lines("mathvision")
    assert "published  InternVL2.5-8B    accuracy: greedy 0.170, best of 8 0.257  (VisualPRM, arXiv 2503.10291)" in lines
    assert "published  InternVL2.5-8B    accuracy: random 0.100, best of 16 0.194  (MM-PRM, arXiv 2505.13427)" in lines
    assert all(line.startswith("published  ") for line in lines)
    assert len(published_lines("visualprocessbench")) == 8
    assert published("gsm8k") == ()
    assert published_lines("gsm8k") == []
