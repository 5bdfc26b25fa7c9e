"""The learned words of several files together: clashes are named, and refused or renamed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ldm.checkpoint import Embeddings, read_embeddings

#: (file or ``None`` for every file, word) -> its new name.
Renames = Mapping[tuple[str | None, str], str]


class Word(NamedTuple):
    """A learned word: its vectors (k, width), its id where the files know it, and its file."""

    vectors: Tensor
    id: int | None
    source: str


def read_renames(texts: Sequence[str], paths: Iterable[str | Path]) -> Renames:
    """What `texts` such as ``*=<cat>`` or ``B.pt:*=<cat>`` ask for, B.pt being one of `paths`.

    Raises:
        ValueError: when a text is not of that form.
    """
    files = [str(path) for path in paths]
    renames: dict[tuple[str | None, str], str] = {}
    for text in texts:
        left, equals, new = text.rpartition("=")
        file = next((path for path in files if left.startswith(f"{path}:")), None)
        word = left if file is None else left[len(file) + 1 :]
        if not (equals and word and new.strip()):
            raise ValueError(f"--rename {text!r}: expected WORD=NEW or FILE:WORD=NEW")
        renames[file, word] = new.strip()
    return renames


def read_words(paths: Iterable[str | Path], renames: Renames | None = None) -> dict[str, Word]:
    """The words of all files under their new names.

    An id belongs to a name, not to vectors: a word with a new name has the id that a file gives
    to that name, if any does.

    Raises:
        ValueError: when two words have one name, or a rename is of no word.
    """
    renames = renames or {}
    words: dict[str, Word] = {}
    unused = set(renames)
    files = [(str(path), read_embeddings(path)) for path in paths]
    for path, read in files:
        for name, vectors in read.vectors.items():
            key = next((key for key in ((path, name), (None, name)) if key in renames), None)
            if key is not None:
                unused.discard(key)
            new = name if key is None else renames[key]
            if new in words:
                raise ValueError(
                    f"the word {new!r} is in {words[new].source} and in {path}: rename one of "
                    f"them, for example --rename '{path}:{name}=<another>'"
                )
            words[new] = Word(vectors, _known_id(new, read, (file for _, file in files)), path)
    if unused:
        names = [
            word if file is None else f"{file}:{word}" for file, word in sorted(unused, key=str)
        ]
        raise ValueError(
            f"--rename: there is no word {', '.join(names)}; the words are {list(words)}"
        )
    return words


def _known_id(name: str, own: Embeddings, files: Iterable[Embeddings]) -> int | None:
    """The id of `name` in the word's own file, or else the one in which the files agree."""
    if name in own.tokens:
        return own.tokens[name]
    said = {read.tokens[name] for read in files if name in read.tokens}
    return said.pop() if len(said) == 1 else None
