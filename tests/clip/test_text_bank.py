"""Class names to prompts to embeddings."""

import pytest
import torch

from hf_clipseg.clip.text_bank import (
    TEMPLATES,
    TextCache,
    average_templates,
    class_ids_of_names,
    class_prompts,
    normalise_class_names,
    parse_class_names,
    resolve_templates,
    weights_fingerprint,
)


def test_prompts_are_laid_out_name_by_name():
    prompts = class_prompts(["sky", ["boat", "ship"]], ["a {}", "the {}."])
    assert prompts.texts == ("a sky", "the sky.", "a boat", "the boat.", "a ship", "the ship.")
    assert prompts.name_ids == (0, 0, 1, 1, 2, 2)
    assert prompts.class_ids == (0, 1, 1)
    assert prompts.class_names == ("sky", "boat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "non-empty list"),
        ("sky", "non-empty list"),
        (["sky", "  "], "empty or only white space"),
        (["sky", []], "empty list of names"),
        (["sky", "Sky "], "given twice"),
        ([["ship", "boat"], "ship"], "'ship' is given twice"),
        (["sky", ["boat", "ship", "Boat "]], "'boat' is given twice"),
    ],
)
def test_bad_names_are_refused_with_the_fix(names, message):
    with pytest.raises(ValueError, match=message):
        normalise_class_names(names)


def test_a_thousand_classes():
    assert len(class_prompts([f"class {i}" for i in range(1000)], "ensemble").texts) == 1000 * len(TEMPLATES["ensemble"])


def test_parse_what_a_person_types():
    assert parse_class_names(" sky,boat | ship,\n\n red  car ,, ") == [["sky"], ["boat", "ship"], ["red car"]]
    with pytest.raises(ValueError, match="non-empty"):
        parse_class_names(" , | \n")
    with pytest.raises(ValueError, match="'ship' is given twice"):
        parse_class_names("ship, boat|ship")


def test_two_classes_may_share_a_synonym_and_the_display_name_decides_what_a_tag_means():
    classes = [["background", "sky", "bed"], ["boat", "ship"], ["bed"], ["ferry", "ship"]]
    assert normalise_class_names(classes) == classes
    assert class_ids_of_names(classes) == {"background": 0, "sky": 0, "boat": 1, "bed": 2, "ferry": 3}


def test_templates():
    assert resolve_templates("photo") == ("a photo of a {}",)
    assert resolve_templates("my {} here") == ("my {} here",)
    for wrong in ("phto", ["{} and {}"], []):
        with pytest.raises(ValueError):
            resolve_templates(wrong)


def test_average_is_taken_on_the_sphere():
    embeds = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    averaged = average_templates(embeds, torch.tensor([0, 1, 0, 1, 1]))
    for name, rows in enumerate(([0, 2], [1, 3, 4])):
        mean = embeds[rows].mean(dim=0)
        torch.testing.assert_close(averaged[name], mean / mean.norm())


def test_cache_notices_other_names_templates_and_weights():
    cache, weight = TextCache(capacity=2), torch.nn.Parameter(torch.ones(3))
    ids, names = torch.tensor([[1, 2]]), torch.tensor([0])
    key = cache.key([weight], ids, names)
    assert cache.key([weight], ids, names) == key
    assert cache.key([weight], ids + 1, names) != key
    assert cache.key([weight], ids.T, names) != key
    assert cache.key([weight], ids, names + 1) != key
    with torch.no_grad():
        weight += 1
    assert cache.key([weight], ids, names) != key


def test_cache_computes_once_in_full_precision_and_forgets_the_oldest():
    cache, weight, computed = TextCache(capacity=2), torch.nn.Parameter(torch.ones(3)), []

    def ask(entry: int) -> torch.Tensor:
        def compute():
            computed.append(entry)
            return weight * entry @ torch.ones(3)

        return cache.get_or_compute(compute, [weight], torch.tensor([[entry]]))

    with torch.autocast("cpu", torch.bfloat16):
        embeds = [ask(entry) for entry in (5, 5, 6, 5)]
    assert computed == [5, 6] and [value.item() for value in embeds] == [15, 15, 18, 15]
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in embeds)
    ask(7), ask(6), ask(5)  # two places: 5, the oldest, made room for 7
    assert computed == [5, 6, 7, 5]


def test_fingerprint_follows_content():
    layer = torch.nn.Linear(3, 2)
    before = weights_fingerprint(layer)
    copy = torch.nn.Linear(3, 2)
    copy.load_state_dict(layer.state_dict())
    assert weights_fingerprint(copy) == before
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert weights_fingerprint(layer) != before
