"""Text towers: what transformers computes, the same weights under open_clip's names, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.checkpoints.convert import convert_weights
from eupe_pipeline.teachers.checkpoints.sharded import weight_files, weights_sha256
from eupe_pipeline.teachers.checkpoints.weights import read_weights
from eupe_pipeline.teachers.registry import text_tower
from eupe_pipeline.teachers.registry.text_tower import ClipText, load_text_tower, missing_of_tower, text_width

from ..checkpoints.test_sharded import split
from ..tiny_clip import CONTEXT, write_clip, write_open_clip, write_siglip

TEXTS = ["a photo of a red thing.", "Blue", "a drawing of a green thing . . . . . . ."]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_clip(folder)


def test_a_folder_of_transformers_gives_its_text_features(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    tower = load_text_tower(folder)
    with torch.no_grad():
        output = model.text_model(input_ids=tower.tokenize([text.lower() for text in TEXTS]))
        wanted = model.text_projection(output.pooler_output)
    torch.testing.assert_close(tower.embed(TEXTS), wanted, atol=1e-5, rtol=1e-5)
    assert tower.image_projection is not None
    torch.testing.assert_close(tower.image_projection, model.visual_projection.weight.detach())


def test_siglips_text_features_are_the_librarys_own(tmp_path: Path) -> None:
    model, tower = write_siglip(tmp_path), load_text_tower(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    clean = ["a photo of a red thing", "blue", "a drawing of a green thing"]
    ids = tokenizer(clean, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")["input_ids"]
    assert [tower.clean(text) for text in TEXTS] == clean
    assert torch.equal(tower.tokenize(clean), ids)
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=ids)
    torch.testing.assert_close(tower.embed(TEXTS), getattr(wanted, "pooler_output", wanted), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(tower.embed(TEXTS)[0], tower.embed(TEXTS)[1], atol=1e-2)
    images = torch.randn(3, 24)
    assert tower.project(images, "attention pool") is images


def test_siglips_published_tokenizer_loads_without_sentencepiece_and_must_end_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_siglip(tmp_path)
    wanted, path = load_text_tower(tmp_path).embed(TEXTS), tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "SiglipTokenizer"}))  # as google/siglip-* has it
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    tower = load_text_tower(tmp_path)
    assert torch.equal(tower.embed(TEXTS), wanted)
    assert tower.clean("  Jack_o'-Lantern,  T-shirt. ") == "jack olantern tshirt"
    assert tower.identity["texts"] == "lower case, no punctuation"
    tokenizer = tmp_path / "tokenizer.json"
    record = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**record, "post_processor": None}))
    with pytest.raises(BadInput, match=r"tokenizer\.json puts no end mark behind a text"):
        load_text_tower(tmp_path)
    tokenizer.rename(tmp_path / "spiece.model")
    monkeypatch.setattr(text_tower, "find_spec", lambda name: None)
    assert missing_of_tower(tmp_path) == ["tokenizer.json"]
    with pytest.raises(BadInput, match=r"tokenizer\.json is missing"):
        load_text_tower(tmp_path)


@pytest.mark.parametrize("prefix", ["", "text."])
def test_open_clips_layout_gives_the_same_embeddings(clip: tuple[Path, Any], tmp_path: Path, prefix: str) -> None:
    folder, model = clip
    write_open_clip(tmp_path / "open_clip", model, prefix)
    ours, theirs = load_text_tower(tmp_path / "open_clip"), load_text_tower(folder)
    torch.testing.assert_close(ours.embed(TEXTS), theirs.embed(TEXTS), atol=1e-5, rtol=1e-5)
    images = torch.randn(3, 32)
    torch.testing.assert_close(ours.project(images, "class token"), theirs.project(images, "class token"))


def test_images_that_are_projected_already_stay_and_other_widths_are_refused(clip: tuple[Path, Any]) -> None:
    tower, images = load_text_tower(clip[0]), torch.randn(2, 20)
    assert tower.project(images, "projected attention pool") is images
    with pytest.raises(BadInput, match="not of one model"):
        tower.project(images, "attention pool")


def test_what_is_no_standard_tower_or_not_whole_is_refused(clip: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"neither open_clip_config\.json nor config\.json"):
        load_text_tower(tmp_path)
    write_open_clip(tmp_path / "open_clip", clip[1])
    path = tmp_path / "open_clip" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["layers"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="tensors are missing or misshapen"):
        load_text_tower(tmp_path / "open_clip")
    config["model_cfg"]["text_cfg"] |= {"layers": 2, "hf_model_name": "roberta"}
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"not open_clip's standard one \(hf_model_name\)"):
        load_text_tower(tmp_path / "open_clip")


def test_texts_that_a_config_leaves_out_and_another_models_tokenizer_are_refused(clip: tuple[Path, Any], tmp_path: Path) -> None:
    write_open_clip(tmp_path / "open_clip", clip[1])
    shutil.copytree(clip[0], tmp_path / "transformers")
    for layout, name, keys, layers in (
        ("open_clip", "open_clip_config.json", ("model_cfg", "text_cfg"), "layers"),
        ("transformers", "config.json", ("text_config",), "num_hidden_layers"),
    ):
        path = tmp_path / layout / name
        whole = path.read_text()
        config = json.loads(whole)
        within = config
        for key in keys:
            within = within[key]
        within[layers] = 1
        path.write_text(json.dumps(config))
        with pytest.raises(BadInput, match=rf"has more than {name} describes: \d+ tensors of texts are not used \(.*\.1\."):
            load_text_tower(tmp_path / layout)
        path.write_text(whole)
    tokenizer = tmp_path / "open_clip" / "tokenizer.json"
    record = json.loads(tokenizer.read_text())
    record["model"]["vocab"] |= {"more": len(record["model"]["vocab"])}
    tokenizer.write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"tokenizer\.json has 13 tokens, the text tower beside it 12"):
        load_text_tower(tmp_path / "open_clip")


@torch.no_grad()
def test_open_clips_pickle_is_converted_where_check_says_and_dfns_full_size_has_the_published_names(
    clip: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "open_clip"
    write_open_clip(folder, clip[1])
    wanted, file = load_text_tower(folder).embed(TEXTS), folder / "open_clip_model.safetensors"
    torch.save({**read_weights(file), "logit_scale": torch.tensor(4.6)}, folder / "open_clip_pytorch_model.bin")
    file.unlink()
    (lacking,) = missing_of_tower(folder)
    assert f"convert-weights {folder}/open_clip_pytorch_model.bin --out {file}`" in lacking
    convert_weights(folder / "open_clip_pytorch_model.bin", file)
    assert missing_of_tower(folder) == []
    assert torch.equal(load_text_tower(folder).embed(TEXTS), wanted)
    assert text_width(folder) == text_width(clip[0]) == wanted.shape[1]
    with torch.device("meta"):  # apple/DFN5B-CLIP-ViT-H-14-378; counted with open_clip 3.3.0, whose names and shapes are the same
        tower = ClipText(1024, 16, 24, 77, 49_408, 1024, quick=True, mlp=4.0).state_dict()
    assert (len(tower), sum(tensor.numel() for tensor in tower.values())) == (293, 354_032_640)
    assert tower["transformer.resblocks.23.attn.in_proj_weight"].shape == (3072, 1024)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_a_tower_in_several_files_is_the_tower_in_one(clip: tuple[Path, Any], tmp_path: Path, layout: str) -> None:
    folder, model = clip
    stem = "model" if layout == "transformers" else "open_clip_model"
    if layout == "transformers":
        shutil.copytree(folder, tmp_path / "tower")
    else:
        write_open_clip(tmp_path / "tower", model)
    whole = load_text_tower(tmp_path / "tower")
    file = tmp_path / "tower" / f"{stem}.safetensors"
    tensors = read_weights(file)
    file.unlink()
    index = split(tensors, tmp_path / "tower", stem=stem)
    parts = load_text_tower(tmp_path / "tower")
    assert torch.equal(parts.embed(TEXTS), whole.embed(TEXTS))
    assert parts.image_projection is not None
    assert whole.image_projection is not None
    assert torch.equal(parts.image_projection, whole.image_projection)
    assert parts.identity["weights_sha256"] == weights_sha256(index)
    weight_files(index)[1].unlink()
    with pytest.raises(BadInput, match="are not beside it"):
        load_text_tower(tmp_path / "tower")


def test_siglips_logits_are_the_librarys_own_from_raw_texts_of_64_places(tmp_path: Path) -> None:
    model = write_siglip(tmp_path, context=64)
    tower, tokenizer = load_text_tower(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    raw = ["A PHOTO of a Red thing.", "blue", "green " * 80]
    clean = ["a photo of a red thing", "blue", "green " * 79 + "green"]
    ids = tokenizer(clean, padding="max_length", truncation=True, max_length=64, return_tensors="pt")["input_ids"]
    assert torch.equal(tower.tokenize([tower.clean(text) for text in raw]), ids)
    assert ids.shape == (3, 64)
    assert ids[1, 4:].eq(0).all(), "padded on the right to SigLIP's 64 places"
    pixels = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=pixels).logits_per_image
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        images, texts = (torch.nn.functional.normalize(part, dim=1) for part in (tower.project(pooled, "attention pool"), tower.embed(raw)))
        ours = images @ texts.t() * model.logit_scale.exp() + model.logit_bias
        shouted = torch.nn.functional.normalize(tower.embed([text.upper() for text in raw]), dim=1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shouted, texts)
