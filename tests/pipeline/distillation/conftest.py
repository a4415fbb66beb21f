"""Forty real photos in folders of two classes, twenty others to test on, and a recipe that trains for seconds."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.demo.cifar import unpack
from eupe_pipeline.pipeline.demo.fetch import CIFAR10
from eupe_pipeline.storage.core.cache_home import downloads_folder

from tests.conftest import make_teacher

RECIPE = """
[extract]
teachers = ["teacher"]
views_per_image = 2
images_per_shard = 16
statistics_batches = 2
[stage2]
precision = "fp32"
[stage2.student]
architecture = "vit-mini"
sizes_px = [16]
[stage2.adapter]
width = 16
[stage2.optimizer]
learning_rate = 1e-3
[stage2.run]
steps = 12
batch_size = 8
checkpoint_every = 4
log_every = 2
"""
Command = Callable[..., dict[str, Any]]


def photo_bytes(source: Path, split: str, count: int, into: Path) -> list[tuple[str, bytes]]:
    """Return (class, PNG) of photos of CIFAR-10."""
    photos, pending = [], dict[str, bytes]()
    for tar in sorted(unpack(source, into, split, count).glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                stem, _, ending = member.name.partition(".")
                if ending == "png":
                    pending[stem] = file.read()
                else:
                    photos.append((file.read().decode(), pending.pop(stem)))
    return photos


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """Photos of two classes, (class, PNG), in the order of CIFAR-10's training set."""
    source = downloads_folder() / CIFAR10.filename
    if not source.is_file():
        pytest.skip(f"`eupe-pipeline demo --fetch-only` brings {source}")
    photos = photo_bytes(source, "train", 500, tmp_path_factory.mktemp("cifar"))
    chosen = [(name, data) for name, data in photos if name in ("cat", "ship")]
    assert len(chosen) >= 70
    return chosen


def write_photos(folder: Path, photos: list[tuple[str, bytes]], first: int = 0) -> Path:
    """Write photos as FOLDER/CLASS/NUMBER.png, numbered from `first`."""
    for number, (name, data) in enumerate(photos, start=first):
        path = folder / name / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def photos(cifar: list[tuple[str, bytes]], tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", cifar[:40])


@pytest.fixture
def test_photos(cifar: list[tuple[str, bytes]], tmp_path: Path) -> Path:
    return write_photos(tmp_path / "unseen", cifar[40:60])


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small random ViT, a teacher of 16 px."""
    run = tmp_path_factory.mktemp("teachers") / "teacher"
    make_teacher(run)
    return run


@pytest.fixture
def recipe(tmp_path: Path, teacher_run: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace('"teacher"', json.dumps(str(teacher_run))))
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must succeed and return its result and its events."""

    def run(*words: object) -> dict[str, Any]:
        capsys.readouterr()
        status = main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        lines = [json.loads(line) for line in captured.out.splitlines()]
        return {**lines[-1], "events": lines[:-1]}

    return run
