"""A sweep as it is read: a table for the terminal or Markdown, JSON, and one HTML page with its chart.

Owns how estimates are written and drawn; computes none. The page needs nothing outside itself and runs no script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.records import replacing, write_json
from components.report.charts import Line, Scale, axis, lines, track
from components.report.markup import MISSING, Html, join, number, table, tag

BEST = "best"
_KINDS = ("prm", "baseline", "control", "ceiling", "other")
_HEAD = ("variant", "seeds", "mean", "over seeds", "over problems")
_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1b2126; --soft: #59636c; --line: #dfe2dd; --prm: #1f5fbf;
  --base: #5f6b75; --control: #b04a00; --other: #8a3d9e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e6e9eb; --soft: #a0abb4; --line: #333b42;
  --prm: #7fb0ff;  --base: #a0abb4; --control: #ffa765; --other: #d9a3ea; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper);
  color: var(--ink); overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; } .note { color: var(--soft); font-size: .88rem; margin: .3rem 0; }
caption { text-align: left; font-size: 1rem; font-weight: 600; padding: 1.6rem 0 .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); font-weight: 400; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; } td:nth-child(2) { min-width: 18rem; width: 40%; }
.is-best, .is-best td:nth-child(3) { font-weight: 700; }
.track { display: block; overflow: visible; } .figure { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font-size: 11px; fill: var(--soft); } 
.grid, .base { stroke: var(--line); } .guide { stroke: var(--soft); stroke-dasharray: 3 3; }
.span { stroke-width: 2.5; } .mark { stroke: none; } .ring { fill: none; stroke: var(--base); stroke-width: 1.2; }
.prm { fill: var(--prm); } .baseline, .ceiling { fill: var(--base); }
.control { fill: var(--control); } .other { fill: var(--other); }
.span.prm, .line.prm { stroke: var(--prm); } .span.baseline, .line.baseline, .line.ceiling { stroke: var(--base); }
.line.control { stroke: var(--control); } .line.other { stroke: var(--other); }
polyline.line { fill: none; stroke-width: 2; } .band { opacity: .1; } .leader { stroke: var(--soft); stroke-width: .7; }
"""


def write_sweep(out: Path, content: Mapping[str, Any]) -> Path:
    """Write NAME.json and NAME.html into `out`, each whole or not at all; returns the page's path.

    Raises:
        DataError: they cannot be written.
    """
    path = out / f"{content['name']}.html"
    try:
        write_json(path.with_suffix(".json"), dict(content))
        with replacing(path) as part:
            part.write_text(page(content), encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(str(path), f"cannot be written: {error.strerror}", "name another folder with --out") from error
    return path


def text_lines(content: Mapping[str, Any]) -> list[str]:
    """The table for a terminal: one block a shown value."""
    told = [f"{content['name']}: {content['question']}", f"  {_about(content)}"]
    for one in content["shown"]:
        cells = [_head(content), *_cells(content, one)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        told.append(f"{one['value']}{_better(one)}")
        told += ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return told + [f"  missing: {line}" for line in _missing(content)]


def markdown_lines(content: Mapping[str, Any]) -> list[str]:
    """The same table in Markdown."""
    told = [f"## {content['name']}", "", f"{content['question']} {_about(content)}"]
    for one in content["shown"]:
        head = _head(content)
        rows = [head, ["---"] * len(head), *_cells(content, one)]
        told += ["", f"**{one['value']}**{_better(one)}", ""]
        told += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return told + [f"- missing: {line}" for line in _missing(content)]


def page(content: Mapping[str, Any]) -> str:
    """One HTML page: a chart of each shown value, its numbers beside it."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"ablation {content['name']}"),
        tag("style", Html(_STYLE)),
    )
    drawn = (
        "Dots are means over seeds, rings single seeds. Upper bar: over seeds, what other seeds would give on these "
        "problems. Lower bar: over problems, what other problems would give with these models. Neither holds the other."
    )
    body = tag(
        "body",
        tag("h1", str(content["question"])),
        tag("p", f"Sweep {content['name']}. {content['source']}. {_about(content)}"),
        tag("p", drawn, class_="note"),
        *(tag("p", line, class_="note") for line in _settings(content)),
        _curves(content) if content["reads"] == "curves" and content["rows"] else None,
        *(_chart(content, one) for one in content["shown"]),
        *(tag("p", f"Missing: {line}") for line in _missing(content)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _chart(content: Mapping[str, Any], one: Mapping[str, Any]) -> Html:
    found = [(row, row["values"][one["value"]]) for row in content["rows"]]
    ends = [v for _, e in found if e for v in _ends(e)]
    if not ends:
        return tag("p", f"{one['value']}: no run measured it.", class_="note")
    scale = _scale(ends)
    guide = found[0][1]["mean"] if found[0][1] else None
    rows = []
    for (row, estimate), cells in zip(found, _cells(content, one), strict=True):
        bars: Html | None = None
        if estimate:
            rings = [("ring", {"mean": value}, "ring") for value in estimate["seeds"].values()]
            own = estimate["over_seeds"] or {"mean": estimate["mean"]}
            across = [("bar", estimate["over_problems"], "baseline")] if estimate["over_problems"] else []
            upper = track(scale, [*rings, ("dot", own, "prm")], guide=guide, height=18)
            bars = join([upper, track(scale, across, guide=guide, height=14) if across else None])
        is_best = bool(estimate and estimate["is_best"])
        name = tag("span", f"{row['variant']}, {BEST}" if is_best else row["variant"], class_="is-best" if is_best else None)
        rows.append([name, bars, *cells[1:-1]])
    head = _head(content)[:-1]
    return table([head[0], axis(scale, _form(one, signed=False)), *head[1:]], rows, caption=f"{one['value']}{_better(one)}")


def _curves(content: Mapping[str, Any]) -> Html:
    """The shown values against N, which the variants are."""
    drawn, sizes = [], [float(row["variant"].rpartition(" ")[2]) for row in content["rows"]]
    for one, kind in zip(content["shown"], _KINDS * len(content["shown"]), strict=False):
        known = [(n, row["values"][one["value"]]) for n, row in zip(sizes, content["rows"], strict=True)]
        drawn.append(Line(one["value"].partition(": ")[2], kind, [(n, e["over_problems"] or e) for n, e in known if e]))
    scale = _scale(
        [v for line in drawn for _, e in line.points for v in (e.get("low", e["mean"]), e.get("high", e["mean"]))]
    )
    form = _form(content["shown"][0], signed=False)
    return lines(drawn, scale, title=content["question"], x_label="candidates", x_ticks=sizes, form=form)


def _ends(estimate: Mapping[str, Any]) -> list[float]:
    both = [one[end] for one in (estimate["over_seeds"], estimate["over_problems"]) if one for end in ("low", "high")]
    return [*estimate["seeds"].values(), *both]


def _scale(values: Sequence[float]) -> Scale:
    """The smallest round axis of any magnitude that holds all `values` in at most six steps."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 6))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        start, end = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        if 0 < round((end - start) / step) <= 6:
            break
    return Scale(start, end if end > start else start + step, step)


# Words and cells


def _about(content: Mapping[str, Any]) -> str:
    seeds = content["seeds"]
    many = f"seeds {' '.join(map(str, seeds))}" if len(seeds) > 1 else f"one seed, {seeds[0]}: no interval over seeds"
    return f"{many}, from {content['seeded']} on; {100 * content['confidence']:g} % intervals"


def _better(one: Mapping[str, Any]) -> str:
    return "" if one["better"] == "neither" else f" ({one['better']} is better)"


def _head(content: Mapping[str, Any]) -> list[str]:
    base = content["rows"][0]["variant"] if content["rows"] else "the first"
    return [*_HEAD, f"against {base}", *_HEAD[3:], ""]


def _cells(content: Mapping[str, Any], one: Mapping[str, Any]) -> list[list[str]]:
    """A row a variant, as text; what is missing is a dash."""
    rows = []
    for row in content["rows"]:
        estimate = row["values"][one["value"]]
        difference = estimate["difference"] if estimate else None
        cells = [str(row["variant"]), str(len(estimate["seeds"]) if estimate else 0)]
        for known, form in ((estimate, _form(one, signed=False)), (difference, _form(one, signed=True))):
            cells.append(form(known["mean"]) if known else "" if estimate and known is difference else MISSING)
            cells += [_range(known and known[across], form) for across in ("over_seeds", "over_problems")]
        rows.append([*cells, BEST if estimate and estimate["is_best"] else ""])
    return rows


def _range(interval: Mapping[str, float] | None, form: Any) -> str:
    return f"[{form(interval['low'])}, {form(interval['high'])}]" if interval else ""


def _form(one: Mapping[str, Any], *, signed: bool) -> Any:
    """How numbers of a shown value are written: three digits, or whole from 100 on."""
    sign = "+" if signed or " - " in one["value"] else ""

    def form(value: float) -> str:
        if number(value) is None:
            return MISSING
        whole = abs(value) >= 100
        return (f"{value:{sign},.0f}" if whole else f"{value:{sign}.3f}").replace("-", "−")

    return form


def _settings(content: Mapping[str, Any]) -> list[str]:
    rows = [(row["variant"], row["overrides"]) for row in content["rows"] if row["overrides"]]
    return [f"{name}: " + ", ".join(f"{key} = {value}" for key, value in given.items()) for name, given in rows]


def _missing(content: Mapping[str, Any]) -> list[str]:
    return [f"{one['variant']}, seed {one['seed']}: {one['error']}" for one in content["missing"]]
