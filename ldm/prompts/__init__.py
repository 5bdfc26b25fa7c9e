"""Words and sentences as pure text: templates, learnable words, spans."""

from ldm.prompts.sentence import (
    RANDOM,
    RELATE,
    LearnableWord,
    Sentence,
    apply_strategy,
    as_words,
    bind_adjectives,
    parse_released,
    parse_sentence,
    relate,
    released_words,
)
from ldm.prompts.spans import Caption, WordSpan, find_words
from ldm.prompts.templates import (
    IMAGENET_DUAL_TEMPLATES_SMALL,
    IMAGENET_TEMPLATES_SMALL,
    IMAGENET_TEMPLATES_STYLE,
    PER_IMAGE_TOKENS,
    fill,
)

__all__ = [
    "IMAGENET_DUAL_TEMPLATES_SMALL",
    "IMAGENET_TEMPLATES_SMALL",
    "IMAGENET_TEMPLATES_STYLE",
    "PER_IMAGE_TOKENS",
    "RANDOM",
    "RELATE",
    "Caption",
    "LearnableWord",
    "Sentence",
    "WordSpan",
    "apply_strategy",
    "as_words",
    "bind_adjectives",
    "fill",
    "find_words",
    "parse_released",
    "parse_sentence",
    "relate",
    "released_words",
]
