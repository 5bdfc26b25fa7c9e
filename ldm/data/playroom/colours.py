"""Colours: a colour word becomes five tones, so that every shape has shade and light."""

from dataclasses import dataclass

RGB = tuple[int, int, int]

INK: RGB = (38, 32, 40)
WHITE: RGB = (255, 255, 255)
BLUSH: RGB = (250, 142, 142)
WOOD: RGB = (186, 124, 74)

COLOURS: dict[str, RGB] = {
    "red": (226, 52, 50),
    "green": (58, 168, 76),
    "blue": (44, 104, 222),
    "yellow": (250, 204, 40),
    "orange": (246, 132, 32),
    "purple": (138, 70, 190),
    "pink": (246, 130, 178),
    "brown": (142, 88, 50),
    "white": (244, 242, 238),
    "black": (52, 50, 58),
    "grey": (118, 120, 128),
    "silver": (188, 202, 222),
}
NATURAL: dict[str, RGB] = {
    "sandy": (226, 172, 108),
    "rusty": (232, 112, 44),
    "leaf": (74, 158, 70),
    "straw": (204, 156, 88),
    "card": (206, 160, 106),
    "melon": (236, 66, 76),
    "cream": (240, 226, 196),
    "slate": (96, 112, 132),
    "tabby": (152, 142, 140),
}


def mix(one: RGB, other: RGB, share: float) -> RGB:
    """The colour that lies `share` of the way from one to the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Paint:
    """The tones of one coloured thing, from its darkest fold to its palest belly."""

    base: RGB
    light: RGB
    dark: RGB
    deep: RGB
    pale: RGB

    @property
    def contrast(self) -> RGB:
        """The tone that a pattern is painted in: pale on most colours, deep on pale ones."""
        return self.deep if sum(self.base) > 560 else self.pale


def paint(colour: str, lightness: float = 0.0) -> Paint:
    """The tones that a colour word stands for.

    `lightness` in [-1, 1] moves all tones a little, so that no two reds are quite the same.
    Raises ValueError for a word that is no colour of this world.
    """
    base = COLOURS.get(colour) or NATURAL.get(colour)
    if base is None:
        raise ValueError(
            f"no colour is called {colour!r}; accepted are {', '.join((*COLOURS, *NATURAL))}"
        )
    base = mix(base, WHITE if lightness > 0 else INK, abs(lightness) * 0.1)
    shadow = (46, 30, 74)
    dark = 0.24 if sum(base) < 560 else 0.16
    return Paint(
        base=base,
        light=mix(base, WHITE, 0.32),
        dark=mix(base, shadow, dark),
        deep=mix(base, shadow, 0.5),
        pale=mix(base, (255, 246, 232), 0.66),
    )
