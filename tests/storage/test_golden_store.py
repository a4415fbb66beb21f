"""A store of the first format, kept in tests/data: today's reader reads it, today's writer makes the same bytes.

If one of these fails, stores in the world cannot be read or shared any more: raise the format number instead of changing the files.
`python -m tests.storage.test_golden_store` from the checkout writes the golden store anew.
"""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from eupe_pipeline.storage.features.sampling import take_positions
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views import view_set as viewset
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec
from numpy.typing import NDArray

from .made_up_store import CLS_DIM, Made, commit, drawn_with_digests, files, raw_layers, raw_tokens, tokens, with_features

GOLDEN = Path(__file__).parents[1] / "data" / "golden_store"
DISTORTED = ViewSpec(views_per_image=2, seed=7, photometric="teacher_same")
PIXELS = ViewSpec(views_per_image=2, seed=42, pixels=StoredPixels(8))
CODECS = ("fp16", "fp32", "int4", "int8")
LESS = {"less-int4": ("int4", None, (4, 3)), "less-int8": ("int8", 4, (4, 3)), "sampled": ("fp32", 5, None)}
"""Sets that store less than the teacher's grid: codec, tokens a view, grid that was resampled."""
OTHERS = ("compacted", "no-cls", "phi-s")
"""An int8 set whose records are in a ledger, one of a teacher without class tokens, an fp16 one normalised by PHI-S."""
LAYERED = {"layers": (None, (4, 11)), "layers-sampled": (4, (8,))}
"""int8 sets with intermediate layers: tokens a view, blocks."""


def made_up_pixels(views: ViewSet, shard: int) -> NDArray[np.uint8]:
    """Counting numbers: the bytes of real ones would be those of one version of the image library."""
    first, last = views.group.shard_span(shard)
    return (np.arange(first * 8 * 8 * 3, last * 8 * 8 * 3) % 251).astype(np.uint8).reshape(-1, 8, 8, 3)


def write(folder: Path) -> Made:
    """Three images, two views each, two shards: a set a codec (an image of fp16's failed), sets of less; distorted views; stored pixels."""
    store = FeatureStore.create(str(folder))
    memory = fsspec.filesystem("memory")
    for path in files(GOLDEN / "images"):  # the source's URL is kept with the index: one that is the same on any machine
        memory.pipe_file(f"/golden/{path.relative_to(GOLDEN / 'images')}", path.read_bytes())
    dataset = build_index(store.objects, "memory://golden", "golden")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=42), images_per_shard=2)
    made = Made(store, dataset, views, None)  # type: ignore[arg-type]  # filled in below
    for codec in CODECS:
        made = with_features(made, codec, name=codec)
        for shard in range(views.shards):
            if codec == "fp16" and shard == 0:
                record = made.views.group.record(0)
                failed = {dataset.ids(1, 2)[0]: "made to fail"}
                made.views.commit_shard(0, made.views.draw_shard(0), {})
                made.features.commit_shard(0, tokens(made.features, 0), failed, record.digest if record else "")
            else:
                commit(made, shard)
    for name, (codec, tokens_per_view, own) in LESS.items():
        made = with_features(made, codec, name=name, tokens_per_view=tokens_per_view, resampled_from=own)
        for shard in range(views.shards):
            commit(made, shard)
    made = write_others(made)
    for name, (tokens_per_view, blocks) in LAYERED.items():
        made = with_features(made, "int8", name=name, tokens_per_view=tokens_per_view, blocks=blocks)
        for shard in range(views.shards):
            commit(made, shard)
    distorted = ViewSet.create(store.objects, dataset, DISTORTED, images_per_shard=2)
    for shard in range(distorted.shards):
        distorted.commit_shard(shard, drawn_with_digests(distorted, shard), {})
    pixels = ViewSet.create(store.objects, dataset, PIXELS, images_per_shard=2)
    for shard in range(pixels.shards):
        failed = {dataset.ids(1, 2)[0]: "made to fail"} if shard == 0 else {}
        pixels.commit_shard(shard, drawn_with_digests(pixels, shard), failed, made_up_pixels(pixels, shard))
    return made


def write_others(made: Made) -> Made:
    """The sets of OTHERS, and the statistics of the last as an extraction keeps them."""
    for name in OTHERS:
        cls_dim, codec = (None if name == "no-cls" else CLS_DIM), ("fp16" if name == "phi-s" else "int8")
        made = with_features(made, codec, cls_dim, name, phis=name == "phi-s")
        for shard in range(made.views.shards):
            commit(made, shard)
        if name == "compacted":
            made.features.group.compact()
    made.store.keep_statistics("phi-s", {"teacher": "made up", "views": made.views.digest}, made.features.statistics)
    return made


@pytest.fixture
def frozen_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's version is part of the views' identity; the golden store has the one that made it."""
    monkeypatch.setattr(viewset, "decoder_identity", lambda _: {"library": "pillow", "version": "12.0.0", "orientation": "as stored"})


def test_todays_reader_reads_the_golden_store() -> None:
    store = FeatureStore.open(str(GOLDEN / "written"))
    assert sorted(key.split("@")[0] for key in store.list_features()) == sorted([*CODECS, *LESS, *OTHERS, *LAYERED])
    for codec in CODECS:
        features = store.features(codec)
        assert features.complete
        rows = np.array([row for row in range(6) if codec != "fp16" or row not in (2, 3)])
        found = features.read(rows)
        wanted = np.concatenate([raw_tokens(features, shard)[1] for shard in range(2)])[rows]
        np.testing.assert_allclose(features.decode(found), wanted, atol={"fp32": 0, "fp16": 2e-3, "int8": 3e-2, "int4": 0.25}[codec])
    (distorted,) = [store.view_set(key) for key in store.list_view_sets() if store.view_set(key).spec.photometric != "none"]
    assert distorted.spec == DISTORTED
    again = np.concatenate([distorted.draw_shard(shard).photometric for shard in range(2)])
    np.testing.assert_array_equal(distorted.read(np.arange(6)).photometric, again)
    (pixels,) = [store.view_set(key) for key in store.list_view_sets() if store.view_set(key).spec.pixels is not None]
    assert pixels.spec == PIXELS
    rows = np.array([5, 0, 1, 4])  # the second image's have none
    wanted = np.concatenate([made_up_pixels(pixels, shard) for shard in range(2)])
    np.testing.assert_array_equal(pixels.read_pixels(rows), wanted[rows])
    assert store.features("fp16").failed_rows().tolist() == [2, 3]
    assert store.dataset("golden").label_names == ["class0", "class1", "class2"]


@pytest.mark.parametrize("name", OTHERS)
def test_todays_reader_reads_the_other_golden_sets(name: str) -> None:
    store = FeatureStore.open(str(GOLDEN / "written"))
    features = store.features(name)
    assert features.complete
    assert (features.group.uncompacted() == []) == (name == "compacted")
    assert (features.cls_dim is None) == (name == "no-cls")
    assert features.statistics.method == ("PHI-S" if name == "phi-s" else "mean and std")
    found, wanted = features.read(np.arange(6)), np.concatenate([raw_tokens(features, shard)[1] for shard in range(2)])
    np.testing.assert_allclose(features.decode(found), wanted, atol=3e-2)
    kept = store.kept_statistics("phi-s", {"teacher": "made up", "views": features.views.digest})
    assert kept is not None
    assert kept.digest == store.features("phi-s").statistics.digest


@pytest.mark.parametrize("name", LESS)
def test_todays_reader_reads_the_golden_sets_that_store_less(name: str) -> None:
    codec, tokens_per_view, own = LESS[name]
    features = FeatureStore.open(str(GOLDEN / "written")).features(name)
    assert (features.layout.tokens_per_view, features.layout.resampled_from, features.complete) == (tokens_per_view, own, True)
    found = features.read(np.arange(6))
    wanted = np.concatenate([raw_tokens(features, shard)[1] for shard in range(2)])
    if tokens_per_view is not None:
        assert found.position is not None
        np.testing.assert_array_equal(found.position, np.concatenate([features.draw_positions(shard) for shard in range(2)]))
        wanted = take_positions(wanted, found.position)
    np.testing.assert_allclose(features.decode(found), wanted, atol={"fp32": 0, "int8": 3e-2, "int4": 0.25}[codec])


@pytest.mark.parametrize("name", LAYERED)
def test_todays_reader_reads_the_golden_sets_with_layers(name: str) -> None:
    tokens_per_view, blocks = LAYERED[name]
    features, rows = FeatureStore.open(str(GOLDEN / "written")).features(name), np.arange(6)
    assert (features.layout.tokens_per_view, features.layout.layers, features.complete) == (tokens_per_view, blocks, True)
    final, found = features.read(rows), features.read_layers(rows, blocks)
    wanted = {0: np.concatenate([raw_tokens(features, shard)[1] for shard in range(2)])}
    wanted |= {block: np.concatenate([raw_layers(features, shard)[block] for shard in range(2)]) for block in blocks}
    for block, values in wanted.items():
        decoded = features.decode(final) if block == 0 else features.decode_layer(found[block])
        kept = values if final.position is None else take_positions(values, final.position)
        np.testing.assert_allclose(decoded, kept, atol=3e-2 * max(1, block))
    for block in blocks:
        np.testing.assert_array_equal(features.statistics.layers[block].patch_mean, block * np.linspace(0.5, 1.5, 64, dtype=np.float32))


@pytest.mark.usefixtures("frozen_decoder")
def test_todays_writer_makes_the_golden_store_to_the_byte(tmp_path: Path) -> None:
    """The Parquet library's own bytes are no part of the format; everything else is."""
    made = write(tmp_path / "store")
    ours, golden = (
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in files(root)
            if path.suffix != ".parquet" and path.parent.parent.name != "datasets"
        }
        for root in (made.folder, GOLDEN / "written")
    )
    assert ours.keys() == golden.keys()
    assert [name for name in ours if ours[name] != golden[name]] == []
    assert made.store.list_datasets() == FeatureStore.open(str(GOLDEN / "written")).list_datasets()


if __name__ == "__main__":
    from .made_up_store import write_images

    shutil.rmtree(GOLDEN, ignore_errors=True)
    viewset.__dict__["decoder_identity"] = lambda _: {"library": "pillow", "version": "12.0.0", "orientation": "as stored"}
    write_images(GOLDEN / "images", 3)
    write(GOLDEN / "written")
