"""What of a model is trained and how cheaply: parts held fixed, low-rank adapters, vision features computed once.

Works on any vision-language model of transformers through what it says of itself; knows no loss and no data.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import EngineError, SettingsError
from components.settings import Lora

PARTS = ("vision", "projector", "language")
MEMORY_BYTES = 4 * 2**30
_PROJECTORS = ("merger", "projector", "connector", "aligner", "resampler")  # as they are called inside vision towers
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # of a feature's size, alone against together


# --- parts -----------------------------------------------------------------------------------------------------


def vision_tower(model: Any) -> nn.Module | None:
    """The module that turns pixels into features, or None for a model that reads text alone."""
    tower = model.get_encoder(modality="image")
    return None if tower in (model, model.base_model) else tower


def parts_of(model: Any) -> dict[str, list[nn.Parameter]]:
    """Part -> its parameters; together they are all of the model's, each once. A model has the parts it needs.

    `vision` is the tower without what maps its features to the language model; that, wherever it stands, is `projector`
    with the parameters between the two; `language` is the rest, embeddings and output matrix included.
    """
    tower = vision_tower(model)
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
    known: set[int] = set()

    def take(part: str, parameters: Any) -> None:
        fresh = [p for p in parameters if id(p) not in known]
        known.update(map(id, fresh))
        parts[part] += fresh

    if tower is not None:
        for name, module in tower.named_modules():
            if any(word in name.rsplit(".", 1)[-1] for word in _PROJECTORS):
                take("projector", module.parameters())
        take("vision", tower.parameters())
    take("language", model.get_decoder().parameters())
    for head in (model.get_input_embeddings(), model.get_output_embeddings()):
        take("language", head.parameters() if head is not None else [])
    take("projector" if tower is not None else "language", model.parameters())
    return {part: parameters for part, parameters in parts.items() if parameters}


def adapt(model: Any, frozen: Sequence[str], lora: Lora | None, token_ids: Sequence[int] = ()) -> None:
    """Make a model ready for training as the settings ask: parts frozen, adapters in, a frozen tower's features kept.

    Args:
        token_ids: tokens whose embeddings are trained in full beside adapters.
    Raises:
        SettingsError: there is no such part or layer.
    """
    freeze(model, frozen)
    if lora is not None:
        add_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, token_ids=token_ids)
    if "vision" in frozen:
        remember_vision(model)


def freeze(model: Any, parts: Sequence[str]) -> int:
    """Keep parts as they are: no gradients, and for the vision tower evaluation mode for good. Returns frozen parameters.

    Raises:
        SettingsError: there is no such part, in general or in this model.
    """
    have = parts_of(model)
    frozen = 0
    for part in parts:
        if part not in have:
            what = f"{type(model).__name__} has no part {part!r}, it has {', '.join(have)}"
            raise SettingsError("freeze", what, f"name some of {', '.join(PARTS)}, or none for a model without them")
        for parameter in have[part]:
            frozen += parameter.numel() if parameter.requires_grad else 0
            parameter.requires_grad_(False)
    tower = vision_tower(model)
    if "vision" in parts and tower is not None:
        tower.eval()
        tower.train = lambda mode=True: tower  # type: ignore[method-assign]  # drop-path noise in a frozen tower is only noise
    return frozen


# --- adapters --------------------------------------------------------------------------------------------------


def add_lora(
    model: Any, *, rank: int, alpha: int, targets: Sequence[str] = (), token_ids: Sequence[int] = (), dropout: float = 0.0
) -> int:
    """Train low-rank adapters in place of the language model's own weights. Returns parameters that are trained there.

    What is not language stays as it was, trained or frozen. An adapter changes nothing before the first step.

    Args:
        targets: last names of the linear layers that get one, `q_proj` for example; none: all of the language model.
        token_ids: tokens whose embeddings are trained in full (the marker's); their rows in the whole matrix are not.
    Raises:
        SettingsError: no linear layer has one of these names, or peft has no adapter for one of them.
        EngineError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EngineError("add_lora", f"peft cannot be imported: {error}", "pip install stepforge[model]") from error

    decoder = model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    linear = [
        names[id(module)]
        for module in decoder.modules()
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
    ]
    chosen = [name for name in linear if not targets or name.rsplit(".", 1)[-1] in targets]
    last = sorted({name.rsplit(".", 1)[-1] for name in linear})
    lacking = sorted(set(targets) - set(last))
    if lacking or not chosen:
        what = f"{', '.join(lacking) or 'no layer'}: not a linear layer of this language model, it has {', '.join(last)}"
        raise SettingsError("targets", what, "name some of them, or none for all")
    language = {id(p) for p in parts_of(model)["language"]}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in language]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, bias="none")
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:  # peft knows layers that some architectures use in a way of their own
        raise SettingsError("targets", f"no adapter fits there: {error}", f"name some of {', '.join(last)}") from error
    for parameter in trained:  # peft froze everything
        parameter.requires_grad_(True)
    if token_ids:
        _train_rows(model.get_input_embeddings(), token_ids)
    return sum(p.numel() for p in decoder.parameters() if p.requires_grad)


def merge_lora(model: Any) -> int:
    """Add the adapters to the weights they stand for and take them away. Returns how many there were.

    Scores stay as they are, beyond rounding; a model without adapters stays as it is.
    """
    merged = 0
    if any("lora_" in name for name, _ in model.named_parameters()):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())
                merged += 1
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            model.__dict__.pop(attribute, None)
    embeddings = model.get_input_embeddings()
    if hasattr(embeddings, "trained_rows"):
        with torch.no_grad():
            embeddings.weight[embeddings.trained_ids] = embeddings.trained_rows.to(embeddings.weight.dtype)
        embeddings.rows_hook.remove()
        del embeddings.trained_rows, embeddings.trained_ids, embeddings.rows_hook
    return merged


def _train_rows(embeddings: Any, token_ids: Sequence[int]) -> None:
    """Make some rows of a frozen embedding matrix parameters of their own."""
    ids = torch.tensor(sorted(set(token_ids)), device=embeddings.weight.device)
    rows = embeddings.weight[ids].detach().clone()
    with torch.no_grad():
        scale = (embeddings(ids) * rows).sum() / (rows * rows).sum()  # some architectures scale what they look up
    embeddings.register_parameter("trained_rows", nn.Parameter(rows))
    embeddings.register_buffer("trained_ids", ids, persistent=False)

    def put(module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        at = torch.searchsorted(module.trained_ids, given[0]).clamp_max(len(module.trained_ids) - 1)
        is_trained = module.trained_ids[at] == given[0]
        return torch.where(is_trained[..., None], (module.trained_rows[at] * scale).to(out.dtype), out)

    embeddings.rows_hook = embeddings.register_forward_hook(put)


# --- vision features -------------------------------------------------------------------------------------------


class VisionMemory:
    """What a frozen vision tower says to each picture, computed once and kept as long as there is room.

    A picture (of towers that cut it up: a tile) is known by its own pixels. It is read alone, so that its features never
    depend on its company, nor on whether they were remembered; together with others they would be rounded differently.
    """

    def __init__(self, model: Any, *, max_bytes: int = MEMORY_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self.refusal: str | None = None
        """Why this model's features are not kept, or None."""
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._is_proven = False
        tower = vision_tower(model)
        if tower is None:
            self.refusal = f"{type(model).__name__} has no vision tower"
        elif any(p.requires_grad for p in tower.parameters()):
            projects = any(p.requires_grad and any(w in n for w in _PROJECTORS) for n, p in tower.named_parameters())
            inside = " (what projects its features lies inside it: freeze projector too)" if projects else ""
            self.refusal = f"its vision tower is trained{inside}"
        elif tower.training:
            self.refusal = "its vision tower is in training mode: freeze vision first"
        else:
            self._tower, self._forward = tower, tower.forward
            tower.forward = self._remembered

    def forget(self) -> None:
        """Give the tower its own way back, and the memory free."""
        self._kept.clear()
        self.num_bytes = 0
        if hasattr(self, "_tower"):
            self._tower.forward = self._forward

    def _remembered(self, *args: Any, **kwargs: Any) -> Any:
        if self.refusal is not None:
            return self._forward(*args, **kwargs)
        units = _units(args, kwargs)
        if units is None:
            self.refusal = "its vision tower takes what cannot be told apart by picture"
            return self._forward(*args, **kwargs)
        device = next(self._tower.parameters()).device
        rest = repr(sorted((k, v) for k, v in kwargs.items() if not isinstance(v, Tensor)))
        keys = [(rest, key) for key in _keys(units)]
        known: dict[Any, Any] = {}
        for key, (unit_args, unit_kwargs) in zip(keys, units, strict=True):
            if key in known:
                continue
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                known[key] = _map(lambda t: t.to(device), self._kept[key])
                continue
            self.misses += 1
            with torch.inference_mode(False), torch.no_grad():  # what is kept serves training too
                known[key] = _map(lambda t: t.detach().clone(), self._forward(*unit_args, **unit_kwargs))
            self._keep(key, known[key])
        joined = _joined([known[key] for key in keys])
        if not self._is_proven and len(units) > 1:
            whole = self._forward(*args, **kwargs)
            if not _alike(joined, whole):
                self.refusal = "its vision tower reads a picture differently in other company"
                self._kept.clear()
                self.num_bytes = 0
                return whole
            self._is_proven = True
        return joined

    def _keep(self, key: Any, features: Any) -> None:
        """Keep features on the CPU, the least recently used ones making room."""
        num_bytes = sum(t.numel() * t.element_size() for t in _tensors(features))
        if num_bytes > self.max_bytes:
            return
        self._kept[key] = _map(lambda t: t.cpu(), features)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.num_bytes -= sum(t.numel() * t.element_size() for t in _tensors(dropped))


def remember_vision(model: Any, *, max_bytes: int = MEMORY_BYTES) -> VisionMemory:
    """Compute the features of each picture once, while the model's vision tower is frozen; see `VisionMemory.refusal`."""
    return VisionMemory(model, max_bytes=max_bytes)


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _units(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Call] | None:
    """A call of a tower as one call a picture, or None where the pictures cannot be told apart.

    Either every tensor has a row a picture, or `grid_thw` says how many rows of the others belong to each.
    """
    tensors = [a for a in args if isinstance(a, Tensor)] + [v for v in kwargs.values() if isinstance(v, Tensor)]
    grid = kwargs.get("grid_thw")
    if grid is None:
        sizes = {len(t) if t.ndim else 0 for t in tensors}
        if len(sizes) != 1 or 0 in sizes:
            return None
        ends = list(range(1, sizes.pop() + 1))
    else:
        ends = list(itertools.accumulate(int(n) for n in grid.prod(-1).tolist()))
        if any(t is not grid and (t.ndim == 0 or len(t) != ends[-1]) for t in tensors):
            return None
    units = []
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):

        def part(value: Any, i: int = i, start: int = start, end: int = end) -> Any:
            if not isinstance(value, Tensor):
                return value
            rows = slice(i, i + 1) if value is grid else slice(start, end)
            return value[rows]

        units.append((tuple(part(a) for a in args), {name: part(v) for name, v in kwargs.items()}))
    return units


def _keys(units: Sequence[_Call]) -> list[tuple[Any, ...]]:
    """What tells each picture from every other: shapes, types and two 64-bit fingerprints of every tensor."""
    tensors = [[v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)] for args, kwargs in units]
    prints = torch.stack([_fingerprint(t) for row in tensors for t in row]).tolist()  # fetched from the device at once
    found = iter(prints)
    return [tuple((tuple(t.shape), t.dtype, *next(found)) for t in row) for row in tensors]


def _fingerprint(tensor: Tensor) -> Tensor:
    """Two sums, modulo 2 ** 64, of the tensor's words times odd random numbers; equal for equal bytes."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat = tensor.detach().contiguous().flatten().view(words).to(torch.int64)
    return (_odd_numbers(1 << len(flat).bit_length(), str(tensor.device))[:, : len(flat)] * flat).sum(1)


@lru_cache(maxsize=8)
def _odd_numbers(num: int, device: str) -> Tensor:
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(-(2**63), 2**63 - 1, (2, num), generator=generator, dtype=torch.int64)
        return (drawn | 1).to(device)


def _map(change: Any, value: Any) -> Any:
    """The same output with every tensor changed; a fresh one, since models write into what a tower returns."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):  # transformers' outputs are dictionaries too
        return type(value)(**{name: _map(change, v) for name, v in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_map(change, v) for v in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
    return [tensor for v in inner for tensor in _tensors(v)]


def _joined(outputs: Sequence[Any]) -> Any:
    """The outputs of pictures as the output of all of them: every tensor one after the other."""
    rows = [iter(_tensors(output)) for output in outputs]
    return _map(lambda _: torch.cat([next(row) for row in rows]), outputs[0])


def _alike(one: Any, other: Any) -> bool:
    pairs = list(zip(_tensors(one), _tensors(other), strict=False))
    return len(_tensors(one)) == len(_tensors(other)) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE.get(a.dtype, 0.0) * max(1.0, float(b.abs().max()))
        for a, b in pairs
    )
