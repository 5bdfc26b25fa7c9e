"""Put the learned words of several files into one.

    python merge_embeddings.py --manager_ckpts A.pt B.pt --output_path OUT.pt
    python merge_embeddings.py --manager_ckpts A.pt B.pt --output_path OUT.pt --rename 'B.pt:*=<a>'

No model is needed. A word that is in two files has to be renamed in one of them. The words are
written to OUT.pt and OUT.safetensors, never over a file that is being merged.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ldm.errors import UserError, exit_code
from ldm.modules.embedding_manager import files_of, write_words
from ldm.modules.word_files import Word, read_renames, read_words
from ldm.training.cli import Parser

logger = logging.getLogger("merge_embeddings")

#: The first id that is no token of a public text encoder: BERT has 30522 of them, CLIP 49408.
BEHIND_VOCABULARIES = 49408


def build_parser() -> argparse.ArgumentParser:
    """The options of the original script, and ``--rename``."""
    parser = Parser(
        description="Put the learned words of several files into one.", allow_abbrev=False
    )
    parser.add_argument(
        "--manager_ckpts", nargs="+", required=True, metavar="FILE", help="files of learned words"
    )
    parser.add_argument(
        "--output_path", required=True, metavar="FILE",
        help="where to write them; beside it, the same as .safetensors",
    )  # fmt: skip
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


def check_output(output: str, inputs: Iterable[str]) -> None:
    """Refuse to write over a file that is being merged.

    Raises:
        UserError: naming that file and the files that would be written.
    """
    files = files_of(output)
    for file in files:
        # The same file by any other path or link, and however its system compares names.
        if file.expanduser().exists() and any(
            file.expanduser().samefile(Path(path).expanduser()) for path in inputs
        ):
            raise UserError(
                f"--output_path {output} writes {' and '.join(map(str, files))}, but {file} is one "
                "of the files to merge, and those are kept: give another name, for example "
                f"--output_path {Path(output).with_stem(Path(output).stem + '-merged')}"
            )


def numbered(words: dict[str, Word]) -> dict[str, int]:
    """An id for each word, all different: the one known from the files where it is free.

    Other words get numbers behind the public vocabularies. Anything below is some token there,
    which the released code would replace by the word wherever it stands.
    """
    ids: dict[str, int] = {}
    known = {word.id for word in words.values()}
    free = (number for number in itertools.count(BEHIND_VOCABULARIES) if number not in known)
    for name, word in words.items():
        ids[name] = next(free) if word.id is None or word.id in ids.values() else word.id
    return ids


def merge(arguments: Sequence[str] | None) -> None:
    """Merge the files of a command line, and say what became of their words."""
    options = build_parser().parse_args(arguments)
    paths = list(dict.fromkeys(options.manager_ckpts))
    words = read_words(paths, read_renames(options.rename, paths))
    check_widths(words)
    check_output(options.output_path, paths)
    vectors, ids = {name: word.vectors for name, word in words.items()}, numbered(words)
    files = write_words(options.output_path, vectors, ids)
    for name, word in words.items():
        logger.info("%s: %d vectors, from %s", name, len(word.vectors), word.source)
    new = [f"{name} ({ids[name]})" for name, word in words.items() if ids[name] != word.id]
    if new:
        logger.info(
            "new ids for %s, whose own are unknown or another word's: they lie behind every public "
            "vocabulary, so the released code will not find these words in a text; this project "
            "goes by their names",
            ", ".join(new),
        )
    logger.info("wrote %s", " and ".join(map(str, files)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: merge(arguments))


if __name__ == "__main__":
    sys.exit(main())
