"""ProxyCLIP: the formula written out once more, on every foundation model that transformers has for it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSemanticSegmentation,
    BertConfig,
    BertModel,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from hf_clipseg import MaskClipForSemanticSegmentation
from hf_clipseg.models.mask_clip.configuration_mask_clip import MaskClipConfig
from hf_clipseg.models.mask_clip.proxy_guidance import proxy_attention, renormalise

from ..released_procedure import by_proxy, unit
from ..tiny import save_tiny_clip

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PROXIES = {
    "dino": lambda: ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=4)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=32, patch_size=4)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, image_size=32, patch_size=4)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SMALL, image_size=32, patch_size=4, num_register_tokens=3)),
}
SPECIAL_TOKENS = {"dino": 1, "dinov2": 1, "registers": 5, "dinov3": 4}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def save_proxy(name, folder):
    torch.manual_seed(1)
    PROXIES[name]().eval().save_pretrained(folder)
    return folder


def by_formula(clip: CLIPModel, tokens: torch.Tensor, states: torch.Tensor, grid, clip_grid):
    """One image. `tokens`: the proxy's patches, `states`: input of CLIP's last block."""
    return by_proxy(clip, states, clip_grid, unit(tokens).reshape(*grid, -1))


@torch.no_grad()
@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_features_follow_the_formula(name, size, clip_folder, tmp_path):
    folder = save_proxy(name, tmp_path)
    model = MaskClipForSemanticSegmentation.from_clip(clip_folder, proxy=str(folder))
    assert model.config.attention_variant == "proxy"
    clip, proxy = CLIPModel.from_pretrained(clip_folder).eval(), type(PROXIES[name]()).from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, *size)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    rgb = pixels * std.view(3, 1, 1) + mean.view(3, 1, 1)
    imagenet = (rgb - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    options = {"interpolate_pos_encoding": True} if name == "dino" else {}
    tokens = proxy(imagenet, **options).last_hidden_state[:, SPECIAL_TOKENS[name] :]
    states = model.clip.hidden_states(pixels)[-2]
    grid, clip_grid = (size[0] // 4, size[1] // 4), (size[0] // 8, size[1] // 8)
    own = model.dense_features(pixels)
    for image in range(2):
        expected = by_formula(clip, tokens[image], states[image], grid, clip_grid)
        torch.testing.assert_close(own[image], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_at_full_size(real_data, tmp_path):
    """ViT-B/16 with ViT-B/8, random weights, one window of 112 pixels."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(patch_size=8)).eval().save_pretrained(tmp_path / "dino")
    clip = save_tiny_clip(
        tmp_path / "clip", hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        image_size=224, patch_size=16,
    )  # fmt: skip
    model = MaskClipForSemanticSegmentation.from_clip(clip, proxy=str(tmp_path / "dino"))
    pixels = torch.randn(1, 3, 112, 112)
    proxy = ViTModel.from_pretrained(tmp_path / "dino").eval()
    tokens = proxy(renormalise(pixels), interpolate_pos_encoding=True).last_hidden_state[0, 1:]
    states = model.clip.hidden_states(pixels)[-2][0]
    expected = by_formula(CLIPModel.from_pretrained(clip).eval(), tokens, states, (14, 14), (7, 7))
    torch.testing.assert_close(model.dense_features(pixels)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_token_always_sees_itself():
    """Where all features are nearly equal the mean is above 1 / beta, and the formula alone divides by zero."""
    features = F.normalize(torch.ones(1, 3, 3, 8) + 0.01 * torch.randn(1, 3, 3, 8), dim=-1)
    assert torch.equal(proxy_attention(features, 1.2, 3.0)[0], torch.eye(9))
    weights = proxy_attention(F.normalize(torch.randn(2, 4, 5, 8), dim=-1), 1.2, 3.0)
    assert weights.shape == (2, 20, 20) and torch.allclose(weights.sum(-1), torch.ones(2, 20))


@torch.no_grad()
def test_the_proxy_is_part_of_the_checkpoint(clip_folder, tmp_path):
    model = MaskClipForSemanticSegmentation.from_clip(clip_folder, proxy=str(save_proxy("dino", tmp_path / "dino")))
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved").eval()
    pixels = torch.randn(1, 3, 40, 56)  # 56 is no multiple of 16: both grids cover the picture
    assert torch.equal(loaded.dense_features(pixels), model.dense_features(pixels))
    assert loaded.config.proxy_config.model_type == "vit" and not any("pooler" in name for name in loaded.state_dict())
    half = loaded.to(torch.bfloat16).dense_features(pixels.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_impossible_proxies_are_refused(clip_folder, tmp_path):
    with pytest.raises(ValueError, match="needs the model that guides: .*proxy='facebook/dino-vitb8'"):
        MaskClipConfig(attention_variant="proxy")
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="is a 'bert' model; a proxy is one of vit, dinov2"):
        MaskClipForSemanticSegmentation.from_clip(clip_folder, proxy=str(tmp_path))
