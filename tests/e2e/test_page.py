"""The page in a real browser: no request, no console error, nothing wider than a phone, filters that filter.

Skipped where no Chromium is installed. Speaks the DevTools protocol over a pipe, so no driver is needed.
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.compare import comparison
from components.report import write_report
from components.report.changes import write_changes
from components.runs import read_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HOSTILE = '<script>window.owned=1</script>"><img src=x onerror="window.owned=1"></script>{{script}}\u202e' + "W" * 200
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Browser:
    """One headless tab."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # the protocol wants descriptors 3 and 4: copies far from them, so that placing one never hides the other
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in (to_browser, from_browser)]
        actions = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, on_page: bool = True, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session and on_page:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._last:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._read, 1 << 20)
            assert block, "the browser went away"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, *, width: int, scheme: str = "light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[dict[str, Any]]:
        """What the console and the log said since the page was opened."""
        return [
            e
            for e in self.events
            if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        ]

    def requests(self) -> list[str]:
        """What the page asked for, itself and its data: pictures aside."""
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def close(self) -> None:
        self.call("Browser.close", on_page=False)
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each sort: a whole run, one whose every text attacks, one of nothing, a large one, two runs compared."""
    folder = tmp_path_factory.mktemp("pages")
    build_run = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "page_fixture.py"))["build_run"]
    nothing: dict[str, Any] = {"artifacts": folder / "none", "data": folder / "none", "receipts": [], "registry": {}}
    runs = {name: build_run(folder / name, hostile=text) for name, text in (("whole", ""), ("hostile", HOSTILE))}
    two = [read_run(str(run["artifacts"]), home=folder) for run in runs.values()]
    return {
        **{name: write_report(folder / f"{name}.html", **run) for name, run in runs.items()},
        "empty": write_report(folder / "empty.html", **nothing),
        "large": write_report(folder / "large.html", **build_run(folder / "large", num_problems=500)),
        "changes": write_changes(folder / "changes.html", comparison(*two)),
    }


@pytest.mark.parametrize("name", ["whole", "hostile", "empty", "large", "changes"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_page_fits_its_window_asks_nobody_and_stays_silent(browser, pages, name, width, scheme):
    browser.open(pages[name], width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("window.innerWidth") == width  # a page wider than a phone makes the phone zoom out
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("typeof window.owned") == "undefined"


def test_pictures_load_and_are_enlarged_with_crisp_edges(browser, pages):
    browser.open(pages["whole"], width=390)
    facts = "[i.naturalWidth, i.width, getComputedStyle(i).imageRendering, i.alt.length > 0]"
    shown = browser.evaluate(f"[...document.images].filter(i => i.offsetParent).map(i => {facts})")
    assert len(shown) == 12
    assert all(one == [32, 112, "pixelated", True] for one in shown)


def test_gallery_begins_short_and_grows_to_the_whole(browser, pages):
    browser.open(pages["whole"], width=390)
    everything = browser.evaluate("document.querySelectorAll('.card').length")
    assert _shown(browser) == 12 < everything
    assert browser.evaluate("document.getElementById('shown').textContent") == f"12 of {everything} shown"
    assert _shown_in_full(browser) == everything


@pytest.mark.parametrize("kind", ["miss", "rescue", "other"])
def test_buttons_show_the_kind_they_name(browser, pages, kind):
    browser.open(pages["whole"], width=390)
    browser.evaluate(f"document.querySelector('button[data-kind={kind}]').click()")
    wanted = browser.evaluate(f"document.querySelectorAll('.card[data-kind={kind}]').length")
    assert _shown_in_full(browser) == wanted > 0
    assert browser.evaluate(f"document.querySelectorAll('.card[data-kind={kind}]:not([hidden])').length") == wanted
    assert browser.evaluate("document.querySelector('button[aria-pressed=true]').dataset.kind") == kind


@pytest.mark.parametrize("box", ["split", "source"])
def test_boxes_show_what_they_name(browser, pages, box):
    browser.open(pages["whole"], width=390)
    _set(browser, box, browser.evaluate(f"document.getElementById('{box}').options[1].value"), "change")
    named = f"c.dataset.{box} === document.getElementById('{box}').value"
    wanted = browser.evaluate(f"[...document.querySelectorAll('.card')].filter(c => {named}).length")
    assert _shown_in_full(browser) == wanted > 0
    assert browser.evaluate(f"[...document.querySelectorAll('.card:not([hidden])')].every(c => {named})")


def test_search_finds_a_question_and_says_when_nothing_fits(browser, pages):
    browser.open(pages["whole"], width=390)
    question = browser.evaluate("document.querySelector('.card .question').textContent")
    _set(browser, "search", question.upper(), "input")
    assert 0 < _shown_in_full(browser) < browser.evaluate("document.querySelectorAll('.card').length")
    _set(browser, "search", "no such words", "input")
    assert _shown(browser) == 0
    assert browser.evaluate("document.getElementById('shown').textContent") == "0 of 0 shown"


def test_kinds_of_misses_show_the_misses_they_name(browser, pages):
    browser.open(pages["whole"], width=390)
    names = browser.evaluate("[...document.getElementById('fault').options].slice(1).map(o => o.value)")
    assert {"believed", "overlooked", "outvoted"} <= set(names)
    for name in names:
        _set(browser, "fault", name, "change")
        wanted = (
            f"[...document.querySelectorAll('.card')].filter(c => c.dataset.faults.split(' ').includes('{name}')).length"
        )
        assert _shown_in_full(browser) == browser.evaluate(wanted) > 0
        assert browser.evaluate(
            "[...document.querySelectorAll('.card:not([hidden])')].every(c => c.dataset.kind === 'miss')"
        )


def test_cards_sort_by_margin_both_ways_and_back(browser, pages):
    margins = "[...document.querySelectorAll('.card')].map(c => +c.dataset.margin)"
    browser.open(pages["whole"], width=390)
    ids = "[...document.querySelectorAll('.card')].map(c => c.id)"
    first = browser.evaluate(ids)
    _set(browser, "order", "sure", "change")
    found = browser.evaluate(margins)
    assert found == sorted(found, reverse=True) != sorted(found)
    _set(browser, "order", "close", "change")
    assert browser.evaluate(margins) == sorted(found)
    assert _shown(browser) == 12
    _set(browser, "order", "", "change")
    assert browser.evaluate(ids) == first


def test_tables_sort_by_the_column_whose_name_is_pressed(browser, pages):
    browser.open(pages["whole"], width=390)
    table = "document.querySelectorAll('table.groups')[2]"  # difficulty, test
    last = f"[...{table}.tBodies[0].rows].map(r => +r.cells[7].dataset.value)"
    names = f"[...{table}.tBodies[0].rows].map(r => r.cells[0].textContent)"
    before = browser.evaluate(names)
    press = f"{table}.tHead.rows[0].cells[%d].querySelector('button').click()"
    browser.evaluate(press % 7)
    found = browser.evaluate(last)
    assert found == sorted(found, reverse=True)
    assert browser.evaluate(f"{table}.tHead.rows[0].cells[7].getAttribute('aria-sort')") == "descending"
    browser.evaluate(press % 7)
    assert browser.evaluate(last) == sorted(found)
    browser.evaluate(press % 0)
    assert browser.evaluate(names) == before
    assert browser.evaluate(f"{table}.querySelectorAll('[aria-sort]').length") == 1
    assert browser.complaints() == []


_NARROWEST_GAP = """Math.min(...[...document.querySelectorAll('.tested tr')].flatMap(row => {
  const ends = [...row.children].slice(2).map(cell => {
    const range = document.createRange(); range.selectNodeContents(cell);
    const boxes = [...range.getClientRects()].filter(box => box.width);
    return [Math.min(...boxes.map(box => box.left)), Math.max(...boxes.map(box => box.right))];
  });
  return ends.slice(1).map((end, i) => end[0] - ends[i][1]);
}))"""


def test_numbers_of_paired_differences_do_not_touch(browser, pages):
    for width in (390, 1280):
        browser.open(pages["whole"], width=width)
        assert 4 < browser.evaluate(_NARROWEST_GAP) < width


def test_names_of_curves_stay_inside_their_chart(browser, pages):
    for width in (390, 1280):
        browser.open(pages["whole"], width=width)
        outside = """[...document.querySelectorAll('.figure.wide')].flatMap(f => [...f.querySelectorAll('text')]
            .filter(t => { const a = t.getBoundingClientRect(), b = f.getBoundingClientRect();
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1 }))
            .map(t => t.textContent)"""
        assert browser.evaluate(outside) == []
        smallest = (
            "Math.min(...[...document.querySelectorAll('.figure.wide text')].map(t => t.getBoundingClientRect().height))"
        )
        assert browser.evaluate(smallest) >= 12  # pixels, on a phone too


def test_a_thousand_cards_are_searched_while_one_types(browser, pages):
    browser.open(pages["large"], width=390)
    assert browser.evaluate("document.querySelectorAll('.card').length") == 1000
    _set(browser, "search", "yellow plus red", "input")
    wanted = "[...document.querySelectorAll('.card')].filter(c => /yellow/.test(c.textContent) && /plus/.test(c.textContent)"
    wanted += " && /red/.test(c.textContent)).length"
    assert _shown_in_full(browser) == browser.evaluate(wanted) > 12


def test_without_scripts_everything_is_shown_and_nothing_pretends_to_filter(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(pages["whole"], width=390)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert _shown(browser) == browser.evaluate("document.querySelectorAll('.card').length") > 12
    assert browser.evaluate("document.getElementById('filters').offsetParent") is None


def test_link_to_a_card_that_is_not_shown_yet_shows_it(browser, pages):
    browser.open(pages["whole"], width=390)
    name = browser.evaluate("[...document.querySelectorAll('.card')].at(-1).id")
    browser.evaluate(f"location.hash = '{name}'")
    box = f"document.getElementById('{name}').getBoundingClientRect()"
    for _ in range(50):
        if browser.evaluate(f"{box}.height") > 0:
            break
    assert browser.evaluate(f"{box}.top < innerHeight && {box}.bottom > 0")


def _shown(browser: Browser) -> int:
    return browser.evaluate("[...document.querySelectorAll('.card')].filter(c => c.offsetParent !== null).length")


def _shown_in_full(browser: Browser) -> int:
    """How many cards are shown after "show more" has nothing more to give."""
    browser.evaluate("{const m = document.getElementById('more'); while (!m.hidden) m.click()}")
    return _shown(browser)


def _set(browser: Browser, name: str, value: str, event: str) -> None:
    browser.evaluate(f"document.getElementById('{name}').value = {json.dumps(value)}")
    browser.evaluate(f"document.getElementById('{name}').dispatchEvent(new Event('{event}'))")


def test_dark_and_light_differ_and_both_can_be_read(browser, pages):
    colours = {}
    for scheme in ("light", "dark"):
        browser.open(pages["whole"], width=390, scheme=scheme)
        colours[scheme] = browser.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        for thing in (
            ".sub",
            ".badge.prm",
            ".badge.control",
            ".step.s0",
            ".step.s2",
            ".step.s4",
            ".interval",
            "summary",
            "nav a",
            ".verdict.wrong",
            "td.p",
            ".says td",
            ".groups thead button",
        ):
            assert _contrast(browser, thing) >= 4.5, (scheme, thing)
    assert colours["light"] != colours["dark"]


def _contrast(browser: Browser, selector: str) -> float:
    """WCAG contrast of the first such element's text with what lies behind it."""
    pair = browser.evaluate(
        f"""(() => {{ const e = document.querySelector('{selector}'); let b = e;
        while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor] }})()"""
    )
    lights = []
    for colour in pair:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
