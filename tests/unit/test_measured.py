"""What the files say of each step, against looking it up row by row."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import DataError
from components.forest import Forest
from components.measured import Measured, abreast, measured_of
from components.records import PREFIX, SOLUTION, prefix_id, write_table
from components.tasks import MATHS

# Problem -> its rows in both files (0: it is not there), and after how many rows each read ends.
PROBLEMS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8)
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def rows_of(problems, which, schema):
    rows = [
        {"problem_id": f"p{i}", schema.names[0] if which == 0 else "prefix_id": f"{i}.{j}"}
        for i, nums in enumerate(problems)
        for j in range(nums[which])
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def in_reads(table, cuts):
    """The table as it comes from the file: a few rows at once, of changing number."""
    start = number = 0
    while start < table.num_rows:
        yield table.slice(start, cuts[number % len(cuts)])
        start += cuts[number % len(cuts)]
        number += 1


@given(PROBLEMS, CUTS, CUTS)
def test_solutions_come_once_in_order_in_whole_problems_with_the_prefixes_of_these(problems, cuts, other_cuts):
    solutions, prefixes = rows_of(problems, 0, SOLUTION), rows_of(problems, 1, PREFIX)
    pieces = list(abreast(in_reads(solutions, cuts), in_reads(prefixes, other_cuts)))
    assert [name for some, _ in pieces for name in some.column("solution_id").to_pylist()] == (
        solutions.column("solution_id").to_pylist()
    )
    names = [set(some.column("problem_id").to_pylist()) for some, _ in pieces]
    assert sum(map(len, names)) == len(set().union(*names))  # no problem is in two pieces
    for (_, of_them), problems_here in zip(pieces, names, strict=True):
        wanted = [row["prefix_id"] for row in prefixes.to_pylist() if row["problem_id"] in problems_here]
        assert of_them.column("prefix_id").to_pylist() == wanted


def test_a_piece_is_about_as_large_as_a_read():
    problems = [(3, 1)] * 100
    solutions, prefixes = rows_of(problems, 0, SOLUTION), rows_of(problems, 1, PREFIX)
    sizes = [some.num_rows for some, _ in abreast(in_reads(solutions, [10]), in_reads(prefixes, [10]))]
    assert sum(sizes) == 300
    assert max(sizes) <= 12


def solution(name, problem, steps, verdict="right", finish_reason="stop"):
    return {"solution_id": name, "problem_id": problem, "steps": steps, "verdict": verdict, "finish_reason": finish_reason}


def prefix(problem, *units, right=0, total=0, reused=(None, None), masses=None):
    row = {"problem_id": problem, "prefix_id": prefix_id(problem, units), "num_right": right, "num_verdicts": total}
    row |= {"num_unknown": 0, "num_reused": reused[0], "num_reused_right": reused[1], "right_masses": masses}
    return row | {"stopping_rule": "adaptive"}


SOLUTIONS = [
    solution("cut off", "p", ["A", "B"], "unknown", "length"),
    solution("no steps", "q", []),
    solution("short", "r", ["A"], "wrong"),
    solution("long", "r", ["A", "B", "C"], "right"),
    solution("open", "r", ["A\n\nB", "D"], "unknown"),
]
PREFIXES = [
    prefix("r", right=5, total=6),
    prefix("r", "A", right=2, total=3, reused=(1, None)),
    prefix("r", "A", "B", right=4, total=4, reused=(3, 2), masses=[0.5]),
]


def made(prefixes=PREFIXES):
    tables = (pa.Table.from_pylist(rows, schema=schema) for rows, schema in ((SOLUTIONS, SOLUTION), (prefixes, PREFIX)))
    return Measured(MATHS, *tables)


def test_steps_of_usable_solutions_have_their_places_and_the_counts_of_their_prefixes():
    some = made()
    assert (some.num_solutions, some.num_unusable, some.num_all_steps, some.num_problems) == (5, 2, 8, 3)
    assert some.solutions.column("solution_id").to_pylist() == ["short", "long", "open"]
    assert some.solution.tolist() == [0, 1, 1, 1, 2, 2]
    assert some.problem.tolist() == [2] * 6
    assert some.step.tolist() == [0, 0, 1, 2, 0, 1]
    assert some.num_steps.tolist() == [1, 3, 3, 3, 2, 2]
    assert some.is_final.tolist() == [True, False, False, True, False, True]
    assert some.prefix_ids == [prefix_id("r", units) for units in ("A", "A", "AB", "ABC", "AB", "ABD")]
    assert {name: column.tolist() for name, column in some.counts.items()} == {
        "num_right": [0, 2, 4, 1, 4, 0],
        "num_verdicts": [1, 3, 4, 1, 4, 0],
        "num_unknown": [0, 0, 0, 0, 0, 1],
        "num_reused": [0, 1, 3, 0, 3, 0],
        "stopping_rule": ["final", "adaptive", "adaptive", "final", "adaptive", "final"],
    }


def test_nodes_have_the_counts_of_their_prefixes_and_roots_none():
    some = made()
    paths = [([], "wrong"), ([prefix_id("r", "A"), prefix_id("r", "AB")], "right"), ([prefix_id("r", "AB")], "unknown")]
    wanted = Forest.build([[], [], paths])
    assert some.forest.keys == wanted.keys
    assert some.forest.path.tolist() == wanted.path.tolist()
    assert [column.tolist() for column in some.node_counts()] == [[0, 0, 0, 2, 4], [0, 0, 0, 3, 4]]
    # Of A it is not known how many of the reused ones were right: at most all that is left.
    assert [column.tolist() for column in some.node_counts(own=True)] == [[0, 0, 0, 2, 1], [0, 0, 0, 2, 1]]
    assert {node: t.right for node, t in some.texts().items()} == {4: [0.5]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_right": -1},
        {"num_right": 5},
        {"num_right": None, "num_reused_right": 2},
        {"num_reused": 5},
        {"num_reused_right": 4},
        {"right_masses": [1.5]},
        {"right_masses": [float("nan")]},
        {"wrong_masses": [0.5, None]},
    ],
)
def test_counts_and_probabilities_that_cannot_be_are_refused(wrong):
    with pytest.raises(DataError, match=f"prefix {prefix_id('r', 'AB')} has counts that cannot be"):
        made([*PREFIXES[:2], PREFIXES[2] | wrong])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"verdict": None}, "neither right, wrong nor unknown"),
        ({"verdict": "correct"}, "neither right, wrong nor unknown"),
        ({"steps": ["A", None]}, "a null among its steps"),
    ],
)
def test_a_solution_whose_verdict_or_step_is_none_is_refused_and_not_taken_for_wrong(wrong, match):
    rows = [SOLUTIONS[2], SOLUTIONS[3] | wrong]
    with pytest.raises(DataError, match=f"solution long has .*{match}"):
        Measured(MATHS, pa.Table.from_pylist(rows, schema=SOLUTION), pa.Table.from_pylist(PREFIXES, schema=PREFIX))


def test_a_prefix_that_a_solution_has_and_the_file_has_not_is_refused():
    with pytest.raises(DataError, match=f"no prefix {prefix_id('r', 'AB')}, which a solution has"):
        _ = made(PREFIXES[:2]).counts


def test_the_first_problems_by_name_are_read_whatever_their_order(tmp_path):
    for order in (1, -1):
        write_table(tmp_path / "solutions.parquet", SOLUTIONS[::order], SOLUTION)
        write_table(tmp_path / "prefixes.parquet", PREFIXES, PREFIX)
        some = measured_of(tmp_path, MATHS, num_problems=2)
        assert (some.num_solutions, some.num_unusable, some.prefixes.num_rows) == (2, 2, 0)
        assert sorted(measured_of(tmp_path, MATHS, num_problems=3).prefix_ids) == sorted(made().prefix_ids)
    write_table(tmp_path / "prefixes.parquet", [], PREFIX)
    assert measured_of(tmp_path, MATHS, num_problems=3).node_counts()[1].tolist() == [0] * 5
    write_table(tmp_path / "solutions.parquet", [], SOLUTION)
    with pytest.raises(DataError, match="no rows"):
        measured_of(tmp_path, MATHS, num_problems=2)
