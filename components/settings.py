"""What is computed (params.yaml, typed) and where it runs (`Runtime`, from STEPFORGE_* variables).

Owns every setting's name, unit and range; nothing else reads params.yaml or the environment.
Unknown keys are errors: a setting that is ignored is a lie.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import SettingsError

Frac = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(_Section):
    """How an engine draws text."""

    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """0 is greedy decoding."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the smallest set of tokens with this much probability."""
    max_tokens: Count = 1024
    """Generated tokens at most; a text that reaches it is truncated and its verdict unknown."""


class Difficulty(_Section):
    """Keep the problems that the policy solves sometimes."""

    num_solutions: Count = 8
    """Solutions sampled per problem to measure its success rate."""
    min_right_frac: Frac = 0.0
    """Drop problems solved less often than this."""
    max_right_frac: Frac = 1.0
    """Drop problems solved more often than this."""


class Curate(_Section):
    """Raw problems -> seeds."""

    near_duplicate_similarity: Frac = 0.9
    """Questions at least this similar (Jaccard of word 3-grams) with the same pictures are near duplicates."""
    near_duplicate_image_bits: Annotated[int, Field(ge=0, le=256)] = 6
    """Pictures whose 256-bit difference hashes differ in at most so many bits look alike."""
    max_image_pixels: Count = 40_000_000
    """Larger pictures are quarantined before they are decoded."""
    max_quarantined_frac: Frac = 0.5
    """The stage fails when a larger share of the rows is quarantined."""
    difficulty: Difficulty | None = None
    """Filter by the policy's own success rate; null switches it off."""


class TinyBase(_Section):
    """A tiny random-weight vision-language model for the known-truth world: seconds on a CPU."""

    type: Literal["tiny"]
    hidden_size: Count = 96
    num_layers: Count = 4


class CheckpointBase(_Section):
    """Any vision-language model that transformers' Auto classes load."""

    type: Literal["checkpoint"]
    path_or_id: str
    """A folder, or a hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for a hub id."""


Base = Annotated[TinyBase | CheckpointBase, Field(discriminator="type")]


class Optimiser(_Section):
    """AdamW with a linear warm-up and a cosine to 5 % of the peak."""

    num_steps: Count
    """Optimiser steps."""
    batch_size: Count
    """Rows a step."""
    learning_rate: Rate
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    max_grad_norm: Rate = 1.0
    betas: tuple[Frac, Frac] = (0.9, 0.98)


class SftPhase(_Section):
    """One leg of the curriculum."""

    column: str
    """Column of the demonstrations that holds this phase's steps."""
    num_steps: Count


class Sft(_Section):
    """Demonstrations -> policy (MM-Policy)."""

    enabled: bool = True
    """false: the policy is `base` as it stands."""
    base: Base
    align: Optimiser | None = None
    """Before the language model learns, each image token must name what it shows; null skips it."""
    phases: list[SftPhase] = Field(min_length=1)
    optimiser: Optimiser
    """`num_steps` must equal the sum over the phases."""
    freeze_vision: bool = True
    """Keep the vision encoder as it is (MM-PRM); the tiny model, born random, must not."""


class Rollout(_Section):
    """Seeds -> solutions and Monte-Carlo continuations (VisualPRM section 3)."""

    num_solutions: Count = 4
    """Solutions per problem."""
    max_steps: Count = 12
    """Longer solutions are merged into so many balanced groups of steps."""
    num_continuations: Count = 16
    """K: continuations per prefix."""
    reuse_prefixes: bool = True
    """A continuation also counts for every later prefix that it passed through; false is brute force."""
    sampling: Sampling = Sampling()
    max_failed_frac: Frac = 0.05
    """The stage fails when a larger share of the solutions has no usable step."""


class Label(_Section):
    """Rollouts -> step labels."""

    formulation: Literal["soft", "value"] = "soft"
    """soft: the share of right continuations (MM-PRM). value: 1 if it exceeds `threshold`, else 0 (VisualPRM)."""
    threshold: Frac = 0.0
    """Only for `value`."""
    min_verdicts: Count = 4
    """A step with fewer verdicts gets no label, unless it ends the solution."""


class Perception(_Section):
    """Warm-up and kept auxiliary task: is this statement about the picture true?"""

    warmup: Optimiser
    corrupted_frac: Frac = 0.5
    """Share of the statements that are made false."""
    aux_batch_size: Count = 16
    """Pictures a step beside the Monte-Carlo labels."""
    aux_weight: Annotated[float, Field(ge=0.0)] = 0.5


class Train(_Section):
    """Labels -> process reward model."""

    marker: str = "<prm>"
    """The token after every step at which the model is read (MM-PRM)."""
    label_tokens: tuple[str, str] = ("+", "-")
    """Words whose output rows start the head: right, wrong."""
    optimiser: Optimiser
    freeze_vision: bool = True
    perception: Perception | None = None
    controls: list[Literal["blind"]] = ["blind"]
    """Trained with the same settings to show what the picture is worth."""


class Sample(_Section):
    """Benchmarks -> frozen candidate pools."""

    num_candidates: Count = 8
    """N: sampled candidates per problem; a greedy one comes on top."""
    sampling: Sampling = Sampling()


class Evaluate(_Section):
    """Pools -> metrics."""

    num_resamples: Count = 10_000
    """Bootstrap resamples over problems."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95


class Params(_Section):
    """params.yaml: everything that decides what is computed."""

    seed: Annotated[int, Field(ge=0)]
    curate: Curate
    sft: Sft
    rollout: Rollout
    label: Label
    train: Train
    sample: Sample
    evaluate: Evaluate


def load_params(path: Path = Path("params.yaml")) -> Params:
    """params.yaml, checked.

    Raises:
        SettingsError: missing file, no YAML, unknown or missing key, value out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(str(path), "no such file", "run in the project's folder, or name it with --params") from error
    except OSError as error:
        raise SettingsError(str(path), f"cannot be read: {error.strerror}", "name a file with --params") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"not YAML: {error}", "check the indentation of that line") from error
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise _readable(str(path), error) from error
    planned = sum(phase.num_steps for phase in params.sft.phases)
    if params.sft.enabled and planned != params.sft.optimiser.num_steps:
        what = f"sft.optimiser.num_steps is {params.sft.optimiser.num_steps} but the phases add up to {planned}"
        raise SettingsError(str(path), what, "make the two equal")
    return params


def _readable(place: str, error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    names, known = _place_of(first["loc"])
    name = ".".join(names)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return SettingsError(place, f"unknown key {name!r}", hint)
    if first["type"] == "missing":
        return SettingsError(place, f"missing key {name!r}", "add it; the project's params.yaml is complete")
    value = first.get("input")
    return SettingsError(place, f"{name or 'the whole file'} = {value!r}: {first['msg'].lower()}", "correct the value")


def _place_of(loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The names on the way to where pydantic found a mistake, and the keys that are known there."""
    names: list[str] = []
    models: list[Any] = [Params]
    for part in loc:
        by_type = {get_args(m.model_fields["type"].annotation)[0]: m for m in models if "type" in m.model_fields}
        if len(models) > 1 and part in by_type:  # not a key but the kind of a union
            models = [by_type[part]]
            continue
        names.append(str(part))
        if part is not loc[-1] and isinstance(part, str) and models and part in models[0].model_fields:
            models = _models_in(models[0].model_fields[part].annotation)
    return names, sorted({key for model in models for key in model.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    """The settings classes inside `X`, `X | None`, `list[X]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inside in get_args(annotation) for model in _models_in(inside)]


@dataclass(frozen=True)
class Runtime:
    """Where the work runs. Changes speed and place, never what is computed."""

    home: Path
    """STEPFORGE_HOME: journal, receipts, checkpoints of unfinished work, ledger. Default `.stepforge`."""
    engine: str
    """STEPFORGE_ENGINE: hf | scripted. Default hf."""
    device: str
    """STEPFORGE_DEVICE: cpu | cuda | cuda:0 ... Default: cuda if there is one."""
    num_threads: int
    """STEPFORGE_THREADS: CPU threads a process. Default 2, not the machine's count: sums keep their order."""
    num_workers: int
    """STEPFORGE_WORKERS: processes that a stage may run side by side. Default: 2, or 1 on one core."""


def load_runtime(environ: dict[str, str] | None = None) -> Runtime:
    """The runtime that the STEPFORGE_* variables ask for.

    Raises:
        SettingsError: an unknown STEPFORGE_ variable, or a value that is no positive number.
    """
    env = dict(os.environ) if environ is None else environ
    known = {"HOME", "ENGINE", "DEVICE", "THREADS", "WORKERS", "ACTOR"}
    for name in sorted(env):
        if name.startswith("STEPFORGE_") and name.removeprefix("STEPFORGE_") not in known:
            close = difflib.get_close_matches(name, [f"STEPFORGE_{k}" for k in known], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted('STEPFORGE_' + k for k in known))}"
            raise SettingsError("environment", f"unknown variable {name}", hint)

    def positive(name: str, default: int) -> int:
        text = env.get(f"STEPFORGE_{name}", str(default))
        if not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise SettingsError("environment", f"STEPFORGE_{name}={text!r} is no positive number", "for example 2")
        return int(text)

    engine = env.get("STEPFORGE_ENGINE", "hf")
    if engine not in ("hf", "scripted"):
        raise SettingsError("environment", f"STEPFORGE_ENGINE={engine!r} is unknown", "known: hf, scripted")
    return Runtime(
        home=Path(env.get("STEPFORGE_HOME", ".stepforge")),
        engine=engine,
        device=env.get("STEPFORGE_DEVICE", "auto"),
        num_threads=positive("THREADS", 2),
        num_workers=positive("WORKERS", min(2, os.cpu_count() or 1)),
    )


def limit_threads(num_threads: int) -> None:
    """Fix the CPU threads of this process before torch is imported.

    Threads that wait without spinning for long: spinning ones cost up to 13x on busy cores, never
    spinning ones gain nothing on small matrices.
    """
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
