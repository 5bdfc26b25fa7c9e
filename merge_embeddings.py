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

from ldm.modules.embedding_manager import write_words
from ldm.modules.word_files import Word, read_renames, read_words
from ldm.training.cli import Parser

logger = logging.getLogger("merge_embeddings")


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


def check_widths(words: dict[str, Word]) -> None:
    """Refuse words that were learned for different models.

    Raises:
        ValueError: naming a file of each.
    """
    first = next(iter(words.values()), None)
    for word in words.values():
        if first is not None and word.vectors.shape[1] != first.vectors.shape[1]:
            raise ValueError(
                f"{word.source} was learned for another model than {first.source}: its words are "
                f"{word.vectors.shape[1]} wide, the others {first.vectors.shape[1]}"
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
        words = read_words(paths, read_renames(options.rename, paths))
        check_widths(words)
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
