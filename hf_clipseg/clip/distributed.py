"""Tensors of all processes: differentiable gathering, and a batch norm whose statistics are those of the whole batch.

Convention: every process computes the loss of the whole batch, so the average of its gradients over processes is the gradient
of one process that holds all samples.
"""

import torch
import torch.distributed as dist
from torch import nn


class GatherWithGradient(torch.autograd.Function):
    """Concatenates a tensor over processes along dimension 0; gradients come back to the process that gave the rows."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, in order of rank, differentiable; the tensor itself where there is one process."""
    return GatherWithGradient.apply(tensor) if is_distributed() else tensor


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the rows of all processes while training, on any device (`nn.SyncBatchNorm` refuses the CPU).

    Its state dict is that of `nn.BatchNorm1d`. Input `(rows, channels)`, the same number of rows on every process.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not (self.training and is_distributed()):
            return super().forward(rows)
        moments = gather(torch.stack([rows.float().mean(0), rows.float().square().mean(0)])[None]).mean(0)
        mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
        self.update_running_statistics(mean.detach(), variance.detach(), len(rows) * dist.get_world_size())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return ((rows.float() - mean) * scale + self.bias).to(rows.dtype)

    @torch.no_grad()
    def update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """As `nn.BatchNorm1d` does, with the unbiased variance."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * count / max(1, count - 1)).to(self.running_var.dtype), self.momentum)
