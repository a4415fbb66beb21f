"""RADIOv2.5 and DUNE in their published layouts, small, random weights: the numbers of independent models, every tensor accounted for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.convert import convert_weights
from eupe_pipeline.teachers.checkpoints.weights import read_weights, save_weights
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.table import ROWS
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor
from torch.nn import functional

from ..published_layouts import DEPTH, HEADS, SMALL_DUNE, SMALL_RADIO, WIDTH, dune_tensors, radio_tensors, small_row, training_checkpoint

TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "radio-small", small_row("radio-small", SMALL_RADIO))
    monkeypatch.setitem(ROWS, "dune-small", small_row("dune-small", SMALL_DUNE))


def loaded(name: str, tensors: dict[str, Tensor], folder: Path) -> Teacher:
    path = folder / "model.safetensors"
    save_weights(tensors, path)
    return load_teacher(resolve_teacher(name, weights=path))


def pixels(size_px: int) -> Tensor:
    return torch.from_numpy(canary_images(2, size_px))


def close(found: Tokens, cls_BD: Tensor, patch_BND: Tensor) -> None:
    assert found.cls_BD is not None
    for got, wanted in ((found.cls_BD, cls_BD), (found.patch_BHWD.flatten(1, 2), patch_BND)):
        assert float((got - wanted).abs().max() / wanted.abs().max()) < TOLERANCE


class TestRadio:
    @pytest.mark.parametrize("size_px", [64, 32, 48])
    def test_its_tokens_are_those_of_timms_naflex_vit(self, tmp_path: Path, size_px: int) -> None:
        import timm

        tensors = radio_tensors(layer_scale="grandma")
        naflex: Any = timm.create_model(
            "naflexvit_base_patch16_radio_v3", embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=8, pos_embed_grid_size=(8, 8)
        ).eval()
        at = "radio_model.model."
        tokens = tensors[f"{at}patch_generator.cls_token.token"]
        state = {
            "embeds.cls_token": tokens[None, :1], "embeds.reg_token": tokens[None, 1:],
            "embeds.pos_embed": tensors[f"{at}patch_generator.pos_embed"].reshape(1, 8, 8, WIDTH),
            "embeds.proj.weight": _channels_last(tensors[f"{at}patch_generator.embedder.weight"]), "embeds.proj.bias": torch.zeros(WIDTH),
            **{name.removeprefix(at).replace("grandma", "gamma"): tensor for name, tensor in tensors.items() if ".blocks." in name},
        }  # fmt: skip
        naflex.load_state_dict({name: state[name].reshape(tensor.shape) for name, tensor in naflex.state_dict().items()})
        teacher = loaded("radio-small", tensors, tmp_path)
        with torch.no_grad():
            features = naflex.forward_features(teacher.spec.preprocessing.apply(pixels(size_px)).contiguous())
        found = teacher.at_size(size_px)(pixels(size_px))
        features = features["patches"] if isinstance(features, dict) else features
        close(found, features[:, :3].flatten(1), features[:, 8:])

    def test_a_grid_that_is_no_square_is_cut_from_the_square_of_its_longer_side(self, tmp_path: Path) -> None:
        teacher = loaded("radio-small", radio_tensors(), tmp_path)
        vit: Any = teacher.encoder.backbone
        square = functional.interpolate(
            vit.pos_embed.reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2), (5, 5), mode="bilinear", align_corners=True
        )
        assert torch.equal(vit._positions(3, 5), square[..., :3, :])
        assert torch.equal(vit._positions(5, 2), square[..., :2])

    @pytest.mark.parametrize("prefix", ["radio_model.model.", "base_model.", "model.", ""])
    def test_each_way_in_that_it_is_published_is_the_same_teacher(self, tmp_path: Path, prefix: str) -> None:
        tensors = radio_tensors(prefix)
        wanted = loaded("radio-small", radio_tensors(), tmp_path)(pixels(32))
        heads = {"_heads.clip.0.weight": torch.zeros(1), "_feature_projections.sam.weight": torch.zeros(1)}
        assert torch.equal(loaded("radio-small", {**tensors, **heads}, tmp_path)(pixels(32)).patch_BHWD, wanted.patch_BHWD)

    def test_without_layer_scale_it_is_one(self, tmp_path: Path) -> None:
        ones = {f"radio_model.model.blocks.{block}.ls{n}.gamma": torch.ones(WIDTH) for block in range(DEPTH) for n in (1, 2)}
        plain, scaled = (loaded("radio-small", {**radio_tensors(), **more}, tmp_path) for more in ({}, ones))
        assert torch.equal(plain(pixels(32)).patch_BHWD, scaled(pixels(32)).patch_BHWD)

    def test_a_checkpoint_of_its_training_is_converted_with_the_averaged_weights(self, tmp_path: Path) -> None:
        averaged = {name.removeprefix("radio_model."): tensor for name, tensor in radio_tensors("base_model.").items()}
        other = {name: tensor + 1 for name, tensor in averaged.items()}
        source = training_checkpoint(tmp_path / "radio.pth.tar", state_dict=other, state_dict_ema=averaged)
        assert convert_weights(source, tmp_path / "radio.safetensors")["teachers"] == ["clip"]
        found = load_teacher(resolve_teacher("radio-small", weights=tmp_path / "radio.safetensors"))(pixels(32))
        assert torch.equal(found.patch_BHWD, loaded("radio-small", radio_tensors(), tmp_path)(pixels(32)).patch_BHWD)

    @pytest.mark.parametrize(("change", "says"), [
        ({"radio_model.model.norm.weight": torch.ones(WIDTH)}, r"1 unexpected \(norm\.weight\)"),
        ({"radio_model.model.blocks.0.mlp.norm.weight": torch.ones(WIDTH)}, r"1 unexpected \(blocks\.0\.mlp\.norm\.weight\)"),
        ({"radio_model.feature_normalizer.mean": torch.ones(WIDTH)}, r"1 unexpected \(feature_normalizer\.mean\)"),
        ({"radio_model.model.blocks.1.attn.qkv.bias": None}, r"1 missing \(blocks\.1\.attn\.qkv\.bias\)"),
        ({"radio_model.model.blocks.0.ls1.gamma": torch.ones(WIDTH)}, r"3 missing \(blocks\.0\.ls2\.gamma, blocks\.1\.ls1\.gamma"),
        ({"radio_model.model.patch_generator.cls_token.token": torch.ones(10, WIDTH)}, r"1 of another shape \(prefix\)"),
        ({"radio_model.model.patch_generator.embedder.weight": torch.ones(WIDTH, 200)}, r"1 of another shape \(patch_embed\.weight\)"),
        ({"radio_model.summary_idxs": torch.tensor([0, 1])}, r"of the class tokens \[0, 1\], expected \[0, 1, 2\]"),
        ({"radio_model.input_conditioner.norm_mean": torch.full((3, 1, 1), 0.5)}, r"norm_mean of this file is \[0\.5"),
    ])  # fmt: skip
    def test_what_does_not_fit_is_named(self, tmp_path: Path, change: dict[str, Tensor | None], says: str) -> None:
        tensors = {name: tensor for name, tensor in {**radio_tensors(), **change}.items() if tensor is not None}
        with pytest.raises(BadInput, match=says):
            loaded("radio-small", tensors, tmp_path)


def _channels_last(weight: Tensor) -> Tensor:
    """A projection of (channel, row, column) as one of (row, column, channel)."""
    return weight.reshape(len(weight), 3, 8, 8).permute(0, 2, 3, 1).flatten(1)


class TestDune:
    def test_its_tokens_are_those_of_transformers_dinov2(self, tmp_path: Path) -> None:
        import transformers

        tensors = dune_tensors()
        config = transformers.Dinov2WithRegistersConfig(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=32, patch_size=8, num_register_tokens=4
        )
        model = transformers.Dinov2WithRegistersModel(config).eval()
        model.load_state_dict(_of_transformers(tensors), strict=True)
        teacher = loaded("dune-small", tensors, tmp_path)
        with torch.no_grad():
            states = model(pixel_values=teacher.spec.preprocessing.apply(pixels(32))).last_hidden_state
        close(teacher(pixels(32)), states[:, 0], states[:, 5:])

    def test_off_its_size_positions_are_stretched_as_dinov2_does(self, tmp_path: Path) -> None:
        teacher = loaded("dune-small", dune_tensors(), tmp_path)
        vit: Any = teacher.encoder.backbone
        stored = dune_tensors()["encoder.pos_embed"][:, 1:].reshape(1, 4, 4, WIDTH).permute(0, 3, 1, 2)
        wanted = functional.interpolate(stored, scale_factor=(6.1 / 4, 3.1 / 4), mode="bicubic")
        assert torch.equal(vit._positions(6, 3), wanted)
        assert teacher.at_size(48)(pixels(48)).patch_BHWD.shape == (2, 6, 6, WIDTH)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
    def test_the_names_of_its_training_are_known(self, tmp_path: Path, prefix: str) -> None:
        source = training_checkpoint(tmp_path / "dune.pth", model={prefix + name: tensor for name, tensor in dune_tensors().items()})
        convert_weights(source, tmp_path / "dune.safetensors")
        found = load_teacher(resolve_teacher("dune-small", weights=tmp_path / "dune.safetensors"))(pixels(32))
        assert torch.equal(found.patch_BHWD, loaded("dune-small", dune_tensors(), tmp_path)(pixels(32)).patch_BHWD)

    @pytest.mark.parametrize(("change", "says"), [
        ({"encoder.head.weight": torch.ones(1)}, r"1 unexpected \(head\.weight\)"),
        ({"encoder.norm.bias": None}, r"1 missing \(norm\.bias\)"),
        ({"encoder.pos_embed": torch.ones(1, 26, WIDTH)}, r"1 of another shape \(pos_embed\)"),
        ({"norm.bias": torch.ones(WIDTH)}, r"two tensors for one place"),
        ({"encoder.register_tokens": None}, r"is not a published DUNE: it lacks register_tokens; its first names: encoder\."),
    ])  # fmt: skip
    def test_what_does_not_fit_is_named(self, tmp_path: Path, change: dict[str, Tensor | None], says: str) -> None:
        tensors = {name: tensor for name, tensor in {**dune_tensors(), **change}.items() if tensor is not None}
        with pytest.raises(BadInput, match=says):
            loaded("dune-small", tensors, tmp_path)


def _of_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names in transformers' words, q, k and v apart."""
    found = {
        "embeddings.cls_token": tensors["encoder.cls_token"], "embeddings.mask_token": tensors["encoder.mask_token"],
        "embeddings.register_tokens": tensors["encoder.register_tokens"], "embeddings.position_embeddings": tensors["encoder.pos_embed"],
        "embeddings.patch_embeddings.projection.weight": tensors["encoder.patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": tensors["encoder.patch_embed.proj.bias"],
        "layernorm.weight": tensors["encoder.norm.weight"], "layernorm.bias": tensors["encoder.norm.bias"],
    }  # fmt: skip
    for block in range(DEPTH):
        ours, theirs = f"encoder.blocks.0.{block}.", f"encoder.layer.{block}."
        for part in ("weight", "bias"):
            qkv = tensors[f"{ours}attn.qkv.{part}"].chunk(3)
            for name, tensor in zip("qkv", qkv, strict=True):
                found[f"{theirs}attention.{name}_proj.{part}"] = tensor
            found[f"{theirs}attention.o_proj.{part}"] = tensors[f"{ours}attn.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{theirs}{name}.{part}"] = tensors[f"{ours}{name}.{part}"]
        found |= {f"{theirs}layer_scale{n}.lambda1": tensors[f"{ours}ls{n}.gamma"] for n in (1, 2)}
    return found


def test_another_object_in_a_checkpoint_is_still_refused(tmp_path: Path) -> None:
    source = training_checkpoint(tmp_path / "bad.pth", model={"a": torch.zeros(1)}, folder=Path("x"))
    with pytest.raises(BadInput, match="not a checkpoint of plain tensors"):
        convert_weights(source, tmp_path / "out.safetensors")


def test_a_row_with_the_weights_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a published DUNE"):
        loaded("dune-small", radio_tensors(), tmp_path)
    save_weights(dune_tensors(), tmp_path / "dune.safetensors")
    assert "encoder.cls_token" in read_weights(tmp_path / "dune.safetensors")
    with pytest.raises(BadInput, match="unexpected"):
        load_teacher(resolve_teacher("radio-small", weights=tmp_path / "dune.safetensors"))
