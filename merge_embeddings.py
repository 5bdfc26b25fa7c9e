"""Put the learned words of several files into one.

    python merge_embeddings.py --manager_ckpts A.pt B.pt --output_path OUT.pt
    python merge_embeddings.py --manager_ckpts A.pt B.pt --output_path OUT.pt --rename 'B.pt:*=<a>'

No model is needed. A word that is in two files has to be renamed in one of them.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ldm.checkpoint import read_embeddings
from ldm.modules.embedding_manager import write_words
from ldm.training.cli import Parser

logger = logging.getLogger("merge_embeddings")


class Word(NamedTuple):
    """A learned word: its vectors (k, width), its id where the file has one, and that file."""

    vectors: Tensor
    id: int | None
    source: str


def build_parser() -> argparse.ArgumentParser:
    """The options of the original script, and ``--rename``."""
    parser = Parser(
        description="Put the learned words of several files into one.", allow_abbrev=False
    )
    parser.add_argument(
        "--manager_ckpts", nargs="+", required=True, metavar="FILE", help="files of learned words"
    )
    parser.add_argument("--output_path", required=True, metavar="FILE", help="where to write them")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="[FILE:]WORD=NEW",
        help="call a word NEW, e.g. 'B.pt:*=<cat>'; without FILE, wherever it is; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "-sd", "--stable_diffusion", action="store_true",
        help="accepted for old command lines: words of any model are merged alike",
    )  # fmt: skip
    return parser


def read_renames(texts: Sequence[str], paths: Sequence[str]) -> dict[tuple[str | None, str], str]:
    """(file or ``None``, word) -> new name, from texts such as ``B.pt:*=<cat>``.

    Raises:
        ValueError: when a text is not of that form.
    """
    renames: dict[tuple[str | None, str], str] = {}
    for text in texts:
        left, equals, new = text.rpartition("=")
        file = next((path for path in paths if left.startswith(f"{path}:")), None)
        word = left if file is None else left[len(file) + 1 :]
        if not (equals and word and new.strip()):
            raise ValueError(f"--rename {text!r}: expected WORD=NEW or FILE:WORD=NEW")
        renames[file, word] = new.strip()
    return renames


def merge(paths: Sequence[str], renames: dict[tuple[str | None, str], str]) -> dict[str, Word]:
    """The words of all files under their new names.

    Raises:
        ValueError: when two words have one name, their widths differ, or a rename is of no word.
    """
    words: dict[str, Word] = {}
    unused = set(renames)
    for path in paths:
        read = read_embeddings(path)
        for name, vectors in read.vectors.items():
            key = next((key for key in ((path, name), (None, name)) if key in renames), None)
            unused.discard(key)
            new = name if key is None else renames[key]
            word = Word(vectors, read.tokens.get(name) if new == name else None, path)
            _check(new, word, words)
            words[new] = word
    if unused:
        names = [
            word if file is None else f"{file}:{word}" for file, word in sorted(unused, key=str)
        ]
        raise ValueError(
            f"--rename: there is no word {', '.join(names)}; the words are {list(words)}"
        )
    return words


def _check(name: str, word: Word, words: dict[str, Word]) -> None:
    """Refuse a word that cannot stand beside the others."""
    if name in words:
        raise ValueError(
            f"the word {name!r} is in {words[name].source} and in {word.source}: rename one of "
            f"them, for example --rename '{word.source}:{name}=<another>'"
        )
    for other in words.values():
        if other.vectors.shape[1] != word.vectors.shape[1]:
            raise ValueError(
                f"{word.source} was learned for another model than {other.source}: its words are "
                f"{word.vectors.shape[1]} wide, the others {other.vectors.shape[1]}"
            )


def numbered(words: dict[str, Word]) -> dict[str, int]:
    """An id for each word, all different: that of its file where it is free."""
    ids: dict[str, int] = {}
    free = 1 + max((word.id for word in words.values() if word.id is not None), default=-1)
    for name, word in words.items():
        if word.id is None or word.id in ids.values():
            ids[name], free = free, free + 1
        else:
            ids[name] = word.id
    return ids


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge; the exit code is 0 on success and 1 on an error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = build_parser().parse_args(arguments)
        paths = list(dict.fromkeys(options.manager_ckpts))
        words = merge(paths, read_renames(options.rename, paths))
        vectors = {name: word.vectors for name, word in words.items()}
        write_words(Path(options.output_path), vectors, numbered(words))
    except (ValueError, OSError) as error:
        logger.error("error: %s", error)
        return 1
    for name, word in words.items():
        logger.info("%s: %d vectors, from %s", name, len(word.vectors), word.source)
    logger.info("wrote %s", options.output_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
