"""Change pictures by changing their prompts (prompt-to-prompt), drawn ones and real ones."""

from ldm.editing.attend_excite import ExcitedSampler, ExciteOptions
from ldm.editing.edit import Edited, EditOptions, edit, replace_word
from ldm.editing.inversion import Inversion, ddim_inversion, null_text_inversion, reconstruct

__all__ = [
    "EditOptions",
    "Edited",
    "ExciteOptions",
    "ExcitedSampler",
    "Inversion",
    "ddim_inversion",
    "edit",
    "null_text_inversion",
    "reconstruct",
    "replace_word",
]
