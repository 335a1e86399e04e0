"""MM-PRM's search trees: one JSON object a problem, a node a piece of a solution with its Monte-Carlo value.

Owns how paths of a tree are solutions and how solutions grow into a tree; knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.interchange.fields import MAX_STEPS, image_field, label_of, problem_of, solution_of, text_of
from components.interchange.foreign import BadRow, Format, Mark, Problem, Reading, Row, Solution

_MAX_PATHS = 100_000


def _read(row: Mapping[str, Any]) -> Reading:
    """Every path from the root to a leaf is a solution, every node a step of it."""
    problem = problem_of(row, text_of(row, "question"))
    solutions: list[Solution] = []
    waiting: list[tuple[Any, tuple[str, ...], tuple[Mark, ...]]]
    waiting = [(child, (), ()) for child in reversed(_children(row))]  # a stack: trees may be deep
    while waiting:
        node, steps, marks = waiting.pop()
        if len(steps) >= MAX_STEPS or len(solutions) >= _MAX_PATHS:
            raise BadRow("bad_steps", f"more than {MAX_STEPS} steps on a path, or more than {_MAX_PATHS} paths")
        steps, marks = (*steps, _text(node)), (*marks, _mark(node))
        children = _children(node)
        waiting += [(child, steps, marks) for child in reversed(children)]
        if not children:
            solutions.append(solution_of(steps, marks))
    if not solutions:
        raise BadRow("no_label", "a tree without branches")
    return problem, solutions


def _children(node: Mapping[str, Any]) -> list[Any]:
    children = node.get("children")
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise BadRow("bad_row", f"children is {children!r:.80}")
    return children


def _text(node: Mapping[str, Any]) -> str:
    pieces = node.get("partial_solution")
    if isinstance(pieces, str):
        pieces = [pieces]
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise BadRow("bad_steps", f"partial_solution is {pieces!r:.80}")
    return "\n\n".join(piece.strip() for piece in pieces if piece.strip())


def _mark(node: Mapping[str, Any]) -> Mark:
    """The value, and (k, n) where the node says them: its rollouts are listed once each, so they may be too few."""
    value = label_of(node.get("mc_value"))
    if "num_correct_rollouts" in node:
        right, wrong = node.get("num_correct_rollouts"), node.get("num_incorrect_rollouts")
        if not isinstance(right, int) or not isinstance(wrong, int):
            raise BadRow("bad_label", f"{right!r:.40} right and {wrong!r:.40} wrong rollouts")
    else:
        listed = [node.get(name) for name in ("correct_rollouts", "incorrect_rollouts")]
        right, wrong = (len(rollouts) if isinstance(rollouts, list) else 0 for rollouts in listed)
        if value is None or not right + wrong or abs(right / (right + wrong) - value) > 1e-9:
            return Mark(value)
    if right < 0 or wrong < 0:
        raise BadRow("bad_label", f"{right} right and {wrong} wrong rollouts")
    return Mark(value, right, right + wrong)


def _write(problem: Problem, *solutions: Solution) -> Row:
    """One tree: equal beginnings of solutions are one node. The rollouts' texts are not in the labels: lists are empty."""
    verdicts = [s.more["verdict"] == "right" for s in solutions if s.more.get("verdict") in ("right", "wrong")]
    root: Row = {
        "question": problem.question,
        "answer": problem.answer,
        "image_path": image_field(problem),
        **_node(sum(verdicts) / len(verdicts) if verdicts else None),
        "id": problem.source_id,
    }
    for solution in solutions:
        node = root
        for step, mark in zip(solution.steps, solution.marks, strict=True):
            pieces = step.split("\n\n")
            same = [child for child in node["children"] if child["partial_solution"] == pieces]
            if not same:
                same = [{"partial_solution": pieces, **_node(mark.label), **_counts(mark)}]
                node["children"].append(same[0])
            node = same[0]
    return root


def _node(value: float | None) -> Row:
    return {"mc_value": value, "visit_count": 0, "correct_rollouts": [], "incorrect_rollouts": [], "children": []}


def _counts(mark: Mark) -> Row:
    if not mark.num_verdicts:
        return {}
    return {"num_correct_rollouts": mark.num_right, "num_incorrect_rollouts": mark.num_verdicts - mark.num_right}


MMPRM_TREE = Format("mmprm_tree", "MM-PRM: one search tree a problem", _read, _write, has_gaps=False, has_trees=True)
