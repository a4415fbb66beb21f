"""A teacher built again from a feature set's identity: what was chosen then is taken from there, and another model is refused by field."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.repair.recorded_teacher import recorded_teacher
from eupe_pipeline.jobs.repair.repair import FidelityOptions, RepairOptions, fidelity, repair_features
from eupe_pipeline.jobs.training.fill_missing import fill_missing
from eupe_pipeline.storage.core.errors import BadInput, CacheMismatch
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.recipe import DataConfig, TeacherConfig
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.frozen import build_timm, inspect_timm
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.spec import RANDOM_WEIGHTS, TeacherSpec

from ...conftest import write_images
from ...teachers.encoders.test_transformers_towers import save, small_model
from ..training.test_train import RECIPE
from ..training_request import train

TIMM = "timm:test_vit.r160_in1k"
CARRIED = {"precision", "size_px", "interpolation", "mean", "std", "pixel_scale", "channel_order"}  # chosen, or the input's own record


@pytest.fixture(scope="module")
def places(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A teacher of each kind by how it is named, in a home of its own."""
    root = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(1)
    save_weights(build_timm(inspect_timm(TIMM[5:]).architecture).backbone.state_dict(), root / "weights" / f"{TIMM[5:]}.safetensors")
    folder = save(root / "dino", small_model("dinov2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUPE_PIPELINE_HOME", str(root))
        yield {"run": str(tiny_store.teacher_run), "timm": TIMM, "hf": f"hf:{folder}"}


def spec_of(places: Mapping[str, str], kind: str) -> TeacherSpec:
    if kind == "random":
        return replace(resolve_teacher(places["timm"], size_px=48), weights_sha256=RANDOM_WEIGHTS)
    constants, precision = ("imagenet", "bf16") if kind == "hf" else ("own", "fp32")
    return resolve_teacher(places[kind], size_px={"run": 24, "timm": 48, "hf": 48}[kind], precision=precision, constants=constants)


def set_with(tiny: Any, store: FeatureStore, spec: TeacherSpec, teacher: Mapping[str, Any]) -> FeatureReader:
    """A feature set of the store, without a shard, whose identity says that this teacher made it."""
    known = tiny.features()
    layout = FeatureLayout(known.cls_dim, known.patch_dim, known.grid, "fp32")
    identity = features_identity(dict(teacher), known.views, known.statistics, {"views_measured": 1}, layout)
    return FeatureReader.create(store.objects, spec.name.replace(":", "-"), known.views, identity, known.statistics)


def leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            yield from leaves(one, (*path, key))
        else:
            yield (*path, key), one


def another(key: str, value: Any) -> Any:
    """A value that is possible there and is not this one."""
    by_key = {
        "precision": "bf16" if value == "fp32" else "fp32", "interpolation": "bilinear" if value == "bicubic" else "bicubic",
        "channel_order": "bgr", "size_px": 16 if value != 16 else 32, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
        "cls": "mean of patch tokens" if value == "class token" else "class token", "weights_sha256": "0" * 64,
    }  # fmt: skip
    if key in by_key:
        return by_key[key]
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else [*value, 1] if isinstance(value, list) else f"{value}-other"


def changed(identity: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(dict(identity))
    table = found
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    if path[-1] == "size_px":
        found["grid"] = [side * value // identity["preprocessing"]["size_px"] for side in identity["grid"]]
    return found


@pytest.mark.fault(16, "detected")
@pytest.mark.parametrize("kind", ["run", "hf"])
def test_each_field_is_built_again_or_refused_by_name(tiny_store: Any, places: dict[str, str], tmp_path: Path, kind: str) -> None:
    store, spec = FeatureStore.create(str(tmp_path / "store")), spec_of(places, kind)
    place, whole = places[kind], spec.identity()
    assert recorded_teacher(set_with(tiny_store, store, spec, whole), place).identity() == whole
    carried = set()
    for path, value in leaves(whole):
        wanted = changed(whole, path, another(path[-1], value))
        reader = set_with(tiny_store, store, spec, wanted)
        if path[-1] in CARRIED:
            assert recorded_teacher(reader, place).identity() == wanted
            carried.add(path[-1])
        else:
            with pytest.raises(CacheMismatch, match=re.escape(f"{'.'.join(path)}: got ")):
                recorded_teacher(reader, place)
    assert carried == CARRIED
    for value, field in ((17, "size_px"), ("cubic", "interpolation")):
        wanted = changed(whole, ("preprocessing", field), value)
        with pytest.raises(BadInput, match=field):
            recorded_teacher(set_with(tiny_store, store, spec, {**wanted, "grid": whole["grid"]}), place)
    lacking = {key: value for key, value in whole.items() if key != "precision"}
    with pytest.raises(CacheMismatch, match="does not say the 'precision'"):
        recorded_teacher(set_with(tiny_store, store, spec, lacking), place)


def test_a_teacher_with_random_weights_is_that_teacher_again(tiny_store: Any, places: dict[str, str], tmp_path: Path) -> None:
    store, spec = FeatureStore.create(str(tmp_path / "store")), spec_of(places, "random")
    again = recorded_teacher(set_with(tiny_store, store, spec, spec.identity()), places["timm"])  # its weights are there by now
    assert again.identity() == spec.identity()
    real = spec_of(places, "timm")
    assert recorded_teacher(set_with(tiny_store, store, real, real.identity()), places["timm"]).identity() == real.identity()
    pixels = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    assert torch.equal(load_teacher(again)(pixels).patch_BHWD, load_teacher(spec)(pixels).patch_BHWD)


@pytest.fixture
def by_imagenet(places: dict[str, str], tmp_path: Path) -> tuple[FeatureStore, str, str]:
    """A store, the key of a set that hf:/absolute/folder made with ImageNet's constants in bf16 at 48 px, and that name."""
    store = FeatureStore.create(str(tmp_path / "store"))
    for data, count in (("photos", 12), ("more", 6)):
        write_images(tmp_path / data, count)
        build_index(store.objects, str(tmp_path / data), data)
    options = ExtractOptions(
        store.url, "photos", (TeacherRequest(places["hf"], size_px=48),), ViewSpec(seed=3, photometric="teacher_same"), 4, "fp16",
        grid=(3, 3), constants="imagenet", precision="bf16", statistics_batches=1, workers=0,
    )  # fmt: skip
    return store, extract_features(options)["features"]["dino"], places["hf"]


def test_fidelity_repair_and_filling_use_what_was_recorded(by_imagenet: tuple[FeatureStore, str, str]) -> None:
    store, key, name = by_imagenet
    request = TeacherRequest(name)
    assert fidelity(FidelityOptions(store.url, key, teacher=request, sample=12))["patch"]["min"] > 0.999
    before = store.features(key).read(np.arange(12)).patch
    victim = next(Path(store.url).glob(f"features/{key}/patch/c.1.*"))
    victim.write_bytes(b"\0" * victim.stat().st_size)
    assert repair_features(RepairOptions(store.url, key, teacher=request))["repaired"] == [1]
    store.features(key).group.discard(2)
    assert fill_missing(store, ["dino"], ["photos"], teachers=[name])["computed_shards"] == {"photos": 1}
    assert np.array_equal(store.features(key).read(np.arange(12)).patch, before)


def test_a_live_teacher_of_transformers_by_its_absolute_folder(by_imagenet: tuple[FeatureStore, str, str], tmp_path: Path) -> None:
    store, _, name = by_imagenet
    recipe = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(48,)), run=replace(RECIPE.run, steps=2))
    live = replace(recipe, teacher=TeacherConfig("live"))
    train(recipe, store, ["dino"], data="photos", out=tmp_path / "cached")
    train(live, store, ["dino"], data="photos", out=tmp_path / "live", teachers=[name])
    cached, fresh = ([line["loss"] for line in read_metrics(tmp_path / way)] for way in ("cached", "live"))
    assert fresh == pytest.approx(cached, abs=2e-2)
    with pytest.raises(BadInput, match="is not the folder of a transformers vision model"):
        train(live, store, ["dino"], data="photos", out=tmp_path / "none", teachers=[f"hf:{tmp_path}"])


def test_a_mixtures_second_set_is_begun_as_the_first_was_made(by_imagenet: tuple[FeatureStore, str, str], tmp_path: Path) -> None:
    store, key, name = by_imagenet
    assert fill_missing(store, ["dino"], ["photos", "more"], teachers=[name])["computed_shards"] == {"photos": 0, "more": 1}
    (other,) = (store.features(one) for one in store.list_features() if one != key)
    first = store.features(key)
    assert other.identity["teacher"] == first.identity["teacher"]
    assert (other.layout, other.statistics.digest) == (first.layout, first.statistics.digest)
    recipe = replace(RECIPE, student=replace(RECIPE.student, sizes_px=(48,)), data=DataConfig({"photos": 0.5, "more": 0.5}))
    train(replace(recipe, run=replace(RECIPE.run, steps=2)), store, ["dino"], out=tmp_path / "run")


def test_two_sets_whose_statistics_differ_are_not_borrowed_for_one_teacher(by_imagenet: tuple[FeatureStore, str, str]) -> None:
    store, key, name = by_imagenet
    options = ExtractOptions(store.url, "more", (TeacherRequest(name, size_px=48),), constants="imagenet", precision="bf16", workers=0)
    other = extract_features(options)["features"]["dino"]
    for pair in ((key, other), (other, key)):
        with pytest.raises(BadInput, match="two feature sets with different statistics were given for dino"):
            extract_features(replace(options, codec="fp32", statistics_from=pair))
