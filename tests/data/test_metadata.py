"""Sentences of single pictures: metadata.jsonl, metadata.csv, .txt files, folders, file names."""

import json

import pytest
from PIL import Image

from ldm.data.metadata import Item, read_items


def picture(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("1.png", "2.png", "10.png"):
        picture(tmp_path / name)
    return tmp_path


def jsonl(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def facts(items):
    return [(item.path.name, item.text, item.crop, item.kind) for item in items]


def test_a_plain_folder_has_no_sentences(folder):
    assert facts(read_items(folder)) == [
        ("1.png", None, None, "image"),
        ("2.png", None, None, "image"),
        ("10.png", None, None, "image"),
    ]


def test_text_beside_the_image(folder):
    (folder / "2.txt").write_text("\ufeff a <ball> on a <böx>\n\n", encoding="utf-8")
    assert [item.text for item in read_items(folder)] == [None, "a <ball> on a <böx>", None]


@pytest.mark.parametrize("content", [b"", b"one\ntwo", b"caf\xe9"])
def test_text_that_is_not_one_sentence_is_named(folder, content):
    (folder / "2.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"2\.txt"):
        read_items(folder)


def test_rows_come_first_and_crops_are_extra(folder):
    jsonl(
        folder,
        {"file_name": "10.png", "text": "a <b>", "other": 3},
        "",
        {"file_name": "./1.png", "text": "a <c>", "crop": [1, 2, 5, 6]},
    )
    (folder / "10.txt").write_text("not used: the row wins")
    assert facts(read_items(folder)) == [
        ("10.png", "a <b>", None, "image"),
        ("1.png", "a <c>", (1, 2, 5, 6), "image"),
        ("1.png", None, None, "image"),
        ("2.png", None, None, "image"),
    ]
    assert "metadata.jsonl, line 3" in str(read_items(folder)[1])


def test_csv_says_the_same_as_jsonl(folder):
    jsonl(
        folder,
        {"file_name": "1.png", "text": 'a "<b>", big', "crop": [1, 2, 5, 6]},
        {"file_name": "2.png", "text": "a <c>", "kind": "subject"},
    )
    expected = facts(read_items(folder))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(
        "\ufefffile_name,text,crop,kind\n"
        '1.png,"a ""<b>"", big","[1, 2, 5, 6]",\n'
        "2.png,a <c>,,subject\n",
        encoding="utf-8",
    )
    assert facts(read_items(folder)) == expected


def test_an_image_may_have_several_sentences(folder):
    rows = [{"file_name": "1.png", "text": text} for text in ("a <b>", "the <b>")]
    jsonl(folder, *rows)
    assert [item.text for item in read_items(folder)] == ["a <b>", "the <b>", None, None]


def test_lego_folders(tmp_path):
    picture(tmp_path / "concept" / "frozen.png")
    picture(tmp_path / "subject" / "plain.png")
    jsonl(tmp_path / "concept", {"file_name": "frozen.png", "text": "<cube> that is <frozen>"})
    assert facts(read_items(tmp_path)) == [
        ("frozen.png", "<cube> that is <frozen>", None, "concept"),
        ("plain.png", None, None, "subject"),
    ]


def test_one_table_for_both_lego_folders(tmp_path):
    for name in ("concept/a.png", "subject/b.png", "other/c.png"):
        picture(tmp_path / name)
    jsonl(
        tmp_path,
        {"file_name": "concept/a.png", "text": "x"},
        {"file_name": "subject/b.png", "text": "y"},
        {"file_name": "other/c.png", "text": "z", "kind": "concept"},
    )
    assert [item.kind for item in read_items(tmp_path)] == ["concept", "subject", "concept"]


WRONG_ROWS = {
    "no json": ("file_name: 1.png", r"line 2.*not JSON"),
    "no object": ('["1.png"]', r"line 2.*object"),
    "no file": ({"text": "a <b>"}, r"line 2.*file_name"),
    "no text": ({"file_name": "1.png", "caption": "a <b>"}, r"line 2.*text.*caption"),
    "empty text": ({"file_name": "1.png", "text": " "}, r"line 2.*text"),
    "kind": ({"file_name": "1.png", "text": "a", "kind": "cat"}, r"line 2.*cat"),
    "crop outside": ({"file_name": "1.png", "text": "a", "crop": [0, 0, 9, 6]}, r"line 2.*8 x 6"),
    "crop inverted": ({"file_name": "1.png", "text": "a", "crop": [4, 0, 2, 6]}, r"line 2.*crop"),
    "crop short": ({"file_name": "1.png", "text": "a", "crop": [4, 0, 2]}, r"line 2.*crop"),
    "crop words": ({"file_name": "1.png", "text": "a", "crop": "all of it"}, r"line 2.*crop"),
    "no image": ({"file_name": "notes.md", "text": "a"}, r"line 2.*notes\.md"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_errors_name_file_and_line(folder, case):
    row, message = WRONG_ROWS[case]
    (folder / "notes.md").write_text("hello")
    jsonl(folder, {"file_name": "2.png", "text": "a <b>"}, row)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl.*{message}"):
        read_items(folder)


def test_a_missing_image_is_named(folder):
    jsonl(folder, {"file_name": "3.png", "text": "a <b>"})
    with pytest.raises(FileNotFoundError, match=r"line 1.*3\.png"):
        read_items(folder)


def test_errors_in_csv_name_the_line(folder):
    (folder / "metadata.csv").write_text("file_name,text\n2.png,a <b>\n1.png,a, <b>\n")
    with pytest.raises(ValueError, match=r"metadata\.csv.*line 3.*quotes"):
        read_items(folder)


def test_two_tables_are_refused(folder):
    jsonl(folder, {"file_name": "1.png", "text": "a <b>"})
    (folder / "metadata.csv").write_text("file_name,text\n1.png,a <b>\n")
    with pytest.raises(ValueError, match="keep one"):
        read_items(folder)


def test_an_empty_folder_says_what_is_inside(tmp_path):
    picture(tmp_path / "0" / "1.png")
    with pytest.raises(ValueError, match=r"no image.*\['0'\]"):
        read_items(tmp_path)


@pytest.mark.parametrize(
    ("name", "relation"),
    [
        ("on.jpg", "on"),
        ("on 2.jpg", "on"),
        ("next_to_3.png", "next to"),
        ("under(1)", "under"),
        ("1.jpg", "1"),
    ],
)
def test_the_relation_is_the_file_name(tmp_path, name, relation):
    assert Item(tmp_path / name).relation == relation


def test_a_row_is_that_of_its_picture_whatever_the_way_to_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "b/1.png")
    row = {"file_name": "./1.png", "text": "a <cat>"}
    (tmp_path / "b/metadata.jsonl").write_text(json.dumps(row))
    (item,) = read_items(tmp_path / "a" / ".." / "b")
    assert item.text == "a <cat>"
