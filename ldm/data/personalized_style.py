"""The same data as :mod:`ldm.data.personalized`, under captions that speak of a style."""

from collections.abc import Sequence

from ldm.data import personalized
from ldm.prompts import IMAGENET_TEMPLATES_STYLE, PER_IMAGE_TOKENS
from ldm.prompts.templates import IMAGENET_DUAL_TEMPLATES_STYLE

imagenet_templates_small = list(IMAGENET_TEMPLATES_STYLE)
imagenet_dual_templates_small = list(IMAGENET_DUAL_TEMPLATES_STYLE)
per_img_token_list = list(PER_IMAGE_TOKENS)


class PersonalizedBase(personalized.PersonalizedBase):
    """Every picture of a folder under captions such as "a painting in the style of <word>"."""

    templates: Sequence[str] = IMAGENET_TEMPLATES_STYLE
