"""A reward model in use: rows and their fates, files that survive a kill to the byte, the page, the command line."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components import score
from components.cli import main
from components.errors import DataError, EngineError, SettingsError
from components.metrics import aggregate
from components.prm import Reading, RewardModel
from components.score import Asked, asked_of, find_prm, open_prm, picture_of, score_file, score_rows
from components.settings import load_runtime
from tests.conftest import picture

ROOT = Path(__file__).parents[2]
QUESTION = "bars : total of red and blue ?"
STEPS = ("red: 3", "blue: 5", "3 + 5 = 8", "answer: 8")


def trained(policy, folder, **options):
    formulation = options.pop("formulation", "soft")
    words = ("+", "=", "-") if formulation == "advantage" else ("+", "-")
    model = RewardModel.from_policy(policy, formulation=formulation, label_tokens=words, device="cpu").eval()
    model.save(folder, policy, {"task": "maths", **options})
    return folder


@pytest.fixture(scope="module")
def prm(tiny_policy, tmp_path_factory):
    return trained(tiny_policy, tmp_path_factory.mktemp("score") / "prm", aggregation="product", threshold=0.3)


@pytest.fixture(scope="module")
def scorer(prm):
    return open_prm(prm, device="cpu")


@pytest.fixture
def runtime(tmp_path):
    return load_runtime({"STEPFORGE_HOME": str(tmp_path / "home"), "STEPFORGE_DEVICE": "cpu"})


def row(i=0, **more):
    return {"question": QUESTION, "image_base64": base64.b64encode(picture(i)).decode(), "steps": list(STEPS), **more}


# --- one solution ---------------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_reward_model_and_the_rest_follows_from_the_contract(scorer, prm):
    scored = scorer.score(QUESTION, STEPS, images=[picture(0)])
    (expected,) = RewardModel.load(prm, device="cpu").score([Reading(QUESTION, (picture(0),), STEPS)])
    assert scored.scores == pytest.approx(expected, abs=1e-5)
    assert scored.score == pytest.approx(aggregate(expected, "product"), abs=1e-5)
    below = [i for i, one in enumerate(expected) if one <= 0.3]
    assert (scored.verdict, scored.first_error) == ("wrong" if below else "right", below[0] if below else None)
    assert scored.threshold == 0.3


def test_the_first_error_is_the_first_step_that_does_not_lie_above_the_threshold(scorer):
    scores = scorer.score(QUESTION, STEPS, images=[picture(0)]).scores
    for threshold in (0.0, *scores):
        scorer.threshold, before = threshold, scorer.threshold
        scored = scorer.score(QUESTION, STEPS, images=[picture(0)])
        scorer.threshold = before
        below = [i for i, one in enumerate(scores) if one <= threshold]
        assert scored.first_error == (below[0] if below else None)
        assert scored.verdict == ("wrong" if below else "right")


def test_a_text_falls_into_the_tasks_steps(scorer):
    told = scorer.score(QUESTION, "\n\n".join(STEPS), images=[picture(0)])
    assert told == scorer.score(QUESTION, STEPS, images=[picture(0)])
    assert len(scorer.steps("\n\n".join("abcdefghijklmnop"))) == score.MAX_STEPS


def test_an_outcome_model_judges_the_whole_and_names_no_step(tiny_policy, tmp_path):
    folder = trained(tiny_policy, tmp_path / "prm", formulation="outcome", threshold=0.99999)
    scored = open_prm(folder, device="cpu").score(QUESTION, STEPS, images=[picture(0)])
    assert (scored.verdict, scored.first_error) == ("wrong", None)
    assert scored.score == scored.scores[-1]


def test_counts_tell_how_sure_a_score_is(tiny_policy, tmp_path):
    folder = trained(tiny_policy, tmp_path / "prm", formulation="count")
    scored = open_prm(folder, device="cpu").score(QUESTION, STEPS, images=[picture(0)])
    assert len(scored.concentrations) == len(STEPS)
    assert min(scored.concentrations) > 0
    assert "concentrations" in scored.row()


def test_advantages_lie_between_minus_one_and_one(tiny_policy, tmp_path):
    folder = trained(tiny_policy, tmp_path / "prm", formulation="advantage")
    scored = open_prm(folder, device="cpu").score(QUESTION, STEPS, images=[picture(0)])
    assert all(-1 <= one <= 1 for one in scored.scores)
    assert scored.threshold == 0.0


def test_five_lines_of_python_are_enough(prm, tmp_path, monkeypatch):
    """The lines that docs/scoring.md shows, run as they stand there."""
    text = (ROOT / "docs/scoring.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) == 5
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "prm").symlink_to(prm)
    (tmp_path / "dots.png").write_bytes(picture(0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "scored" not in printed
    assert len(printed.splitlines()) == 1
    (readme,) = [part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")[1:2]] or [code]
    assert readme == code


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fate", "said"),
    [
        ([1], "not_json", "list"),
        ({"steps": ["red"]}, "incomplete", "question is None"),
        ({"question": 3, "steps": ["red"]}, "incomplete", "question is 3"),
        ({"question": QUESTION}, "incomplete", "neither steps nor response"),
        ({"question": QUESTION, "steps": "red"}, "incomplete", "not a list"),
        ({"question": QUESTION, "steps": ["red", None]}, "incomplete", "a step is None"),
        ({"question": QUESTION, "steps": []}, "no_steps", "no step"),
        ({"question": QUESTION, "response": " \n\n "}, "no_steps", "no step"),
        ({"question": QUESTION, "steps": ["red", " "]}, "no_steps", "blank"),
        (row(image_base64="@@"), "picture", "no base64"),
        (row(image_base64=base64.b64encode(b"nothing" * 9).decode()), "picture", "cannot be decoded"),
        (row(image="gone.png"), "picture", "No such file"),
        (row(image=7), "picture", "image is 7"),
        (row(image="data:image/png,abc"), "picture", "not data:image"),
        (row(steps=["red"] * 300), "too_long", "at most 256"),
    ],
)
def test_a_bad_row_has_a_fate_and_harms_nobody(scorer, tmp_path, given, fate, said):
    good, bad, again = score_rows([row(), given, row()], scorer, images=tmp_path)
    assert bad["fate"] == fate
    assert said in bad["detail"]
    assert bad["verdict"] == "unknown"
    assert "scores" not in bad
    assert good == again
    assert good["fate"] == "scored"


def test_a_picture_may_be_a_path_base64_or_a_data_address(scorer, tmp_path):
    content = picture(3)
    (tmp_path / "a.png").write_bytes(content)
    text = base64.b64encode(content).decode()
    for given in ("a.png", str(tmp_path / "a.png"), text, f"data:image/png;base64,{text}"):
        assert picture_of(given, tmp_path) == content
    asked = asked_of(row(image=None, images=["a.png", text], image_base64=None), scorer, images=tmp_path)
    assert asked.images == (content, content)
    refused = asked_of(row(image="a.png"), scorer, images=None)
    assert refused.fate == "picture"


def test_a_language_model_without_pictures_says_so(checkpoint, tmp_path):
    scorer = open_prm(trained(checkpoint("qwen2"), tmp_path / "prm"), device="cpu")
    blind, plain = scorer.score_all([Asked(QUESTION, STEPS, (picture(0),)), Asked(QUESTION, STEPS)])
    assert (blind.fate, plain.fate) == ("picture", "scored")
    assert "takes no pictures" in blind.detail


def test_ids_come_back_and_steps_only_where_we_made_them(scorer):
    given, split = score_rows([row(id="a"), row(id=7, steps=None, response="red: 3\n\nblue: 5")], scorer, images=None)
    assert given["id"] == "a"
    assert "steps" not in given
    assert (split["id"], split["steps"]) == (7, ["red: 3", "blue: 5"])


# --- files ----------------------------------------------------------------------------------------------------------


def write_rows(path, rows):
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return path


def test_a_file_is_scored_line_by_line_bad_lines_too(scorer, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(score, "_WINDOW_ROWS", 3)
    rows = [row(i % 3, id=i, steps=list(STEPS[: 1 + i % 4])) for i in range(8)]
    rows[4:4] = ["{broken", '"text"', ""]
    fates = score_file(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", scorer, runtime=runtime)
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["row"] for one in told] == list(range(11))
    assert [one["fate"] for one in told] == ["scored"] * 4 + ["not_json"] * 3 + ["scored"] * 4
    assert fates == {"scored": 8, "not_json": 3}
    good = [one for one in told if one["fate"] == "scored"]
    for one, given in zip(good, (r for r in rows if isinstance(r, dict)), strict=True):
        alone = scorer.score(QUESTION, given["steps"], images=[picture(given["id"] % 3)])
        assert one["id"] == given["id"]
        assert one["scores"] == pytest.approx(alone.scores, abs=1e-4)
    assert not list((tmp_path / "home/work").iterdir())


def test_a_file_without_a_row_gives_one_without_a_row(scorer, tmp_path, runtime):
    (tmp_path / "in.jsonl").touch()
    assert score_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", scorer, runtime=runtime) == {}
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize("torn", [0, 7])
def test_an_interrupted_run_goes_on_and_gives_the_bytes_of_one_that_was_not(scorer, tmp_path, runtime, monkeypatch, torn):
    monkeypatch.setattr(score, "_WINDOW_ROWS", 2)
    file = write_rows(tmp_path / "in.jsonl", [row(i % 2, steps=list(STEPS[: 1 + i % 4])) for i in range(9)])
    score_file(file, tmp_path / "whole.jsonl", scorer, runtime=runtime)
    asked = []
    whole = type(scorer).score_all

    def breaking(self, rows):
        asked.append(len(rows))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, rows)

    monkeypatch.setattr(type(scorer), "score_all", breaking)
    with pytest.raises(KeyboardInterrupt):
        score_file(file, tmp_path / "out.jsonl", scorer, runtime=runtime)
    assert not (tmp_path / "out.jsonl").exists()
    (part,) = (tmp_path / "home/work").glob("*/part.jsonl")
    with part.open("ab") as out:
        out.write(b"{" * torn)  # what a kill in the midst of writing leaves
    score_file(file, tmp_path / "out.jsonl", scorer, runtime=runtime)
    assert sum(asked) == 4 + 2 + 5  # the batch in flight is asked again, nothing else
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_file_or_model_never_goes_on_where_this_one_stopped(scorer, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(score, "_WINDOW_ROWS", 1)
    file = write_rows(tmp_path / "in.jsonl", [row(), row(1)])
    monkeypatch.setattr(score, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score_file(file, tmp_path / "out.jsonl", scorer, runtime=runtime)
    monkeypatch.undo()
    write_rows(file, [row(2), row(3), row(0)])
    assert score_file(file, tmp_path / "out.jsonl", scorer, runtime=runtime) == {"scored": 3}


def test_windows_are_bounded_by_the_bytes_of_the_pictures_that_lines_name(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "_WINDOW_BYTES", 1800)
    (tmp_path / "a.png").write_bytes(bytes(900))
    file = write_rows(tmp_path / "in.jsonl", [{"images": ["a.png"]}, {"image": "a.png"}, {}, {"image": "a.png"}, {}, {}])
    with file.open("rb") as source:
        assert [len(lines) for lines in score._windows(source, tmp_path)] == [2, 4]


def test_the_output_may_not_be_the_input(scorer, tmp_path, runtime):
    file = write_rows(tmp_path / "in.jsonl", [row()])
    with pytest.raises(DataError, match="is the file to be scored"):
        score_file(file, file, scorer, runtime=runtime)
    with pytest.raises(DataError, match="cannot be read"):
        score_file(tmp_path / "gone.jsonl", tmp_path / "out.jsonl", scorer, runtime=runtime)


@pytest.mark.slow
def test_a_killed_command_run_again_gives_the_bytes_of_one_that_was_not(prm, tmp_path):
    rows = [row(i % 5, id=i, steps=list(STEPS[: 1 + i % 4])) for i in range(600)]
    file = write_rows(tmp_path / "in.jsonl", rows)
    environment = os.environ | {
        "STEPFORGE_HOME": str(tmp_path / "home"),
        "STEPFORGE_DEVICE": "cpu",
        "STEPFORGE_THREADS": "1",
    }

    def command(out):
        return [sys.executable, "-m", "components", "score", str(prm), str(file), "--out", str(tmp_path / out)]

    subprocess.run(command("whole.jsonl"), check=True, env=environment, cwd=ROOT, capture_output=True)
    process = subprocess.Popen(command("out.jsonl"), env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "home/work").glob("*/done.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists()
    done = subprocess.run(command("out.jsonl"), check=True, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert "rows are there from an earlier run" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# --- the command line -----------------------------------------------------------------------------------------------


def called(monkeypatch, tmp_path, *arguments):
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    monkeypatch.setenv("STEPFORGE_THREADS", "1")
    return main(["score", *map(str, arguments)])


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_scores_one_solution_and_draws_it(prm, scorer, tmp_path, monkeypatch, capsys, as_json):
    (tmp_path / "a.png").write_bytes(picture(0))
    solution = tmp_path / "solution"
    solution.write_text(json.dumps(STEPS) if as_json else "\n\n".join(STEPS))
    page = tmp_path / "page.html"
    question = "bars : total of <red> and blue ?"
    given = ("--question", question, "--image", tmp_path / "a.png", "--steps", solution, "--picture", page)
    assert called(monkeypatch, tmp_path, prm, *given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == scorer.score(question, STEPS, images=[picture(0)]).row()
    text = page.read_text()
    assert base64.b64encode(picture(0)).decode() in text
    assert "&lt;red&gt;" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('<li class="step s') == len(STEPS)
    for one in told["scores"]:
        assert f"<b>{one:.3f}</b>" in text


def test_the_command_scores_a_file(prm, tmp_path, monkeypatch, capsys):
    file = write_rows(tmp_path / "in.jsonl", [row(), {"question": 1}])
    assert called(monkeypatch, tmp_path, prm, file, "--out", tmp_path / "out.jsonl") == 0
    assert "1 scored, 1 incomplete" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("in.jsonl",), 2),
        (("--question", "?"), 2),
        (("in.jsonl", "--out", "out", "--question", "?"), 2),
        (("--question", "?", "--steps", "gone.txt"), 3),
        (("gone.jsonl", "--out", "out.jsonl"), 3),
    ],
)
def test_what_is_asked_wrongly_ends_in_two_lines(prm, tmp_path, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, tmp_path, prm, *arguments) == code
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")


def test_a_folder_around_the_checkpoint_will_do_and_any_other_is_refused(prm, tmp_path):
    assert open_prm(prm.parent, device="cpu").contract["digest"] == open_prm(prm, device="cpu").contract["digest"]
    with pytest.raises(EngineError, match=r"no prm\.json"):
        open_prm(tmp_path)
    with pytest.raises(SettingsError, match="unknown"):
        open_prm(prm, task="gardening")


def test_a_registered_model_is_found_by_its_digest_and_by_nothing_else(prm, scorer, tmp_path):
    assert find_prm(scorer.contract["digest"], [None, tmp_path, prm]) == prm
    with pytest.raises(EngineError, match=f"holds {scorer.contract['digest']}"):
        find_prm("0" * 32, [prm])
