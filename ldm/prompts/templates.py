"""Caption templates, and putting a sentence into one without doubling its article.

Textual inversion shows every image under many neutral captions; the templates are those of its
public data sets.
"""

import re

from ldm.prompts.spans import Caption, WordSpan

IMAGENET_TEMPLATES_SMALLEST: tuple[str, ...] = ("a photo of a {}",)

IMAGENET_TEMPLATES_SMALL: tuple[str, ...] = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

#: With a second slot, for a word that belongs to one image only.
IMAGENET_DUAL_TEMPLATES_SMALL: tuple[str, ...] = tuple(
    f"{template} with {{}}" for template in IMAGENET_TEMPLATES_SMALL
)

_PICTURES = (
    *("a painting", "a rendering", "a cropped painting", "the painting", "a clean painting"),
    *("a dirty painting", "a dark painting", "a picture", "a cool painting"),
    *("a close-up painting", "a bright painting", "a good painting", "a rendition"),
    *("a nice painting", "a small painting", "a weird painting", "a large painting"),
)
IMAGENET_TEMPLATES_STYLE: tuple[str, ...] = tuple(
    f"{picture} in the style of {{}}" for picture in _PICTURES
)
IMAGENET_DUAL_TEMPLATES_STYLE: tuple[str, ...] = tuple(
    f"{template} with {{}}" for template in IMAGENET_TEMPLATES_STYLE
)

#: One rare word for each image of a set (``per_image_tokens``): the Hebrew alphabet.
PER_IMAGE_TOKENS: tuple[str, ...] = tuple("אבגדהוזחטיכלמנסעפצקרשת")

_ARTICLE = re.compile(r"(a|an|the)(\s+|$)", re.IGNORECASE)
_SLOT_DETERMINER = re.compile(
    r"(?<!\S)(?P<determiner>a|an|the|my|one)\s+"
    r"(?P<adjective>(?:clean|dirty|cool|nice|small|weird|large)\s+)?$",
    re.IGNORECASE,
)


def fill(template: str, *sentences: Caption | str) -> Caption:
    """The caption that `template` makes of the sentences, one for each ``{}``, with spans moved.

    A sentence that brings its own article gets no second one: "a photo of a {}" and "a brown
    <teddy>" give "a photo of a brown <teddy>". With an adjective in between ("a photo of the cool
    {}"), the template's article stays and the sentence's goes, unless that is itself a learnable
    word, which then takes the template's place.

    Raises:
        ValueError: when the number of slots and of sentences differ.
    """
    pieces = template.split("{}")
    if len(pieces) != len(sentences) + 1:
        raise ValueError(
            f"the template {template!r} has {len(pieces) - 1} slots {{}} but {len(sentences)} "
            "sentences were given: they must be equally many"
        )
    text = ""
    learnable: tuple[WordSpan, ...] = ()
    bound: tuple[WordSpan, ...] = ()
    for head, sentence in zip(pieces, sentences, strict=False):
        head, caption = _meet(head, Caption.of(sentence))  # noqa: PLW2901
        text += head
        learnable_here, bound_here = caption.shifted(len(text))
        learnable, bound = learnable + learnable_here, bound + bound_here
        text += caption.text
    return Caption(text + pieces[-1], learnable, bound)


def _meet(head: str, sentence: Caption) -> tuple[str, Caption]:
    """`head` (the text before a slot) and the sentence for it, with one article between them."""
    article = _ARTICLE.match(sentence.text)
    slot = _SLOT_DETERMINER.search(head)
    if article is None or slot is None:
        return head, sentence
    bare = head[: slot.start()]
    touching = [
        span for span in (*sentence.learnable, *sentence.bound) if span.start < article.end()
    ]
    if slot["adjective"] is None or any(span.end > article.end(1) for span in touching):
        return bare, sentence
    if touching:
        return bare, _insert(sentence, article.end(), slot["adjective"])
    return head, _cut(sentence, article.end())


def _cut(sentence: Caption, length: int) -> Caption:
    """The sentence without its first `length` characters, in which no span lies."""
    return Caption(sentence.text[length:], *sentence.shifted(-length))


def _insert(sentence: Caption, at: int, text: str) -> Caption:
    """The sentence with `text` put in before the character `at`."""

    def move(spans: tuple[WordSpan, ...]) -> tuple[WordSpan, ...]:
        return tuple(span if span.end <= at else span.shifted(len(text)) for span in spans)

    joined = sentence.text[:at] + text + sentence.text[at:]
    return Caption(joined, move(sentence.learnable), move(sentence.bound))
