"""Solutions as trees of tokens: what several share is in the batch, and computed, once.

Owns the layout (who comes after whom, at which position, who may be attended to); knows no label and no model
beyond how it counts positions. Packing, tree training and scoring are the same thing: rows of trees.

A tree is laid out depth first, so that a token's descendants follow it without a gap: token j may be attended to
by token i if `j <= i < ends[j]`. That one rule keeps branches, and the trees of a row, apart.

Shapes: B rows, T tokens a row, R places that are read, in the order of the trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.render import Encoded, Rendered, join_pictures

ROW_TOKENS = 128  # small trees share rows of this many tokens; attention costs the square of a row


@dataclass(frozen=True)
class Tree:
    """The solutions of one prompt as a tree of tokens."""

    prompt: Encoded
    ids: list[int]
    """The prompt, then the solutions' tokens, each shared beginning once, depth first."""
    ends: list[int]
    """One past the last descendant of each token."""
    depths: list[int]
    """How many tokens stand before each one on its path."""
    places: list[list[int]]
    """Where each solution's steps are read: indices into `ids`."""

    def __len__(self) -> int:
        return len(self.ids)


def tree(prompt: Encoded, solutions: Sequence[Rendered]) -> Tree:
    """Join the solutions of one prompt; equal beginnings, to the token, become one path.

    A single solution gives its plain row. The loss and the scores are those of the rows one by one: attention is
    causal, so that a token's state depends on its path alone.
    """
    start = len(prompt.ids)
    ids, depths = list(prompt.ids), list(range(start))
    ends = [0] * start
    order = sorted(range(len(solutions)), key=lambda i: solutions[i].ids)  # neighbours share the most
    places: list[list[int]] = [[] for _ in solutions]
    path: list[int] = []  # of the solution before: where its tokens stand
    before: list[int] = []
    for i in order:
        tokens = solutions[i].ids
        shared = 0
        for one, other in zip(before, tokens, strict=False):
            if one != other:
                break
            shared += 1
        for place in path[shared:]:
            ends[place] = len(ids)
        del path[shared:]
        for depth, token in enumerate(tokens[shared:], start + shared):
            path.append(len(ids))
            ids.append(token)
            depths.append(depth)
            ends.append(0)
        places[i] = [path[marker] for marker in solutions[i].markers]
        before = tokens
    for place in (*range(start), *path):
        ends[place] = len(ids)
    return Tree(prompt, ids, ends, depths, places)


@dataclass(frozen=True)
class Batch:
    """Rows of trees as a model takes them."""

    ids_BT: Tensor
    ends_BT: Tensor
    """One past each token's last descendant within its row; padding is its own only descendant."""
    positions: Tensor
    """`[B, T]`, or `[3, B, T]` for architectures that count time, height and width."""
    tensors: dict[str, Tensor]
    """Picture tensors, in the order in which the rows show the pictures."""
    reads: Tensor
    """`[R, 2]` (row, column) of every place that is read, in the order of the trees given."""
    trees: list[int]
    """Which of the trees given are in this batch, in the order of `reads`."""
    is_plain: bool
    """Whether every row is one solution."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.ids_BT.numel()

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """`[B, 1, T, T]`, 0 where token i may attend to j, the lowest number of `dtype` elsewhere.

        None where plain causal attention says the same: no branch, one tree a row.
        """
        if self.is_plain:
            return None
        places = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        before = places[None, :, None] >= places[None, None, :]
        inside = places[None, :, None] < self.ends_BT[:, None, :]
        out = torch.full((), torch.finfo(dtype).min, device=places.device, dtype=dtype).repeat(*inside.shape)
        return out.masked_fill_(before & inside, 0.0)[:, None]


def batches(trees: Sequence[Tree], model: Any, *, max_tokens: int, device: str, share_rows: bool = True) -> list[Batch]:
    """Put trees into rows, and rows of like length into batches of at most `max_tokens` tokens (or of one row).

    Args:
        model: asked how it counts positions, and of which type its weights are.
        share_rows: small trees may share a row.
    """
    width = max([ROW_TOKENS, *map(len, trees)]) if share_rows else 0
    rows = _rows([len(t) for t in trees], min(width, max_tokens))
    rows.sort(key=lambda row: -sum(len(trees[i]) for i in row))
    out = []
    while rows:
        longest = sum(len(trees[i]) for i in rows[0])
        num = max(1, max_tokens // longest)
        out.append(_batch(trees, rows[:num], longest, model, device))
        rows = rows[num:]
    return out


def _rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """First fit, longest first: which trees share a row of `width` tokens."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for r, left in enumerate(room):
            if lengths[i] <= left:
                rows[r].append(i)
                room[r] -= lengths[i]
                break
        else:
            rows.append([i])
            room.append(width - lengths[i])
    return rows


def _batch(trees: Sequence[Tree], rows: list[list[int]], width: int, model: Any, device: str) -> Batch:
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    ends_BT = torch.arange(1, width + 1).repeat(len(rows), 1)
    types_BT = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(3, len(rows), width, dtype=torch.long)
    has_axes = False
    reads: list[tuple[int, int]] = []
    for b, row in enumerate(rows):
        start = 0
        for i in row:
            one, part = trees[i], slice(start, start + len(trees[i]))
            ids_BT[b, part] = torch.tensor(one.ids)
            ends_BT[b, part] = torch.tensor(one.ends) + start
            if one.prompt.token_types:
                types_BT[b, start : start + len(one.prompt.token_types)] = torch.tensor(one.prompt.token_types)
            counted = _positions(one, model)
            has_axes |= counted.ndim == 2
            positions[:, b, part] = counted
            reads += [(b, start + place) for solution in one.places for place in solution]
            start += len(one)
    order = [i for row in rows for i in row]
    prompts = [trees[i].prompt for i in order]
    tensors = join_pictures(prompts, device, model.dtype)
    if any(p.token_types for p in prompts):
        tensors[next(p.types_name for p in prompts if p.token_types)] = types_BT.to(device)
    return Batch(
        ids_BT.to(device),
        ends_BT.to(device),
        (positions if has_axes else positions[0]).to(device),
        tensors,
        torch.tensor(reads, dtype=torch.long, device=device).reshape(-1, 2),
        order,
        is_plain=all(len(row) == 1 and min(trees[row[0]].ends) == len(trees[row[0]]) for row in rows),
    )


def _positions(one: Tree, model: Any) -> Tensor:
    """`[T]` or `[3, T]` positions of a tree: its depths, or what the architecture makes of a prompt with pictures."""
    depths = torch.tensor(one.depths)
    num = len(one.prompt.ids)
    count = getattr(model.base_model, "get_rope_index", None) if one.prompt.tensors else None
    if count is None:
        return depths
    types = one.prompt.token_types or []
    grids = {name: value for name, value in one.prompt.tensors.items() if name.endswith("_grid_thw")}
    known = {"mm_token_type_ids": torch.tensor([[*types, *([0] * (num - len(types)))]])} if types else {}
    axes, _ = count(torch.tensor([one.prompt.ids]), **known, **grids)
    after = axes.max() + 1 + depths[num:] - num  # text goes on behind the largest position of all axes
    return torch.cat([axes[:, 0], after.expand(3, -1)], dim=1)
