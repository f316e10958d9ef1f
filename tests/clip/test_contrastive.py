"""The contrastive losses, from their definitions and over processes."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers.models.groupvit.modeling_groupvit import GroupViTAssignAttention

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation
from hf_clipseg.clip.contrastive import contrastive_loss, multi_label_loss, shared_concepts
from hf_clipseg.clip.distributed import SyncedBatchNorm1d

from ..forked import run_forked
from ..precision import BOUND, assert_same
from ..tiny_groupvit import tiny_groupvit_config


def unit(*shape: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("archives", [None, [[7, 5], [-1, 7], [-1, -1]]])
@pytest.mark.parametrize("duplicates_are_negatives", [True, False])
def test_multi_label_loss_from_the_definition(duplicates_are_negatives, archives):
    """Written with loops. Images 0 and 2 share concept 7; -1 stands for a caption, which nobody shares."""
    images, texts, scale = unit(3, 8), unit(3, 2, 8), 9.0
    ids = [[7, -1], [3, -1], [5, 7]]
    known = [own + archive for own, archive in zip(ids, archives or [[], [], []], strict=True)]

    def is_negative(image: int, other: int, text: int) -> bool:
        return duplicates_are_negatives or ids[other][text] < 0 or ids[other][text] not in known[image]

    total = 0.0
    for i in range(3):
        for m in range(2):
            own = math.exp(scale * images[i] @ texts[i, m])
            to_texts = sum(
                math.exp(scale * images[i] @ texts[j, n]) for j in range(3) for n in range(2) if i == j or is_negative(i, j, n)
            )
            to_images = sum(math.exp(scale * images[j] @ texts[i, m]) for j in range(3) if i == j or is_negative(j, i, m))
            total += math.log(own / to_texts) / 2 + math.log(own / to_images) / 2
    archive_ids = None if archives is None else torch.tensor(archives)
    loss = multi_label_loss(images, texts, torch.tensor(ids), torch.tensor(scale), duplicates_are_negatives, archive_ids)
    assert loss.item() == pytest.approx(-total / 6, rel=1e-5)


def test_shared_concepts_are_those_of_other_images():
    ids = torch.tensor([[1, 2], [2, -1], [-1, 3]])
    assert shared_concepts(ids, ids).nonzero().tolist() == [[0, 1, 0], [1, 0, 1]]
    assert shared_concepts(ids, torch.tensor([[-1], [1], [2]])).nonzero().tolist() == [[1, 0, 0], [2, 0, 1], [2, 1, 0]]


def test_gradients_are_finite_where_all_texts_are_shared():
    """Every text of every other image is masked out: what is left is the image's own."""
    images, texts = unit(4, 8).requires_grad_(), unit(4, 3, 8).requires_grad_()
    multi_label_loss(images, texts, torch.zeros(4, 3, dtype=torch.long), torch.tensor(100.0)).backward()
    assert images.grad.isfinite().all() and texts.grad.isfinite().all()


def test_scales_do_not_overflow_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = unit(4, 8), unit(4, 3, 8)
        loss = multi_label_loss(images, texts, torch.arange(12).view(4, 3), torch.tensor(100.0))
        assert loss.dtype == torch.float32 and contrastive_loss(images, texts[:, 0], torch.tensor(100.0)).dtype == torch.float32


def make_model() -> CocuForSemanticSegmentation:
    torch.manual_seed(0)
    model = CocuForSemanticSegmentation(CocuConfig(clip_config=tiny_groupvit_config())).train().double()
    for module in model.modules():  # their noise depends on how the batch is divided
        if isinstance(module, GroupViTAssignAttention):
            module.eval()
    return model


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 20, (4, 3, 7), generator=generator)
    tokens[..., -1] = 1
    return {
        "pixel_values": torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.double),
        "caption_input_ids": tokens[:, 0],
        "concept_input_ids": tokens[:, 1:],
        "concept_ids": torch.tensor([[0, 1], [1, 2], [-1, -1], [0, 3]]),
        "archive_ids": torch.tensor([[3], [-1], [1], [2]]),
    }


@pytest.mark.usefixtures("in_double_precision")
def test_two_processes_compute_the_loss_and_the_gradients_of_one(tmp_path):
    """Batch norm, both losses and the gradients that come back through `gather`, averaged as DDP does.

    In double precision throughout, as the gradients of this random model are steep.
    """
    model = make_model()
    loss = model(**make_batch()).loss
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    buffers = dict(model.named_buffers())

    def process(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=rank, world_size=2)
        half = make_model()
        outputs = half(**{name: value.chunk(2)[rank] for name, value in make_batch().items()})
        outputs.loss.backward()
        assert_same(outputs.loss.detach(), loss.detach())
        for name, parameter in half.named_parameters():
            dist.all_reduce(parameter.grad)
            assert_same(parameter.grad / 2, expected[name], name, scale=largest)
        for name, buffer in half.named_buffers():
            torch.testing.assert_close(buffer, buffers[name], rtol=BOUND, atol=BOUND)

    assert run_forked(process, count=2) == [0, 0]


def test_batch_norm_is_torchs_on_one_process():
    ours, torchs, rows = SyncedBatchNorm1d(5), nn.BatchNorm1d(5), torch.randn(6, 5)
    torch.testing.assert_close(ours(rows), torchs(rows))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
