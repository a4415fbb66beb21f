"""Every file of a store × every damage: what `features verify` prints is followed to the letter until the store is whole (FAULTS 34)."""

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import EupeError
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.shards import ledger, shards
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.leases import Lease
from eupe_pipeline.storage.views.view_spec import StoredPixels, ViewSpec

from ...fault_log import Trials

STEPS = 4
MAY_CHANGE = r"^leases/|/places/|/discarded/|\.(records|parquet)$|^datasets/[^/]*/identity"
"""Set aside, a mark without content, a ledger whose lost records lie in `commits` now, another place of the same images."""
EXTRACT = "extract-features --data photos --views 2 --seed 3 --statistics-batches 2 --workers 0 --teacher TEACHER"
Capture = pytest.CaptureFixture[str]
Damage = Callable[[Path, np.random.Generator], None]


@dataclass(frozen=True)
class Whole:
    """A complete store, what a person who runs it knows of it, and each file's bytes."""

    folder: Path
    images: Path
    teacher: Path
    key: str
    files: dict[str, bytes]
    values: str

    def restore(self) -> None:
        """The store as it was."""
        shutil.rmtree(self.folder)
        for name, data in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its key; what was set aside is none of the store."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".tmp-") for part in path.parts))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def values(folder: Path, key: str) -> str:
    """A digest of all that a run reads: tokens, views, statistics, images."""
    reader, hasher = FeatureStore.open(folder).features(key), hashlib.sha256()
    rows = np.setdiff1d(np.arange(reader.rows), reader.failed_rows())
    for array in (*reader.read(rows), *reader.views.read(rows), *reader.statistics.arrays().values()):
        hasher.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    if reader.views.spec.pixels is not None:
        hasher.update(reader.views.read_pixels(rows).tobytes())
    for image in range(len(reader.dataset())):
        hasher.update(reader.dataset().read_image_bytes(image))
    return hasher.hexdigest()


def made(root: Path, tiny_store: Any, compacted: bool = False, rich: bool = False) -> Whole:
    """Twelve images at two places, three shards of views, the tiny teacher's tokens in int8, a lease.

    `rich`: with PHI-S, sampled tokens, distorted views that keep their pixels, and an image that cannot be decoded.
    """
    images = root / "images"
    for n, path in enumerate(sorted((tiny_store.teacher_run.parent / "images").rglob("*.png"))[::2]):
        (images / f"class{n % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, images / f"class{n % 3}" / path.name)
    if rich:
        cut = next(images.rglob("*.png"))
        cut.write_bytes(cut.read_bytes()[:200])
    shutil.copytree(images, root / "copy")
    store = FeatureStore.create(root / "store")
    for place in (images, root / "copy"):
        build_index(store.objects, str(place), "photos")
    request = TeacherRequest(str(tiny_store.teacher_run))
    views = ViewSpec(views_per_image=2, seed=3)
    options = ExtractOptions(store.url, "photos", (request,), views, 4, "int8", statistics_batches=2, workers=0, max_bad_share=0.5)
    if rich:
        distorted = replace(views, photometric="teacher_same", pixels=StoredPixels(24))
        options = replace(options, views=distorted, normalisation="phi-s", tokens_per_view=2)
    key = extract_features(options)["features"]["teacher"]
    if compacted:
        reader = FeatureStore.open(store.url).features(key)
        assert (reader.group.compact(), reader.views.group.compact()) == (1, 1)
        reader.group.discard(1)
        extract_features(options)
    Lease(store.objects, key, "gone", 1, lambda: 1000.0)
    folder = root / "store"
    for lease in (folder / "leases" / key).iterdir():
        os.utime(lease, (1000, 1000))
    return Whole(folder, images, tiny_store.teacher_run, key, contents(folder), values(folder, key))


@pytest.fixture(scope="module")
def plain(tiny_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A store as an extraction leaves it."""
    return made(tmp_path_factory.mktemp("plain"), tiny_store)


@pytest.fixture
def small_ledgers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers of three shards."""
    for module in (ledger, shards):
        monkeypatch.setattr(module, "LEDGER_SHARDS", 3)


def flip(path: Path, random: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)


def missing(path: Path, random: np.random.Generator) -> None:
    path.unlink()


def empty(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(b"")


def unreadable(path: Path, random: np.random.Generator) -> None:
    """A folder in the place of the file: even the superuser cannot read it."""
    path.unlink()
    path.mkdir()


def overwritten(path: Path, random: np.random.Generator) -> None:
    """Sixteen other bytes somewhere: too many to be undone by trial."""
    data, start = bytearray(path.read_bytes()), int(random.integers(max(1, path.stat().st_size - 16)))
    data[start : start + 16] = random.bytes(len(data[start : start + 16]))
    path.write_bytes(data)


DAMAGES = [flip, missing, empty, unreadable, pytest.param(overwritten, marks=pytest.mark.long)]


def run(line: str, whole: Whole, capsys: Capture) -> tuple[int, str]:
    """A command line as it was printed, with what only a person knows filled in; its status and what it printed."""
    if line.startswith("extract-features"):
        line = f"{EXTRACT} --store {shlex.quote(str(whole.folder))}"
    words = shlex.split(line)
    known = {"SOURCE": str(whole.images), "TEACHER": str(whole.teacher)}
    status = main([known.get(word, word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


class Circle(AssertionError):
    """The advice leads to where it was given before."""


def followed(whole: Whole, capsys: Capture) -> str:
    """Follow the advice until `verify` has none, at most `STEPS` times; "whole", or what cannot be. Fails on a circle."""
    seen, verify = set[tuple[str, str]](), f"features verify --store {shlex.quote(str(whole.folder))}"
    for _ in range(STEPS + 1):
        status, printed = run(verify, whole, capsys)
        advice = re.findall(r"`eupe-pipeline ([^`]+)`", printed)
        if status == 0 and not advice:
            return "whole"
        for line in advice[:1]:
            state = (hashlib.sha256(repr(sorted(contents(whole.folder).items())).encode()).hexdigest(), line)
            if state in seen:
                raise Circle(f"{line} again, after {printed}")
            seen.add(state)
            status, printed = run(line, whole, capsys)
            while further := re.findall(r"`eupe-pipeline ([^`]+)`", printed):  # what is left, and what helps
                state = (state[0], further[0])
                if state in seen:
                    raise Circle(f"{further[0]} again, after {printed}")
                seen.add(state)
                status, printed = run(further[0], whole, capsys)
    raise AssertionError(f"not whole after {STEPS} steps: {printed}")


def reading(whole: Whole) -> str:
    """'right', 'detected' or 'silent'."""
    try:
        return "right" if values(whole.folder, whole.key) == whole.values else "silent"
    except EupeError:
        return "detected"


def try_one(
    whole: Whole, name: str, damage: Callable[[Path, np.random.Generator], None], random: np.random.Generator, capsys: Capture
) -> str:
    """Damage a file, read, follow the advice, read again; every other file must still be what it was."""
    damage(whole.folder / name, random)
    try:
        assert reading(whole) != "silent", (name, damage.__name__)
        try:
            followed(whole, capsys)
        except Circle:
            return "circle"
        assert values(whole.folder, whole.key) == whole.values, (name, damage.__name__)
        now = contents(whole.folder)
        changed = {one for one, data in whole.files.items() if now.get(one) != data}
        allowed = {name, name.replace(".records", ".parquet")} if re.search(MAY_CHANGE, name) else set()
        assert changed <= allowed, (name, damage.__name__)
    finally:
        whole.restore()
    return "recovered"


@pytest.mark.fault
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_every_file_has_a_way_out_that_works(plain: Whole, damage: Damage, capsys: Capture) -> None:
    random = np.random.default_rng(28)
    with Trials(34) as trials:
        for name in sorted(plain.files):
            trials.note(try_one(plain, name, damage, random, capsys))


@pytest.mark.fault
@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_a_store_with_everything_has_one(tiny_store: Any, tmp_path: Path, damage: Damage, capsys: Capture) -> None:
    rich, random = made(tmp_path, tiny_store, rich=True), np.random.default_rng(30)
    with Trials(34) as trials:
        for name in sorted(rich.files):
            trials.note(try_one(rich, name, damage, random, capsys))


@pytest.mark.fault
@pytest.mark.usefixtures("small_ledgers")
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_ledgers_and_of_what_they_shadow_has_one(tiny_store: Any, tmp_path: Path, damage: Damage, capsys: Capture) -> None:
    compacted, random = made(tmp_path, tiny_store, compacted=True), np.random.default_rng(29)
    names = [name for name in sorted(compacted.files) if name.split("/")[2:3] and name.split("/")[2] in ("ledgers", "commits", "discarded")]
    assert len(names) == 6
    with Trials(34) as trials:
        for name in names:
            trials.note(try_one(compacted, name, damage, random, capsys))
