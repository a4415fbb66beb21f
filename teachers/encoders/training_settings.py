"""Settings of training, set on a built encoder: drop-path, draws of the rotary rescale, activation checkpointing, initial weights.

None of them changes a parameter's name or an architecture's identity, so a checkpoint fits with and without them. Drop-path leaves a
residual branch out of a sample with a probability that rises linearly with depth, as timm's constructor does. Activation checkpointing
keeps only each block's input for the backward pass: about a third more arithmetic for a fraction of the memory.
"""

from torch import nn

from ...storage.core.errors import BadInput
from .encoder import Encoder, EupeVit

_DROP_PATH_ATTRIBUTES = ("drop_path", "drop_path1", "drop_path2")
_ABSENT = object()


def residual_blocks(encoder: Encoder) -> list[nn.Module]:
    """Return the encoder's residual blocks in order, the units of sharding and activation checkpointing."""
    return [module for module in encoder.modules() if any(hasattr(module, attribute) for attribute in _DROP_PATH_ATTRIBUTES)]


def set_drop_path(encoder: Encoder, rate: float) -> None:
    """Set drop-path rates from 0 in the first block to `rate` in the last; raise `BadInput` for an encoder without residual branches."""
    from timm.layers import DropPath  # encoders.py has installed the guard

    blocks = residual_blocks(encoder)
    if rate and not blocks:
        raise BadInput(f"a {encoder.architecture['name']} has no residual branch to leave out: --set student.drop_path=0.0")
    for number, block in enumerate(blocks):
        block_rate = rate * number / max(1, len(blocks) - 1)
        for attribute in _DROP_PATH_ATTRIBUTES:
            if isinstance(getattr(block, attribute, _ABSENT), nn.Module | None):  # some of timm's blocks keep a rate under this name
                setattr(block, attribute, DropPath(block_rate) if block_rate else nn.Identity())
    for module in list(encoder.modules()):  # under other names, timm's own rate would stay, and a recipe's 0 would not be one
        for name, child in module.named_children():
            if isinstance(child, DropPath) and name not in _DROP_PATH_ATTRIBUTES:
                setattr(module, name, DropPath(rate) if rate else nn.Identity())


def set_activation_checkpointing(encoder: Encoder, enable: bool) -> None:
    """Recompute blocks in the backward pass instead of keeping their activations; raise `BadInput` for a backbone that cannot.

    One with batch norm would count each batch twice in its running statistics.
    """
    if enable and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules()):
        raise BadInput(
            "a student with batch norm cannot recompute its activations, because each batch would count twice in its running statistics: "
            "--set run.recompute_activations=false"
        )
    switch = getattr(encoder.backbone, "set_grad_checkpointing", None)  # timm's; a plug-in's family may have none
    try:
        if switch is not None:
            switch(enable)
            return
    except AssertionError:  # how timm says that a family cannot
        pass
    if enable:
        raise BadInput(f"a {encoder.architecture['name']} cannot recompute its activations: --set run.recompute_activations=false")


def set_rope_rescale_draws(encoder: Encoder, per: str) -> None:
    """Draw the rotary rescale anew in each "block", or once a "forward"; for EUPE's ViTs only, others draw none."""
    if isinstance(encoder.backbone, EupeVit):
        encoder.backbone.draws_in_each_block = per == "block"


def scale_init_with_depth(encoder: Encoder) -> None:
    """Divide the initial weights that end block n of EUPE's ViT by √(2n), as timm does; other encoders are unchanged."""
    if isinstance(encoder.backbone, EupeVit):
        super(EupeVit, encoder.backbone).fix_init_weight()
