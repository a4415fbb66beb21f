"""Intermediate layers: patch tokens of some of a teacher's blocks, stored beside its final tokens.

    patch.4/  [patch.4_scale/]      of block 4: shape, codec and places as `patch`
    statistics/patch.4_mean/ …      what normalises them: each layer has statistics of its own

Blocks are counted from 1 to the model's depth. A layer's tokens have passed the model's final norm, as the final tokens have, so the last
block's are the final ones to the bit; these are `patch`, which every set has, and are not stored twice. Readers that know nothing of layers
read the final tokens. Where statistics are measured and where students are trained, a layer is a teacher without class token by the name
`TEACHER/4`.
"""

from collections.abc import Sequence

from ..core.errors import BadInput

LAYER_NORM = "the model's final norm"


def patch_array(layer: int) -> str:
    """Return the name of the array that holds a layer's tokens."""
    return f"patch.{layer}"


def layer_of_array(name: str) -> int | None:
    """Return the layer that an array of tokens or statistics is of, None for one of the final tokens."""
    tokens, _, number = name.partition("_")[0].partition(".")
    return int(number) if tokens == "patch" and number.isdecimal() else None


def layer_target(teacher: str, layer: int) -> str:
    """Return the name under which a layer's tokens are measured and learnt."""
    return f"{teacher}/{layer}"


def split_target(target: str) -> tuple[str, int | None]:
    """Return teacher and layer of a target's name; None for a teacher's final tokens. No feature set's name holds a slash."""
    teacher, _, layer = target.partition("/")
    return teacher, int(layer) if layer else None


def checked_layers(layers: Sequence[object]) -> tuple[int, ...]:
    """Return block numbers in rising order; raise `BadInput` for what is no number of at least 1, and for one that is given twice."""
    if isinstance(layers, int | str):  # a string would be taken for a list of its letters
        raise BadInput(f"layers is a list of numbers, such as (4, 8), got {layers!r}")
    numbers: list[int] = []
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or layer < 1:
            raise BadInput(
                f"layers are blocks of the teacher, counted from 1 to its depth, got {layer!r}; the last block needs no number: its tokens "
                "are stored in any case"
            )
        if layer in numbers:
            raise BadInput(f"layer {layer} is named twice, got {', '.join(map(str, layers))}; name each block once")
        numbers.append(layer)
    return tuple(sorted(numbers))
