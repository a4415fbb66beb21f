"""Which intermediate layers a run learns from: those with a weight in the recipe, of the feature sets that store them.

A layer without a weight, or with 0, is neither read nor learnt, so that such a run is bit-equal to one over sets without layers.
"""

from collections.abc import Mapping

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.features.features import FeatureReader
from ...student.model.recipe import TeacherConfig


def trained_layers(config: TeacherConfig, readers: Mapping[str, FeatureReader]) -> dict[str, tuple[int, ...]]:
    """Return the layers that are learnt, by teacher; raises `BadInput` for a weight of a teacher or layer that no feature set has."""
    return weighted_layers(config, {name: reader.layout.layers for name, reader in readers.items()})


def weighted_layers(config: TeacherConfig, stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return as `trained_layers`, of layers that are stored, or will be, by teacher."""
    for key in config.layers:
        teacher, _, layer = key.rpartition("/")
        if teacher and teacher not in stored:
            raise BadInput(f"teacher.layers names {key!r}, but the feature sets are of {', '.join(stored)}")
        if not any(int(layer) in stored[name] for name in ([teacher] if teacher else stored)):
            have = "; ".join(f"{name}: {', '.join(map(str, layers)) or 'none'}" for name, layers in stored.items())
            raise BadInput(
                f"teacher.layers gives a weight to block {layer}, which no feature set stores beside its final tokens (layers of {have}); "
                "extract with --layers, or weight the final tokens by teacher.weights"
            )
    chosen = {name: tuple(layer for layer in layers if config.layer_weight(name, layer) > 0) for name, layers in stored.items()}
    return {name: layers for name, layers in chosen.items() if layers}


def say_unread(config: TeacherConfig, readers: Mapping[str, FeatureReader], on_event: OnEvent) -> None:
    """Say which stored layers the run does not learn from."""
    chosen = trained_layers(config, readers)
    for name, reader in readers.items():
        if unread := [str(layer) for layer in reader.layout.layers if layer not in chosen.get(name, ())]:
            text = f"{reader.key} also stores layer {', '.join(unread)}, which no weight asks for: --layer-weight {unread[0]}=1 would"
            on_event({"event": "note", "text": text})
