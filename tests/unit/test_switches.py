"""Which labels are kept and what they weigh, from tables alone; whole runs through the switches are in test_label.py."""

import itertools
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.records import LABEL, digest
from components.settings import Balance, Label
from components.switches import Switches, bis, first_errors


def labels(*solutions):
    """A table with a solution for each list of labels."""
    rows = [
        {
            "label_id": digest(name, step),
            "problem_id": f"p{name}",
            "solution_id": f"s{name}",
            "prefix_id": digest("prefix", name, step),
            "step": step,
        }
        | {"label": value, "mean": value, "sd": 0.1, "num_verdicts": 4, "stopping_rule": "fixed"}
        for name, values in enumerate(solutions)
        for step, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=LABEL)


def kept(switches, tables, tmp_path):
    return [
        row
        for table in switches.kept(tables, needs_verdicts=True, scratch=tmp_path / "scratch")
        for row in table.to_pylist()
    ]


def test_without_switches_all_labels_stay_with_weight_one_and_nothing_is_written(tmp_path):
    table = labels([1.0, 0.0], [0.2])
    switches = Switches(Label(min_verdicts=0))
    rows = kept(switches, [table], tmp_path / "absent")
    assert [(row["label_id"], row["weight"]) for row in rows] == [
        (name, 1.0) for name in table.column("label_id").to_pylist()
    ]
    assert switches.counts == {"known_value": {"before": 3, "after": 3}}
    assert not (tmp_path / "absent").exists()


def test_labels_that_were_kept_aside_come_back_in_whole_solutions(tmp_path, monkeypatch):
    monkeypatch.setattr("components.switches.ROWS_AT_ONCE", 2)
    switches = Switches(Label(balance=Balance(equal_classes=True)))
    tables = switches.kept([labels(*[[1.0, 1.0, 0.0]] * 5)], needs_verdicts=True, scratch=tmp_path / "scratch")
    names = [set(table.column("solution_id").to_pylist()) for table in tables]
    assert len(names) > 1
    assert sum(map(len, names)) == len(set().union(*names)) == 5


def test_the_pieces_that_labels_come_in_decide_nothing(tmp_path):
    solutions = [[1.0, 1.0, 0.0][: 1 + i % 3] for i in range(30)]
    table = labels(*solutions)
    ends = [0, *(sum(map(len, solutions[:cut])) for cut in (1, 7, 30))]
    settings = Label(best_frac=0.5, balance=Balance(max_positives_per_negative=0.8, equal_classes=True))
    whole, cut = Switches(settings), Switches(settings)
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(ends)]
    assert kept(cut, pieces, tmp_path) == kept(whole, [table], tmp_path)
    assert cut.counts == whole.counts
    assert not (tmp_path / "scratch").exists()


def test_labels_kept_aside_are_removed_when_labelling_fails(tmp_path):
    def broken():
        yield labels([1.0])
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        kept(Switches(Label(best_frac=0.5)), broken(), tmp_path)
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0]])
def test_a_single_class_is_not_balanced_which_is_said(tmp_path, values):
    switches = Switches(Label(balance=Balance(equal_classes=True)))
    assert {row["weight"] for row in kept(switches, [labels(values)], tmp_path)} == {1.0}
    num = len(values)
    assert switches.counts["equal_classes"] == {"before": num, "after": num, "weighted": 0}


def test_the_first_error_is_found_also_where_a_solution_goes_on_in_the_next_table():
    table = labels([1.0, 1.0, 0.5, 0.0], [0.9], [0.0])
    assert first_errors([table.slice(0, 1), table.slice(1, 2), table.slice(3)], 0.5) == {"s0": 2, "s1": -1, "s2": 0}
    assert first_errors([labels([1.0, 0.0, -1.0])], -0.5) == {"s0": 2}  # advantages: no change is no harm


@given(st.lists(st.sampled_from([0.0, 0.25, 0.75, 1.0]), min_size=1, max_size=6))
def test_what_a_solution_is_worth_is_the_formula_of_the_paper(values):
    right = [v for v in values if v > 0.5]
    p = len(right) / len(values)
    assert bis(values, values, 0.5) == pytest.approx((p * (1 - p) + 0.05) * (sum(right) / len(right) if right else 0))
    assert 0 <= bis(values, values, 0.5) <= 0.3


def test_a_value_that_follows_from_others_counts_as_its_label():
    assert bis([1.0, 0.0], [None, 0.0], 0.5) == pytest.approx(0.3)
    assert math.isclose(bis([1.0, 1.0], [None, 0.5], 0.5), 0.05 * 0.75)
