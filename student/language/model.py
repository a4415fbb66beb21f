"""A language model that sees: patch tokens go through a projector and stand among the embeddings of the text.

The projector is LLaVA-1.5's `mlp2x_gelu`: linear, GELU, linear, at the language model's width. The loss is the sum of the cross entropies
of the taught tokens, so that a batch may be shared by micro-batches and ranks in any way. Answers are greedy: neither the sampling nor the
length that the model's folder suggests counts.
Axes: B texts, P of them with a picture, L positions, N patch tokens, D channels of the encoder, E of the language model, V its vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from .prompts import Text, positions

_IGNORED = -100


class Batch(NamedTuple):
    """Ids (B, L), −1 for a patch token; which positions count (B, L); what each is to be followed by (B, L), −100 for nothing."""

    ids: Tensor
    present: Tensor
    targets: Tensor

    @property
    def taught(self) -> int:
        """Number of tokens that are learnt from."""
        return int((self.targets != _IGNORED).sum())


def batch_of(texts: Sequence[Text], patches: int, longest: int, *, left: bool = False) -> Batch:
    """Return texts as one batch, padded on the right, or on the left before an answer is made."""
    rows = [positions(text, patches, longest) for text in texts]
    length = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), length), np.int64)
    present, targets = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), _IGNORED, np.int64)
    for row, (of_text, taught) in enumerate(rows):
        span = slice(length - len(of_text), length) if left else slice(0, len(of_text))
        ids[row, span], present[row, span] = of_text, 1
        following = np.where(taught[1:], of_text[1:], _IGNORED)
        targets[row, span.start : span.stop - 1] = following
    return Batch(*(torch.from_numpy(array) for array in (ids, present, targets)))


def build_projector(width: int, llm_width: int, layers: int) -> nn.Sequential:
    """Return a projector with torch's random weights."""
    parts: list[nn.Module] = [nn.Linear(width, llm_width)]
    for _ in range(layers - 1):
        parts += [nn.GELU(), nn.Linear(llm_width, llm_width)]
    return nn.Sequential(*parts)


class SeeingModel(nn.Module):
    """Projector and language model."""

    def __init__(self, projector: nn.Sequential, llm: Any) -> None:
        super().__init__()
        self.projector, self.llm = projector, llm

    def embeddings(self, ids_BL: Tensor, patch_PND: Tensor | None) -> Tensor:
        """Return embeddings (B, L, E); the patch tokens of the P texts with a picture, in their order, stand where ids are −1."""
        is_patch_BL = ids_BL < 0
        embedded_BLE: Tensor = self.llm.get_input_embeddings()(ids_BL.clamp(min=0))
        if patch_PND is None:
            return embedded_BLE + 0 * self._touched()
        seen_PNE = self.projector(patch_PND).to(embedded_BLE.dtype)
        with_picture_P = is_patch_BL.any(dim=1).nonzero()[:, 0]
        counts_P = is_patch_BL[with_picture_P].sum(dim=1)  # fewer than N where a text is cut inside its picture
        kept_PN = torch.arange(seen_PNE.shape[1], device=ids_BL.device) < counts_P[:, None]
        return embedded_BLE.masked_scatter(is_patch_BL[..., None].expand_as(embedded_BLE), seen_PNE[kept_PN])

    def _touched(self) -> Tensor:
        """Return a sum over the projector: ranks wait for one another's gradients, also where a batch has no picture."""
        return torch.stack([parameter.sum() for parameter in self.projector.parameters()]).sum()

    def forward(self, ids_BL: Tensor, present_BL: Tensor, targets_BL: Tensor, patch_PND: Tensor | None) -> Tensor:
        """Return the sum of the cross entropies of the taught tokens."""
        embedded = self.embeddings(ids_BL, patch_PND)
        logits_BLV = self.llm(inputs_embeds=embedded, attention_mask=present_BL, use_cache=False).logits
        taught_BL = targets_BL != _IGNORED
        return functional.cross_entropy(logits_BLV[taught_BL].float(), targets_BL[taught_BL], reduction="sum")

    @torch.no_grad()
    def answer(self, batch: Batch, patch_PND: Tensor, tokenizer: Any, most: int) -> list[str]:
        """Return the greedy answers to questions that are padded on the left, without blanks around them."""
        from transformers import GenerationConfig

        embedded = self.embeddings(batch.ids, patch_PND)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        settings = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=most, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad, use_cache=True
        )
        made = self.llm.generate(inputs_embeds=embedded, attention_mask=batch.present, generation_config=settings)
        return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]


def trained_parameters(model: SeeingModel, *, with_llm: bool) -> Mapping[str, nn.Parameter]:
    """Return what a stage trains, by name, and leave the rest without gradients; tied weights stand once."""
    model.llm.requires_grad_(with_llm)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def share_out(model: SeeingModel, ranks: int) -> SeeingModel:
    """Share all weights out among the ranks of the process group, in place (FSDP2): a block's are gathered when it runs."""
    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks,))
    depth = model.llm.config.num_hidden_layers
    for blocks in (module for module in model.llm.modules() if isinstance(module, nn.ModuleList) and len(module) == depth):
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
