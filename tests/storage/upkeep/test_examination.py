"""One pass over every file of a store: what is whole is left alone, what follows is made again, in a folder and on S3."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, StoreUnavailable
from eupe_pipeline.storage.objects.atomic_files import write_atomically
from eupe_pipeline.storage.objects.content_addressed import MARKER
from eupe_pipeline.storage.objects.damaged_files import MAX_BIT_FLIP_BYTES, replace_verified, undo_bit_flip, without_advice
from eupe_pipeline.storage.objects.dry_run_objects import DryRunObjects
from eupe_pipeline.storage.objects.objects import LocalObjects, open_objects
from eupe_pipeline.storage.shards import ledger, shards
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.examination import examine
from eupe_pipeline.storage.upkeep.examiner import Examiner
from eupe_pipeline.storage.upkeep.findings import Finding
from eupe_pipeline.storage.upkeep.leases import Lease

from ...fault_log import Trials
from ..made_up_store import Made, commit, everything, plan, reopen, same, tokens
from .test_maintenance import contents

GOLDEN = Path(__file__).parents[1].parent / "data" / "golden_store" / "written"


def repaired(url: str) -> list[Finding]:
    """Repair without any teacher."""
    examiner = Examiner(FeatureStore.open_damaged(url), None, images=True, may_write=True)
    examine(examiner)
    return examiner.findings


def verified(url: str) -> list[Finding]:
    """What `verify` finds, unfinished things left out."""
    examiner = Examiner(FeatureStore(DryRunObjects(FeatureStore.open_damaged(url).objects)), None, images=False, may_write=False)
    examine(examiner)
    return [one for one in examiner.findings if not one.unfinished]


def test_stores_of_before_are_whole(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    before = contents(tmp_path / "store")
    assert verified(str(tmp_path / "store")) == []
    assert [one for one in repaired(str(tmp_path / "store")) if not one.unfinished] == []
    assert contents(tmp_path / "store") == before


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.fault
def test_a_repair_that_is_killed_at_any_write_leaves_what_was_whole_and_is_finished_by_the_next(
    copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ledger, shards):
        monkeypatch.setattr(module, "LEDGER_SHARDS", 5)
    made = copied()
    assert made.views.group.compact() == 1
    views, features, dataset = f"views/{made.views.key}", f"features/{made.features.key}", f"datasets/{made.dataset.key}"
    damaged = [
        MARKER, f"{dataset}/index.parquet", f"{views}/zarr.json", f"{views}/ledgers/000000.parquet", f"{views}/crop/c.1.0",
        f"{views}/pixel_digest/c.2.0", f"{features}/zarr.json", f"{features}/cls/zarr.json",
    ]  # fmt: skip
    pristine, real = contents(made.folder), LocalObjects.replace
    with Trials(26) as trials:
        for step in range(40):
            for name in damaged:
                (made.folder / name).unlink()
            left = iter(range(step))

            def replace(self: LocalObjects, key: str, data: bytes, left: object = left) -> None:
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise Killed
                write_atomically(self.root / key, data)
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise Killed

            monkeypatch.setattr(LocalObjects, "replace", replace)
            ended = True
            try:
                repaired(made.store.url)
            except Killed:
                ended = False
            monkeypatch.setattr(LocalObjects, "replace", real)
            now = contents(made.folder)
            assert {name for name, data in pristine.items() if now.get(name) != data} <= set(damaged)
            assert [one for one in repaired(made.store.url) if not one.repaired and not one.unfinished] == []
            assert contents(made.folder) == pristine
            trials.note("recovered")
            if ended:
                break
        assert ended
        assert step == 2 * len(damaged)


def test_an_index_written_by_another_version_of_arrow_is_named_anew(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch) -> None:
    made = copied()
    right, index = everything(made), made.folder / f"datasets/{made.dataset.key}/index.parquet"
    before = index.read_bytes()
    index.unlink()
    real = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, where, **options: real(table, where, **options, compression="gzip"))
    assert [(one.kind, one.repaired) for one in repaired(made.store.url) if not one.unfinished] == [("index", True)]
    assert index.read_bytes() != before
    assert same(everything(reopen(made)), right)
    assert verified(made.store.url) == []


def test_images_that_changed_do_not_become_the_index(copied: Callable[[], Made], tmp_path: Path) -> None:
    made = plan(tmp_path / "own", images=8)
    commit(made, 0)
    commit(made, 1)
    (made.folder / f"datasets/{made.dataset.key}/index.parquet").unlink()
    (tmp_path / "own/images/class0/0000.png").write_bytes((tmp_path / "own/images/class1/0001.png").read_bytes())
    before = contents(made.folder)
    (lost,) = [one for one in repaired(made.store.url) if not one.unfinished]
    assert (lost.kind, lost.repaired) == ("index", False)
    assert "not as they were" in lost.way_out
    assert contents(made.folder) == before


def test_a_record_that_a_compaction_would_bring_back_is_found(copied: Callable[[], Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark that the ledger's record does not count is gone; the one beside it is newer."""
    for module in (ledger, shards):
        monkeypatch.setattr(module, "LEDGER_SHARDS", 5)
    made = copied()
    assert made.features.group.compact() == 1
    made.features.group.discard(3)
    fresh, views = reopen(made), reopen(made).views.group.record(3)
    assert views is not None
    fresh.features.commit_shard(3, tokens(fresh.features, 3, noise=0.01), {}, views.digest)
    right, mark = everything(reopen(made)), made.folder / f"features/{made.features.key}/discarded/000003"
    mark.unlink()
    assert [(one.kind, one.where.rpartition("/")[2]) for one in verified(made.store.url)] == [("ledger", "000003")]
    assert all(one.repaired or one.unfinished for one in repaired(made.store.url))
    assert mark.exists()
    assert reopen(made).features.group.compact() == 1
    assert same(everything(reopen(made)), right)


def test_objects_of_a_writer_at_work_are_no_finding(copied: Callable[[], Made]) -> None:
    made = copied()
    (made.folder / f"features/{made.features.key}/commits/000001.json").unlink()
    examiner = Examiner(FeatureStore(DryRunObjects(made.store.objects)), None, images=False, may_write=False)
    examine(examiner)
    assert ("record", True) in [(one.kind, one.unfinished) for one in examiner.findings]
    with Lease(made.store.objects, made.features.key, "extraction"):
        examiner = Examiner(FeatureStore(DryRunObjects(made.store.objects)), None, images=False, may_write=False)
        examine(examiner)
        assert "record" not in [one.kind for one in examiner.findings]


def test_a_store_of_another_format_is_never_repaired(copied: Callable[[], Made]) -> None:
    made = copied()
    (made.folder / MARKER).write_bytes(b'{"format":2,"kind":"eupe-pipeline store"}')
    before = contents(made.folder)
    with pytest.raises(BadInput, match=r"store of format 2.*remove that file, then run `eupe-pipeline features repair"):
        repaired(made.store.url)
    assert contents(made.folder) == before


@pytest.mark.usefixtures("server")
def test_on_s3_metadata_records_and_shards_are_put_over_the_damaged_ones(pristine: Made) -> None:
    url = f"s3://bucket/{uuid.uuid4().hex}"
    objects, wanted = open_objects(url), contents(pristine.folder)
    for name, data in wanted.items():
        objects.create(name, [data])
    views, features, dataset = f"views/{pristine.views.key}", f"features/{pristine.features.key}", f"datasets/{pristine.dataset.key}"
    gone = (MARKER, f"{views}/zarr.json", f"{views}/commits/000002.json", f"{dataset}/index.parquet", f"{features}/zarr.json")
    for name in gone:
        objects.remove(name)
    for name in (f"{views}/flip/c.1.0", f"{features}/patch/c.4.0.0.0", f"{features}/identity.json"):
        objects.replace(name, wanted[name][:-1] + bytes([wanted[name][-1] ^ 1]))
    assert {one.kind for one in verified(url)} == {"marker", "identity", "index", "metadata", "record", "shard"}
    assert all(one.repaired or one.unfinished for one in repaired(url))
    assert {name: objects.read(name) for name in wanted} == wanted
    assert verified(url) == []


def test_one_flipped_bit_is_undone_and_two_are_not() -> None:
    right = b'{"a":1,"digest":"x"}'

    def check(data: bytes) -> None:
        if data != right:
            raise CacheDamaged("no")

    random = np.random.default_rng(1)
    for _ in range(20):
        data = bytearray(right)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        assert undo_bit_flip(bytes(data), check) == right
        data[0] ^= 0x18
        assert undo_bit_flip(bytes(data), check) is None
    assert undo_bit_flip(b"", check) is None
    assert undo_bit_flip(bytes(MAX_BIT_FLIP_BYTES + 1), check) is None


def test_a_disk_that_gives_back_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = open_objects(str(tmp_path / "store"), make=True)
    replace_verified(objects, "a", b"whole")
    monkeypatch.setattr(LocalObjects, "read", lambda self, key, limit_bytes=None: b"other")
    with pytest.raises(StoreUnavailable, match="does not give back"):
        replace_verified(objects, "a", b"whole")


def test_a_finding_repeats_no_advice_of_the_error_it_was_made_from() -> None:
    assert without_advice(CacheDamaged("x is damaged (why); run `eupe-pipeline features verify`")) == "x is damaged (why)"
    assert without_advice(CacheDamaged("x is of two")) == "x is of two"
