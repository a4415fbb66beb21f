"""Which intermediate layers of a teacher can be stored: decided before anything is computed.

A ViT of timm (`timm:NAME` and the named rows that are ViTs), a run's ViT and a transformers tower give the tokens of every block, which lie
on the final tokens' grid and have their width. A convolutional network's stages have other grids and widths, SAM's blocks another width
than its neck, and a module of the user's own gives what it gives: these are refused.
"""

from collections.abc import Sequence

from ...storage.core.errors import BadInput
from .resolve import block_count
from .spec import TeacherSpec


def stored_layers(spec: TeacherSpec, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the layers that are stored beside the final tokens: those that are wanted, rising, without the last block.

    Raise `BadInput` for a teacher that gives none, and for a block that it has not.
    """
    if not wanted:
        return ()
    depth = block_count(spec)
    asked = ", ".join(map(str, wanted))
    if not depth:
        raise BadInput(
            f"teacher {spec.name} gives its final tokens alone, and layers {asked} were asked for. ViTs of timm, runs of a ViT and "
            "transformers folders give the tokens of their blocks; extract this one without --layers"
        )
    if beyond := [layer for layer in wanted if layer > depth]:
        possible = f"give numbers of 1 to {depth - 1}" if depth > 1 else "so there is no other layer to store"
        raise BadInput(
            f"teacher {spec.name} has {depth} blocks, and layer {beyond[0]} was asked for (of {asked}); {possible}: the tokens of block "
            f"{depth}, the last, are its patch tokens, which are stored in any case"
        )
    return tuple(sorted(set(wanted) - {depth}))
