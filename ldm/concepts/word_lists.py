"""Which words stand near a concept word and which opposite it (Lego sec. 4.4): lists from files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

#: The collections that come with the project: collection -> concept -> word -> lists.
PACKAGED = Path(__file__).with_name("word_lists.yaml")
_KEYS = {"positives", "negatives"}


@dataclass(frozen=True)
class WordList:
    """The synonyms P (`positives`) and the antonyms N (`negatives`) of one semantic word.

    Raises:
        ValueError: when a list is empty or a word is in both.
    """

    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.positives or not self.negatives:
            raise ValueError(
                f"the context loss needs positives and negatives, got {self.positives} and "
                f"{self.negatives}: without either it is constant"
            )
        both = sorted(set(self.positives) & set(self.negatives))
        if both:
            raise ValueError(f"{both} are among both the positives and the negatives; choose")

    @classmethod
    def of(cls, given: Any) -> "WordList":
        """The lists that a mapping ``{positives: [...], negatives: [...]}`` describes.

        Raises:
            ValueError: when it is no such mapping, or an entry is not text.
        """
        if isinstance(given, WordList):
            return given
        if not isinstance(given, Mapping) or set(given) != _KEYS:
            raise ValueError(f"expected {{positives: [...], negatives: [...]}}, got {given!r}")
        return cls(_texts(given["positives"]), _texts(given["negatives"]))


def _texts(given: Any) -> tuple[str, ...]:
    """The entries of one list, each once."""
    if isinstance(given, str) or not isinstance(given, list | tuple):
        raise ValueError(f"expected a list of words such as [frozen, icy], got {given!r}")
    for word in given:
        if isinstance(word, bool) or not isinstance(word, str | int) or not str(word).strip():
            raise ValueError(
                f"{word!r} in {given} is not a word; quote on, off, yes and no in YAML"
            )
    return tuple(dict.fromkeys(str(word).strip() for word in given))


def word_lists(source: str | Path = "english") -> Mapping[str, WordList]:
    """The lists of a packaged collection or of a YAML file, by word.

    A file is ``word: {positives: [...], negatives: [...]}``, words grouped by concept if wanted.

    Raises:
        ValueError: for an unknown collection, a broken list (the message names the word), or a word
            that two concepts define differently.
    """
    packaged = _packaged()
    if source in packaged:
        return packaged[str(source)]
    if not Path(source).is_file():
        raise ValueError(
            f"there are no word lists {str(source)!r}: neither one of the collections "
            f"{sorted(packaged)} nor a file"
        )
    return _flat(_read(Path(source)), str(source))


@cache
def _packaged() -> dict[str, dict[str, WordList]]:
    return {name: _flat(content, name) for name, content in _read(PACKAGED).items()}


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must map words to lists, got {type(content).__name__}")
    return content


def _flat(content: Mapping[Any, Any], source: str) -> dict[str, WordList]:
    """word -> lists, whatever the concepts they are grouped by."""
    lists: dict[str, WordList] = {}
    for word, given in _words(content):
        try:
            found = WordList.of(given)
        except ValueError as error:
            raise ValueError(f"{source}: {word!r}: {error}") from error
        if lists.setdefault(word, found) != found:
            raise ValueError(f"{source}: {word!r} has two different lists; rename one of them")
    return lists


def _words(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, given in content.items():
        if isinstance(given, Mapping) and given and not _KEYS & set(given):
            yield from _words(given)
        else:
            yield str(name), given
