"""Runs in an object store, on a real S3 server: fetched and gone on with elsewhere, manifests last, and no run over another."""

import shutil
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs import upload as run_mirror
from eupe_pipeline.jobs.runs import upload_thread as run_uploads
from eupe_pipeline.jobs.runs.remote_run import MANIFEST, RunCopy
from eupe_pipeline.jobs.runs.upload import local_copy
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch, Interrupted, StoreUnavailable
from eupe_pipeline.storage.objects.objects import Objects, open_objects

from ...storage.faulty_s3 import FaultyServer
from ..training.test_train import RECIPE, interrupt_after, losses
from ..training_request import train


@pytest.fixture
def url(bucket: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new run's URL, seen from a machine with nothing on it."""
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "machine"))
    monkeypatch.setattr(run_uploads, "GRACE_S", 30.0)  # a busy machine's uploads end as well
    return f"s3://runs/{uuid.uuid4().hex}"


def run(tiny: Any, url: str | Path, **more: Any) -> dict[str, Any]:
    return train(more.pop("recipe", RECIPE), tiny.store, ["tiny-teacher"], data="photos", out=url, **more)


def waiting_for_uploads(url: str) -> Any:
    """An event callback that holds the training back until its newest checkpoint is up: it is faster than the upload otherwise."""
    newest = ""

    def on_event(event: dict[str, Any]) -> None:
        nonlocal newest
        while event["event"] == "step" and newest and newest not in RunCopy(open_objects(url)).folders():
            time.sleep(0.01)
        newest = f"checkpoints/step-{event['step']:07d}" if event["event"] == "checkpoint" else newest

    return on_event


def another_machine(url: str) -> None:
    shutil.rmtree(local_copy(url).parent)


def below(objects: Objects, prefix: str = "") -> list[str]:
    found = []
    for name in objects.names(prefix):
        key = f"{prefix}/{name}".lstrip("/")
        found += [key] if "." in name else below(objects, key)
    return found


def test_a_run_goes_on_bit_equal_on_another_machine(tiny_store: Any, url: str, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tiny_store, url, on_event=interrupt_after(5))
    another_machine(url)
    summary = run(tiny_store, url)
    assert summary["resumed_from"] == 5
    run(tiny_store, tmp_path / "local")
    assert losses(local_copy(url)) == losses(tmp_path / "local")
    keys = below(open_objects(url))
    assert {key.split("/")[1] for key in keys if key.startswith("checkpoints/")} == {"step-0000006", "step-0000008"}
    assert {f"model/{MANIFEST}", "model/backbone.safetensors", "summary.json", "recipe.json", "metrics.jsonl"} <= set(keys)
    another_machine(url)
    assert run(tiny_store, url) == {**summary, "already": True}


def test_manifests_are_put_last_and_removed_first(tiny_store: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    remote = type(open_objects(url))
    for verb in ("create", "replace", "remove"):
        plain = getattr(remote, verb)

        def noted(self: Any, key: str, *args: Any, plain: Any = plain, verb: str = verb) -> Any:
            told.append((verb, key))
            return plain(self, key, *args)

        monkeypatch.setattr(remote, verb, noted)
    run(tiny_store, url, on_event=waiting_for_uploads(url))
    for folder in ("checkpoints/step-0000003", "checkpoints/step-0000006", "model"):
        put = [key for verb, key in told if verb != "remove" and key.startswith(f"{folder}/")]
        assert put[-1] == f"{folder}/{MANIFEST}"
        assert len(put) == len(set(put)) >= 4
    gone = [key for verb, key in told if verb == "remove" and key.startswith("checkpoints/step-0000003/")]
    assert gone[1].endswith(MANIFEST)  # the first was before the files were put
    assert len(gone) == 5
    assert told.index(("replace", "summary.json")) > told.index(("create", f"model/{MANIFEST}"))


def test_a_checkpoint_whose_push_was_cut_short_does_not_count(tiny_store: Any, url: str) -> None:
    with pytest.raises(Interrupted):
        run(tiny_store, url, on_event=interrupt_after(5))
    open_objects(url).remove(f"checkpoints/step-0000005/{MANIFEST}")
    another_machine(url)
    assert run(tiny_store, url)["resumed_from"] == 3


def test_a_copy_that_differs_from_its_manifest_is_refused(tiny_store: Any, url: str) -> None:
    with pytest.raises(Interrupted):
        run(tiny_store, url, on_event=interrupt_after(5))
    objects, key = open_objects(url), "checkpoints/step-0000005/model.safetensors"
    data = bytearray(objects.read(key))
    data[-1] ^= 1
    objects.remove(key)
    objects.create(key, [data])
    another_machine(url)
    with pytest.raises(CacheDamaged, match=r"step-0000005/model.safetensors differs from its manifest"):
        run(tiny_store, url)


def test_a_run_that_is_ahead_of_its_copy_stays_and_says_what_is_not_up(tiny_store: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt, push = interrupt_after(5), run_mirror.RunMirror.push

    def offline(self: Any, go_on: Any) -> None:
        raise StoreUnavailable("the network is down")

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            monkeypatch.setattr(run_mirror.RunMirror, "push", offline)
        interrupt(event)

    with pytest.raises(Interrupted, match=r"Not yet in s3://.*checkpoints/step-0000005 \(the network is down\)\. The same command"):
        run(tiny_store, url, on_event=on_event)
    monkeypatch.setattr(run_mirror.RunMirror, "push", push)
    assert run(tiny_store, url)["resumed_from"] == 5


def test_another_recipe_or_another_run_at_that_url_is_refused(tiny_store: Any, url: str) -> None:
    with pytest.raises(Interrupted):
        run(tiny_store, url, on_event=interrupt_after(5))
    with pytest.raises(CacheMismatch, match="seed: got 7, wanted 0"):
        run(tiny_store, url, recipe=replace(RECIPE, seed=7))
    local_copy(url).with_name(f"{local_copy(url).name}.id").write_text("begun elsewhere at the same moment")
    mirror = run_mirror.RunMirror(open_objects(url), local_copy(url))
    with pytest.raises(BadInput, match="another run was begun"):
        mirror.push()
