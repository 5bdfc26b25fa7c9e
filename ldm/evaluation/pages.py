"""Pages of Markdown that commands fill in: what lies between the marks of a name is theirs.

The marks are comments, ``<!-- begin mcpl-arms -->`` and ``<!-- end mcpl-arms -->``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.checkpoint import write_atomic

_PLACE = re.compile(r"<!-- begin (?P<name>[\w-]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)


def places(text: str) -> list[str]:
    """The names that have a place in a page, in order."""
    return [found["name"] for found in _PLACE.finditer(text)]


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The page `text` with `parts` in the places of their names; everything else stays.

    A part that has no place yet gets one at the end.
    """
    written = _PLACE.sub(lambda found: _place(found["name"], parts) or found[0], text)
    missing = [_place(name, parts) for name in parts if name not in places(text)]
    return "\n\n".join([written.rstrip(), *missing]).lstrip() + "\n" if missing else written


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put `parts` into their places in the file `page`, which need not exist yet."""
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    with write_atomic(page) as temporary:
        Path(temporary).write_text(filled(old, parts), encoding="utf-8")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    every = (heads, ["---"] * len(heads), *rows)
    return ["| " + " | ".join(map(literal, row)) + " |" for row in every]


def literal(text: str) -> str:
    """Text in which Markdown does not take a ``<word>`` for HTML, which it would not show."""
    return text.replace("<", "\\<")


def _place(name: str, parts: Mapping[str, str]) -> str:
    if name not in parts:
        return ""
    return f"<!-- begin {name} -->\n{parts[name].strip()}\n<!-- end {name} -->"
