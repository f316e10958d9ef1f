"""CLIP pre-training: tokenizer, nouns, losses against independent computations, and the script from end to end."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_clipseg.clip.clip_backbone import ClipBackbone
from hf_clipseg.toyscapes import CAPTION_NOUNS
from training.curation.tokenization import NOUN_TEMPLATES, NounVocabulary, build_word_tokenizer, mine_nouns
from training.data.augmentation import colour_jitter, resize
from training.engine.loop import SampleKey
from training.pretraining.caption_batches import AugmentedCaptions, Collate, Layouts
from training.pretraining.caption_styles import CaptionStyles
from training.pretraining.contrastive import ClipForPretraining, NounLoss, assign_patches
from training.pretraining.mosaics import put_together, take_apart
from training.train_clip import main, retrieval_recall, withhold

from ..forked import run_forked
from ..precision import assert_same, double_precision

TINY = {
    "vision_config": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4,
        "image_size": 16,
    },
    "text_config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20,
        "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
    },
    "projection_dim": 12,
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_clip(attention="eager"):
    torch.manual_seed(0)
    return CLIPModel._from_config(CLIPConfig(**TINY), attn_implementation=attention).eval()


def batch_of(count):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (count, 6), generator=generator)
    ids[:, 0], ids[:, -1] = 1, 3
    nouns = torch.randint(4, 20, (3, 4), generator=generator)
    nouns[:, -1] = 3
    return {
        "pixel_values": torch.randn(count, 3, 16, 16, generator=generator),
        "input_ids": ids,
        "noun_input_ids": nouns,
        "mentioned": torch.rand(count, 3, generator=generator) < 0.6,
    }


# ---- tokenizer


def test_tokenizer_marks_the_ends_and_unknown_words_and_keeps_the_end_when_truncating():
    tokenizer = build_word_tokenizer(["A red car, at night"], max_length=5)
    names = tokenizer.convert_ids_to_tokens
    assert names(tokenizer("a Red bicycle")["input_ids"]) == ["<|startoftext|>", "a", "red", "<unk>", "<|endoftext|>"]
    long = tokenizer("a red car at night", truncation=True)["input_ids"]
    assert names(long) == ["<|startoftext|>", "a", "red", "car", "<|endoftext|>"]
    assert tokenizer.eos_token_id != 2  # transformers' CLIP would pool at the largest id instead


def test_tokenizer_leaves_rare_words_out_and_refuses_no_words():
    assert build_word_tokenizer(["sea sea sand"], min_count=2)("sand sea")["input_ids"][1:3] == [2, 4]
    with pytest.raises(ValueError, match="no word"):
        build_word_tokenizer(["sea"], min_count=2)


# ---- nouns


def test_nouns_are_found_as_whole_words_with_plurals_and_synonyms_longest_first():
    nouns = NounVocabulary([["sea", "ocean"], ["wall"], ["brick wall"], ["bus"]])
    assert nouns.find("Two buses by the Ocean") == {0, 3}
    assert nouns.find("a brick wall") == {2} and nouns.find("walls") == {1} and nouns.find("a seal in a wallet") == set()
    with pytest.raises(ValueError, match="two concepts"):
        NounVocabulary([["sea", "water"], ["water"]])


def test_nouns_of_toyscapes_captions_are_those_of_the_classes():
    nouns = NounVocabulary.from_mapping(CAPTION_NOUNS)
    assert len(nouns) == len(set(CAPTION_NOUNS.values()))
    for phrase, name in CAPTION_NOUNS.items():
        assert [nouns.concepts[index][0] for index in nouns.find(f"a photo of the {phrase}")] == [name]


def test_nouns_file_and_mined_nouns(tmp_path):
    (tmp_path / "nouns.txt").write_text("sea, ocean\n\ncar\n")
    assert NounVocabulary.from_file(str(tmp_path / "nouns.txt")).concepts == [["sea", "ocean"], ["car"]]
    captions = ["a small red car on the road", "two cars and a dog running", "the car"] * 2
    assert mine_nouns(captions, min_count=2) == ["car", "road", "cars"]


# ---- losses


def test_contrastive_term_is_that_of_transformers():
    clip, batch = tiny_clip(), batch_of(4)
    expected = clip(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], return_loss=True).loss
    losses = ClipForPretraining(clip, None)(batch["pixel_values"], batch["input_ids"])
    torch.testing.assert_close(losses["loss"], expected)
    assert losses.keys() == {"loss", "contrastive"}


@pytest.mark.parametrize("size", [16, 24])
def test_dense_features_are_those_that_segmentation_will_read(size):
    clip, pixels = tiny_clip(), torch.randn(2, 3, size, size)
    backbone = ClipBackbone(clip.config).eval()
    backbone.load_state_dict(clip.state_dict())
    with torch.no_grad():
        pooled, dense = ClipForPretraining(clip, None).encode_images(pixels)
        expected = backbone.dense_features(pixels, "value", keep_residual=False).flatten(1, 2)
        features = clip.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(dense, expected)
    torch.testing.assert_close(pooled, F.normalize(features, dim=-1))


def test_noun_loss_by_hand():
    loss = NounLoss(present_weight=2.0, explained_weight=3.0, negative_weight=0.5, unmentioned=0.2)
    patches = F.normalize(torch.randn(2, 5, 4), dim=-1)
    nouns = F.normalize(torch.randn(3, 4), dim=-1)
    mentioned = torch.tensor([[True, False, True], [False, False, False]])
    got = loss(patches, nouns, mentioned)
    present, explained = 0.0, 0.0
    for image in range(2):
        z = 10 * patches[image] @ nouns.T
        for noun in range(3):
            probability = torch.sigmoid(z[:, noun].exp().mean().log() - 2)
            yes = bool(mentioned[image, noun])
            present -= (1.0 if yes else 0.5) * (probability if yes else 1 - probability).log() / 6
        if mentioned[image].any():
            mass = (z.exp() * mentioned[image]).sum(1) / z.exp().sum(1)
            explained -= (0.2 + 0.8 * mass).log().mean() / 2
    torch.testing.assert_close(got["present"], 2 * present)
    torch.testing.assert_close(got["explained"], 3 * explained)


def test_assigned_patches_by_loops():
    logits, mentioned = torch.randn(2, 5, 4), torch.tensor([[True, False, True, True], [False, False, False, False]])
    targets = assign_patches(logits, mentioned, balance=0.5, sharpness=3.0)
    own = logits[0][:, mentioned[0]]
    shares = own.softmax(dim=1).mean(dim=0)
    for patch in range(5):
        expected = (3.0 * (own[patch] - 0.5 * shares.log())).softmax(dim=0)
        torch.testing.assert_close(targets[0, patch, mentioned[0]], expected)
    assert (targets[0][:, ~mentioned[0]] == 0).all() and (targets[1] == 0).all()


def test_assigned_patches_resist_a_noun_that_the_whole_image_is_biased_towards():
    """The ground of a scene wins every patch by a constant; balancing gives the object its patches back."""
    logits = torch.zeros(1, 10, 2)
    logits[0, :3, 1], logits[0, :, 0] = 2.0, 2.5  # an object on three patches, less certain than the ground everywhere
    mentioned = torch.ones(1, 2, dtype=torch.bool)
    assert (assign_patches(logits, mentioned, balance=0.0).argmax(dim=2) == 0).all()
    balanced = assign_patches(logits, mentioned, balance=0.7).argmax(dim=2)
    assert balanced.tolist() == [[1] * 3 + [0] * 7]


def test_assigned_loss_is_the_cross_entropy_with_those_labels():
    loss = NounLoss(1.0, 1.0, 1.0, 0.1, assigned_weight=2.0)
    patches, nouns = (torch.nn.functional.normalize(torch.randn(*shape), dim=-1) for shape in ((2, 5, 8), (3, 8)))
    mentioned = torch.tensor([[True, True, False], [False, True, True]])
    logits = loss.log_scale.exp() * patches @ nouns.T
    expected = -2.0 * (assign_patches(logits, mentioned) * logits.log_softmax(dim=2)).sum() / 10
    torch.testing.assert_close(loss(patches, nouns, mentioned)["assigned"], expected)
    assert "assigned" not in NounLoss(1.0, 1.0, 1.0, 0.1)(patches, nouns, mentioned)


def test_captions_without_nouns_give_finite_gradients():
    model, batch = ClipForPretraining(tiny_clip(), NounLoss(1.0, 1.0, 1.0, 0.0)), batch_of(3)
    model(**batch | {"mentioned": torch.zeros(3, 3, dtype=torch.bool)})["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def process_gradients(rank, world, address, folder):
    """One process of a pair: its half of the batch, gradients averaged as DistributedDataParallel does."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    model, batch = ClipForPretraining(tiny_clip("sdpa"), NounLoss(1.0, 1.0, 1.0, 0.1)), batch_of(6)
    half = slice(3 * rank, 3 * rank + 3)
    losses = model(**{name: value if name == "noun_input_ids" else value[half] for name, value in batch.items()})
    losses["loss"].backward()
    found = {"loss": losses["loss"].detach()}
    found |= {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for value in found.values():
        dist.all_reduce(value)
        value /= world
    if rank == 0:
        torch.save(found, folder + "/found.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path):
    address = f"file://{tmp_path}/rendezvous"
    with double_precision():
        assert run_forked(lambda rank: process_gradients(rank, 2, address, str(tmp_path)), 2) == [0, 0]
        found = torch.load(tmp_path / "found.pt")
        model = ClipForPretraining(tiny_clip("sdpa"), NounLoss(1.0, 1.0, 1.0, 0.1))  # eager attention is single precision
        losses = model(**batch_of(6))
        losses["loss"].backward()
    assert_same(found.pop("loss"), losses["loss"].detach())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_same(found.pop(name), parameter.grad, name)
    assert not found


# ---- batches


def layouts_of(sizes, *sides, seed=0):
    return Layouts(sizes, sides or (1,), seed, batch_size=4, patch_size=4)


def collate_twice(step, other_step=None):
    nouns = NounVocabulary([["sea", "ocean"], ["car"]])
    texts = ["a sea and a car", *(template.format(word) for template in NOUN_TEMPLATES for word in ("sea", "ocean", "car"))]
    collate = Collate(build_word_tokenizer(texts), nouns, NOUN_TEMPLATES, layouts_of((8, 16), seed=5))
    image = torch.arange(3 * 16 * 16).view(3, 16, 16) / 255

    def make(step):
        return {"image": image, "caption": "an ocean", "jitter": torch.zeros(3), "step": step}

    return collate([make(step)] * 2), collate([make(step if other_step is None else other_step)] * 2)


def test_batches_depend_on_seed_and_step_alone():
    first, second = collate_twice(4)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert first["mentioned"].tolist() == [[True, False]] * 2
    sizes = {collate_twice(step)[0]["pixel_values"].shape[-1] for step in range(12)}
    assert sizes == {8, 16}
    prompts = {tuple(collate_twice(step)[0]["noun_input_ids"].flatten().tolist()) for step in range(6)}
    assert len(prompts) > 1


def test_pairs_are_styled_by_their_seed_and_epoch():
    class Cache:
        captions = [["a sea"], ["a car"]]
        images = np.full((2, 8, 8, 3), 51, dtype=np.uint8)

    layouts = layouts_of((8,))
    plain, styled = AugmentedCaptions(Cache(), layouts), AugmentedCaptions(Cache(), layouts, CaptionStyles(1.0))
    pairs = [styled[SampleKey(1, epoch, 0)] for epoch in range(9)]
    untouched = plain[SampleKey(1, 0, 0)]
    assert untouched["image"].unique().tolist() == pytest.approx([0.2]) and untouched["caption"] == "a car"
    assert all("a car" in pair["caption"] and pair["caption"] != "a car" for pair in pairs)
    assert any((pair["image"] - 0.2).abs().max() > 0.01 for pair in pairs)
    again = styled[SampleKey(1, 3, 0)]
    assert again["caption"] == pairs[3]["caption"] and torch.equal(again["image"], pairs[3]["image"])


@pytest.mark.parametrize("side", [1, 2, 3])
def test_mosaics_come_apart_again(side):
    pictures = torch.rand(2 * side**2, 3, 4, 4)
    mosaics = put_together(pictures, side)
    for index, picture in enumerate(pictures):
        row, column = 4 * (index % side**2 // side), 4 * (index % side)
        assert torch.equal(mosaics[index // side**2, :, row : row + 4, column : column + 4], picture)
    patches = mosaics.flatten(2).transpose(1, 2)  # every pixel a patch
    assert torch.equal(take_apart(patches, len(pictures)), pictures.flatten(2).transpose(1, 2))


def test_captions_of_mosaics_speak_to_their_quarter_alone():
    """With patches of one mosaic moved into another cell, losses change as if its captions had been exchanged."""
    model, batch = ClipForPretraining(tiny_clip(), None, averaged_weight=0.5), batch_of(4)
    mosaic = put_together(batch["pixel_values"], 2)
    losses = model(mosaic, batch["input_ids"])
    assert losses.keys() == {"loss", "averaged"}
    _, patches = model.encode_images(mosaic)
    grid = patches.view(8, 8, -1)
    means = torch.stack(
        [grid[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].flatten(0, 1).mean(0) for row in (0, 1) for col in (0, 1)]
    )
    logits = model.clip.logit_scale.exp() * F.normalize(means, dim=-1) @ model.encode_texts(batch["input_ids"]).T
    targets = torch.arange(4)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 4
    torch.testing.assert_close(losses["averaged"], expected)
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.clip.vision_model.parameters())  # as distributed training wants it


def test_what_is_withheld_reaches_no_patch():
    nouns = NounVocabulary([["sea", "ocean"], ["car"], ["kite"]])
    taught, withheld = withhold(nouns, "kite")
    assert taught.concepts == [["sea", "ocean"], ["car"]] and withheld.concepts == [["kite"]]
    assert withhold(nouns, None) == (nouns, None)
    with pytest.raises(ValueError, match="kites"):
        withhold(nouns, "kites")
    with pytest.raises(ValueError, match="--unseen"):
        withhold(None, "kite")

    class Cache:
        captions = [["a kite", "a sea"], ["a car"], ["the kite and a car"], ["an ocean"]]
        images = np.zeros((4, 8, 8, 3), dtype=np.uint8)

    layouts = layouts_of((8,), 2)
    pairs = AugmentedCaptions(Cache(), layouts, withheld=withheld)
    assert {pairs[SampleKey(index, 0, 3)]["caption"] for index in range(4)} == {"a car", "an ocean"}
    whole = AugmentedCaptions(Cache(), layouts_of((8,)), withheld=withheld)
    assert whole[SampleKey(2, 0, 3)]["caption"] == "the kite and a car"
    collate = Collate(build_word_tokenizer(["sea ocean car kite the and a"]), taught, ["{}"], layouts, withheld)
    inputs = collate.noun_inputs(taught, ["the kite and a car", "a car"], step=0)
    assert inputs["mentioned"].tolist() == [[False, True]] * 2 and inputs["complete"].tolist() == [False, True]

    loss = NounLoss(1.0, 1.0, 1.0, 0.1, assigned_weight=1.0)
    patches, embeds = (F.normalize(torch.randn(*shape), dim=-1) for shape in ((2, 5, 8), (2, 8)))
    both = loss(patches, embeds, inputs["mentioned"], inputs["complete"])
    alone = loss(patches[1:], embeds, inputs["mentioned"][1:])
    assert all(torch.allclose(2 * both[name], alone[name]) for name in ("explained", "assigned"))


def test_layouts_are_drawn_by_step_and_refuse_pictures_that_do_not_fit():
    layouts = layouts_of((8, 16), 1, 2)
    drawn = [layouts(step) for step in range(20)]
    assert drawn == [layouts(step) for step in range(20)]
    assert {layout.pictures for layout in drawn} == {1, 2} and {layout.size for layout in drawn} == {8, 16}
    assert all(layout.size == 16 for layout in drawn if layout.pictures == 2)
    for sides, batch_size in (((3,), 9), ((2,), 6), ((0,), 4)):  # 16 pixels have no thirds of whole patches; 6 are no fours
        with pytest.raises(ValueError, match="--mosaic_sides"):
            Layouts((16,), sides, 0, batch_size, 4)


def test_resizing_is_the_mean_of_what_a_pixel_covers_and_jitter_keeps_hue():
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(resize(images, 2), F.avg_pool2d(images, 2))
    torch.testing.assert_close(colour_jitter(images, torch.zeros(1, 3)), images)
    red = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    jittered = colour_jitter(red, torch.tensor([[0.1, -0.1, 0.2]]))[0, :, 0, 0]
    assert jittered[0] > jittered[1] and jittered[1] == jittered[2]


# ---- the script


def train_tiny(folder, tmp_path, steps=6, **options):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    arguments = {
        "output_dir": folder, "clip_config": tmp_path / "config.json", "cache_dir": tmp_path / "cache", "limit": 10,
        "max_train_steps": steps, "train_batch_size": 4, "warmup_steps": 2, "validation_steps": 3, "logging_steps": 3,
        "checkpointing_steps": 3, "checkpoints_total_limit": 5, "mixed_precision": "bf16", **options,
    }  # fmt: skip
    command = [f"--{name}={value}" for name, value in arguments.items()]
    main([*command, "--image_sizes", "12", "16"])


def test_script_resumes_bit_for_bit_and_saves_a_clip_that_transformers_loads(tmp_path):
    train_tiny(tmp_path / "straight", tmp_path)
    (tmp_path / "broken").mkdir()  # as if the run had died after step 3
    (tmp_path / "straight" / "checkpoint-3").rename(tmp_path / "broken" / "checkpoint-3")
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tiny(tmp_path / "broken", tmp_path, resume_from_checkpoint="latest")
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("straight", "broken")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    folder = tmp_path / "straight" / "final"
    clip, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert CLIPImageProcessorPil.from_pretrained(folder).crop_size == {"height": 16, "width": 16}
    for key, value in clip.state_dict().items():
        assert key not in weights[0] or torch.equal(value, weights[0][key])
    assert clip.config.text_config.eos_token_id == tokenizer.eos_token_id == 3
    assert clip.config.text_config.vocab_size == len(tokenizer)
    padded = tokenizer(["a sea", "a photo of a lighthouse"], padding=True, return_tensors="pt")
    alone = tokenizer(["a sea"], return_tensors="pt")
    assert tokenizer.unk_token_id not in padded["input_ids"]
    with torch.no_grad():
        together = clip.get_text_features(**padded).pooler_output[:1]
        torch.testing.assert_close(together, clip.get_text_features(**alone).pooler_output)
    rows = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert any("recall_image_to_text" in row for row in rows) and any("present" in row for row in rows)


def test_script_continues_from_a_checkpoint_without_the_noun_term(tmp_path):
    train_tiny(tmp_path / "first", tmp_path, steps=3)
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tiny(
        tmp_path / "second", tmp_path, steps=3, model_name_or_path=tmp_path / "first" / "final", learning_rate=0.0,
        present_weight=0, explained_weight=0,
    )  # fmt: skip
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("first", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_script_starts_in_cones_and_tells_styles(tmp_path):
    train_tiny(
        tmp_path / "run", tmp_path, steps=2, cone=3.0, caption_styles=0.5, learning_rate=0.0, unseen="kite", mosaic_sides=2,
        averaged_weight=0.5,
    )  # fmt: skip
    clip = CLIPModel.from_pretrained(tmp_path / "run" / "final")
    for norm in (clip.vision_model.post_layernorm, clip.text_model.final_layer_norm):
        assert 1.5 < norm.bias.std() < 5
    words = AutoTokenizer.from_pretrained(tmp_path / "run" / "final").get_vocab()
    assert {"blurry", "underexposed", "tattoo"} <= words.keys()
    embeds = F.normalize(clip.get_image_features(torch.randn(8, 3, 16, 16)).pooler_output, dim=-1)
    assert (embeds @ embeds.T).min() > 0.5  # different pictures, one direction


def test_recall_counts_equal_captions_as_right():
    class Cache:
        captions = [["sea"], ["sea"]]
        images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8).numpy()

        def __len__(self):
            return 2

    model = ClipForPretraining(tiny_clip(), None)
    recall = retrieval_recall(model, Cache(), build_word_tokenizer(["sea"]), 16)
    assert recall == {"recall_image_to_text": 1.0, "recall_text_to_image": 1.0}
