"""Rows are written whole or not at all, equal rows as equal bytes, and every name is decided by its content alone."""

import hashlib
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import records
from components.errors import DataError
from components.records import (
    LABEL,
    PROBLEM,
    TableWriter,
    bytes_digest,
    digest,
    file_sha256,
    prefix_id,
    read_json,
    read_table,
    replacing,
    row_images,
    seed_for,
    tree_sha256,
    write_json,
    write_table,
)
from components.tasks import MATHS

SCHEMA = pa.schema([("name", pa.string()), ("count", pa.int32()), ("steps", pa.list_(pa.string()))])
ROWS = [{"name": f"n{i}", "count": i, "steps": ["a"] * (i % 3)} for i in range(20)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_a_digest_is_the_cut_sha256_of_canonical_json():
    assert digest("a", 1, [2.5, None]) == hashlib.sha256(b'["a",1,[2.5,null]]').hexdigest()[:32]
    assert digest("a", 1, [2.5, None]) == "8d63d4976dada832404fe2be0a1e59ad"
    assert digest({"b": 1, "a": "é"}) == hashlib.sha256(b'[{"a":"\\u00e9","b":1}]').hexdigest()[:32]
    assert bytes_digest(b"x") == hashlib.sha256(b"x").hexdigest()[:32]


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_a_digest_does_not_see_the_order_of_keys_nor_tuple_from_list(content):
    backwards = dict(reversed(content.items()))
    assert digest(content, [1, 2]) == digest(backwards, (1, 2))


def test_parts_that_only_join_alike_have_other_digests():
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(["ab", "c"]), digest("1"), digest(1)}) == 6


def test_a_number_that_is_none_has_no_digest():
    with pytest.raises(ValueError):
        digest(math.nan)


def test_seeds_are_63_bit_numbers_decided_by_seed_and_parts():
    seeds = {seed_for(seed, part, i) for seed in range(5) for part in "ab" for i in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(0, "x") == int(digest("seed", 0, "x")[:16], 16) // 2 == 596491099863673372


@given(st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=6), st.data())
def test_a_prefix_has_one_name_however_its_units_are_grouped_into_steps(paragraphs, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(paragraphs)), max_size=4)) | {len(paragraphs)})
    groups = ["\n\n".join(paragraphs[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)]
    units = MATHS.units(paragraphs)
    assert prefix_id("p", MATHS.units(groups)) == prefix_id("p", units)
    assert prefix_id("q", units) != prefix_id("p", units)
    assert prefix_id("p", [*units, "more"]) != prefix_id("p", units)


UNITS = st.lists(st.text("a\n", max_size=5), max_size=4)


@given(UNITS, UNITS)
def test_other_units_are_another_prefix_even_where_a_unit_holds_blank_lines(one, other):
    assert (prefix_id("p", one) == prefix_id("p", other)) == (one == other)


def test_units_that_join_to_one_text_are_told_apart():
    alike = (["a", "b"], ["a\n\nb"]), ([], [""]), (["a\n", "b"], ["a", "\nb"])
    assert all(prefix_id("p", one) != prefix_id("p", other) for one, other in alike)
    # paragraphs keep the name of their text: what was sampled behind it, by a seed made of it, stays what it was
    assert prefix_id("p", ["a", "b"]) == digest("prefix", "p", "a\n\nb") == "68d5d5ba2f1e60e9b45499b0b4e18cf2"


def test_equal_rows_give_equal_bytes_and_come_back(tmp_path):
    assert write_table(tmp_path / "a.parquet", ROWS, SCHEMA) == 20
    write_table(tmp_path / "b.parquet", (dict(reversed(row.items())) for row in ROWS), SCHEMA)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert read_table(tmp_path / "a.parquet", SCHEMA) == ROWS
    assert read_table(tmp_path / "a.parquet", SCHEMA, ["count"]) == [{"count": row["count"]} for row in ROWS]


def test_a_group_ends_with_so_many_rows_or_pictures_however_the_rows_came(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(records, "PICTURE_BYTES_PER_GROUP", 100)
    sizes = [0, 0, 60, 40, 10, 0, 0, 0, 0, 250, 99, 1, 5]
    rows = [{"problem_id": str(i), "images": [{"bytes": b"x" * n}] if n else []} for i, n in enumerate(sizes)]
    for name, step in (("one", 1), ("three", 3), ("all", len(rows))):
        with TableWriter(tmp_path / name, PROBLEM) as writer:
            for i in range(0, len(rows), step):
                writer.write(rows[i : i + step])
    groups = pq.ParquetFile(tmp_path / "one").metadata
    # 100 bytes behind row 3; 4 rows; 260 behind row 9, two of a group; 100 behind row 11; the rest
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [4, 4, 2, 2, 1]
    assert [row["problem_id"] for row in read_table(tmp_path / "one", PROBLEM)] == [row["problem_id"] for row in rows]
    assert len({(tmp_path / name).read_bytes() for name in ("one", "three", "all")}) == 1


@pytest.mark.parametrize(
    "row",
    [{"name": 3}, {"count": 2**40}, {"count": "many"}, {"count": 2**70}, {"name": "\ud800"}, {"steps": [1]}],
    ids=["a number for a text", "too large", "a text for a number", "far too large", "half a character", "a wrong list"],
)
def test_a_row_that_does_not_fit_is_said_and_leaves_the_old_table(tmp_path, row):
    path = tmp_path / "t.parquet"
    write_table(path, ROWS, SCHEMA)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"t\.parquet: a value does not fit its column"):
        write_table(path, [*ROWS, row], SCHEMA)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_missing_file_a_broken_one_and_a_missing_column_are_said(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_table(path, SCHEMA)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_table(path, SCHEMA)
    write_table(path, ROWS, SCHEMA)
    with pytest.raises(DataError, match="no column 'label_id'"):
        read_table(path, LABEL)


def test_the_sha256_of_a_folder_is_that_of_its_listing(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/y").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    one, two = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    assert file_sha256(tmp_path / "a") == tree_sha256(tmp_path / "a") == one
    assert tree_sha256(tmp_path) == hashlib.sha256(f"{one}  a\n{two}  b/y\n".encode()).hexdigest()


def test_a_folder_has_another_sha256_when_a_file_is_renamed_changed_or_added(tmp_path):
    seen = []
    for change in ("one", "two"):
        (tmp_path / "file").write_text(change)
        seen.append(tree_sha256(tmp_path))
    (tmp_path / "file").rename(tmp_path / "renamed")
    seen.append(tree_sha256(tmp_path))
    (tmp_path / "more").touch()
    seen.append(tree_sha256(tmp_path))
    assert len(set(seen)) == 4


def test_an_empty_folder_has_no_sha256(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="no such file, or an empty folder"):
            tree_sha256(path)


def test_replacing_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "deep" / "file"
    with replacing(path) as part:
        part.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    with replacing(path) as part:
        assert part.parent == path.parent  # a rename within one file system is atomic
        part.write_text("new")
    assert path.read_text() == "new"


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_comes_back_and_equal_content_gives_equal_bytes(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    write_json(folder / "a.json", content)
    write_json(folder / "b.json", dict(reversed(content.items())))
    assert read_json(folder / "a.json") == content
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()


def test_json_that_is_none_is_said(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "y.json")


def test_the_pictures_of_a_row_are_found_in_either_column():
    one, two = {"bytes": b"1", "path": None}, {"bytes": b"2", "path": "x.png"}
    assert row_images({"images": [one, two]}) == (b"1", b"2")
    assert row_images({"image": one}) == (b"1",)
    assert row_images({"images": []}) == row_images({"images": None}) == row_images({"image": None}) == row_images({}) == ()
    assert row_images({"images": [], "image": one}) == ()  # `images` is the whole truth where there is one


def test_a_problem_comes_back_with_its_pictures(tmp_path):
    row = dict.fromkeys(PROBLEM.names, "x") | {"images": [{"bytes": b"\x89PNG", "path": None}] * 2}
    write_table(tmp_path / "seeds.parquet", [row], PROBLEM)
    assert row_images(read_table(tmp_path / "seeds.parquet", PROBLEM)[0]) == (b"\x89PNG", b"\x89PNG")
