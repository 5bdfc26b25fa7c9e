"""What the default model may know: THE list of what is seen, unnamed and unseen.

* seen: drawn in training and named by its own words.
* unnamed: drawn in training, but captions only ever use a general word ("an animal", "a strange
  bear"). Learning a word for it is discovery of something the model can draw.
* unseen: never drawn in training. It shows the limit of what a frozen model can be taught.

Of the papers' five two-concept sets, the hamster and the cactus are unnamed, so that two of them
are real discovery; watermelon, ball, bear, skateboard, basket, bananas, chair and dog are seen, so
that the other three measure what is already named. Of Lego's concepts, "burnt and melted" and
"crumpled" are unnamed, the smiley face is unseen; the others are seen, so that words can compete
with inversion. The places are all seen.
The parts of the medical scans are unnamed: training says no more than "a scan".
"""

UNNAMED_OBJECTS: tuple[str, ...] = ("hamster", "cactus", "robot", "boat")
UNSEEN_OBJECTS: tuple[str, ...] = ("rocket", "umbrella", "penguin")
UNNAMED_STATES: tuple[str, ...] = ("burnt and melted", "crumpled")
UNSEEN_STATES: tuple[str, ...] = ("smiley face",)
UNSEEN_PAIRS: tuple[tuple[str, str], ...] = (
    ("green", "bear"),
    ("blue", "watermelon"),
    ("purple", "dog"),
    ("pink", "taxi"),
    ("blue", "cat"),
    ("pink", "basket"),
    ("orange", "mug"),
    ("yellow", "hat"),
    ("white", "skateboard"),
    ("green", "fox"),
    ("red", "chair"),
    ("purple", "ball"),
)
"""Colour and object never drawn together in training, though each is with others."""

SPLITS: tuple[str, ...] = ("seen", "named", "unnamed", "unseen", "pairs")
"""Names of what can be sampled: the training world; only what is named there; scenes with an
unnamed object; with an unseen object; with an unseen pair."""


def is_drawn(name: str, colour: str | None = None, state: str | None = None) -> bool:
    """Whether training draws this object, in this colour and in this state."""
    return (
        name not in UNSEEN_OBJECTS
        and (colour, name) not in UNSEEN_PAIRS
        and state not in UNSEEN_STATES
    )


def is_named(name: str, state: str | None = None) -> bool:
    """Whether training captions name this object by its own word, and this state."""
    return (
        name not in (*UNNAMED_OBJECTS, *UNSEEN_OBJECTS)
        and state not in (*UNNAMED_STATES, *UNSEEN_STATES)
    )  # fmt: skip
