"""A word-level tokenizer built from captions, and the nouns found in them.

A small CLIP that is trained on a few thousand different words needs no byte-pair merges: one token per word keeps the embedding
table tiny and makes an unknown word visible (it becomes `<unk>`, which an application can warn about).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_clipseg.clip.text_bank import TEMPLATES

# The end token must not have id 2: transformers' CLIP text model reads that id as "pool at the largest token id".
SPECIAL_TOKENS = ("<pad>", "<|startoftext|>", "<unk>", "<|endoftext|>")

# Words that end a noun phrase when nouns are mined from captions.
DETERMINERS = frozenset(
    "a an the this that some many few several one two three four five six seven eight nine ten his her its their".split()
)
CLOSED_CLASS_WORDS = DETERMINERS | frozenset(
    "these those any of in on at by to from with without and or but is are was were be been being has have had it he she they "
    "there here under over above below behind beside between near next through into onto across along around against front "
    "while as for very who which".split()
)

# What stands around a noun in the noun-level loss; {} is the noun as captions write it. Varied: no prompt shall be perfect.
NOUN_TEMPLATES = (
    *TEMPLATES["ensemble"], "{}", "some {}", "this is a {}", "a drawing of a {}", "a small {}", "a large {}",
    "there is a {}", "a {} and more", "a view of the {}", "the {} in a picture", "two {}", "a scene with a {}",
)  # fmt: skip


def build_word_tokenizer(texts: Iterable[str], max_length: int = 32, min_count: int = 1) -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer whose vocabulary is the words and punctuation marks of `texts`.

    Every text becomes `<|startoftext|> words <|endoftext|>`; rare words
    (less than `min_count` times) and unknown ones become `<unk>`.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(word for word, count in counts.items() if count >= min_count)
    if not words:
        raise ValueError(f"no word occurs {min_count} times in the captions: pass captions, or a lower min_count")
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[(token, vocabulary[token]) for token in ("<|startoftext|>", "<|endoftext|>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def mine_nouns(captions: Iterable[str], min_count: int = 20, max_nouns: int = 256) -> list[str]:
    """The most frequent heads of simple noun phrases: the last word of what follows a determiner ("a small red car" -> "car").

    No tagger is needed and none is used: some adjectives and verbs get through, which only adds harmless concepts.
    """
    heads: Counter[str] = Counter()
    for caption in captions:
        for clause in re.split(r"[^\w\s'-]+", caption.lower()):
            phrase: list[str] | None = None
            for word in (*clause.split(), "and"):
                if word not in CLOSED_CLASS_WORDS:
                    if phrase is not None:
                        phrase.append(word)
                    continue
                if phrase and len(phrase) <= 4 and not phrase[-1].endswith(("ing", "ly")):
                    heads[phrase[-1]] += 1
                phrase = [] if word in DETERMINERS else None
    return [noun for noun, count in heads.most_common(max_nouns) if count >= min_count]


class NounVocabulary:
    """Concepts that can be looked up in a caption; each is a list of words that mean the same.

    Args:
        concepts: e.g. `[["sea", "ocean"], ["car"]]`; a plain string is a concept with one word. Phrases may have several words;
            a plural in -s or -es counts as its singular. Where phrases overlap the longest wins ("brick wall" is no "wall").
    """

    def __init__(self, concepts: Sequence[str | Sequence[str]]):
        self.concepts = [[concept] if isinstance(concept, str) else list(concept) for concept in concepts]
        self._concept_of: dict[str, int] = {}
        for concept_id, words in enumerate(self.concepts):
            for word in words:
                key = " ".join(word.lower().split())
                if self._concept_of.setdefault(key, concept_id) != concept_id:
                    raise ValueError(f"{word!r} is listed for two concepts: {self.concepts[self._concept_of[key]]} and {words}")
        if not self._concept_of:
            raise ValueError("no nouns: give a nouns file with one concept per line")
        phrases = sorted(self._concept_of, key=len, reverse=True)
        self._pattern = re.compile(rf"\b({'|'.join(map(re.escape, phrases))})(?:e?s)?\b")

    def __len__(self) -> int:
        return len(self.concepts)

    @classmethod
    def from_file(cls, path: str) -> "NounVocabulary":
        """One concept per line, its synonyms parted by commas."""
        with open(path, encoding="utf-8") as file:
            lines = [[word.strip() for word in line.split(",") if word.strip()] for line in file]
        return cls([words for words in lines if words])

    @classmethod
    def from_mapping(cls, concept_of: Mapping[str, str]) -> "NounVocabulary":
        """From phrase -> concept name, e.g. `{"ocean": "sea", "sea": "sea"}`."""
        concepts: dict[str, list[str]] = {}
        for phrase, name in concept_of.items():
            concepts.setdefault(name, []).append(phrase)
        return cls(list(concepts.values()))

    def find(self, caption: str) -> set[int]:
        """Ids of the concepts that `caption` mentions."""
        return {self._concept_of[match.group(1)] for match in self._pattern.finditer(caption.lower())}
