"""Captions in the papers' language: "a photo of a brown teddy bear on a rolling skateboard ..."."""

import re
from random import Random

from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import PLACES
from ldm.data.playroom.spec import COUNTS, ObjectSpec, SceneSpec
from ldm.data.playroom.splits import UNNAMED_STATES, is_named
from ldm.data.playroom.things import Thing
from ldm.prompts.templates import IMAGENET_TEMPLATES_SMALL

P_NO_COLOUR, P_NO_ADJECTIVE, P_NO_PLACE = 0.15, 0.1, 0.1
P_GENERAL, P_SYNONYM, P_TEMPLATE, P_SWAPPED = 0.07, 0.35, 0.4, 0.4

STATE_PHRASES: dict[str, tuple[str, ...]] = {
    "frozen in ice": (
        "{} frozen in ice",
        "{} frozen in a block of ice",
        "{} that is frozen in ice",
    ),
    "burnt and melted": ("{} that is burnt and melted",),
    "crumpled": ("{} that is crumpled",),
    "closed eyes": ("{} with closed eyes", "{} with eyes closed", "{} that has closed eyes"),
    "arms raised": ("{} with arms raised", "{} with raised arms"),
    "smiley face": ("{} with a smiley emoji face", "{} with a smiley face"),
    "walking on a rope": ("{} walking on a rope", "{} that is walking on a rope"),
}
STRANGE = "strange"
GENERAL = "thing"
KINDS = ("toy", "animal", "plant", "vehicle", "food", "building", GENERAL)
JOINED: dict[str, tuple[str, ...]] = {
    "and": ("{a} and {b}", "{a} with {b}"),
    "beside": ("{a} beside {b}", "{a} next to {b}"),
    "on": ("{a} on {b}", "{a} on top of {b}"),
    "under": ("{a} under {b}",),
    "in": ("{a} in {b}", "{a} inside {b}"),
    "wearing": ("{a} wearing {b}",),
    "eating": ("{a} eating {b}",),
}
SWAPPED: dict[str, tuple[str, ...]] = {
    "and": ("{b} and {a}", "{b} with {a}"),
    "beside": ("{b} beside {a}", "{b} next to {a}"),
    "on": ("{b} under {a}", "{b} with {a} on it"),
    "under": ("{b} on {a}", "{b} on top of {a}"),
    "in": ("{b} with {a} in it", "{b} with {a}"),
}
PREFIXES = ("a photo of {}", "a picture of {}", "a photo of {}", "an image of {}")
SCAN_CAPTIONS = (
    "a scan",
    "a grey scan",
    "a photo of a scan",
    "a round scan",
    "a picture of a scan",
)
_ARTICLE = re.compile(r"^(an?|the) ")
_SLOT = re.compile(r"\b(an?|the|my|one) (?=(\w+ )?\{\}$)")


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(noun: str, thing: Thing | None = None) -> str:
    """Several of what the noun names."""
    if thing and thing.plural and noun == thing.words[0]:
        return thing.plural
    if noun.endswith("s"):
        return noun
    if noun.endswith(("x", "sh", "ch")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def noun_for(one: ObjectSpec, rng: Random, true_names: bool) -> str:
    """The noun of an object: its word, a synonym, or the general word for an unnamed one."""
    thing = OBJECTS[one.name]
    if not true_names and (not is_named(one.name) or rng.random() < P_GENERAL):
        return thing.kind if rng.random() < 0.8 else GENERAL
    return rng.choice(thing.words) if rng.random() < P_SYNONYM else thing.words[0]


def _object_phrase(one: ObjectSpec, noun: str, rng: Random, true_names: bool) -> str:
    """An object with its number, adjectives and state: "a brown bear with closed eyes"."""
    words = []
    unnamed = one.state in UNNAMED_STATES and not true_names
    if unnamed:
        words.append(STRANGE)
    if one.adjective and rng.random() > P_NO_ADJECTIVE:
        words.append(one.adjective)
    if one.colour and rng.random() > P_NO_COLOUR:
        words.append(one.colour)
    thing = OBJECTS[one.name]
    if one.count > 1:
        phrase = " ".join([COUNTS[one.count], *words, plural(noun, thing)])
    elif thing.article or noun not in thing.words:
        phrase = with_article(" ".join([*words, noun]))
    else:
        phrase = " ".join([*words, noun])
    if one.state and not unnamed:
        phrase = rng.choice(STATE_PHRASES[one.state]).format(phrase)
    return phrase


def _place_phrase(spec: SceneSpec, name: str, rng: Random) -> str:
    """Where: "at times square", "on a blue tablecloth", sometimes with its ground."""
    place = PLACES[name]
    if spec.ground_colour and rng.random() < 0.85:
        over = rng.choice(("on", "over"))
        return f"{over} {with_article(f'{spec.ground_colour} {place.ground}')}"
    if name == "times square" and rng.random() < 0.15:
        return f"over a grey road {rng.choice(place.phrases)}"
    if name == "beach" and rng.random() < 0.12:
        return "on the sandy beach"
    if name == "table" and rng.random() < 0.15:
        return "on a tablecloth"
    return rng.choice(place.phrases)


def into_template(template: str, sentence: str) -> str:
    """The sentence in the slot of a template, with one article between them, never two."""
    slot = _SLOT.search(template)
    if slot is not None:
        bare = _ARTICLE.sub("", sentence)
        if bare == sentence:
            template = _SLOT.sub("", template)
        elif slot.group(2) is None and template.count(" a {}"):
            template = template.replace(" a {}", " {}")
            bare = sentence
        sentence = bare
    return template.format(sentence)


def caption_for(
    spec: SceneSpec, rng: Random, *, templates: bool = True, true_names: bool = False
) -> tuple[str, tuple[str, ...]]:
    """A caption of a scene, and the noun it uses for each object.

    Unnamed objects and states get general words unless `true_names`; sometimes a colour or the
    place is left out.
    """
    if spec.scan is not None:
        return rng.choice(SCAN_CAPTIONS), ()
    nouns = tuple(noun_for(one, rng, true_names) for one in spec.objects)
    phrases = [
        _object_phrase(one, noun, rng, true_names)
        for one, noun in zip(spec.objects, nouns, strict=True)
    ]
    sentence = _join(spec, phrases, rng)
    if spec.place is not None and rng.random() > P_NO_PLACE:
        sentence = f"{sentence} {_place_phrase(spec, spec.place, rng)}"
    if templates and rng.random() < P_TEMPLATE:
        template = rng.choice(PREFIXES if rng.random() < 0.5 else IMAGENET_TEMPLATES_SMALL)
        sentence = into_template(template, sentence)
    return sentence, nouns


def _join(spec: SceneSpec, phrases: list[str], rng: Random) -> str:
    """The objects' phrases put together by their relations."""
    sentence = phrases[0]
    for k, phrase in enumerate(phrases[1:]):
        relation = spec.relations[k]
        swap = len(phrases) == 2 and relation in SWAPPED and rng.random() < P_SWAPPED
        sentence = rng.choice((SWAPPED if swap else JOINED)[relation]).format(a=sentence, b=phrase)
    return sentence
