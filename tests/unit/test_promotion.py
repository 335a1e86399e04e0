"""How decisions and comparisons read on a terminal."""

from __future__ import annotations

from components.decision import Decision, Reason
from components.promote import Promotion
from components.tracking import Version
from flows.promotion import comparison_lines, promotion_lines

VERSION = Version("dev", 2, "abc", 0.0, {})


def test_every_reason_is_said_for_and_against():
    reasons = (Reason("test problems", True, "500", "at least 400"), Reason("approver", False, "nobody", "a named approver"))
    lines = promotion_lines(Promotion("prod", VERSION, Decision("prod", "abc", None, "p", reasons)))
    assert lines == [
        "refused: prm.dev/2 does not go to prod",
        "  passed   test problems: 500; required: at least 400",
        "  REFUSED  approver: nobody; required: a named approver",
    ]
    lines = promotion_lines(Promotion("prod", VERSION, Decision("prod", "abc", None, "p", reasons[:1])))
    assert lines[0] == "promoted: prm.dev/2 is the champion of prod"


def test_the_comparison_keeps_one_order_and_leaves_out_what_was_not_measured():
    value = {"mean": 0.5, "low": 0.25, "high": 0.75}
    metrics = {"splits": {"test": {"selectors": {"prm": value, "greedy": value}}, "ood": {"selectors": {"prm": value}}}}
    assert comparison_lines(metrics) == [
        "selector  test                  ood",
        "greedy    0.500 [0.250, 0.750]  -",
        "prm       0.500 [0.250, 0.750]  0.500 [0.250, 0.750]",
    ]
