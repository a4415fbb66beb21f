"""Hostile records, identities and indexes: well-formed, digests right, contents absurd. Our errors only, little memory (FAULTS 20)."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, EupeError
from eupe_pipeline.storage.core.identity import canonical_json, digest, short
from eupe_pipeline.storage.images.dataset import pack_description
from eupe_pipeline.storage.shards.commit import parse_record
from eupe_pipeline.storage.store import FeatureStore

from ..fault_log import Trials
from .made_up_store import Made, everything, reopen

pytestmark = pytest.mark.fault
ABSURD: list[Any] = [None, True, -1, 0, 2**40, 10**30, 1.5, "", "x" * 1000, "../../etc", [], [1], [[]], {}, {"a": 1}, [2**62, 2**62]]


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, child in children for path in paths_of(child, (*here, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """The document with one value replaced, or taken out when `by` is ..."""
    if not path:
        return {} if by is ... else by
    changed = dict(value) if isinstance(value, dict) else list(value)
    if by is ... and len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = replaced(value[path[0]], path[1:], by)
    return changed


def variants(value: Any, seed: int, count: int) -> list[Any]:
    random = np.random.default_rng(seed)
    paths = [path for path in paths_of(value) if path]
    picks = [(paths[random.integers(len(paths))], [*ABSURD, ...][random.integers(len(ABSURD) + 1)]) for _ in range(count)]
    return [replaced(value, path, by) for path, by in picks]


@pytest.mark.parametrize("count", [200, pytest.param(18_000, marks=pytest.mark.long)])
def test_absurd_records_are_damage_and_nothing_else(pristine: Made, count: int) -> None:
    key = f"features/{pristine.features.key}/commits/000001.json"
    body = json.loads(pristine.store.objects.read(key))
    del body["digest"]
    with Trials(20) as trials:
        for changed in variants(body, 1, count):
            data = canonical_json({**changed, "digest": digest(changed)}) if isinstance(changed, dict) else canonical_json(changed)
            try:
                record = parse_record(data, where=key, group=pristine.features.digest, shard=1)
                pristine.features.group._check_shape(record, key)
            except CacheDamaged:
                trials.note("detected")
                continue
            assert record.rows == 8
            trials.note("right")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"digest":' + b"9" * 5000 + b"}", b'{"a":1e999}']
)
def test_files_that_are_not_json_of_ours_are_damage(data: bytes, copied: Callable[[], Made]) -> None:
    made = copied()
    with pytest.raises(CacheDamaged):
        parse_record(data, where="here", group="g", shard=0)
    for kind, key in (("features", made.features.key), ("views", made.views.key), ("datasets", made.dataset.key)):
        path = made.folder / kind / key / "identity.json"
        held = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(CacheDamaged, match=r"identity\.json is damaged"):
            reopen(made)
        path.write_bytes(held)
    (made.folder / "eupe-store.json").write_bytes(data)
    with pytest.raises(BadInput, match="is not a feature store"):
        FeatureStore.open(str(made.folder))


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("kind", ["features", "views"])
def test_absurd_identities_with_right_digests_give_our_errors(kind: str, copied: Callable[[], Made], count: int) -> None:
    made = copied()
    key = made.features.key if kind == "features" else made.views.key
    folder = made.folder / kind / key
    identity = json.loads((folder / "identity.json").read_bytes())["identity"]
    with Trials(20) as trials:
        for number, changed in enumerate(variants(identity, 5, count)):
            try:
                full = digest(changed)
            except ValueError:
                continue
            hostile = folder.rename(folder.with_name(f"hostile{number}@{short(full)}"))
            (hostile / "identity.json").write_bytes(canonical_json({"kind": kind[:-1] + "s", "digest": full, "identity": changed}))
            store = FeatureStore.open(str(made.folder))
            try:
                opened = store.features(f"hostile{number}") if kind == "features" else store.view_set(f"hostile{number}")
                assert opened.identity == changed
                trials.note("right")
            except EupeError:
                trials.note("detected")
            folder = hostile


def test_an_absurd_dataset_with_right_digests_gives_our_errors(copied: Callable[[], Made]) -> None:
    made = copied()
    path = made.folder / "datasets" / made.dataset.key / "identity.json"
    described = json.loads(path.read_bytes())
    del described["file_digest"]
    with Trials(20) as trials:
        for changed in variants(described, 6, 120):
            if isinstance(changed, dict):
                path.write_bytes(pack_description(changed))
                try:
                    everything(reopen(made))
                    trials.note("right")
                except EupeError:
                    trials.note("detected")


def test_a_damaged_index_with_its_right_sha256_gives_our_errors(copied: Callable[[], Made]) -> None:
    import hashlib

    made = copied()
    folder = made.folder / "datasets" / made.dataset.key
    described = json.loads((folder / "identity.json").read_bytes())
    del described["file_digest"]
    good, random = (folder / "index.parquet").read_bytes(), np.random.default_rng(8)
    for _ in range(60):
        data = bytearray(good)
        for _ in range(3):
            data[random.integers(len(data))] = int(random.integers(256))
        (folder / "index.parquet").write_bytes(bytes(data))
        sha256 = hashlib.sha256(bytes(data)).hexdigest()
        (folder / "identity.json").write_bytes(pack_description({**described, "index_sha256": [sha256]}))
        try:
            dataset = FeatureStore.open(str(made.folder)).dataset("photos")
            dataset.ids(0, len(dataset))
            dataset.row(3)
        except EupeError:
            continue


def test_a_huge_file_in_the_place_of_a_small_one_is_not_read(copied: Callable[[], Made]) -> None:
    made = copied()
    places = [
        made.folder / "features" / made.features.key / "identity.json",
        made.folder / "features" / made.features.key / "commits/000000.json",
        made.folder / "features" / made.features.key / "zarr.json",
        made.folder / "eupe-store.json",
    ]
    for path in places:
        held = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(4 << 30)  # sparse: costs no disk
        tracemalloc.start()
        with pytest.raises(EupeError):
            reopen(made).features.read(np.array([0]))
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
        tracemalloc.stop()
        path.write_bytes(held)


def test_kept_statistics_that_were_altered_are_refused(copied: Callable[[], Made], tmp_path: Path) -> None:
    made = copied()
    asked = {"teacher": "t", "views": 8}
    made.store.keep_statistics("t", asked, made.features.statistics)
    (path,) = (made.folder / "statistics").iterdir()
    good = json.loads(path.read_bytes())
    for changed in [*variants(good, 9, 60), [], None, "x"]:
        if changed == good:
            continue
        path.write_bytes(canonical_json(changed))
        with pytest.raises(CacheDamaged):
            made.store.kept_statistics("t", asked)
