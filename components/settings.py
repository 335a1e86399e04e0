"""What is computed (params.yaml, typed) and where it runs (`Runtime`, from STEPFORGE_* variables).

Owns every setting's name, unit and range; nothing else reads params.yaml or the environment.
Unknown keys are errors: a setting that is ignored is a lie.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from components.errors import SettingsError

ENGINES = ("hf", "vllm", "server", "scripted")

Frac = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


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
    image_size: Count = 32
    """Pixels a side; `image_size / patch_size / 2` squared is the number of image tokens."""
    patch_size: Count = 8


class CheckpointBase(_Section):
    """Any vision-language model that transformers' Auto classes load."""

    type: Literal["checkpoint"]
    path_or_id: str
    """A folder, or a hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for a hub id."""


class ServedBase(_Section):
    """A model that only a server has; sampled by the engine `server`, never trained here."""

    type: Literal["served"]
    model: str
    """The name under which the server lists it."""
    revision: str
    """What tells this model from another of the same name: a commit, a date, a version."""


Base = Annotated[TinyBase | CheckpointBase | ServedBase, Field(discriminator="type")]
Part = Literal["vision", "projector", "language"]
Corruption = Literal["neighbour", "elsewhere", "beside", "opposite", "shifted", "negation"]


class Optimiser(_Section):
    """AdamW with a linear warm-up and a cosine to 5 % of the peak."""

    num_steps: Count
    """Optimiser steps."""
    batch_size: Count
    """Rows a step; of `train.optimiser` solutions, drawn a whole problem at a time until there are so many."""
    learning_rate: Rate
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 30
    max_grad_norm: Rate = 1.0
    betas: tuple[Frac, Frac] = (0.9, 0.98)


class Lora(_Section):
    """Low-rank adapters in the language model instead of its own weights (arXiv 2106.09685); merged when saved."""

    rank: Count = 16
    alpha: Count = 32
    """The adapter is scaled by alpha / rank."""
    targets: list[str] = []
    """Last names of the linear layers that get one, such as `q_proj`; none named: all of the language model."""


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
    align_column: str = "statements"
    """Column of the demonstrations that says what: one text an image token, each of equally many words."""
    phases: list[SftPhase] = Field(min_length=1)
    optimiser: Optimiser
    """`num_steps` must equal the sum over the phases."""
    freeze: list[Part] = ["vision"]
    """Parts that stay as they are: the vision encoder (MM-PRM). The tiny model, born random, must learn all."""
    lora: Lora | None = None
    """null trains the weights themselves."""


class MonteCarlo(_Section):
    """Brute force: so many continuations of every prefix (VisualPRM section 3)."""

    type: Literal["monte_carlo"]
    num_continuations: Count = 16
    """K: continuations per prefix."""
    stop_at_zero: bool = False
    """Leave what lies behind a prefix without a right continuation unmeasured."""


class Joint(_Section):
    """Sample where it tells most about the whole chain of a solution; see docs/labels.md."""

    type: Literal["joint"]
    price: Rate
    """Summed variance of the labels that a continuation of mean length must take away; smaller is dearer."""
    block: Count = 2
    """Continuations sampled together at one prefix."""
    max_rounds: Count = 8
    """Large batches, one after the other."""
    max_per_prefix: Count = 64
    positive_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """What it is worth, beside the variance, to know whether a prefix's value is 0: 100 for hard labels."""

    @model_validator(mode="after")
    def _holds_a_block(self) -> Joint:
        if self.max_per_prefix < self.block:
            raise ValueError(f"max_per_prefix {self.max_per_prefix} leaves no room for a block of {self.block}")
        return self


class FirstErrors(_Section):
    """Hard labels only: stop at the first success, and search the first hopeless step by bisection."""

    type: Literal["first_errors"]
    num_continuations: Count = 16
    """A prefix is hopeless after so many failures."""
    block: Count = 4


class OmegaPrm(_Section):
    """Tree search of MM-PRM (OmegaPRM), its parameters as published."""

    type: Literal["omegaprm"]
    num_root: Count = 16
    num_probe: Count = 16
    max_searches: Count = 200
    max_rollouts: Count = 1000
    alpha: Frac = 0.5
    beta: Frac = 0.9
    length: Count = 2000
    """L: words of a long rollout."""
    c_puct: Annotated[float, Field(ge=0.0)] = 0.125


Search = Annotated[MonteCarlo | Joint | FirstErrors | OmegaPrm, Field(discriminator="type")]


class Rollout(_Section):
    """Seeds -> solutions and continuations of their prefixes."""

    num_solutions: Count = 4
    """Solutions per problem; a tree search grows its own."""
    max_steps: Count = 12
    """Longer solutions are merged into so many balanced groups of steps (VisualPRM section 3)."""
    search: Search
    """Which prefixes are continued, and how often."""
    reuse_prefixes: bool = True
    """A continuation also counts for every later prefix that it passed through; false is brute force."""
    sampling: Sampling = Sampling()
    max_failed_frac: Frac = 0.05
    """The stage fails when a larger share of the solutions has no usable step."""

    @property
    def counts_passing(self) -> bool:
        """Whether continuations count where they passed through: not in a tree search, whose nodes exist for them."""
        return self.reuse_prefixes and not isinstance(self.search, OmegaPrm)


class Balance(_Section):
    """How much right and wrong steps count."""

    negative_weight: Rate = 1.0
    """Weight of a wrong step's label in the loss (negative up-sampling, Athena-PRM)."""
    equal_classes: bool = False
    """Weights that give right and wrong steps the same total."""
    max_positives_per_negative: Rate | None = None
    """Keep at most so many right labels for each wrong one, chosen by their digests (MM-PRM: 1)."""


class Label(_Section):
    """Rollouts -> step labels."""

    formulation: Literal["soft", "value", "advantage", "count", "outcome"] = "soft"
    """soft: the value itself (MM-PRM). value: 1 if it exceeds `threshold`, else 0. advantage: 1, 0 or -1, the sign of
    its change (VisualPRM). count: the value, learnt with its counts (BetaPRM). outcome: the verdict, of the last step
    alone (the ORM baseline)."""
    estimator: Literal["joint", "counts"] = "joint"
    """joint: the posterior of the whole chain, where it predicts better than each step alone. counts: k / n."""
    threshold: Frac = 0.0
    """value: above it a step is right; with `joint` a step is right if P(value > max(threshold, .03)) > 1/2."""
    min_change: Frac = 0.0
    """advantage: smaller changes are 0."""
    min_verdicts: Annotated[int, Field(ge=0)] = 4
    """A step with fewer verdicts gets no label, unless it ends the solution; `joint` needs none."""
    balance: Balance = Balance()
    unique_prefixes: bool = False
    """Label equal prefixes of a problem once."""
    max_sd: Frac | None = None
    """Leave steps unlabelled whose value is known less well than this."""
    best_frac: Frac | None = None
    """Keep this share of the solutions, by the balance and reliability of their labels (BIS)."""


class Perception(_Section):
    """Warm-up and kept auxiliary task: is this statement about the picture true?"""

    warmup: Optimiser
    corrupted_frac: Frac = 0.5
    """Share of the statements that are made false."""
    corruptions: Annotated[list[Corruption], Field(min_length=1)] = [
        "neighbour",
        "elsewhere",
        "opposite",
        "shifted",
        "negation",
    ]
    """How they may be made false; each that can is as likely as any other (docs/perception.md, also of `beside`)."""
    max_statements: Count = 16
    """Statements of a picture that are shown at a time, drawn anew at every step."""
    aux_batch_size: Count = 16
    """Pictures a step beside the Monte-Carlo labels."""
    aux_weight: Annotated[float, Field(ge=0.0)] = 0.5


class Train(_Section):
    """Labels -> process reward model."""

    template: Literal["marker", "chat"] = "marker"
    """marker: a special token after every step (MM-PRM). chat: one step a turn, read before the label (VisualPRM)."""
    marker: str = "<prm>"
    """The token after every step at which the model is read; of template `marker`."""
    label_tokens: Annotated[tuple[str, ...], Field(min_length=2, max_length=3)] = ("+", "-")
    """Words whose output rows start the head: right, wrong; with advantage labels right, unchanged, wrong."""
    max_tokens: Count | None = None
    """Prompt and solution together; steps behind it are not learnt, longer solutions not scored. null: the model's own."""
    optimiser: Optimiser
    freeze: list[Part] = ["vision"]
    """Parts of the policy that stay as they are."""
    lora: Lora | None = None
    """null trains the weights themselves; the head and the marker are trained in full either way."""
    dev_frac: Frac = 0.05
    """Share of the problems that are not learnt but watched, chosen by their digests; what the contract says is measured
    on them."""
    eval_steps: Count = 100
    """Steps between two looks at these problems."""
    patience: Count | None = None
    """End after so many looks without a lower loss, and keep the weights of the best; null: learn to the end."""
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
    control_problems: Annotated[int, Field(ge=0)] = 150
    """Problems whose candidates are altered and read again for the controls; 0: none."""


class Judge(_Section):
    """A model that decides what the rules leave open; STEPFORGE_JUDGE_URL says where it is served."""

    model: Name
    """The name under which the server lists it."""
    max_tokens: Count = 16
    """Of its reply, which is one word; a model that thinks aloud needs more."""
    num_attempts: Count = 5
    """Of one question; after the last failure the verdict is unknown."""
    timeout_seconds: Rate = 60.0
    """Of one attempt."""
    num_parallel: Count = 8
    """Questions in flight."""


class Verify(_Section):
    """What may decide where the rules of `components/grading.py` leave an answer open."""

    math_verify: bool = True
    """Ask math-verify, in worker processes, about formulas that the rules do not read."""
    cpu_seconds: Rate = 3.0
    """CPU time of one comparison; past it the verdict is unknown."""
    memory_bytes: Annotated[int, Field(ge=1 << 28)] = 3 << 29
    """Address space of a worker."""
    judge: Judge | None = None
    """Ask a model about what is still open; null asks nobody."""


class Params(_Section):
    """params.yaml: everything that decides what is computed."""

    seed: Annotated[int, Field(ge=0)]
    task: str = "maths"
    """What a step is and how answers are compared; see components/tasks.py."""
    verify: Verify = Verify()
    """How far the grader goes beyond its own rules."""
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
    """STEPFORGE_ENGINE: hf | vllm | server | scripted. Default hf."""
    device: str
    """STEPFORGE_DEVICE: cpu | cuda | cuda:0 ... Default: cuda if there is one."""
    num_threads: int
    """STEPFORGE_THREADS: CPU threads a process. Default 2, not the machine's count: sums keep their order."""
    num_workers: int
    """STEPFORGE_WORKERS: processes that a stage may run side by side. Default: 2, or 1 on one core."""
    tokens_at_once: int = 16_384
    """STEPFORGE_TOKENS_AT_ONCE: tokens of one forward pass in training; larger batches are learnt in parts."""
    checkpoint_activations: bool = False
    """STEPFORGE_CHECKPOINT_ACTIVATIONS=1: compute activations again in the backward pass instead of keeping them."""
    deepspeed: Path | None = None
    """STEPFORGE_DEEPSPEED: a DeepSpeed configuration, such as infra/deepspeed/zero2.json; unset: plain data parallelism."""
    rank: int = 0
    """RANK, set by torchrun and like launchers: which of the processes that train together this is."""
    world_size: int = 1
    """WORLD_SIZE, set by the launcher: how many processes train together."""
    server_url: str | None = None
    """STEPFORGE_SERVER_URL: where the engine `server` finds its models, such as http://localhost:8000/v1."""
    server_key: str | None = field(default=None, repr=False)
    """STEPFORGE_SERVER_KEY: sent as a bearer token; never printed."""
    server_concurrency: int = 32
    """STEPFORGE_SERVER_CONCURRENCY: requests in flight at a time; each may ask for many completions."""
    judge_url: str | None = None
    """STEPFORGE_JUDGE_URL: OpenAI-compatible server of the judge, up to and without `/chat/completions`."""
    judge_key: str | None = field(default=None, repr=False)
    """STEPFORGE_JUDGE_KEY: sent as a bearer token; never printed or written."""


def load_runtime(environ: dict[str, str] | None = None) -> Runtime:
    """The runtime that the STEPFORGE_* variables ask for.

    Raises:
        SettingsError: an unknown STEPFORGE_ variable, or a value that is no positive number.
    """
    env = dict(os.environ) if environ is None else environ
    known = {"HOME", "ENGINE", "DEVICE", "THREADS", "WORKERS", "ACTOR", "SERVER_URL", "SERVER_KEY", "SERVER_CONCURRENCY"}
    known |= {"JUDGE_URL", "JUDGE_KEY", "TOKENS_AT_ONCE", "CHECKPOINT_ACTIVATIONS", "DEEPSPEED"}
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

    rank, world_size = _launched(env)
    engine = env.get("STEPFORGE_ENGINE", "hf")
    if engine not in ENGINES:
        raise SettingsError("environment", f"STEPFORGE_ENGINE={engine!r} is unknown", f"known: {', '.join(ENGINES)}")
    if engine == "server" and not env.get("STEPFORGE_SERVER_URL"):
        what = "STEPFORGE_ENGINE=server, but STEPFORGE_SERVER_URL is not set"
        raise SettingsError("environment", what, "for example STEPFORGE_SERVER_URL=http://localhost:8000/v1")
    return Runtime(
        home=Path(env.get("STEPFORGE_HOME", ".stepforge")),
        engine=engine,
        device=env.get("STEPFORGE_DEVICE", "auto"),
        num_threads=positive("THREADS", 2),
        num_workers=positive("WORKERS", min(2, os.cpu_count() or 1)),
        tokens_at_once=positive("TOKENS_AT_ONCE", 16_384),
        checkpoint_activations=_switch(env, "STEPFORGE_CHECKPOINT_ACTIVATIONS"),
        deepspeed=_existing_file(env, "STEPFORGE_DEEPSPEED"),
        rank=rank,
        world_size=world_size,
        server_url=_web_address(env, "STEPFORGE_SERVER_URL"),
        server_key=_secret(env, "STEPFORGE_SERVER_KEY"),
        server_concurrency=positive("SERVER_CONCURRENCY", 32),
        judge_url=_web_address(env, "STEPFORGE_JUDGE_URL"),
        judge_key=_secret(env, "STEPFORGE_JUDGE_KEY"),
    )


def _launched(env: dict[str, str]) -> tuple[int, int]:
    """(rank, world size) as a launcher set them; without one, this process is alone."""
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return 0, 1
    rank, size = env["RANK"], env["WORLD_SIZE"]
    if not (rank.isascii() and rank.isdigit() and size.isascii() and size.isdigit() and int(rank) < int(size)):
        what = f"RANK={rank!r} and WORLD_SIZE={size!r} name no process"
        raise SettingsError("environment", what, "torchrun sets them; otherwise unset both")
    return int(rank), int(size)


def _switch(env: dict[str, str], name: str) -> bool:
    text = env.get(name, "0")
    if text not in ("0", "1"):
        raise SettingsError("environment", f"{name}={text!r} is neither 0 nor 1", f"for example {name}=1")
    return text == "1"


def _existing_file(env: dict[str, str], name: str) -> Path | None:
    text = env.get(name)
    if not text:
        return None
    if not Path(text).is_file():
        raise SettingsError("environment", f"{name}={text!r} is no file", "for example infra/deepspeed/zero2.json")
    return Path(text)


def _web_address(env: dict[str, str], name: str) -> str | None:
    text = env.get(name)
    if not text:
        return None
    if "@" in text:  # the value is not repeated: it may hold a secret
        raise SettingsError("environment", f"{name} holds a name or a password", "give a key in a variable of its own")
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or any(c.isspace() for c in text):
        raise SettingsError("environment", f"{name}={text!r} is no web address", "for example http://localhost:8000/v1")
    return text.rstrip("/")


def _secret(env: dict[str, str], name: str) -> str | None:
    text = env.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise SettingsError("environment", f"{name} holds a character that no key has", "copy it again, on one line")
    return text


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
