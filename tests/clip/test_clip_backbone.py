"""The backbone against transformers' own modules and against attention written out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.clip_backbone import ClipBackbone, attend, fit_to_patches, gaussian_neighbourhood, last_block_tokens

from ..precision import BOUND, assert_same, doubled
from ..tiny import openai_tokenizer, save_random_vit_b16, save_tiny_clip, tiny_clip_config, tiny_tokenizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> CLIPModel:
    return CLIPModel.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("clip"))).eval()


@pytest.fixture
def backbone(clip) -> ClipBackbone:
    backbone = ClipBackbone(clip.config).eval()
    backbone.load_state_dict(clip.state_dict())  # the same names: nothing missing, nothing left over
    return backbone


@pytest.mark.usefixtures("in_double_precision")
@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 24)])
def test_hidden_states_equal_transformers(clip, backbone, size):
    clip, backbone = doubled(clip), doubled(backbone)
    pixel_values = torch.randn(2, 3, *size)
    expected = clip.vision_model(pixel_values, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    for own, other in zip(backbone.hidden_states(pixel_values), expected, strict=True):
        assert_same(own, other)


@pytest.mark.usefixtures("in_double_precision")
@torch.no_grad()
def test_text_equals_get_text_features_at_any_padding(clip, backbone):
    """Causality: padding to the longest real prompt and padding to the full context give the same embeddings."""
    clip, backbone = doubled(clip), doubled(backbone)
    tokenizer, texts = tiny_tokenizer(), ["a photo of a sky", "boat", "there is a red car in the background"]
    short = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    full = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    assert short.shape[1] < full.shape[1] == 16
    expected = clip.get_text_features(full).pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert_same(backbone.encode_text(short), expected)
    assert_same(backbone.encode_text(full), expected)


@torch.no_grad()
def test_long_lists_of_prompts_are_encoded_in_chunks(backbone, monkeypatch):
    input_ids = torch.randint(4, 20, (11, 7))
    input_ids[:, -1] = 1
    whole = backbone.encode_text(input_ids)
    monkeypatch.setattr("hf_clipseg.clip.clip_backbone.TEXT_BATCH", 4)
    torch.testing.assert_close(backbone.encode_text(input_ids), whole)


def attention_by_hand(attention, tokens, variant, grid):
    """One head at a time, one matrix at a time."""
    queries, keys, values = attention.q_proj(tokens), attention.k_proj(tokens), attention.v_proj(tokens)
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        q, k, v = queries[..., part], keys[..., part], values[..., part]
        qq, kk = (states @ states.transpose(1, 2) * attention.head_dim**-0.5 for states in (q, k))
        if variant == "value":
            weights = torch.eye(tokens.shape[1]).expand(len(tokens), -1, -1)
        elif variant == "sclip":
            weights = qq.softmax(-1) + kk.softmax(-1)
        elif variant == "clearclip":
            weights = qq.softmax(-1)
        else:
            bias = torch.zeros(tokens.shape[1], tokens.shape[1])
            cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
            for i, (row, column) in enumerate(cells):
                for j, (other_row, other_column) in enumerate(cells):
                    distance = (row - other_row) ** 2 + (column - other_column) ** 2
                    bias[1 + i, 1 + j] = np.exp(-distance / (2 * 5.0**2))
            weights = (kk + bias).softmax(-1)
        heads.append(weights @ v)
    return attention.out_proj(torch.cat(heads, dim=-1))


@pytest.mark.usefixtures("in_double_precision")
@torch.no_grad()
@pytest.mark.parametrize("variant", ["value", "sclip", "clearclip", "naclip"])
def test_attention_variants_equal_a_computation_by_hand(backbone, variant):
    grid = (3, 4)
    tokens = torch.randn(2, 1 + 12, 32)
    attention = doubled(backbone).blocks[-1].self_attn
    expected = attention_by_hand(attention, tokens, variant, grid)
    # the neighbourhood is made in single precision
    bound = 1e-6 if variant == "naclip" else BOUND
    torch.testing.assert_close(attend(attention, tokens, grid, variant), expected, rtol=bound, atol=bound)


@torch.no_grad()
def test_residual_follows_the_paper_unless_told(backbone):
    block, tokens, grid = backbone.blocks[-1], torch.randn(1, 13, 32), (3, 4)

    def run(variant, keep_residual=None):
        return last_block_tokens(block, tokens, grid, variant, keep_residual)

    assert torch.equal(run("value"), run("value", True)) and not torch.allclose(run("value"), run("value", False))
    assert torch.equal(run("naclip"), run("naclip", False)) and not torch.allclose(run("naclip"), run("naclip", True))


def test_gaussian_neighbourhood_ignores_the_class_token():
    bias = gaussian_neighbourhood((2, 3), torch.zeros(1))
    assert bias.shape == (7, 7) and (bias[0] == 0).all() and (bias[:, 0] == 0).all()
    assert (bias.diagonal()[1:] == 1).all() and torch.equal(bias, bias.T)


def test_odd_sizes_cover_the_whole_image():
    assert fit_to_patches(torch.zeros(1, 3, 33, 8), 8).shape == (1, 3, 40, 8)
    same = torch.randn(1, 3, 32, 16)
    assert fit_to_patches(same, 8) is same


@torch.no_grad()
def test_features_have_unit_length_at_any_size(backbone):
    for size in [(8, 8), (33, 50), (16, 64)]:
        features = backbone.dense_features(torch.randn(2, 3, *size))
        assert features.shape == (2, -(-size[0] // 8), -(-size[1] // 8), 24)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))


def test_vision_only_backbone_says_why_it_cannot_read():
    backbone = ClipBackbone(tiny_clip_config(), with_text_encoder=False)
    with pytest.raises(ValueError, match="without its text encoder"):
        backbone.encode_text(torch.zeros(1, 3, dtype=torch.long))


@torch.no_grad()
def test_position_interpolation_on_the_real_embedding(real_data):
    """The real ViT-B/16 positions (14 x 14) at 20 x 26, against torch's bicubic resize of the grid."""
    positions = torch.from_numpy(np.load(real_data / "clip_refs/zegclip_vitb16/vit-b-16-pos_emb_197x768.npy"))
    config = tiny_clip_config(hidden_size=768, num_attention_heads=12, image_size=224, patch_size=16, num_hidden_layers=1)
    embeddings = ClipBackbone(config).vision_model.embeddings
    embeddings.position_embedding.weight.copy_(positions)
    pixel_values = torch.zeros(1, 3, 320, 416)
    added = embeddings(pixel_values, interpolate_pos_encoding=True)[0]
    grid = positions[1:].T.reshape(1, 768, 14, 14)
    resized = torch.nn.functional.interpolate(grid, size=(20, 26), mode="bicubic", align_corners=False)
    torch.testing.assert_close(added[1:], resized[0].flatten(1).T, rtol=1e-4, atol=1e-5)
    native = embeddings(torch.zeros(1, 3, 224, 224), interpolate_pos_encoding=True)[0]
    torch.testing.assert_close(native[1:], positions[1:])


@torch.no_grad()
def test_full_size_vit_segments_photographs_with_171_names(real_data, tmp_path):
    folder = save_random_vit_b16(tmp_path, real_data / "clip_bpe/bpe_simple_vocab_16e6.txt.gz")
    model = MaskClipForSemanticSegmentation.from_clip(folder)
    processor = SegmentationProcessor.from_clip(folder, size={"shortest_edge": 224, "longest_edge": 896})
    model.set_classes([f"thing number {index}" for index in range(171)], processor)
    photographs = sorted((real_data / "coco_mini").rglob("*.jpg"))[:2]
    images = [Image.open(path).convert("RGB") for path in photographs]
    images.append(images[0].resize((603, 151)))  # odd sides, aspect 1:4
    for image in images:
        outputs = model(**processor(images=image))
        (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
        assert outputs.logits.shape[1] == 171 and label_map.shape == image.size[::-1]


def test_tokenizer_reproduces_published_ids(real_data):
    """OpenAI's ids of "a photo of a cat" are 320, 1125, 539, 320, 2368."""
    tokenizer = openai_tokenizer(real_data / "clip_bpe/bpe_simple_vocab_16e6.txt.gz")
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
