"""RADIO's adaptors: both published layouts and both forms give what plain modules of torch give; every tensor is used or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.radio_adaptors import RADIO_TEACHERS, check_adaptor, has_adaptors, load_adaptor
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.published_vit import published_vit
from eupe_pipeline.teachers.registry.table import ROWS
from torch import Tensor, nn

from ..published_layouts import DEPTH, HEADS, SMALL_DUNE, SMALL_RADIO, WIDTH, adaptor_tensors, head_tensors, radio_tensors

WIDTHS = {"clip": 20, "siglip": 24, "dino_v2": 32, "sam": 16}
SMALL_RADIO_G = published_vit("radio-dinov2", WIDTH, DEPTH, HEADS, patch_px=8, side=8, gated=64)
HUB = "radio_model.adaptors."


def file_of(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_weights({**radio_tensors(), **tensors}, folder / "model.safetensors")
    return folder / "model.safetensors"


class Residual(nn.Module):
    """The second form, of torch's modules; loaded strictly, so that names and shapes are compared as well."""

    def __init__(self, width: int, hidden: int, out: int, blocks: int, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = nn.Sequential(nn.LayerNorm(width), nn.GELU()) if pre_norm else nn.Sequential()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in range(blocks))
        self.final = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.pre_norm(x))
        for block in self.blocks:
            x = block(x) + x
        result: Tensor = self.final(x)
        return result


@pytest.mark.parametrize(("blocks", "pre_norm"), [(0, False), (1, False), (3, True)])
@pytest.mark.parametrize("place", ["_heads.1.", "_heads.siglip.", f"{HUB}siglip.head_mlp."])
@torch.no_grad()
def test_the_second_form_is_torchs_modules_on_its_teachers_class_token(tmp_path: Path, place: str, blocks: int, pre_norm: bool) -> None:
    torch.manual_seed(3)
    head, cls_ND = head_tensors(WIDTH, 40, 24, blocks, pre_norm), torch.randn(5, 3 * WIDTH)
    patches = {place.replace("_heads", "_feature_projections").replace("head_mlp", "feat_mlp") + "fc1.weight": torch.zeros(3, 3)}
    adaptor = load_adaptor(
        file_of(tmp_path, {**{f"{place}{name}": tensor for name, tensor in head.items()}, **patches}), SMALL_RADIO, None, 24
    )
    assert (adaptor.name, adaptor.token) == ("siglip", 1)
    module = Residual(WIDTH, 40, 24, blocks, pre_norm)
    module.load_state_dict(head)
    torch.testing.assert_close(adaptor(cls_ND), module(cls_ND[:, WIDTH : 2 * WIDTH]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pairs", [0, 2])
@torch.no_grad()
def test_the_first_form_is_torchs_modules(tmp_path: Path, pairs: int) -> None:
    torch.manual_seed(4)
    inner = [module for _ in range(pairs) for module in (nn.Linear(40, 40), nn.LayerNorm(40), nn.ReLU())]
    parts: dict[str, nn.Module] = {
        "fc1": nn.Linear(WIDTH, 40),
        "norm": nn.LayerNorm(40),
        "inner": nn.Sequential(*inner),
        "fc2": nn.Linear(40, 20),
    }
    for parameter in nn.ModuleDict(parts).parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    tensors = {f"_heads.clip.{name}": tensor for name, tensor in nn.ModuleDict(parts).state_dict().items()}
    cls_ND = torch.randn(4, 3 * WIDTH)
    wanted = parts["fc2"](parts["inner"](parts["norm"](parts["fc1"](cls_ND[:, :WIDTH])).relu()))
    torch.testing.assert_close(load_adaptor(file_of(tmp_path, tensors), SMALL_RADIO, "clip", 20)(cls_ND), wanted, atol=1e-5, rtol=1e-5)


def test_half_precision_is_computed_in_fp32_and_a_single_class_token_feeds_every_adaptor(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in adaptor_tensors(**WIDTHS).items()}
    path, cls_ND = file_of(tmp_path, tensors), torch.randn(2, WIDTH)
    for name in ("clip", "sam"):
        adaptor = load_adaptor(path, SMALL_RADIO_G, name, WIDTHS[name])
        assert (adaptor.token, adaptor.channels) == (0, slice(0, WIDTH))
        assert adaptor(cls_ND).dtype == torch.float32


def test_the_adaptor_as_wide_as_the_texts_is_taken_and_one_that_is_named_must_be(tmp_path: Path) -> None:
    path = file_of(tmp_path, adaptor_tensors(**WIDTHS))
    assert [load_adaptor(path, SMALL_RADIO, None, width).name for width in (20, 24, 32)] == ["clip", "siglip", "dino_v2"]
    for teacher, width, says in (
        (None, 21, r"0 adaptors of .* give the text tower's 21 channels; say which with --teacher: clip \(20 channels\), siglip"),
        ("siglip", 20, r"adaptor siglip of .* gives 24 channels, the text tower 20; its adaptors: clip \(20"),
        ("sigclip", 20, r"unknown adaptor .*'sigclip'; did you mean 'siglip'"),
        ("sam", 16, r"adaptor sam takes class token 3, the summary has \[0, 1, 2\] alone"),
    ):
        with pytest.raises(BadInput, match=says):
            check_adaptor(path, SMALL_RADIO, teacher, width)
    twice = file_of(tmp_path, adaptor_tensors(clip=20, siglip=20))
    with pytest.raises(BadInput, match=r"2 adaptors of .* say which with --teacher"):
        check_adaptor(twice, SMALL_RADIO, None, 20)
    assert load_adaptor(twice, SMALL_RADIO, "siglip", 20).token == 1
    with pytest.raises(BadInput, match=r"holds no adaptors, .*\.pth\.tar, through"):
        check_adaptor(file_of(tmp_path, {}), SMALL_RADIO, None, 20)


def test_a_config_beside_the_file_says_which_number_is_whose_and_an_unknown_number_is_refused(tmp_path: Path) -> None:
    head = {f"{HUB}own.head_mlp.{name}": tensor for name, tensor in head_tensors(WIDTH, 40, 20).items()}
    path = file_of(tmp_path, head)
    with pytest.raises(BadInput, match=r"no config\.json beside .* so which class token adaptor own takes is not known"):
        check_adaptor(path, SMALL_RADIO, None, 20)
    record = {"args": {"teachers": [{"name": name} for name in ("clip", "dino_v2", "own", "clip")]}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert load_adaptor(path, SMALL_RADIO, None, 20).token == 2
    numbered = file_of(tmp_path, adaptor_tensors(clip=20, dino_v2=32, own=24, again=20))
    assert load_adaptor(numbered, SMALL_RADIO, "own", 24).token == 2
    assert load_adaptor(numbered, SMALL_RADIO, "clip", 20).token == 0, "a name that stands twice is the first's"


@pytest.mark.parametrize(("change", "says"), [
    ({"_heads.0.norm.weight": torch.ones(40)}, r"1 unexpected \(norm\.weight\)"),
    ({"_heads.0.blocks.0.2.bias": None}, r"1 missing \(blocks\.0\.2\.bias\)"),
    ({"_heads.0.blocks.2.0.weight": torch.ones(40)}, r"4 missing \(blocks\.1\.0\.bias, .*1 unexpected \(blocks\.2\.0\.weight\)"),
    ({"_heads.0.fc1.weight": torch.ones(40, WIDTH + 1)}, r"1 of another shape \(fc1\.weight\)"),
    ({"_heads.0.final.2.bias": torch.ones(19)}, r"1 of another shape \(final\.2\.bias\)"),
    ({"_heads.0.final.2.weight": None, "_heads.0.final.2.parametrizations.weight.original": torch.ones(20, 40)}, "spectral"),
    ({"_heads.clip.fc1.weight": torch.ones(40, WIDTH)}, r"two tensors for one place: _heads\.clip\.fc1\.weight"),
    ({f"{HUB}clip.oc_model.logit_scale": torch.ones(1)}, r"1 unexpected \(oc_model\.logit_scale\)"),
])  # fmt: skip
def test_what_is_not_exactly_an_adaptor_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    tensors = {name: tensor for name, tensor in {**adaptor_tensors(**WIDTHS), **change}.items() if tensor is not None}
    path = file_of(tmp_path, tensors)
    with pytest.raises(BadInput, match=says):
        check_adaptor(path, SMALL_RADIO, "clip", 20)
    with pytest.raises(BadInput, match=says):
        load_adaptor(path, SMALL_RADIO, "clip", 20)


def test_only_radios_files_have_adaptors() -> None:
    assert {name for name, row in ROWS.items() if has_adaptors(row.architecture)} == {f"radiov2.5-{size}" for size in "blhg"}
    assert not has_adaptors(SMALL_DUNE)
    for name in ("radiov2.5-b", "radiov2.5-l", "radiov2.5-h"):
        assert [RADIO_TEACHERS[token] for token in ROWS[name].architecture["summary"]] == ["clip", "siglip", "dino_v2"]
