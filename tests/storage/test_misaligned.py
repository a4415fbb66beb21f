"""Tokens that are not those of their images, sets that are not those asked for, tokens that nobody can train on (FAULTS 14, 16, 18)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.core.identity import differing_fields, digest
from eupe_pipeline.storage.features.features import FeatureReader, TokenRows, refuse_tokens
from eupe_pipeline.storage.shards.commit import record_key
from eupe_pipeline.storage.shards.zarr_format import build_shard
from eupe_pipeline.storage.upkeep.maintenance import verify

from ..fault_log import Trials
from .made_up_store import Made, plan, reopen, tokens

pytestmark = pytest.mark.fault


def rolled(made: Made, shard: int, by: int) -> TokenRows:
    """A shard's tokens, each at the place of another row."""
    found = tokens(made.features, shard)
    assert found.cls is not None
    assert found.scale is not None
    return TokenRows(np.roll(found.cls, by, axis=0), np.roll(found.patch, by, axis=0), np.roll(found.scale, by, axis=0))


def test_rows_that_were_shifted_in_the_file_are_found(copied: Callable[[], Made]) -> None:
    """Whole, with right inner checksums and a right index: only the record knows which row is whose."""
    made, spec = copied(), copied().features.group.specs["patch"]
    with Trials(14) as trials:
        for shard in range(5):
            built = build_shard(spec, rolled(made, shard, 1).patch, np.ones(8, np.bool_))
            path = made.folder / "features" / made.features.key / spec.key(shard)
            path.write_bytes(b"".join(built))
            with pytest.raises(CacheDamaged, match=f"shard {shard} of"):
                reopen(made).features.read(np.array([8 * shard]))
            trials.note("detected")


def test_a_second_writer_with_shifted_tokens_does_not_get_its_record(copied: Callable[[], Made]) -> None:
    """The object of a killed writer is there without a record: another one adopts it only when it computes the same."""
    made = copied()
    with Trials(14) as trials:
        for shard in range(5):
            made.store.objects.remove(f"features/{made.features.key}/{record_key(shard)}")
            fresh = reopen(made)
            with pytest.raises(CacheDamaged, match="is not what this run computes for these images"):
                fresh.features.commit_shard(shard, rolled(made, shard, shard + 1), {}, "")
            assert fresh.features.missing_shards() == list(range(shard + 1))
            trials.note("detected")


@pytest.mark.parametrize("rows", [1, 7, 9, 16, 128])
def test_a_batch_of_another_length_is_refused(tmp_path: Path, rows: int) -> None:
    made = plan(tmp_path)
    wrong = made.features.empty(rows)
    with Trials(14) as trials:
        with pytest.raises(BadInput):
            made.features.commit_shard(0, wrong, {}, "")
        assert made.features.missing_shards() == [0, 1, 2, 3, 4]
        trials.note("detected")


def test_a_record_of_other_images_is_found(copied: Callable[[], Made]) -> None:
    """Shards that were shuffled by whoever wrote them, records and all."""
    made = copied()
    with Trials(14) as trials:
        for shard in range(5):
            record = made.features.group.record(shard)
            assert record is not None
            other = record.__class__(**{**record.__dict__, "image_ids_sha256": "0" * 64})
            key = f"features/{made.features.key}/{record_key(shard)}"
            made.store.objects.remove(key)
            made.store.objects.create(key, [other.to_bytes()])
            assert [found.reason for found in verify(reopen(made).features) if found.shard == shard] == ["its record is of other images"]
            with pytest.raises(CacheDamaged, match=f"shard {shard} of .* other views"):
                reopen(made).features.read(np.array([8 * shard]))
            trials.note("detected")


def leaves(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a nested dict that is no dict."""
    if not isinstance(value, dict) or not value:
        return [here]
    return [path for key, child in value.items() for path in leaves(child, (*here, key))]


def changed(identity: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The identity with one value changed."""
    if len(path) == 1:
        old = identity[path[0]]
        other = old + 1 if isinstance(old, int) else [*old, 1] if isinstance(old, list) else f"{old}x"
        return {**identity, path[0]: other}
    return {**identity, path[0]: changed(identity[path[0]], path[1:])}


@pytest.mark.parametrize("kind", ["features", "views"])
def test_every_field_of_an_identity_makes_another_set_and_is_named(pristine: Made, kind: str) -> None:
    one: FeatureReader | Any = pristine.features if kind == "features" else pristine.views
    with Trials(16) as trials:
        for path in leaves(one.identity):
            other = changed(one.identity, path)
            assert digest(other) != one.digest
            (line,) = differing_fields(one.identity, other)
            assert line.startswith(".".join(path))
            trials.note("detected")


def spoil(values: np.typing.NDArray[np.floating], how: str) -> None:
    """Make one view's tokens such as no working teacher gives."""
    if how in ("zero", "constant"):
        values[:] = 0 if how == "zero" else 3
    else:
        values.flat[values.size // 2] = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "65520": 65520}[how]


@pytest.mark.parametrize("codec", ["int8", "int4", "fp16", "fp32"])
@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "65520", "zero", "constant"])
def test_tokens_that_no_teacher_gives_are_refused_before_the_commit(how: str, codec: str) -> None:
    random = np.random.default_rng(0)
    with Trials(18) as trials:
        for spoilt in range(2):
            values = [random.normal(size=12).astype(np.float32), random.normal(size=(2, 3, 64)).astype(np.float32)]
            assert refuse_tokens(values[0], values[1], codec) is None
            spoil(values[spoilt], how)
            reason = refuse_tokens(values[0], values[1], codec)
            if how == "65520" and codec == "fp32":
                assert reason is None  # fp32 holds it
                trials.note("right")
                continue
            assert reason is not None
            assert ("class token", "patch tokens")[spoilt] in reason
            trials.note("detected")


@pytest.mark.parametrize("codec", ["int8", "int4", "fp16", "fp32"])
def test_a_commit_refuses_what_is_not_finite_and_names_the_image(tmp_path: Path, codec: str) -> None:
    made = plan(tmp_path, codec=codec)
    with Trials(18) as trials:
        for row in (0, 3, 7):
            found = tokens(made.features, 0)
            array = found.patch if codec.startswith("fp") else found.scale
            assert array is not None
            array.view()[row] = np.nan
            with pytest.raises(BadInput, match=made.dataset.ids(row // 2, row // 2 + 1)[0]):
                made.features.commit_shard(0, found, {}, "")
            trials.note("detected")
        assert made.features.missing_shards() == [0, 1, 2, 3, 4]
