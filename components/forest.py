"""The unfinished prefixes of many problems' solutions, as trees of arrays.

Owns which prefix follows which; does not know what is measured at them, nor their text.
Shapes: N nodes, S solutions, P problems; M nodes of the largest problem.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Forest:
    """The unfinished prefixes of many problems' solutions, as trees; nodes sorted by depth, then by parent."""

    parent: Ints
    """`[N]` the node before; -1 at a root."""
    problem: Ints
    """`[N]` which problem, from 0."""
    depth: Ints
    """`[N]` 0 at a root, which is the problem itself."""
    keys: tuple[Hashable, ...]
    """`[N]` what names the prefix within its problem; None at a root."""
    multiplicity: Ints
    """`[N]` how many solutions pass through the node."""
    path: Ints
    """The nodes of every solution's unfinished prefixes in turn, one solution after the other."""
    offset: Ints
    """`[S + 1]` where each solution's nodes begin in `path`."""
    num_right_ends: Ints
    """`[N]` right solutions whose last unfinished prefix is this node (the root, if they have a single step)."""
    num_ends: Ints
    """`[N]` the same for right and wrong ones; unknown verdicts say nothing."""

    @classmethod
    def build(cls, problems: Sequence[Sequence[tuple[Sequence[Hashable], str]]]) -> Forest:
        """The forest of these solutions.

        Args:
            problems: for each problem its solutions: the names of its unfinished prefixes from the shortest to the
                longest, and its verdict. Equal names within a problem are one node. Where solutions were cut
                into steps differently, a prefix follows the longest known one.
        """
        keys: list[Hashable] = []
        parents: list[int] = []
        problem_of: list[int] = []
        depths: list[int] = []
        flat: list[int] = []
        offset: list[int] = [0]
        ends: list[int] = []
        verdicts: list[str] = []
        for p, solutions in enumerate(problems):
            root = len(keys)
            keys.append(None)
            parents.append(-1)
            problem_of.append(p)
            depths.append(0)
            before = _predecessors([path for path, _ in solutions])
            index: dict[Hashable, int] = {}
            for key, previous in before.items():
                node = len(keys)
                index[key] = node
                above = root if previous is None else index[previous]
                keys.append(key)
                parents.append(above)
                problem_of.append(p)
                depths.append(depths[above] + 1)
            for path, verdict in solutions:
                flat.extend(index[key] for key in path)
                offset.append(len(flat))
                ends.append(index[path[-1]] if path else root)
                verdicts.append(verdict)
        parent, depth = np.array(parents, dtype=np.int64), np.array(depths, dtype=np.int64)
        order, place = _by_depth_and_parent(parent, depth)
        path_nodes = place[np.array(flat, dtype=np.int64)]
        end_nodes = place[np.array(ends, dtype=np.int64)]
        is_right = np.array([verdict == "right" for verdict in verdicts], dtype=bool)
        is_judged = is_right | np.array([verdict == "wrong" for verdict in verdicts], dtype=bool)
        num = len(keys)
        roots_passed = np.bincount(np.array(problem_of, dtype=np.int64)[order][end_nodes], minlength=len(problems))
        multiplicity = np.bincount(path_nodes, minlength=num)
        multiplicity[: len(problems)] = roots_passed
        return cls(
            parent=np.where(parent[order] < 0, -1, place[parent[order]]),
            problem=np.array(problem_of, dtype=np.int64)[order],
            depth=depth[order],
            keys=tuple(keys[i] for i in order),
            multiplicity=multiplicity,
            path=path_nodes,
            offset=np.array(offset, dtype=np.int64),
            num_right_ends=np.bincount(end_nodes[is_right], minlength=num),
            num_ends=np.bincount(end_nodes[is_judged], minlength=num),
        )

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.parent)

    @cached_property
    def num_problems(self) -> int:
        """P; the roots are the first P nodes, in the order of the problems."""
        return int((self.depth == 0).sum())

    @cached_property
    def levels(self) -> list[slice]:
        """The nodes of each depth, from 0 on."""
        bounds = np.searchsorted(self.depth, np.arange(int(self.depth.max(initial=0)) + 2))
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]

    @cached_property
    def progress(self) -> Floats:
        """`[N]` in (0, 1]: the share of the steps done, of the longest solution through the node; 0 at roots."""
        height = np.zeros(self.num_nodes, dtype=np.int64)
        for level in self.levels[:0:-1]:
            np.maximum.at(height, self.parent[level], height[level] + 1)
        share: Floats = self.depth / np.maximum(self.depth + height, 1)
        return share

    @cached_property
    def by_problem(self) -> Ints:
        """`[P, M]` the nodes of each problem, the root first and then by depth; -1 pads."""
        order = np.argsort(self.problem, kind="stable")
        sizes = np.bincount(self.problem, minlength=self.num_problems)
        starts = np.cumsum(sizes) - sizes
        nodes = np.full((self.num_problems, int(sizes.max(initial=0))), -1, dtype=np.int64)
        nodes[self.problem[order], np.arange(len(order)) - starts[self.problem[order]]] = order
        return nodes

    def families(self, level: slice) -> tuple[Ints, Ints]:
        """The parents of a level's nodes, each once, and where the children of each begin within the level."""
        parents = self.parent[level]
        starts = np.flatnonzero(np.r_[True, parents[1:] != parents[:-1]])
        return parents[starts], starts


def _predecessors(paths: Sequence[Sequence[Hashable]]) -> dict[Hashable, Hashable | None]:
    """Each name and the longest known prefix before it (None: the problem), parents first."""
    before: dict[Hashable, Hashable | None] = {}
    agree = True
    for path in paths:
        previous: Hashable | None = None
        for key in path:
            agree &= before.setdefault(key, previous) == previous
            previous = key
    if agree:
        return before
    # Cut differently: all names before a name are prefixes of one text, so that the longest has all others before it.
    earlier: dict[Hashable, set[Hashable]] = {}
    for path in paths:
        for i, key in enumerate(path):
            earlier.setdefault(key, set()).update(path[:i])
    rank: dict[Hashable, int] = {}
    for key in before:
        stack = [key]
        while stack:
            open_ones = [k for k in earlier[stack[-1]] if k not in rank]
            if open_ones:
                stack += open_ones
            else:
                top = stack.pop()
                rank[top] = 1 + max((rank[k] for k in earlier[top]), default=0)
    ordered = sorted(before, key=lambda key: (rank[key], repr(key)))
    return {key: max(earlier[key], key=lambda k: (rank[k], repr(k)), default=None) for key in ordered}


def _by_depth_and_parent(parent: Ints, depth: Ints) -> tuple[Ints, Ints]:
    """Nodes sorted by depth, then by their parent's place, then as they came; and each node's place."""
    place = np.zeros(len(parent), dtype=np.int64)
    order: list[Ints] = []
    by_depth = np.argsort(depth, kind="stable")
    bounds = np.searchsorted(depth[by_depth], np.arange(int(depth.max(initial=0)) + 2))
    for d, (low, high) in enumerate(itertools.pairwise(bounds)):
        nodes = by_depth[low:high]
        if d:
            nodes = nodes[np.argsort(place[parent[nodes]], kind="stable")]
        place[nodes] = np.arange(low, high)
        order.append(nodes)
    return np.concatenate(order) if order else np.zeros(0, dtype=np.int64), place
