"""Runs expectations on tables with Great Expectations and names the first row that fails. Knows no table of ours.

Every suite runs with counts only; what failed runs again with the key columns. An expectation that cannot run is a
broken check, never bad data.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.errors import DataError, SettingsError


@dataclass(frozen=True)
class Expect:
    """One thing that must hold, and what to say of the rows for which it does not."""

    kind: str
    """Name of the Great Expectations class, without its leading Expect."""
    column: str
    """The column as the user knows it; what is compared may be derived from it."""
    says: str
    severity: str = "critical"
    arguments: Mapping[str, Any] = field(default_factory=dict)


def unique(*columns: str, says: str) -> Expect:
    """No two rows agree in all of these columns."""
    if len(columns) == 1:
        return Expect("ColumnValuesToBeUnique", columns[0], says, arguments={"column": columns[0]})
    return Expect("CompoundColumnsToBeUnique", columns[-1], says, arguments={"column_list": list(columns)})


def filled(column: str, *, says: str) -> Expect:
    """No value is missing; not-a-number counts as missing."""
    return Expect("ColumnValuesToNotBeNull", column, says, arguments={"column": column})


def within(
    column: str, low: float | None, high: float | None, *, says: str, severity: str = "critical", of: str | None = None
) -> Expect:
    """Every value lies in [low, high]; None is no limit."""
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Expect("ColumnValuesToBeBetween", of or column, says, severity, arguments)


def among(column: str, values: Sequence[Any], *, says: str) -> Expect:
    """Every value is one of a closed set."""
    return Expect("ColumnValuesToBeInSet", column, says, arguments={"column": column, "value_set": list(values)})


def true(column: str, *, of: str, says: str) -> Expect:
    """A derived column holds True in every row."""
    return Expect("ColumnValuesToBeInSet", of, says, arguments={"column": column, "value_set": [True]})


def greater(larger: str, smaller: str, *, says: str, or_equal: bool = False) -> Expect:
    """One column exceeds another in every row."""
    arguments = {"column_A": larger, "column_B": smaller, "or_equal": or_equal}
    return Expect("ColumnPairValuesAToBeGreaterThanB", smaller, says, arguments=arguments)


@dataclass(frozen=True)
class Result:
    """What one expectation found."""

    check: str
    """table/column"""
    expectation: str
    says: str
    severity: str
    """critical | warning"""
    passed: bool
    num_rows: int
    num_failed: int
    first: str
    """The first row that fails, by its keys and value; "" if none does."""
    is_whole: bool = False
    """Of the file as a whole, not of its rows."""

    def line(self) -> str:
        """`1 of 200,000 outside [0, 1]; first: problem 1390 step 25 = 1.7 (critical)`."""
        if self.is_whole:
            return f"{self.says}: {self.first} ({self.severity})"
        first = f"; first: {self.first}" if self.first else ""
        return f"{self.num_failed:,} of {self.num_rows:,} {self.says}{first} ({self.severity})"


class Suites:
    """Suites on pandas frames, and all their results."""

    def __init__(self, name: str) -> None:
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        try:
            gx = importlib.import_module("great_expectations")
            types = importlib.import_module("great_expectations.data_context.types.base")
            self._classes = importlib.import_module("great_expectations.expectations")
        except ImportError as error:
            raise SettingsError(
                "environment", f"great_expectations is missing: {error}", "pip install 'stepforge[gates]'"
            ) from error
        self._suite_class = gx.ExpectationSuite
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = types.ProgressBarsConfig(globally=False)
        self._source = context.data_sources.add_pandas(name)
        self.results: list[Result] = []
        self._num_suites = 0

    def run(self, table: str, frame: Any, keys: Sequence[str], expectations: Sequence[Expect]) -> None:
        """Check one frame; `keys` are the columns that name a row to the user, none for a frame of totals.

        Raises:
            DataError: an expectation cannot run.
        """
        self._num_suites += 1
        name = f"{table} {self._num_suites}"
        batch = (
            self._source.add_dataframe_asset(name)
            .add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": frame})
        )
        made = [
            getattr(self._classes, f"Expect{e.kind}")(severity=e.severity, meta={"number": number}, **e.arguments)
            for number, e in enumerate(expectations)
        ]
        found = batch.validate(self._suite_class(name=name, expectations=made), result_format="SUMMARY")
        by_number = {result.expectation_config.meta["number"]: result for result in found.results}
        for number, expect in enumerate(expectations):
            result = by_number[number]
            check = f"{table}/{expect.column}"
            _refuse_broken(check, result.exception_info)
            num_failed = 0 if result.success else int(result.result["unexpected_count"])
            first = "" if result.success else _first(batch, made[number], keys, expect)
            kind = str(result.expectation_config.type)
            self.results.append(
                Result(
                    check, kind, expect.says, expect.severity, bool(result.success), len(frame), num_failed, first, not keys
                )
            )


def _first(batch: Any, made: Any, keys: Sequence[str], expect: Expect) -> str:
    """The first failing row: its keys, and the value of the checked column."""
    complete = {"result_format": "COMPLETE", "unexpected_index_column_names": list(keys), "include_unexpected_rows": False}
    result = batch.validate(made, result_format=complete).result
    rows = result.get("unexpected_index_list") or []
    if not keys or not rows:
        return _shown(result["unexpected_list"][0]) if result.get("unexpected_list") else ""
    row = rows[0]
    named = " ".join(f"{key.removesuffix('_id')} {_shown(row[key])}" for key in keys)
    values = {key: _shown(value) for key, value in row.items() if key not in keys and not isinstance(value, bool)}
    if list(values) == [expect.column]:
        return f"{named} = {values[expect.column]}"
    shown = ", ".join(f"{key} {value}" for key, value in values.items() if value not in ("True", "False"))
    return f"{named}: {shown}" if shown else named


def _refuse_broken(check: str, info: Mapping[str, Any] | None) -> None:
    for part in (info or {}, *(info or {}).values()):
        if isinstance(part, Mapping) and part.get("raised_exception"):
            what = f"the check itself is broken, the data may be sound: {part.get('exception_message')}"
            raise DataError(check, what, "this is a fault of StepForge: please report it")


def _shown(value: Any) -> str:
    number = getattr(value, "item", lambda: value)()
    return f"{number:.6g}" if isinstance(number, float) else str(number)
