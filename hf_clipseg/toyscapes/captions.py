"""Captions of Toyscapes: what a person would write under the picture, with concepts left out at a set rate.

A caption names some of the visible classes. Nouns vary (synonyms, plurals, counts), adjectives and relations are true
of the picture, and no relation needs left and right, so that mirrored training images keep true captions.
"""

from dataclasses import dataclass

from .canvas import Dice
from .scene_vocabulary import STUFF_NAMES, SYNONYMS, plural, with_article

MIN_VISIBLE_AREA = 0.004  # share of the image from which a class counts as visible
SYNONYM_RATE = 0.35
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_DEFINITE = {"sky", "heavens", "sea", "ocean"}
_WITHOUT_ARTICLE = {
    "grass", "water", "sand", "dunes", "asphalt", "snow", "powder snow", "golden crops", "bushes", "shrubs", "brickwork",
    "floorboards", "parquet",
}  # fmt: skip
_OPENINGS = ("a picture of", "a photo of", "an illustration of", "a drawing of", "a scene with", "a view of", "this is")
_CLOSEUP_OPENINGS = ("a close-up of", "a close-up of", "close-up of", "a detailed view of", "a picture of", "a photo of")
_TIMES = {"night": "at night", "sunset": "at sunset", "day": "on a bright day"}
_TIME_RATES = {"night": 0.5, "sunset": 0.4, "day": 0.08}


@dataclass(frozen=True)
class Concept:
    """One visible class as the caption may tell it."""

    class_name: str
    count: int
    phrase: str
    ground: str | None
    airborne: bool

    @property
    def is_stuff(self) -> bool:
        return self.class_name in STUFF_NAMES


def visible_classes(placed_instances) -> dict[str, list]:
    """Class name -> its instances, for every class that covers at least `MIN_VISIBLE_AREA`; largest instance first."""
    by_class: dict[str, list] = {}
    for placed in placed_instances:
        by_class.setdefault(placed.class_name, []).append(placed)
    return {
        name: sorted(members, key=lambda placed: -placed.area)
        for name, members in by_class.items()
        if sum(placed.area for placed in members) >= MIN_VISIBLE_AREA
    }


def _stuff_phrase(placed, noun: str, dice: Dice) -> str:
    words = noun
    if placed.colour and dice.chance(0.4) and placed.colour not in noun:
        words = f"{placed.colour} {noun}"
    if noun in _DEFINITE:
        return f"the {words}"
    return words if noun in _WITHOUT_ARTICLE else with_article(words)


def _size_word(placed, dice: Dice) -> str:
    if placed.area > 0.14 and dice.chance(0.3):
        return dice.choice(("big ", "large "))
    return "small " if placed.area < 0.03 and dice.chance(0.3) else ""


def _thing_phrase(members: list, noun: str, dice: Dice) -> str:
    first, count = members[0], len(members)
    colours = {placed.colour for placed in members}
    colour = f"{first.colour} " if len(colours) == 1 and first.colour and dice.chance(0.55) else ""
    if count > 1:
        number = _NUMBERS[min(count, 6)] if dice.chance(0.65) else dice.choice(("some", "several"))
        return f"{number} {colour}{plural(noun)}"
    detail = f" {first.detail}" if first.detail and dice.chance(0.35) else ""
    if first.class_name in ("sun", "moon") and dice.chance(0.6):
        return f"the {noun}{detail}"
    return with_article(f"{_size_word(first, dice)}{colour}{noun}") + detail


def describe(name: str, members: list, dice: Dice) -> Concept:
    """Choose the words for one class from its instances (largest first)."""
    counted = [placed for placed in members if placed.area >= MIN_VISIBLE_AREA] or members[:1]
    first = counted[0]
    synonyms = first.nouns if first.nouns and len(counted) == 1 else SYNONYMS[name]
    if len(counted) > 1 and first.nouns:
        synonyms = ()
    noun = dice.choice(synonyms) if synonyms and dice.chance(SYNONYM_RATE) else name
    stuff = name in STUFF_NAMES
    phrase = _stuff_phrase(first, noun, dice) if stuff else _thing_phrase(counted, noun, dice)
    return Concept(name, len(counted), phrase, None if stuff else first.ground, first.airborne)


def _preposition(thing: Concept, stuff_name: str, dice: Dice) -> str:
    if stuff_name in ("brick wall", "hedge"):
        return dice.choice(("in front of", "against"))
    if stuff_name == "sky":
        return "in" if thing.airborne else dice.choice(("against", "under"))
    if stuff_name == "wheat field":
        return "in"
    if thing.airborne:
        return dice.choice(("over", "above"))
    return "in" if thing.class_name == "fish" else "on"


def _clauses(concepts: list[Concept], dice: Dice) -> list[str]:
    """Things, some with the stuff they stand on, then the stuff that no thing has used."""
    stuff = {concept.class_name: concept for concept in concepts if concept.is_stuff}
    clauses = []
    for concept in concepts:
        if concept.is_stuff:
            continue
        clause = concept.phrase
        if concept.ground in stuff and dice.chance(0.75):
            clause += f" {_preposition(concept, concept.ground, dice)} {stuff.pop(concept.ground).phrase}"
        clauses.append(clause)
    rest = [concept.phrase for concept in stuff.values()]
    return clauses + rest if dice.chance(0.7) else rest + clauses


def _joined(clauses: list[str], dice: Dice) -> str:
    if len(clauses) == 1:
        return clauses[0]
    if len(clauses) == 2:
        return dice.choice(("{} and {}", "{} and {}", "{} beside {}", "{} next to {}", "{} near {}")).format(*clauses)
    link = dice.choice((", ", ", ", " with "))
    return clauses[0] + link + ", ".join(clauses[1:-1]) + " and " + clauses[-1]


def kept_concepts(names: list[str], omission_rate: float, dice: Dice) -> list[str]:
    """Leave each concept out with probability `omission_rate`, independently; if none is left, keep one at random."""
    kept = [name for name in names if not dice.chance(omission_rate)]
    return dice.shuffled(kept or [dice.choice(names)])


def write_caption(placed_instances, time: str, omission_rate: float, dice: Dice) -> str:
    """Caption of a scene from its `Placed` records (areas filled in)."""
    visible = visible_classes(placed_instances)
    names = kept_concepts(list(visible), omission_rate, dice)
    clauses = _clauses([describe(name, visible[name], dice) for name in names], dice)
    opening = f"{dice.choice(_OPENINGS)} " if dice.chance(0.5) else ""
    ending = f" {_TIMES[time]}" if dice.chance(_TIME_RATES[time]) else ""
    return opening + _joined(clauses, dice) + ending


def write_closeup_caption(placed_instances, dice: Dice) -> str:
    """Caption of a close-up: its one concept, sometimes with the ground under it."""
    visible = visible_classes(placed_instances)
    main = describe(placed_instances[-1].class_name, [placed_instances[-1]], dice)
    text = main.phrase
    ground = placed_instances[0].class_name
    if not main.is_stuff and ground in visible and dice.chance(0.3):
        text += f" {_preposition(main, ground, dice)} {describe(ground, visible[ground], dice).phrase}"
    return f"{dice.choice(_CLOSEUP_OPENINGS)} {text}" if dice.chance(0.75) else text
