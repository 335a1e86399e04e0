"""What a user can get wrong ends in two lines and an exit code, through the real command line; nothing is half-written."""

import io
import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from components.records import QUARANTINE, read_json, read_table

ROOT = Path(__file__).parents[2]


def picture(shade: int, size: int = 32) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (size, size), (shade, 255 - shade, 128))
    for place in range(size):
        image.putpixel((place, (place * (shade + 1)) % size), (0, 0, 0))
    image.save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header promises 60000 x 60000 pixels."""
    small = bytearray(picture(1, 2))
    small[16:24] = (60_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


class Workplace:
    """An empty project with a params.yaml, a problem file and its pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data/images").mkdir(parents=True)
        (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        self.rows = [{"id": f"p{i}", "question": f"how many dots has picture {i}", "answer": str(i)} for i in range(4)]
        for i, row in enumerate(self.rows):
            row["image_path"] = f"images/p{i}.png"
            (folder / "data" / row["image_path"]).write_bytes(picture(60 * i))
        self.problems = folder / "data/problems.json"
        self.write(self.rows)

    def write(self, rows) -> None:
        self.problems.write_text(json.dumps(rows))

    def params(self, **changes) -> None:
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["curate"] |= changes.pop("curate", {})
        content |= changes
        for key in [key for key, value in content.items() if value == "REMOVED"]:
            del content[key]
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content))

    def curate(self, *more, problems="data/problems.json", out="artifacts/seeds", limit_bytes=None, env=None):
        """Run the stage in a process of its own; returns (exit code, stderr)."""
        command = [sys.executable, "-m", "components", "curate", "--problems", problems, "--out", out, *more]

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        environment = {key: value for key, value in os.environ.items() if not key.startswith("STEPFORGE_")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=limited if limit_bytes else None,
        )
        return done.returncode, done.stderr

    def fates(self):
        return {
            row["source_id"]: row["reason"]
            for row in read_table(self.folder / "artifacts/seeds/quarantine.parquet", QUARANTINE)
        }


@pytest.fixture
def place(tmp_path):
    return Workplace(tmp_path)


def refused(outcome, code, *parts):
    """The stage ended with this code, one error line with all the parts, one hint, and no traceback."""
    returncode, stderr = outcome
    assert returncode == code, stderr
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    hints = [line for line in stderr.splitlines() if line.startswith("hint: ")]
    assert (len(errors), len(hints)) == (1, 1), stderr
    for part in parts:
        assert part in errors[0] + hints[0], stderr


def untouched(place):
    artifacts = place.folder / "artifacts"
    assert not artifacts.exists() or list(artifacts.iterdir()) == []


def test_bad_rows_are_quarantined_with_their_reason_and_the_rest_goes_on(place):
    images = place.folder / "data/images"
    (images / "broken.png").write_bytes(picture(9)[:-30])
    (images / "bomb.png").write_bytes(bomb())
    bad = [
        {"id": "broken", "question": "q", "answer": "1", "image_path": "images/broken.png"},
        {"id": "bomb", "question": "q", "answer": "1", "image_path": "images/bomb.png"},
        {"id": "unanswered", "question": "q", "answer": None},
        {"id": "outside", "question": "q", "answer": "1", "image_path": "../params.yaml"},
        {"id": "p1", "question": "another question under the same id", "answer": "3"},
        {"id": "absolute", "question": "q", "answer": "1", "image_path": str(images / "p0.png")},
    ]
    place.write([*place.rows, *bad])
    place.params(curate={"max_quarantined_frac": 0.9})
    returncode, stderr = place.curate()
    assert returncode == 0, stderr
    assert place.fates() == {
        "broken": "broken_image",
        "bomb": "huge_image",
        "unanswered": "missing_answer",
        "outside": "path_outside",
        "p1": "duplicate_id",
        "absolute": "path_outside",
    }
    summary = read_json(place.folder / "artifacts/seeds/summary.json")
    assert (summary["rows_in"], summary["seeds"], summary["quarantined"]) == (10, 4, 6)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("data/problems.json: is empty",)),
        (b"[]", ("has no rows",)),
        ('[{"id": "é"}]'.encode("latin-1"), ("not UTF-8: byte 0xe9 at position 9", "iconv")),
        (b'[{"id": "a", "question"', ("not JSON",)),
        (b'[{"id": "a", "problem": "q", "answer": "1"}]', ("no column 'question'", "it has: answer, id, problem")),
        (b'[{"id": "a", "question": "q", "answer": ""}]', ("1 of 1 rows are unusable", "missing_answer")),
    ],
)
def test_a_bad_problem_file_is_one_line(place, content, parts):
    place.problems.write_bytes(content)
    refused(place.curate(), 3, *parts)
    untouched(place)


def test_a_missing_problem_file_and_an_unknown_kind_are_one_line(place):
    refused(place.curate(problems="data/none.json"), 3, "data/none.json: no such file")
    refused(place.curate(problems="params.yaml"), 3, "unknown kind of file '.yaml'")
    untouched(place)


def test_an_earlier_output_survives_a_failed_run(place):
    assert place.curate()[0] == 0
    before = (place.folder / "artifacts/seeds/seeds.parquet").read_bytes()
    place.problems.write_bytes(b"")
    refused(place.curate(), 3, "is empty")
    assert (place.folder / "artifacts/seeds/seeds.parquet").read_bytes() == before
    assert [path.name for path in (place.folder / "artifacts").iterdir()] == ["seeds"]


def test_a_missing_setting_is_named(place):
    place.params(train="REMOVED")
    refused(place.curate(), 2, "params.yaml: missing key 'train'")
    untouched(place)


def test_an_unknown_setting_is_corrected(place):
    place.params(curate={"max_image_pixel": 5})
    refused(place.curate(), 2, "unknown key 'curate.max_image_pixel'", "did you mean 'max_image_pixels'?")
    untouched(place)


def test_a_setting_out_of_range_is_shown_with_its_value(place):
    place.params(curate={"max_quarantined_frac": 1.5})
    refused(place.curate(), 2, "curate.max_quarantined_frac = 1.5")
    untouched(place)


def test_a_missing_or_broken_settings_file_is_one_line(place):
    (place.folder / "params.yaml").write_text("seed: [")
    refused(place.curate(), 2, "not YAML")
    (place.folder / "params.yaml").unlink()
    refused(place.curate(), 2, "params.yaml: no such file")


def test_an_unknown_environment_variable_is_corrected(place):
    refused(
        place.curate(env={"STEPFORGE_WORKER": "2"}),
        2,
        "unknown variable STEPFORGE_WORKER",
        "did you mean STEPFORGE_WORKERS?",
    )


def test_the_difficulty_filter_without_a_policy_is_refused(place):
    place.params(curate={"difficulty": {"num_solutions": 4}})
    refused(place.curate(), 2, "curate.difficulty needs a policy", "--policy")
    untouched(place)


def test_an_output_folder_that_cannot_be_made_is_one_line(place):
    (place.folder / "artifacts").write_text("a file where a folder should be")
    refused(place.curate(), 3, "artifacts: cannot be written")
    assert (place.folder / "artifacts").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_output_folder_is_one_line(place):
    (place.folder / "artifacts").mkdir(mode=0o555)
    refused(place.curate(), 3, "artifacts: cannot be written: Permission denied")
    untouched(place)


def test_a_full_disk_is_one_line_and_leaves_nothing(place):
    refused(place.curate(limit_bytes=2048), 3, "artifacts/seeds: cannot be written", "free space")
    untouched(place)


def test_the_whole_help_and_a_wrong_verb_need_no_project(tmp_path):
    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-m", "components", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "curate" in call("--help").stdout
    wrong = call("curat")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
