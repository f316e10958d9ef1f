"""Words of Toyscapes: class names, parts, synonyms, colours, and the nouns its captions can use.

This is a leaf: the drawing modules use it for names, the caption module for words. Class ids are positions in
`CLASS_NAMES`; there is no background class, every pixel of a scene belongs to one of them.
"""

STUFF_NAMES = (
    "sky",
    "grass",
    "sea",
    "sand",
    "road",
    "snow",
    "wheat field",
    "hedge",
    "brick wall",
    "wooden floor",
)
THING_NAMES = (
    "house",
    "lighthouse",
    "tree",
    "flower",
    "mushroom",
    "umbrella",
    "car",
    "bus",
    "boat",
    "sun",
    "moon",
    "cloud",
    "mountain",
    "rock",
    "balloon",
    "kite",
    "bird",
    "fish",
    "cat",
    "person",
)
CLASS_NAMES = STUFF_NAMES + THING_NAMES
CLASS_IDS = {name: class_id for class_id, name in enumerate(CLASS_NAMES)}

# The zero-shot split: every unseen class has a relative among the seen ones (bus/car, mushroom/umbrella, snow/sand).
UNSEEN_CLASSES = ("snow", "wheat field", "bus", "bird", "kite", "lighthouse", "mushroom")

PART_NAMES = (
    "none",
    "wheel",
    "roof",
    "door",
    "window",
    "wall",
    "chimney",
    "tower",
    "lantern",
    "hull",
    "sail",
    "trunk",
    "crown",
    "stem",
    "petal",
    "leaf",
    "cap",
    "canopy",
    "handle",
    "envelope",
    "basket",
    "head",
    "body",
    "leg",
    "arm",
    "wing",
    "tail",
    "fin",
    "peak",
)
PART_IDS = {name: part_id for part_id, name in enumerate(PART_NAMES)}

SYNONYMS = {
    "sky": ("heavens",),
    "grass": ("lawn", "meadow"),
    "sea": ("ocean", "water"),
    "sand": ("beach", "dunes"),
    "road": ("street", "asphalt"),
    "snow": ("powder snow",),
    "wheat field": ("field of wheat", "golden crops"),
    "hedge": ("bushes", "shrubs"),
    "brick wall": ("wall of bricks", "brickwork"),
    "wooden floor": ("floorboards", "parquet"),
    "house": ("cottage", "home"),
    "lighthouse": ("beacon",),
    "tree": ("oak", "pine", "fir"),
    "flower": ("blossom", "bloom"),
    "mushroom": ("toadstool", "fungus"),
    "umbrella": ("parasol",),
    "car": ("automobile",),
    "bus": ("coach",),
    "boat": ("ship", "vessel"),
    "sun": ("bright sun",),
    "moon": ("full moon", "crescent"),
    "cloud": ("cumulus",),
    "mountain": ("peak", "summit"),
    "rock": ("stone", "boulder"),
    "balloon": ("hot-air balloon",),
    "kite": ("paper kite",),
    "bird": ("songbird",),
    "fish": ("goldfish",),
    "cat": ("kitten",),
    "person": ("man", "woman", "child"),
}

_IRREGULAR_PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "fish": "fish",
    "goldfish": "goldfish",
    "fungus": "fungi",
    "cumulus": "cumulus clouds",
}


def plural(noun: str) -> str:
    """English plural of one of the thing nouns above ("bus" -> "buses", "person" -> "people")."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    return noun + "es" if noun.endswith(("s", "x", "ch", "sh")) else noun + "s"


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _caption_nouns() -> dict[str, str]:
    nouns = {}
    for name in CLASS_NAMES:
        for word in (name, *SYNONYMS[name]):
            nouns[word] = name
            if name in THING_NAMES:
                nouns[plural(word)] = name
    return nouns


# Every noun or noun phrase a caption can use -> its class name. Match whole words, longest phrase first.
CAPTION_NOUNS = _caption_nouns()

COLOURS = {
    "red": (222, 60, 58),
    "orange": (244, 140, 50),
    "yellow": (250, 205, 64),
    "green": (86, 170, 82),
    "teal": (52, 168, 160),
    "blue": (62, 122, 214),
    "purple": (142, 92, 196),
    "pink": (242, 138, 176),
    "white": (244, 242, 236),
    "brown": (148, 98, 62),
    "grey": (150, 154, 162),
    "black": (62, 62, 74),
}
