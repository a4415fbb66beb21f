"""How an encoder is trained, as opposed to what it is: drop-path, draws, recomputed activations and first weights, set on a built encoder.

Neither changes a parameter's name or an architecture's identity, so a checkpoint fits with and without them. Drop-path leaves a residual
branch out of a sample with a probability that rises linearly with depth, as timm's own constructor would have it. Recomputing keeps only
each block's input for the backward pass: about a third more arithmetic for a fraction of the memory.
"""

from torch import nn

from ...storage.core.errors import BadInput
from .encoder import Encoder, EupeVit

_DROP_PLACES = ("drop_path", "drop_path1", "drop_path2")


def residual_blocks(encoder: Encoder) -> list[nn.Module]:
    """The encoder's residual blocks, first to last; what is sharded and recomputed as one."""
    return [module for module in encoder.modules() if any(hasattr(module, place) for place in _DROP_PLACES)]


def set_drop_path(encoder: Encoder, rate: float) -> None:
    """Leave branches out with probability 0 in the first block up to `rate` in the last, in training mode only; `BadInput` without any."""
    from timm.layers import DropPath  # encoders.py has installed the guard

    blocks = residual_blocks(encoder)
    if rate and not blocks:
        raise BadInput(f"a {encoder.architecture['name']} has no residual branch to leave out: --set student.drop_path=0.0")
    for number, block in enumerate(blocks):
        here = rate * number / max(1, len(blocks) - 1)
        for place in _DROP_PLACES:
            if hasattr(block, place):
                setattr(block, place, DropPath(here) if here else nn.Identity())


def set_recompute(encoder: Encoder, enable: bool) -> None:
    """Compute blocks again in the backward pass instead of keeping their activations; raise `BadInput` for a backbone that cannot."""
    switch = getattr(encoder.backbone, "set_grad_checkpointing", None)  # timm's; a plug-in's family may have none
    if switch is not None:
        switch(enable)
    elif enable:
        raise BadInput(f"a {encoder.architecture['name']} cannot recompute its activations: --set run.recompute_activations=false")


def set_rope_draws(encoder: Encoder, often: str) -> None:
    """Draw the rescale of positions anew in each "block", or once a "forward"; of EUPE's ViTs alone, others draw none."""
    if isinstance(encoder.backbone, EupeVit):
        encoder.backbone.draws_in_each_block = often == "block"


def shrink_with_depth(encoder: Encoder) -> None:
    """Divide what ends block n of EUPE's fresh ViT by √(2n), as timm does with its own; others are as timm made them."""
    if isinstance(encoder.backbone, EupeVit):
        super(EupeVit, encoder.backbone).fix_init_weight()
