"""The word pieces of the small text encoder: every word of the world, and some beyond it.

Ids are stable: groups stand in a fixed order, and words are sorted within their group.
"""

import re
import string
from collections.abc import Iterable
from pathlib import Path

from ldm.data.playroom import captions
from ldm.data.playroom.colours import COLOURS
from ldm.data.playroom.objects import OBJECTS
from ldm.data.playroom.places import PLACES
from ldm.data.playroom.scans import SCANS
from ldm.data.playroom.spec import ADJECTIVES, COUNTS
from ldm.prompts.templates import IMAGENET_TEMPLATES_SMALL, IMAGENET_TEMPLATES_STYLE

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD = re.compile(r"[a-z]+")

PAPERS = """
a brown bear on a rolling skateboard at times square wearing a blue jacket beside a red taxi over
grey road a fluffy hamster eating red watermelon on the sandy beach a green cactus and a red ball
in the desert a brown basket with yellow bananas a white chair with a black dog on it a green pot
a yellow cheese a white mug and silver spoon over blue tablecloth a scan with brighter cavity
encircled by grey myocardium round transition encircled by circle peripheral tumour edema a red
mug green plants blank notebook and a black pen black ink brown paper stack photographs a
patterned butterfly resting on an orange flower a running black cat and a sitting white cat a
smiling dog and an elegant cat a bold bird on top of a curious bird hedgehog snake llama lion
colourful pretend wood decorated photo of a toy image picture made style
"""

LEGO = """
frozen ice icy iced cold freezing frosty frost glacial solid chilled hot warm heated heat fire
lava steam liquid water boiling melted melting melt molten burnt burned burning charred scorched
dripping deformed liquefied intact whole unburnt cool hard crumpled crushed wrinkled creased
folded crinkled flat smooth straight neat ironed closed shut sleeping asleep blinking eyes eye
open opened awake wide staring arms arm raised lifted up hands hand down lowered hanging dropped
smiley smiling smile happy emoji emoticon face sad frowning angry crying walking walk strolling
stepping balancing running sitting standing lying flying rope ropes tightrope string cord wire
line ground floor road street one two three four five six seven eight nine ten single pair many
few several cube rubik doll statue figurine robot batman superman number count block bubble crack
"""

GENERAL = """
i you he she it we they me my your his her its our their this that these those here there who what
which where when how why and or but not no yes so if then than as of to in on at by for from with
without into onto over under above below between behind before after near beside next around
through across along inside outside off out up down again very too also only just more most less
least all any each every some other another same different new old young big large small little
tiny huge tall short long wide narrow high low deep thin thick heavy light dark bright pale soft
hard smooth rough clean dirty wet dry hot cold warm good bad nice cool weird strange odd funny
cute pretty beautiful ugly plain simple fast slow full empty left right top bottom front back
middle center side corner edge is are was were be been being has have had do does did can could
will would shall may might must make makes made take takes see sees look looks looking sit sits
sitting stand stands standing hold holds holding holds play plays playing eat eats eating sleep
sleeps run runs running walk walks jump jumps jumping ride rides riding wear wears wearing drive
drives driving fly swim swimming climb fall falling day night morning evening sun moon star sky
cloud clouds rain snow wind sea ocean river lake hill mountain forest wood stone rock sand grass
flower flowers leaf leaves garden field farm city town street road path bridge wall door window
roof room kitchen table bed lamp book paper cup plate bowl glass bottle knife fork bag shirt shoe
shoes dress coat man woman boy girl child baby people person king friend family animal animals
bird fish horse cow pig sheep lion tiger mouse rabbit frog snake elephant monkey insect plant
plants food fruit apple bread cake egg milk meat toy toys vehicle bus truck train bike bicycle
plane ship thing things object objects place color colour colors colours shape round square circle
triangle ring dot dots line lines stripe stripes gold golden violet cyan magenta teal beige tan
metal plastic glass paper cloth wool fur fluffy furry shiny matte photo photos photograph picture
pictures image painting drawing sketch cartoon art style rendering rendition cropped close
background shadow
"""


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in _WORD.findall(text.lower().replace("{", " "))}


def world_words() -> list[str]:
    """Every word that a caption of this world can contain, sorted."""
    texts: list[str] = [*COLOURS, *ADJECTIVES, *COUNTS.values(), *captions.KINDS, captions.STRANGE]
    for thing in OBJECTS.values():
        texts += [*thing.words, *(captions.plural(word, thing) for word in thing.words), thing.kind]
    texts += [captions.plural(kind) for kind in captions.KINDS]
    for place in PLACES.values():
        texts += [*place.phrases, place.ground]
    for phrases in (captions.STATE_PHRASES, captions.JOINED, captions.SWAPPED):
        texts += [re.sub(r"\{.\}", " ", text) for group in phrases.values() for text in group]
    texts += [*captions.PREFIXES, *captions.SCAN_CAPTIONS, *IMAGENET_TEMPLATES_SMALL]
    texts += ["a an the over a grey road on the sandy beach on a tablecloth"]
    texts += [scan.sentence for scan in SCANS.values()]
    return sorted(_words(texts))


def vocabulary() -> list[str]:
    """All word pieces, in the order of their ids.

    Special tokens, punctuation, single characters and their continuations (so that any text in
    Latin letters can be written), the world's words, the papers' words, general words.
    """
    pieces = [*SPECIAL, *string.punctuation, *string.digits, *string.ascii_lowercase]
    pieces += [f"##{c}" for c in (*string.digits, *string.ascii_lowercase)]
    known = set(pieces)
    style = " ".join(IMAGENET_TEMPLATES_STYLE)
    for group in (world_words(), sorted(_words([PAPERS, style])), sorted(_words([LEGO])),
                  sorted(_words([GENERAL]))):  # fmt: skip
        pieces += [word for word in group if word not in known]
        known.update(group)
    return pieces


def write_vocabulary(path: str | Path) -> int:
    """Writes the word pieces, one a line, as BERT tokenizers read them; returns how many."""
    pieces = vocabulary()
    Path(path).write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return len(pieces)
