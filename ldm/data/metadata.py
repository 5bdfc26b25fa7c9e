"""Which sentence belongs to which picture of a folder: `metadata.jsonl`, `.csv`, `.txt` beside it.

A folder is read into a list of :class:`Item`. A row with a ``crop`` makes a part of a picture an
item of its own, with the sentence of what is in that part (MCPL A.13, union sampling); the folders
``concept/`` and ``subject/`` hold the two sets of pictures of Lego (sec. 4.3).
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.images import find_images, image_size, is_image

Box = tuple[int, int, int, int]
#: What a picture is for: a plain picture, or with and without the concept (Lego).
KINDS = ("image", "concept", "subject")
TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Item:
    """One picture to learn from, or a part of one: `crop` is (left, top, right, bottom) in pixels.

    `text` is the sentence that belongs to this picture alone, ``None`` if it has none of its own;
    `source` says where that was read ("metadata.jsonl, line 3"), for messages.
    """

    path: Path
    text: str | None = None
    crop: Box | None = None
    kind: str = KINDS[0]
    source: str = ""

    @property
    def relation(self) -> str:
        """The words of the file's name: ``on 2.jpg`` says "on", ``next_to.png`` "next to"."""
        words = re.sub(r"[_\s-]+", " ", self.path.stem).strip()
        return re.sub(r"\s*\(?\d+\)?$", "", words) or words

    def __str__(self) -> str:
        part = f", crop {list(self.crop)}" if self.crop else ""
        where = f" ({self.source})" if self.source else ""
        return f"{str(self.path)!r}{part}{where}"


def read_items(folder: str | Path) -> list[Item]:
    """The pictures of `folder`, and of ``concept/`` and ``subject/`` in it, with their sentences.

    Rows of a metadata table come first, in the order of the table; pictures without a row of their
    own follow in natural order, with the text of the ``.txt`` file beside them if there is one.
    Rows with a crop are extra: the whole picture is still an item.

    Raises:
        FileNotFoundError: when the folder, or a picture that a row names, does not exist.
        ValueError: when there is no picture, or a file cannot be understood; names file and line.
    """
    folder = Path(folder)
    paths = [(path, KINDS[0]) for path in find_images(folder)]
    rows = _read_table(folder)
    for kind in KINDS[1:]:
        if (folder / kind).is_dir():
            paths += [(path, kind) for path in find_images(folder / kind)]
            rows += _read_table(folder / kind, kind)
    whole = {item.path for item in rows if item.crop is None}
    items = [*rows, *(_beside(path, kind) for path, kind in paths if path not in whole)]
    if not items:
        raise ValueError(_nothing_found(folder))
    return items


def _nothing_found(folder: Path) -> str:
    """What to say about a folder without pictures."""
    inner = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())[:5]
    hint = f"; it has folders {inner}: give one of them" if inner else "; put your pictures there"
    return f"there is no image in {str(folder)!r}{hint}"


def _read(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text ({error}); save it as UTF-8") from error


def _beside(path: Path, kind: str) -> Item:
    """The item for a picture with no row in a table: its sentence is in a ``.txt`` file, if any."""
    note = path.with_suffix(".txt")
    if not note.is_file():
        return Item(path, kind=kind)
    lines = [line.strip() for line in _read(note).splitlines() if line.strip()]
    if len(lines) != 1:
        raise ValueError(
            f"{str(note)!r} holds {len(lines)} sentences; write one, or delete the file (several "
            "for one image go into metadata.jsonl, a row each)"
        )
    return Item(path, lines[0], kind=kind, source=note.name)


def _read_table(folder: Path, kind: str = KINDS[0]) -> list[Item]:
    """The items of the metadata table of `folder`, if it has one."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if not tables:
        return []
    if len(tables) > 1:
        raise ValueError(f"{str(folder)!r} has both {' and '.join(TABLES)}; keep one of them")
    rows = _json_rows if tables[0].suffix == ".jsonl" else _csv_rows
    return [_Row(tables[0], line, values, kind).item() for line, values in rows(tables[0])]


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and content of each line."""
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{str(path)!r}, line {number}: not JSON ({error}); expected one object a line, "
                'such as {"file_name": "1.jpg", "text": "a photo of <teddy>"}'
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number}: expected an object, got {line!r}")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and content of each row; empty cells are left out."""
    reader = csv.DictReader(io.StringIO(_read(path), newline=""))
    for row in reader:
        if None in row:
            raise ValueError(
                f"{str(path)!r}, line {reader.line_num}: more cells than columns; put text that "
                'holds a comma into "quotes"'
            )
        yield reader.line_num, {key: value for key, value in row.items() if value}


@dataclass(frozen=True)
class _Row:
    """One row of a table, on its way to become an item."""

    table: Path
    line: int
    values: Mapping[str, Any]
    kind: str

    def item(self) -> Item:
        """The item this row describes."""
        path = self._path()
        source = f"{self.table.name}, line {self.line}"
        return Item(path, self._text(), self._crop(path), self._kind(path), source)

    def _fail(self, problem: str) -> ValueError:
        return ValueError(f"{str(self.table)!r}, line {self.line}: {problem}")

    def _path(self) -> Path:
        name = self.values.get("file_name")
        if not isinstance(name, str) or not name:
            raise self._fail(f"needs a 'file_name'; it has {sorted(self.values)}")
        path = self.table.parent / os.path.normpath(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(self.table)!r}, line {self.line}: there is no file {name!r} in this folder"
            )
        if not is_image(path):
            raise self._fail(f"{name!r} is not an image")
        return path

    def _text(self) -> str | None:
        text = self.values.get("text")
        if text is None and ("kind" in self.values or self.kind != KINDS[0]):
            return None
        if not isinstance(text, str) or not text.strip():
            raise self._fail(f"needs a 'text', one sentence; it has {dict(self.values)}")
        return text.strip()

    def _kind(self, path: Path) -> str:
        folder = path.parent.name if path.parent != self.table.parent else ""
        kind = self.values.get("kind", folder if folder in KINDS else self.kind)
        if kind not in KINDS:
            raise self._fail(f"'kind' must be one of {KINDS}, got {kind!r}")
        return kind

    def _crop(self, path: Path) -> Box | None:
        crop = self.values.get("crop")
        if crop is None:
            return None
        if isinstance(crop, str):
            crop = re.split(r"[\s,;]+", crop.strip(" []()"))
        width, height = image_size(path)
        try:
            left, top, right, bottom = (int(value) for value in crop)
        except (TypeError, ValueError):
            left = top = right = bottom = -1
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise self._fail(
                "'crop' must be [left, top, right, bottom] in pixels inside the "
                f"{width} x {height} of {path.name!r}, got {crop}"
            )
        return left, top, right, bottom
