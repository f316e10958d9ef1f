"""Mining concepts from captions: noun phrases by rules of counting, no tagger, no list of words that could leak a benchmark.

A run is what stands between closed-class words and punctuation ("a small red car near the brick wall" has the runs "small red
car" and "brick wall"); its last word is its head. A head becomes a concept unless it is rare, or mostly carries another noun
("a picture of ..."). Two words become a concept where each belongs to the other: "brick" stands before hardly any other noun,
and "wall" not often without it; "turquoise sea" fails the second test, "red car" both.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from .tokenization import CLOSED_CLASS_WORDS

IRREGULAR_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "feet": "foot", "teeth": "tooth",
    "geese": "goose", "fungi": "fungus", "leaves": "leaf", "knives": "knife", "wolves": "wolf", "shelves": "shelf",
}  # fmt: skip
NOUNS_IN_ING = frozenset("building ceiling painting clothing wing ring king string railing awning swing wedding thing".split())
LONGEST_RUN = 4
CARRIER_SHARE = 0.5
"""A head that stands before "of" this often is a carrier ("picture of"), not a concept."""
MODIFIER_SHARE, HEAD_SHARE = 0.5, 0.3
"""Two words are one concept where the first goes with this head, and the head with this word, at least so often."""


def noun_runs(caption: str) -> Iterator[tuple[list[str], bool]]:
    """Runs of open-class words of a caption, each with whether "of" follows it."""
    for clause in re.split(r"[^\w\s'-]+", caption.lower()):
        run: list[str] = []
        for word in (*clause.split(), "and"):
            if word not in CLOSED_CLASS_WORDS:
                run.append(word)
                continue
            while run and run[-1].endswith(("ing", "ly")) and run[-1] not in NOUNS_IN_ING:
                run.pop()  # "a man riding": what a participle describes stands before it
            if run and len(run) <= LONGEST_RUN and not run[-1].isdigit():
                yield run, word == "of"
            run = []


def singular(word: str, known: Counter[str]) -> str:
    """The singular of `word`, where the captions use that word too, or where it is irregular."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith("ss"):
        return word
    for ending, replacement in (("ies", "y"), ("es", ""), ("s", "")):
        base = word.removesuffix(ending) + replacement
        if word.endswith(ending) and known[base]:
            return base
    return word


def mine_concepts(captions: Iterable[str], min_count: int = 20, max_concepts: int = 2000) -> list[list[str]]:
    """Concepts of a corpus, most frequent first.

    Args:
        min_count: a concept must be the head of so many runs.
        max_concepts: keep at most so many.

    Returns:
        For each concept the words that mean it, its name first: `[["person", "people"], ["brick wall"], ...]`, ready for
        `tokenization.NounVocabulary`, which knows regular plurals by itself.

    Raises:
        ValueError: no concept is frequent enough.
    """
    heads: Counter[str] = Counter()
    carriers: Counter[str] = Counter()
    pairs: Counter = Counter()
    modifiers: Counter = Counter()
    for caption in captions:
        for run, is_carrier in noun_runs(caption):
            heads[run[-1]] += 1
            carriers[run[-1]] += is_carrier
            if len(run) > 1:
                pairs[run[-2], run[-1]] += 1
                modifiers[run[-2]] += 1

    counts: Counter[str] = Counter()
    surfaces: dict = {}
    for word, count in heads.items():
        name = singular(word, heads)
        counts[name] += count - carriers[word] if carriers[word] < CARRIER_SHARE * count else 0
        surfaces.setdefault(name, set()).add(word)
    for (modifier, head), count in pairs.items():
        name = singular(head, heads)
        if count >= min_count and count >= MODIFIER_SHARE * modifiers[modifier] and count >= HEAD_SHARE * heads[head]:
            phrase = f"{modifier} {name}"
            counts[phrase] += count
            counts[name] -= count
            surfaces.setdefault(phrase, set()).add(f"{modifier} {head}")
    frequent = [(name, count) for name, count in counts.items() if count >= min_count]
    if not frequent:
        raise ValueError(f"no noun occurs {min_count} times in the captions: lower --min_count, or give a --vocabulary")
    frequent.sort(key=lambda item: (-item[1], item[0]))
    return [[name, *sorted(surfaces[name] - {name})] for name, _ in frequent[:max_concepts]]
