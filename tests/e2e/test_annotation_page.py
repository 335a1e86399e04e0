"""The annotation page in a real browser: marks by keyboard, what it keeps, what it saves, and that no text becomes a script.

Skipped where no Chromium is installed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.annotate import page
from components.annotate.answers import read_answers
from components.annotate.drawing import draw_audit, read_audit
from components.records import LABEL, PROBLEM, SOLUTION, write_table
from tests.conftest import picture
from tests.e2e.test_page import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HOSTILE = '</script><script>window.owned=1</script>"><img src=x onerror="window.owned=1">{{script}}\u202e' + "long" * 60
KEYS = {
    "ArrowDown": 40,
    "ArrowUp": 38,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Escape": 27,
    "+": 187,
    "-": 189,
    "0": 48,
    "u": 85,
    "c": 67,
    "s": 83,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    problems = [
        {"problem_id": f"p{i}", "source_id": str(i), "source": "odd", "question": f"question {i} {HOSTILE}", "answer": "8"}
        | {"images": [{"bytes": picture(i)}] * (i % 3)}
        for i in range(8)
    ]
    solutions = [
        {"solution_id": f"s{i}", "problem_id": f"p{i}", "steps": [f"step {j} {HOSTILE}" for j in range(3)]}
        | {"finish_reason": "stop"}
        for i in range(8)
    ]
    labels = [{"solution_id": f"s{i}", "step": j, "mean": 0.9} for i in range(8) for j in range(3)]
    write_table(folder / "seeds/seeds.parquet", problems, PROBLEM)
    write_table(folder / "rollouts/solutions.parquet", solutions, SOLUTION)
    write_table(folder / "labels/labels.parquet", labels, LABEL)
    draw_audit(**{name: folder / name for name in ("seeds", "rollouts", "labels")}, num=6, out=folder / "audit")
    return folder / "audit"


def opened(browser: Browser, audit: Path, *, name: str | None = "Ann", width: int = 1280, scheme: str = "light") -> None:
    """The page of somebody who has not been here before."""
    browser.open(audit / page.FILE, width=width, scheme=scheme)
    browser.evaluate("localStorage.clear()")
    browser.open(audit / page.FILE, width=width, scheme=scheme)
    if name is not None:
        enter(browser, name)


def enter(browser: Browser, name: str) -> None:
    browser.evaluate(
        f"{{const n = document.getElementById('name'); n.value = {json.dumps(name)}; n.dispatchEvent(new Event('change'))}}"
    )


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        code: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": key} if len(key) == 1 else {}
        browser.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        browser.call("Input.dispatchKeyEvent", type="keyUp", **code)


def marks(browser: Browser) -> list[str | None]:
    return browser.evaluate("[...document.querySelectorAll('.step')].map(one => one.dataset.mark ?? null)")


def here(browser: Browser) -> int:
    return browser.evaluate("[...document.querySelectorAll('.step')].findIndex(one => one.classList.contains('here'))")


def said(browser: Browser, element: str) -> str:
    return browser.evaluate(f"document.getElementById('{element}').textContent")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_page_fits_its_window_asks_nobody_and_no_text_becomes_a_script(browser, audit, width, scheme):
    opened(browser, audit, width=width, scheme=scheme)
    for _ in range(6):
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("window.innerWidth") == width
        press(browser, "+", "ArrowRight")
    assert browser.requests() == [(audit / page.FILE).as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("typeof window.owned") == "undefined"
    assert browser.evaluate("document.querySelectorAll('main script, main img[src=x]').length") == 0
    ink, paper = (browser.evaluate(f"getComputedStyle(document.body).{one}") for one in ("color", "backgroundColor"))
    assert (ink, paper)[scheme == "dark"] == ("rgb(27, 33, 38)", "rgb(20, 24, 28)")[scheme == "dark"]


def test_the_question_the_steps_and_every_picture_are_shown(browser, audit):
    opened(browser, audit)
    rows = {row["question"]: row for row in read_audit(audit)[0]}
    for _ in range(6):
        row = rows[said(browser, "question")]
        assert browser.evaluate("[...document.querySelectorAll('.step .text')].map(one => one.textContent)") == row["steps"]
        count = "[...document.images].filter(one => one.complete && one.naturalWidth === 32).length"
        for _ in range(100):
            if browser.evaluate(count) == len(row["images"]):
                break
            time.sleep(0.02)
        assert browser.evaluate(count) == len(row["images"]) == browser.evaluate("document.images.length")
        press(browser, "ArrowRight")


def test_keys_mark_move_and_undo(browser, audit):
    opened(browser, audit)
    assert (marks(browser), here(browser), said(browser, "count")) == ([None] * 3, 0, "0 of 18 steps")
    press(browser, "+", "-", "0")
    assert (marks(browser), said(browser, "count")) == (["+", "-", "0"], "3 of 18 steps")
    press(browser, "ArrowUp", "ArrowUp", "-")
    assert (marks(browser), here(browser)) == (["-", "-", "0"], 1)
    press(browser, "u")
    assert (marks(browser), here(browser)) == (["+", "-", "0"], 0)
    press(browser, "ArrowRight")
    assert (marks(browser), said(browser, "place")) == ([None] * 3, "solution 2 of 6")
    press(browser, "ArrowDown", "-", "u", "u")  # the second undo leads back to the solution before
    assert (marks(browser), here(browser), said(browser, "place")) == (["+", "-", None], 2, "solution 1 of 6")
    press(browser, "ArrowLeft")
    assert said(browser, "place") == "solution 1 of 6"


def test_a_key_held_down_marks_one_step(browser, audit):
    opened(browser, audit)
    for is_repeat in (False, True, True):
        code = {"key": "-", "windowsVirtualKeyCode": KEYS["-"], "text": "-", "autoRepeat": is_repeat}
        browser.call("Input.dispatchKeyEvent", type="keyDown", **code)
    assert (marks(browser), here(browser)) == (["-", None, None], 1)


def test_buttons_do_what_keys_do(browser, audit):
    opened(browser, audit, width=390)
    browser.evaluate("document.querySelectorAll('.step')[1].querySelector('button[data-mark=\"-\"]').click()")
    assert (marks(browser), here(browser)) == ([None, "-", None], 2)
    assert browser.evaluate("document.querySelectorAll('.step')[1].querySelectorAll('[aria-pressed=true]').length") == 1
    sizes = "[...document.querySelectorAll('.marks button')].map(b => Math.min(b.offsetWidth, b.offsetHeight))"
    assert min(browser.evaluate(sizes)) >= 44  # for a thumb
    browser.evaluate("document.getElementById('undo').click()")
    assert marks(browser) == [None] * 3


def test_nothing_is_marked_without_a_name(browser, audit):
    opened(browser, audit, name=None)
    press(browser, "+")
    assert marks(browser) == [None] * 3
    assert "Your name first" in said(browser, "say")
    assert browser.evaluate("document.activeElement.id") == "name"


def test_a_comment_is_typed_without_marking(browser, audit):
    opened(browser, audit)
    press(browser, "c")
    assert browser.evaluate("document.activeElement.id") == "comment"
    press(browser, "+", "u", "Escape", "-")
    assert browser.evaluate("document.getElementById('comment').value") == "+u"
    assert marks(browser) == ["-", None, None]


def test_what_was_marked_is_there_again_under_the_same_name_only(browser, audit):
    opened(browser, audit)
    press(browser, "+", "-", "ArrowRight", "0")
    browser.open(audit / page.FILE, width=1280)
    assert (marks(browser), said(browser, "place")) == (["0", None, None], "solution 2 of 6")
    enter(browser, "Bob")
    assert (marks(browser), said(browser, "count")) == ([None] * 3, "0 of 18 steps")
    assert "kept under the name before" in said(browser, "say")
    enter(browser, "Ann")
    assert (said(browser, "count"), said(browser, "say")) == ("3 of 18 steps", "")


def test_two_windows_of_one_person_do_not_overwrite_each_other(browser, audit):
    opened(browser, audit)
    first = browser._session
    target = browser.call("Target.createTarget", on_page=False, url=(audit / page.FILE).as_uri())["targetId"]
    second = browser.call("Target.attachToTarget", on_page=False, targetId=target, flatten=True)["sessionId"]
    try:
        for session, before, key in ((second, 0, "+"), (first, 1, "-"), (second, 2, "0")):
            browser._session = session
            for _ in range(250):
                if browser.evaluate("document.getElementById('count')?.textContent") == f"{before} of 18 steps":
                    break
                time.sleep(0.02)
            browser.evaluate(f"document.querySelectorAll('.step')[{before}].querySelector('[data-mark=\"{key}\"]').click()")
        assert (marks(browser), said(browser, "count")) == (["+", "-", "0"], "3 of 18 steps")
    finally:
        browser._session = first
        browser.call("Target.closeTarget", on_page=False, targetId=target)
    browser.open(audit / page.FILE, width=1280)
    assert marks(browser) == ["+", "-", "0"]


def test_the_saved_file_is_read_as_answers_and_goes_on_in_another_browser(browser, audit, tmp_path):
    browser.call("Browser.setDownloadBehavior", on_page=False, behavior="allow", downloadPath=str(tmp_path))
    opened(browser, audit, name="Ann Lee/../x")
    press(browser, "c", "+", "Escape", "+", "-", "0", "ArrowRight", "+", "s")
    saved = tmp_path / "answers-Ann_Lee_.._x-round1.json"
    for _ in range(200):
        if saved.exists() and saved.stat().st_size:
            break
        time.sleep(0.05)
    assert "5 of 6 solutions are not finished" in said(browser, "say")
    content = json.loads(saved.read_text())
    assert content["set"] == read_audit(audit)[1]["set"]
    assert [one["marks"] for one in content["answers"]] == [["+", "-", "0"], ["+", None, None]]
    summary = read_answers(audit, [saved], out=tmp_path / "read")
    assert summary["annotators"] == {"Ann Lee/../x": 4}

    opened(browser, audit, name=None)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(saved)])
    for _ in range(100):
        if said(browser, "count") == "4 of 18 steps":
            break
        time.sleep(0.02)
    assert (said(browser, "count"), said(browser, "place")) == ("4 of 18 steps", "solution 2 of 6")
    press(browser, "ArrowLeft")
    assert marks(browser) == ["+", "-", "0"]
    assert browser.evaluate("document.getElementById('comment').value") == "+"
    assert browser.complaints() == []


def test_a_second_round_asks_only_what_is_open(browser, audit, tmp_path):
    rows, summary = read_audit(audit)
    for who, marked in (("ann", "+++"), ("bob", "+-+")):
        said_of = [{"solution": rows[0]["solution_id"], "marks": list(marked), "comment": ""}]
        content = {"format": page.FORMAT, "set": summary["set"], "round": 1, "annotator": who, "answers": said_of}
        (tmp_path / f"{who}.json").write_text(json.dumps(content))
    read_answers(audit, [tmp_path / "ann.json", tmp_path / "bob.json"], out=tmp_path / "read")
    opened(browser, tmp_path / "read")
    assert browser.evaluate("[...document.querySelectorAll('.step')].map(one => one.querySelectorAll('button').length)") == [
        0,
        3,
        0,
    ]
    assert browser.evaluate("document.querySelector('.said').textContent") == "said before: 1 × +, 1 × -"
    press(browser, "-", "ArrowDown", "ArrowUp", "s")
    assert marks(browser) == [None, "-", None]
    assert said(browser, "say") == "Saved: every step is marked."
