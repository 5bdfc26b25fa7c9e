"""Small named sets of pictures to learn words from: MCPL's (A.16), Lego's ten, held-out ones."""

from dataclasses import dataclass

from ldm.data.playroom.scans import SCANS
from ldm.data.playroom.spec import SceneSpec, spec_from_names


@dataclass(frozen=True)
class ConceptSet:
    """A few pictures of the same things, with one sentence in markup.

    `shows` tells what each learnable word is in the picture: the name of an object or of a part of
    a scan, or "ground". Lego's sets have `subject_sentence` and `subject` too: the same thing
    without the concept. Pictures go through `places` in turn.
    """

    name: str
    sentence: str
    spec: SceneSpec
    shows: dict[str, str]
    places: tuple[str, ...] = ()
    subject_sentence: str | None = None
    subject: SceneSpec | None = None


def _named(
    name: str, sentence: str, objects: str, relations: str = "", place: str | None = None,
    ground: str | None = None, **shows: str,
) -> ConceptSet:  # fmt: skip
    """A set from short descriptions; `shows` adds words for what is no object."""
    names = [one.strip() for one in objects.split(";")]
    spec = spec_from_names(names, relations.split(), place, ground)
    words = {f"<{one.name}>": one.name for one in spec.objects if f"<{one.name}:" in sentence}
    words.update({f"<{word}>": what for word, what in shows.items()})
    return ConceptSet(name, sentence, spec, words)


_BEAR = "a [brown] <bear:toy> on a [rolling] <skateboard:toy>"
_HAMSTER = "a [green] <pot:thing> and a <hamster:animal> eating [red] <watermelon:food>"
_BASKET = "a <basket:thing> with [yellow] <bananas:food> beside a [white] <mug:thing>"

PAIRS = (
    _named("bear-skateboard", f"{_BEAR} at times square", "brown bear; rolling skateboard", "on",
           "times square"),
    _named("hamster-watermelon", "a [fluffy] <hamster:animal> eating [red] <watermelon:food> on "
           "the beach", "fluffy hamster; red watermelon", "eating", "beach"),
    _named("cactus-ball", "a [green] <cactus:plant> and a [red] <ball:toy> in the desert",
           "green cactus; red ball", "and", "desert"),
    _named("basket-bananas", "a [brown] <basket:thing> with [yellow] <bananas:food>",
           "yellow bananas; brown basket", "in", "table"),
    _named("chair-dog", "a [white] <chair:thing> with a [black] <dog:animal> on it",
           "black dog; white chair", "on", "room"),
)  # fmt: skip
TRIPLES = (
    _named("bear-skateboard-taxi", f"{_BEAR} beside a [red] <taxi:vehicle> at times square",
           "brown bear; rolling skateboard; red taxi", "on beside", "times square"),
    _named("pot-hamster-watermelon", f"{_HAMSTER} on the beach",
           "green pot; hamster; red watermelon", "and eating", "beach"),
    _named("basket-bananas-mug", _BASKET, "yellow bananas; basket; white mug", "in beside",
           "table"),
)  # fmt: skip
_JACKET = f"{_BEAR} wearing a [blue] <jacket:thing> beside a [red] <taxi:vehicle>"
_CHEESE = f"{_HAMSTER} beside a [yellow] <cheese:food>"
_SPOON = f"{_BASKET} and [silver] <spoon:thing>"
_FOUR = (
    ("bear; rolling skateboard; blue jacket; red taxi", "on wearing beside"),
    ("green pot; hamster; red watermelon; yellow cheese", "and eating beside"),
    ("yellow bananas; basket; white mug; silver spoon", "in beside and"),
)
QUADRUPLES = (
    _named("bear-skateboard-jacket-taxi", f"{_JACKET} at times square", "brown " + _FOUR[0][0],
           _FOUR[0][1], "times square"),
    _named("pot-hamster-watermelon-cheese", f"{_CHEESE} on the beach", *_FOUR[1], "beach"),
    _named("basket-bananas-mug-spoon", _SPOON, *_FOUR[2], "table"),
)  # fmt: skip
QUINTUPLES = (
    _named("bear-skateboard-jacket-taxi-road", f"{_JACKET} over [grey] <road:thing> at times "
           "square", "brown " + _FOUR[0][0], _FOUR[0][1], "times square", "grey", road="ground"),
    _named("pot-hamster-watermelon-cheese-beach", f"{_CHEESE} on the [sandy] <beach:thing>",
           *_FOUR[1], "beach", beach="ground"),
    _named("basket-bananas-mug-spoon-tablecloth", f"{_SPOON} over [blue] <tablecloth:thing>",
           *_FOUR[2], "table", "blue", tablecloth="ground"),
)  # fmt: skip
HELD_OUT = (
    _named("unnamed-robot-boat", "a [purple] <robot:toy> beside a [yellow] <boat:vehicle> on the "
           "beach", "purple robot; yellow boat", "beside", "beach"),
    _named("unnamed-cactus-hamster", "a [fluffy] <hamster:animal> beside a [blue] <cactus:plant> "
           "at night", "fluffy hamster; blue cactus", "beside", "night"),
    _named("unseen-rocket-umbrella", "a [silver] <rocket:thing> beside a [purple] "
           "<umbrella:thing> in the snow", "silver rocket; purple umbrella", "beside", "snow"),
    _named("unseen-penguin-ball", "a [black] <penguin:animal> on an [orange] <ball:toy> on the "
           "grass",
           "black penguin; orange ball", "on", "grass"),
)  # fmt: skip
SCAN_SETS = tuple(
    ConceptSet(
        f"scan-{scan.name}",
        scan.sentence,
        SceneSpec(scan=scan.name),
        {f"<{part}>": part for part in scan.parts},
    )
    for scan in SCANS.values()
)

_PLACES = ("grass", "room", "beach", "table", "snow", "desert")


def _lego(
    name: str, phrase: str, what: str, kind: str, state: str = "", count: str = ""
) -> ConceptSet:
    """One of Lego's concepts: the subject with and without it."""
    subject = f"<subject:{kind}>"
    with_it = f"a photo of {phrase.format(s=subject)}"
    noun = what.rsplit(maxsplit=1)[-1]
    concept = f"{count} {what}s" if count else f"{what}, {state}"
    return ConceptSet(
        f"lego-{name}",
        with_it,
        spec_from_names([concept]),
        {"<subject>": noun},
        _PLACES,
        f"a photo of a {subject}",
        spec_from_names([what]),
    )


LEGO_SETS = (
    _lego("frozen", "a {s} that is <frozen:strange> in <ice:strange>", "orange duck", "toy",
          "frozen in ice"),
    _lego("melted", "a {s} that is <burnt:strange> and <melted:strange>", "blue box", "thing",
          "burnt and melted"),
    _lego("crumpled", "a {s} that is <crumpled:strange>", "red hat", "thing", "crumpled"),
    _lego("closed-eyes", "a {s} with <closed:strange> <eyes:strange>", "orange cat", "animal",
          "closed eyes"),
    _lego("arms-raised", "a {s} with <arms:strange> <raised:strange>", "purple bear", "toy",
          "arms raised"),
    _lego("smiley", "a {s} with a <smiley:strange> <face:strange>", "blue ball", "toy",
          "smiley face"),
    _lego("rope", "a {s} <walking:strange> on a <rope:strange>", "red fox", "animal",
          "walking on a rope"),
    _lego("three", "<three:several> {s}", "pink star", "toy", count="three"),
    _lego("four", "<four:several> {s}", "green mug", "thing", count="four"),
    _lego("five", "<five:several> {s}", "blue chair", "thing", count="five"),
)  # fmt: skip

CONCEPT_SETS: dict[str, ConceptSet] = {
    one.name: one
    for group in (PAIRS, TRIPLES, QUADRUPLES, QUINTUPLES, HELD_OUT, SCAN_SETS, LEGO_SETS)
    for one in group
}


def get_concept_set(name: str) -> ConceptSet:
    """The set called `name`. Raises ValueError listing the sets when there is none."""
    if name not in CONCEPT_SETS:
        raise ValueError(f"no concept set is called {name!r}; accepted are {list(CONCEPT_SETS)}")
    return CONCEPT_SETS[name]
