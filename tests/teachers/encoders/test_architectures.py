import json
from typing import Any

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.encoders.architectures import ARCHITECTURES
from eupe_pipeline.teachers.encoders.build import canonical, facts


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_name_has_a_canonical_form_that_survives_json_and_is_its_own_canonical_form(name: str) -> None:
    full = canonical(name)
    assert canonical(json.loads(json.dumps(full))) == full
    assert full["name"] in ("vit", "convnext")


def test_two_names_for_one_shape_are_one_thing() -> None:
    assert canonical("eupe_vits16") == canonical({"name": "vit", "width": 384, "heads": 6})
    assert canonical({"name": "convnext", "depths": (3, 3, 27, 3)}) == canonical("eupe_convnext_small")


def test_options_change_a_named_architecture_and_leave_the_name_as_it_was() -> None:
    before = canonical("eupe_vitt16")
    changed = canonical({"name": "eupe_vitt16", "layer_scale": 1e-2, "patch_px": 8})
    assert changed == {**before, "layer_scale": 1e-2, "patch_px": 8}
    assert canonical("eupe_vitt16") == before


def test_the_official_values_are_the_recipes() -> None:
    vit = canonical("eupe_vitb16")
    assert (vit["width"], vit["depth"], vit["heads"], vit["patch_px"], vit["registers"]) == (768, 12, 12, 16, 4)
    assert (vit["layer_scale"], vit["norm_eps"], vit["rope_base"], vit["rope_rescale"]) == (1e-5, 1e-5, 100.0, 2.0)
    assert vit["mlp_hidden"] == 4 * 768
    convnext = canonical("eupe_convnext_base")
    assert (convnext["layer_scale"], convnext["norm_eps"]) == (1e-6, 1e-6)


def test_facts_are_known_before_anything_is_built() -> None:
    assert facts("eupe_vitt16") == (192, 16, "class token")
    assert facts("eupe_convnext_base") == (1024, 32, "normed mean of patch tokens")
    assert facts({"name": "vit", "patch_px": 8}).stride_px == 8


def test_an_unknown_architecture_names_the_nearest_and_lists_the_known() -> None:
    with pytest.raises(BadInput, match="did you mean 'eupe_vitt16'") as caught:
        canonical("eupe_vitt_16")
    assert "proxy-1.9b" in str(caught.value)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'layer_scale'"):
        canonical({"name": "eupe_vitt16", "layerscale": 1.0})


def test_an_architecture_without_a_name_is_refused() -> None:
    with pytest.raises(BadInput, match="needs a name"):
        canonical({"width": 192})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "vit", "width": 0}, "counts"),
        ({"name": "vit", "depth": 1.5}, "counts"),
        ({"name": "vit", "registers": -1}, "counts"),
        ({"name": "vit", "heads": True}, "counts"),
        ({"name": "vit", "width": 100, "heads": 3}, "multiple of 4"),
        ({"name": "vit", "mlp": "relu"}, "gelu"),
        ({"name": "vit", "mlp_hidden": "wide"}, "mlp_hidden"),
        ({"name": "vit", "mlp": "swiglu", "mlp_hidden": 100}, "multiple of 8"),
        ({"name": "vit", "qkv_bias": 1}, "qkv_bias"),
        ({"name": "vit", "rope_rescale": 0.5}, "rope_rescale"),
        ({"name": "vit", "rope_base": 0}, "rope_base"),
        ({"name": "vit", "layer_scale": 0}, "layer_scale"),
        ({"name": "convnext", "depths": [3, 3, 9]}, "depths"),
        ({"name": "convnext", "widths": [96, 192, 384, 0]}, "widths"),
        ({"name": "convnext", "norm_eps": 0}, "norm_eps"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        canonical(options)
