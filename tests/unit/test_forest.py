"""Trees of prefixes against small ones made by hand."""

import numpy as np

from components.forest import Forest


def edges(forest, problem=0):
    """{name: name of the prefix before it}; the problem itself is None."""
    return {
        key: forest.keys[forest.parent[node]]
        for node, key in enumerate(forest.keys)
        if forest.parent[node] >= 0 and forest.problem[node] == problem
    }


def test_equal_prefixes_are_one_node_and_equal_names_of_two_problems_are_two():
    forest = Forest.build([[(["a", "ab"], "right"), (["a", "ac"], "wrong")], [(["a"], "right")]])
    assert edges(forest) == {"a": None, "ab": "a", "ac": "a"}
    assert edges(forest, 1) == {"a": None}
    assert forest.num_problems == 2
    assert forest.num_nodes == 6
    counted = dict(zip([(p, k) for p, k in zip(forest.problem, forest.keys, strict=True)], forest.multiplicity, strict=True))
    assert counted == {(0, None): 2, (1, None): 1, (0, "a"): 2, (0, "ab"): 1, (0, "ac"): 1, (1, "a"): 1}


def test_nodes_are_sorted_by_depth_and_siblings_lie_together():
    forest = Forest.build([[(["a", "ab"], "right"), (["c", "cd"], "wrong"), (["a", "ae"], "wrong")]])
    assert (np.diff(forest.depth) >= 0).all()
    for level in forest.levels[1:]:
        parents, starts = forest.families(level)
        assert len(set(parents)) == len(parents)
        assert starts[0] == 0


def test_each_solution_finds_its_nodes():
    solutions = [(["a", "ab"], "right"), ([], "wrong"), (["a"], "unknown")]
    forest = Forest.build([solutions])
    for i, (path, _) in enumerate(solutions):
        assert [forest.keys[n] for n in forest.path[forest.offset[i] : forest.offset[i + 1]]] == path


def test_a_verdict_is_evidence_at_the_last_unfinished_prefix_once():
    forest = Forest.build([[(["a"], "right"), (["a"], "wrong"), (["a"], "unknown"), ([], "right")]])
    root, node = forest.keys.index(None), forest.keys.index("a")
    assert (forest.num_right_ends[node], forest.num_ends[node]) == (1, 2)
    assert (forest.num_right_ends[root], forest.num_ends[root]) == (1, 1)


def test_a_prefix_follows_the_longest_known_one_however_the_solutions_were_cut():
    one, other = (["a", "abc", "abcd"], "right"), (["ab", "abc", "abcd"], "wrong")
    both = {"a": None, "ab": "a", "abc": "ab", "abcd": "abc"}
    longer = (["a", "ab", "abc"], "right")
    assert edges(Forest.build([[one, other, longer]])) == both
    assert edges(Forest.build([[longer, other, one]])) == both
    assert Forest.build([[one, other]]).num_nodes == 5


def test_no_problem_at_all_is_an_empty_forest():
    forest = Forest.build([])
    assert forest.num_nodes == forest.num_problems == 0
