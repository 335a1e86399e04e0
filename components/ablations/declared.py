"""The sweeps of infra/ablations.yaml, typed: a question, the variants of the settings that answer it, and what is looked at.

Owns what may be declared, and how a variant's settings are laid over params.yaml; does not know how anything is run.
"""

from __future__ import annotations

import copy
import difflib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.errors import SettingsError
from components.settings import Name, load_params

Better = Literal["higher", "lower", "neither"]
Overrides = dict[str, Any]
"""Dotted key of params.yaml -> the value that stands in its place."""

_SELECTORS = re.compile(r"^(\w+): (\w+)(?: - (\w+))?$")
_PATH = re.compile(r"^\w+(\.[\w-]+)+$")
DEFAULT = "as it is"
"""The one variant of a sweep that only reads what an unchanged run measured."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shown(_Section):
    """A number that a sweep looks at."""

    value: Name
    """`SPLIT: SELECTOR` or `SPLIT: A - B`, a mean over problems; or `STAGE.path.to.number` in what a stage says of itself:
    metrics.json of evaluate, summary.json of the others."""
    better: Better = "higher"
    """Which end is the better one; `neither` for costs that are only told."""

    @model_validator(mode="before")
    @classmethod
    def _of_words(cls, given: Any) -> Any:
        return {"value": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _says_where(self) -> Shown:
        if not (_SELECTORS.match(self.value) or _PATH.match(self.value)):
            raise ValueError(f"{self.value!r} is neither 'SPLIT: SELECTOR', 'SPLIT: A - B' nor 'STAGE.path.to.number'")
        return self

    @property
    def selectors(self) -> tuple[str, str, str | None] | None:
        """(split, selector, the one that is taken off), or None of a path."""
        found = _SELECTORS.match(self.value)
        return (found[1], found[2], found[3]) if found else None

    @property
    def is_difference(self) -> bool:
        """Whether it is a gain and not a level."""
        return self.selectors is not None and self.selectors[2] is not None


class Sweep(_Section):
    """One question to the pipeline."""

    question: Name
    source: Name
    """Whose analysis it repeats: paper and table."""
    seeded: str = "train"
    """The first stage that gets the seed; those behind it in the pipeline get it too, all others keep params.yaml's."""
    variants: Annotated[dict[Name, Overrides], Field(min_length=1)] | None = None
    """Name -> settings; the first is the one that the others are compared with. None: `reads` finds them."""
    reads: Literal["aggregations", "curves"] | None = None
    """Needs no run of its own: the variants are the rows of metrics.json's `aggregations`, or the n of its `curves`."""
    shown: Annotated[list[Shown], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_variants(self) -> Sweep:
        if (self.variants is None) == (self.reads is None):
            raise ValueError("give either variants or reads")
        for one in self.shown if self.reads else ():
            if one.selectors is None or one.is_difference:
                raise ValueError(f"{one.value!r}: a sweep that reads {self.reads} shows 'SPLIT: SELECTOR'")
        return self

    @property
    def runs(self) -> dict[str, Overrides]:
        """What is to be run, by variant."""
        return self.variants if self.variants is not None else {DEFAULT: {}}


def load_sweeps(path: Path, params: Path) -> dict[str, Sweep]:
    """Name -> sweep; every variant's settings are those of a valid params.yaml.

    Raises:
        SettingsError: a file is missing or no YAML, or a key, a name or a value is none that there is.
    """
    content = _read(path)
    load_params(params)
    base = yaml.safe_load(params.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content:
        raise SettingsError(str(path), "declares no sweep", "name: {question: .., source: .., variants: .., shown: ..}")
    sweeps = {}
    for name, declared in content.items():
        if not re.fullmatch(r"[\w-]+", str(name)):
            raise SettingsError(str(path), f"a sweep named {name!r}", "letters, digits, - and _: it names files")
        try:
            sweep = sweeps[str(name)] = Sweep.model_validate(declared)
        except ValidationError as error:
            raise _readable(f"{path}: {name}", error) from error
        known: dict[str, dict[str, Any]] = {}
        for variant, overrides in sweep.runs.items():
            place = f"{path}: {name}/{variant}"
            settings = overridden(base, overrides, place=place)
            check(settings, place=place)
            alike = next((other for other, one in known.items() if one == settings), None)
            if alike is not None:
                raise SettingsError(
                    place, f"has the settings of {alike!r}", "their difference would be 0: drop one of the two"
                )
            known[variant] = settings
    return sweeps


def chosen(sweeps: Mapping[str, Sweep], names: Sequence[str], place: str) -> dict[str, Sweep]:
    """The sweeps of these names, in this order; all where none is named.

    Raises:
        SettingsError: there is no such sweep.
    """
    for name in names:
        if name not in sweeps:
            close = difflib.get_close_matches(name, sweeps, n=1)
            near = f"did you mean {close[0]!r}? " if close else ""
            raise SettingsError(place, f"no sweep {name!r}", f"{near}there are: {', '.join(sweeps)}")
    return {name: sweeps[name] for name in names or sweeps}


def overridden(content: Mapping[str, Any], overrides: Overrides, *, place: str) -> dict[str, Any]:
    """`content` with each dotted key's value replaced whole; sections that are left out or null come into being.

    Raises:
        SettingsError: a key leads through something that holds no keys.
    """
    out = copy.deepcopy(dict(content))
    for dotted, value in overrides.items():
        *way, last = str(dotted).split(".")
        inside = out
        for i, part in enumerate(way):
            if inside.get(part) is None:
                inside[part] = {}
            if not isinstance(inside[part], dict):
                what = f"{dotted!r}: {'.'.join(way[: i + 1])} holds no keys, but {inside[part]!r}"
                raise SettingsError(place, what, "dotted keys as in params.yaml")
            inside = inside[part]
        inside[last] = copy.deepcopy(value)
    return out


def check(content: Mapping[str, Any], *, place: str) -> None:
    """Settings as a params.yaml would have to hold them.

    Raises:
        SettingsError: what `load_params` would say, at `place`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
        try:
            load_params(path)
        except SettingsError as error:
            raise SettingsError(place, error.what, error.hint) from error


def _read(path: Path) -> Any:
    try:
        node = yaml.compose(text := path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        _check_keys(node, str(path))
        return yaml.safe_load(text)
    except FileNotFoundError as error:
        raise SettingsError(str(path), "no such file", "run in the project's folder, or name it with --file") from error
    except OSError as error:
        raise SettingsError(str(path), f"cannot be read: {error.strerror}", "name a file with --file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"not YAML: {error}", "check the indentation of that line") from error


def _check_keys(node: yaml.Node | None, place: str) -> None:
    """YAML's own reader keeps the last of two equal keys, and a sweep or a variant less would go unnoticed."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            line = node.start_mark.line + 1
            raise SettingsError(place, f"{twice!r} is there twice, from line {line} on", "give each a name of its own")
        for _, value in node.value:
            _check_keys(value, place)


def _readable(place: str, error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list((Shown if "shown" in first["loc"] else Sweep).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return SettingsError(place, f"unknown key {name!r}", hint)
    if first["type"] == "missing":
        return SettingsError(place, f"missing key {name!r}", "docs/ablations.md says what a sweep declares")
    return SettingsError(
        place, f"{name + ': ' if name else ''}{first['msg'].lower()}", "docs/ablations.md shows one of each"
    )
