"""Small named sets of pictures to learn words from: MCPL's (A.16), Lego's ten, held-out ones."""

from dataclasses import dataclass, replace

from ldm.data.playroom.scans import SCANS
from ldm.data.playroom.spec import SceneSpec, spec_from_names


@dataclass(frozen=True)
class ConceptSet:
    """A few pictures of the same things, with one sentence in markup.

    `shows` tells what each learnable word is in the picture: the name of an object or of a part of
    a scan, or "ground". Lego's sets have `subject_sentence` and `subject` too: the same thing
    without the concept; `others` are other things that show the same concept, each with a word of
    its own. Pictures go through `places` and through the things in turn.
    """

    name: str
    sentence: str
    spec: SceneSpec
    shows: dict[str, str]
    places: tuple[str, ...] = ()
    subject_sentence: str | None = None
    subject: SceneSpec | None = None
    others: tuple["ConceptSet", ...] = ()

    @property
    def things(self) -> tuple["ConceptSet", ...]:
        """The set of each thing that its pictures show: of most sets, itself alone."""
        return (self, *self.others)

    @property
    def all_shows(self) -> dict[str, str]:
        """`shows` of the set and of its `others`."""
        return {word: what for one in self.things for word, what in one.shows.items()}


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
_RELATED = tuple(
    _named(f"ball-{relation}-box", f"a [green] <ball:toy> <{relation}:and> an [orange] <box:thing>",
           "green ball; orange box", relation)
    for relation in ("on", "under", "beside")
)  # fmt: skip
RELATION_SETS = (
    replace(_RELATED[0], name="relations-ball-box", places=("grass", "room", "snow", "table"),
            others=_RELATED[1:]),
)  # fmt: skip
"""The same two things, in another relation from picture to picture (MCPL-diverse, A.11)."""
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
    name: str, phrase: str, thing: str, state: str = "", count: str = "", word: str = "<subject>"
) -> ConceptSet:
    """One of Lego's concepts: a `thing`, such as "orange duck: toy", with and without it."""
    what, kind = thing.split(": ")
    subject = f"{word[:-1]}:{kind}>"
    noun = what.rsplit(maxsplit=1)[-1]
    concept = f"{count} {what}s" if count else f"{what}, {state}"
    return ConceptSet(
        f"lego-{name}",
        f"a photo of {phrase.format(s=subject)}",
        spec_from_names([concept]),
        {word: noun},
        _PLACES,
        f"a photo of a {subject}",
        spec_from_names([what]),
    )


_CONCEPTS = (
    ("frozen", "a {s} that is <frozen:strange> in <ice:strange>", "orange duck: toy",
     "green pot: thing", "frozen in ice", ""),
    # Not "<burnt> and <melted>": in this world "and" joins things.
    ("melted", "a {s} that is <burnt:strange> <melted:strange>", "blue box: thing",
     "yellow star: toy", "burnt and melted", ""),
    ("crumpled", "a {s} that is <crumpled:strange>", "red hat: thing",
     "green ball: toy", "crumpled", ""),
    ("closed-eyes", "a {s} with <closed:strange> <eyes:strange>", "orange cat: animal",
     "blue duck: toy", "closed eyes", ""),
    ("arms-raised", "a {s} with <arms:strange> <raised:strange>", "purple bear: toy",
     "orange cat: animal", "arms raised", ""),
    ("smiley", "a {s} with a <smiley:strange> <face:strange>", "blue ball: toy",
     "pink box: thing", "smiley face", ""),
    ("rope", "a {s} <walking:strange> on a <rope:strange>", "red fox: animal",
     "brown bear: toy", "walking on a rope", ""),
    ("three", "<three:several> {s}", "pink star: toy", "red mug: thing", "", "three"),
    ("four", "<four:several> {s}", "green mug: thing", "blue star: toy", "", "four"),
    ("five", "<five:several> {s}", "blue chair: thing", "red duck: toy", "", "five"),
)  # fmt: skip
LEGO_SETS = tuple(
    _lego(name, phrase, thing, state, count) for name, phrase, thing, _, state, count in _CONCEPTS
)
"""One thing with and without the concept, as in most of the paper."""
LEGO_MULTI_SETS = tuple(
    replace(
        single,
        name=f"{single.name}-multi",
        others=(_lego(name, phrase, other, state, count, "<other>"),),
    )
    for single, (name, phrase, _, other, state, count) in zip(LEGO_SETS, _CONCEPTS, strict=True)
)
"""Two different things with and without the concept (sec. 5.5, multi-subject)."""

CONCEPT_SETS: dict[str, ConceptSet] = {
    one.name: one
    for group in (PAIRS, TRIPLES, QUADRUPLES, QUINTUPLES, HELD_OUT, RELATION_SETS, SCAN_SETS,
                  LEGO_SETS, LEGO_MULTI_SETS)
    for one in group
}  # fmt: skip


def get_concept_set(name: str) -> ConceptSet:
    """The set called `name`. Raises ValueError listing the sets when there is none."""
    if name not in CONCEPT_SETS:
        raise ValueError(f"no concept set is called {name!r}; accepted are {list(CONCEPT_SETS)}")
    return CONCEPT_SETS[name]
