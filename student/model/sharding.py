"""One student on several ranks: replicated (DDP) or fully sharded (FSDP2), and full tensors again for a checkpoint.

DDP suits students: their weights fit anywhere. The 1.9 B proxy with LAMB's two moments takes 30 GB in fp32, so FSDP2 shards weights,
gradients and moments over the ranks, block by block; a block's weights are gathered when it runs. Checkpoints always hold full tensors
under their plain names, so a run resumes with any number of ranks and in either mode. Gathering is collective: every rank calls, the first
writes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ...teachers.encoders.training_settings import residual_blocks
from .ranks import Ranks
from .student import Student


def parallelize(student: Student, mode: str, ranks: Ranks) -> nn.Module:
    """Return the module whose forward and backward passes run over all ranks: `ddp` or `fsdp`; with one rank the student itself.

    `fsdp` changes the student's parameters in place, so optimisers are built afterwards.
    """
    if ranks.count == 1:
        return student
    if mode == "ddp":
        return DistributedDataParallel(student, broadcast_buffers=False)
    return shard(student, ranks.count)


def shard(student: Student, ranks: int) -> Student:
    """Share a student's weights out among all ranks of the process group, in place: each block's are gathered when it runs."""
    mesh = init_device_mesh(next(student.parameters()).device.type, (ranks,))
    for module in (*residual_blocks(student.encoder), *student.adapters):
        fully_shard(module, mesh=mesh)
    fully_shard(student, mesh=mesh)
    return student


def set_gradient_sync(module: nn.Module, synced: bool) -> None:
    """Set whether the next backward pass synchronises gradients: only a step's last micro-batch has to."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = synced
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(synced)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor's full value on every rank; collective when it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_cpu_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the full values as contiguous CPU tensors, as files hold them; collective when they are sharded."""
    return {name: full_tensor(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def distribute_like(tensor: Tensor, template: Tensor) -> Tensor:
    """Return a full tensor sharded over ranks as the template is."""
    if not isinstance(template, DTensor) or tensor.shape != template.shape:
        return tensor
    moved = tensor.to(template.device)
    return distribute_tensor(moved, template.device_mesh, template.placements, src_data_rank=None)


def clip_gradient_norm(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Scale the whole gradient down to `clip_norm` and return the norm it had, the same on every rank."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(parameters, clip_norm)).detach()
