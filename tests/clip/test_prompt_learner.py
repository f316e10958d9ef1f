"""Learnable prompts against transformers' own `CLIPModel.get_text_features` on the same sentences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from hf_clipseg.clip.clip_backbone import ClipBackbone
from hf_clipseg.clip.prompt_learner import PromptLearner, end_of_text

from ..precision import assert_same

BOS, EOS, VOCABULARY, LIMIT = 62, 63, 64, 20
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def clip_pair(eos_token_id=EOS, attention="sdpa"):
    """The same random weights as transformers' CLIPModel and as our backbone."""
    text = {**TEXT, "max_position_embeddings": LIMIT, "bos_token_id": BOS, "eos_token_id": eos_token_id, "pad_token_id": EOS}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    reference = CLIPModel._from_config(config, attn_implementation=attention).eval()
    torch.nn.init.normal_(reference.text_model.embeddings.token_embedding.weight)  # CLIP's 0.02 would hide wrong tokens
    backbone = ClipBackbone(reference.config).eval()
    backbone.load_state_dict(reference.state_dict())
    return reference, backbone


def sentences(words, padding=EOS):
    """`[BOS] words [EOS]`, padded to one length."""
    length = max(map(len, words)) + 2
    return torch.tensor([[BOS, *row, EOS] + [padding] * (length - len(row) - 2) for row in words])


def text_features(reference, input_ids):
    return torch.nn.functional.normalize(reference.get_text_features(input_ids).pooler_output, dim=-1)


NAMES = [[7], [8, 9, 10], [11, 12]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("eos_token_id", "padding"), [(EOS, EOS), (EOS, 0), (2, EOS), (2, 0)])
@pytest.mark.usefixtures("in_double_precision")
def test_contexts_of_real_words_give_clips_own_text_features(eos_token_id, padding, attention):
    reference, backbone = clip_pair(eos_token_id, attention)
    contexts = torch.tensor([[20, 21, 22, 23], [30, 31, 32, 33]])
    learner = PromptLearner(2, 4, 32)
    learner.start_from_words(backbone, contexts)
    result = learner(backbone, sentences(NAMES, padding))
    assert result.shape == (2, 3, 24)
    for context, embeds in zip(contexts.tolist(), result, strict=True):
        expected = text_features(reference, sentences([context + name for name in NAMES], padding))
        torch.testing.assert_close(embeds, expected, atol=1e-6, rtol=1e-6)  # eager softmax is single precision
    assert (result[0] - result[1]).abs().max() > 0.01  # the context is really read


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_names_and_any_contexts(data):
    reference, backbone = (module.double() for module in clip_pair())
    word = st.integers(0, 61)
    tokens = data.draw(st.integers(1, 6))
    contexts = data.draw(st.lists(st.lists(word, min_size=tokens, max_size=tokens), min_size=1, max_size=3))
    names = data.draw(st.lists(st.lists(word, min_size=1, max_size=5), min_size=1, max_size=4))
    learner = PromptLearner(len(contexts), tokens, 32).double()
    learner.start_from_words(backbone, torch.tensor(contexts))
    expected = torch.stack([text_features(reference, sentences([c + name for name in names])) for c in contexts])
    assert_same(learner(backbone, sentences(names)), expected)


def test_fewer_words_than_tokens_stand_next_to_the_name():
    _, backbone = clip_pair()
    learner = PromptLearner(2, 4, 32)
    torch.nn.init.zeros_(learner.contexts)
    learner.start_from_words(backbone, torch.tensor([[5, 6], [7, 8]]))
    table = backbone.text_model.embeddings.token_embedding.weight
    assert torch.equal(learner.contexts[1, 2:], table[7:9]) and not learner.contexts[:, :2].any()


@torch.no_grad()
def test_raw_features_are_what_the_text_projection_gives():
    _, backbone = clip_pair()
    learner = PromptLearner(2, 3, backbone.config.text_config.hidden_size)
    torch.nn.init.normal_(learner.contexts, std=0.02)
    ids, names = sentences([[7, 8], [9], [10, 11]]), torch.tensor([0, 1, 1])
    unit = learner.encode_names(backbone, ids, names)
    learner.normalise = False
    raw, each = learner.encode_names(backbone, ids, names), learner(backbone, ids)
    torch.testing.assert_close(raw[:, 1], each[:, 1:].mean(1))
    torch.testing.assert_close(torch.nn.functional.normalize(raw[:, 0], dim=-1), unit[:, 0])
    assert (raw.norm(dim=-1) - 1).abs().min() > 1e-3


def test_templates_of_a_name_are_averaged_behind_every_context():
    _, backbone = clip_pair()
    learner = PromptLearner(2, 4, 32)
    torch.nn.init.normal_(learner.contexts)
    prompts = learner(backbone, sentences(NAMES))
    names = learner.encode_names(backbone, sentences(NAMES), torch.tensor([0, 1, 0]))
    torch.testing.assert_close(names[:, 1], prompts[:, 1])
    torch.testing.assert_close(names[:, 0], torch.nn.functional.normalize(prompts[:, 0] + prompts[:, 2], dim=-1))


def test_padding_beyond_the_longest_name_changes_nothing_and_costs_nothing():
    _, backbone = clip_pair()
    learner = PromptLearner(2, 4, 32)
    torch.nn.init.normal_(learner.contexts)
    short = sentences(NAMES)
    padded = torch.nn.functional.pad(short, (0, 50), value=EOS)  # far more than the position embedding has
    lengths = []
    backbone.text_model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    assert torch.equal(learner(backbone, padded), learner(backbone, short))
    assert lengths == [1 + 4 + 3 * (3 + 1)] * 2  # start and context once, then three names of three tokens with their end


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_many_names_in_groups_equal_one_by_one(count):
    backbone, learner = clip_pair()[1].double(), PromptLearner(2, 4, 32).double()
    torch.nn.init.normal_(learner.contexts)
    names = sentences([[5 + index % 50, 5 + index // 50] for index in range(count)])
    together = learner(backbone, names)
    assert together.shape == (2, count, 24)
    for index in {0, count // 2, count - 1}:
        assert_same(together[:, index], learner(backbone, names[index : index + 1])[:, 0])


def test_gradients_reach_the_contexts_only_and_match_finite_differences():
    _, backbone = clip_pair()
    backbone.double().requires_grad_(False)
    learner = PromptLearner(2, 3, 32).double()
    torch.nn.init.normal_(learner.contexts)
    direction = torch.randn(2, 3, 24, dtype=torch.float64)

    def loss():
        return (learner(backbone, sentences(NAMES)) * direction).sum()

    loss().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert (learner.contexts.grad.flatten(1).norm(dim=1) > 0).all()
    for index in [(0, 0, 0), (1, 2, 31)]:
        with torch.no_grad():
            learner.contexts[index] += 1e-5
            above = loss()
            learner.contexts[index] -= 2e-5
            below = loss()
            learner.contexts[index] += 1e-5
        assert learner.contexts.grad[index].item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    _, backbone = clip_pair()
    backbone.requires_grad_(False)
    learner = PromptLearner(2, 3, 32)
    torch.nn.init.normal_(learner.contexts)
    direction = torch.randn(2, 3, 24)
    gradients, calls = [], []
    backbone.text_model.encoder.layers[1].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            backbone.text_model.activation_checkpointing_enable()
            backbone.text_model.train()
        learner.contexts.grad = None
        calls.clear()
        (learner(backbone, sentences(NAMES)) * direction).sum().backward()
        gradients.append(learner.contexts.grad)
    assert len(calls) == 2  # the block ran again in the backward pass
    torch.testing.assert_close(*gradients)


def test_end_of_text_rules():
    ids = torch.tensor([[BOS, 5, EOS, EOS], [BOS, EOS, 3, 3]])
    assert end_of_text(ids, EOS).tolist() == [2, 1]
    assert end_of_text(ids, 2).tolist() == [2, 1]


def test_impossible_prompts_are_refused():
    _, backbone = clip_pair()
    learner = PromptLearner(1, 4, 32)
    torch.nn.init.normal_(learner.contexts)
    with pytest.raises(ValueError, match="has 17 tokens .* and 4 context tokens .* more than the 20"):
        learner(backbone, sentences([[5] * 15]))
    assert learner(backbone, sentences([[5] * 14])).shape == (1, 1, 24)
    for wrong in ([[1, 2, 3, 4, 5]], [[1], [2]], [[]]):
        with pytest.raises(ValueError, match=r"= \(1, 1 to 4\), got"):
            learner.start_from_words(backbone, torch.tensor(wrong, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        PromptLearner(0, 4, 32)
    backbone.text_model = None
    with pytest.raises(ValueError, match="without it"):
        learner(backbone, sentences(NAMES))
