"""A user who may only read another's store trains on it and evaluates there, by the commands, as a process of that user."""

import json
import os

import pytest
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec

from ..conftest import extract, make_teacher, write_images
from ..storage.users import ANNA, BEN, LAB, Users, users

__all__ = ["users"]

RECIPE = """
[stage2]
precision = "fp32"
[stage2.student]
architecture = "vit-mini"
sizes_px = [32]
[stage2.teacher]
source = "cached"
[stage2.adapter]
width = 32
[stage2.run]
steps = 3
batch_size = 8
checkpoint_every = 3
log_every = 1
"""


@pytest.mark.long
def test_a_user_who_may_only_read_trains_and_evaluates(users: Users) -> None:
    root, own = users.shared("lab", 0o755), users.shared("own", 0o755, BEN)
    write_images(root / "images", 24)
    store = FeatureStore.create(str(root / "store"))
    dataset = build_index(store.objects, str(root / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=3), images_per_shard=8)
    extract(store, make_teacher(root / "teacher"), views, "tiny", "int8")
    for path in root.rglob("*"):
        os.chown(path, ANNA, LAB)
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = {path: path.stat().st_mtime_ns for path in (root / "store", *(root / "store").rglob("*"))}
    (users.folder / "recipe.toml").write_text(RECIPE)
    run, where = own / "run", ("--store", root / "store")
    words = ["train", "--stage", "2", "--recipe", users.folder / "recipe.toml", "--data", "photos", "--features", "tiny"]
    trained = users.run(BEN, "eupe-pipeline", *words, "--out", run, *where)
    assert trained.returncode == 0, trained.stderr
    said = " ".join(trained.stderr.split())
    assert "no lease on tiny@" in said
    assert f"belongs to uid {ANNA}" in said
    for model, out in ((run, []), (root / "teacher", ["--out", own / "results"])):
        words = ["evaluate", "knn", model, "--train", "photos", "--test", "photos", "--allow-overlap", "--json"]
        evaluated = users.run(BEN, "eupe-pipeline", *words, *where, *out)
        assert evaluated.returncode == 0, evaluated.stderr
        assert "train_images" in json.dumps(json.loads(evaluated.stdout.strip().splitlines()[-1]))
    assert {path: path.stat().st_mtime_ns for path in (root / "store", *(root / "store").rglob("*"))} == before
    assert all(path.stat().st_uid == BEN for path in run.rglob("*"))
