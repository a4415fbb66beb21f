"""Uploads beside the training, cut at every request, killed at random and stopped by SIGTERM: no part of a checkpoint passes for one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs import upload_thread as run_uploads
from eupe_pipeline.jobs.runs.remote_run import RunCopy
from eupe_pipeline.jobs.runs.upload import RunMirror, local_copy
from eupe_pipeline.jobs.runs.upload_thread import uploading
from eupe_pipeline.storage.core.errors import BadInput, Interrupted, StoreUnavailable
from eupe_pipeline.storage.objects.atomic_files import remove_folder, replace_folder
from eupe_pipeline.storage.objects.objects import LocalObjects, open_objects

from ...fault_log import Trials
from ...storage.faulty_s3 import Fault, FaultyServer
from ..training.test_train import interrupt_after
from ..training_request import train_command

SETTINGS = (
    "views.photometric=none",
    "device=cpu", "precision=fp32", "student.architecture=vit-mini", "student.options={depth = 1}", "student.sizes_px=[24]",
    "adapter.width=32", "run.batch_size=6", "run.log_every=1", "run.checkpoint_every=2",
)  # fmt: skip


class PowerCut(BaseException):
    """The end of a process."""


class CutAt(LocalObjects):
    """Objects of a process that dies at its n-th change of the store."""

    def __init__(self, root: Path, last: float) -> None:
        super().__init__(root)
        self.left = last

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerCut

    def create(self, key: str, content: Any) -> bool:
        self._change()
        return super().create(key, content)

    def replace(self, key: str, data: bytes) -> None:
        self._change()
        super().replace(key, data)

    def remove(self, key: str) -> None:
        self._change()
        super().remove(key)


def checkpoint(home: Path, step: int) -> None:
    """A folder such as the trainer leaves, with bytes that are its own."""
    with replace_folder(home / "checkpoints" / f"step-{step:07d}") as temporary:
        (temporary / "checkpoint.json").write_text(json.dumps({"step": step}))
        for name in ("model", "optimizer"):
            (temporary / f"{name}.safetensors").write_bytes(random.Random(f"{name}{step}").randbytes(2000))
    with (home / "metrics.jsonl").open("a") as file:
        file.write(f"{json.dumps({'step': step})}\n")


def whole(objects: Any, into: Path) -> dict[str, dict[str, bytes]]:
    """The folders of a copy, each fetched and verified."""
    copy, found = RunCopy(objects), {}
    for name in copy.folders():
        copy.fetch_folder(name, into / name)
        found[name] = {path.name: path.read_bytes() for path in (into / name).iterdir()}
    return found


def pushed(objects: Any, home: Path) -> RunMirror:
    mirror = RunMirror(objects, home)
    if not home.exists():
        mirror.pull()
        home.mkdir()
    return mirror


@pytest.mark.fault
def test_an_upload_cut_at_any_request_leaves_whole_checkpoints_and_is_finished_later(tmp_path: Path) -> None:
    """The copy holds step 3; steps 6 and 9 are here, step 3 is gone."""
    made: dict[str, dict[str, bytes]] = {}
    mirror = pushed(LocalObjects(tmp_path / "begun" / "there"), tmp_path / "begun" / "home")
    checkpoint(mirror.run_folder, 3)
    assert mirror.push()
    for step in (6, 9):
        checkpoint(mirror.run_folder, step)
    remove_folder(mirror.run_folder / "checkpoints" / "step-0000003")
    with Trials(7) as trials:
        for cut in range(40):
            shutil.copytree(tmp_path / "begun", tmp_path / f"{cut}")
            home, there = tmp_path / f"{cut}" / "home", tmp_path / f"{cut}" / "there"
            try:
                RunMirror(CutAt(there, cut), home).push()
            except PowerCut:
                found = whole(LocalObjects(there), tmp_path / f"{cut}" / "seen")
                assert found
                for name, files in found.items():
                    assert files == made.setdefault(name, files)
                steps = [json.loads(line)["step"] for line in LocalObjects(there).read("metrics.jsonl").splitlines()]
                assert {name[-1] for name in found} <= {str(step) for step in steps}  # a checkpoint that is up has its metrics
            else:
                assert cut > 10
                break
            assert RunMirror(LocalObjects(there), home).push()
            last = whole(LocalObjects(there), tmp_path / f"{cut}" / "last")
            assert sorted(last) == ["checkpoints/step-0000006", "checkpoints/step-0000009"]
            trials.note("recovered")


def test_a_fetch_that_was_cut_short_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, objects = tmp_path / "home", LocalObjects(tmp_path / "there")
    mirror = pushed(objects, home)
    checkpoint(home, 3)
    (home / "recipe.json").write_text("{}")
    mirror.push()
    shutil.rmtree(home)

    def cut(self: Any, key: str, limit_bytes: int | None = None) -> bytes:
        if key == "recipe.json":
            raise PowerCut
        return read(self, key, limit_bytes)

    read = LocalObjects.read
    monkeypatch.setattr(LocalObjects, "read", cut)
    with pytest.raises(PowerCut):
        RunMirror(objects, home).pull()
    monkeypatch.setattr(LocalObjects, "read", read)
    RunMirror(objects, home).pull()
    assert (home / "recipe.json").is_file()
    assert (home / "checkpoints" / "step-0000003" / "model.safetensors").is_file()


def test_a_walk_that_meets_no_checkpoint_leaves_the_newest_one_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer removes the old checkpoint between the listing of the folder and the look into it, and the new one is not listed yet."""
    home, objects = tmp_path / "home", LocalObjects(tmp_path / "there")
    mirror = pushed(objects, home)
    for step in (3, 6):
        checkpoint(home, step)
    (home / "metrics.jsonl").write_text("{}")
    assert mirror.push()
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_files_here", lambda: (["metrics.jsonl"], []))
        assert mirror.push()
    assert list(whole(objects, tmp_path / "seen")) == ["checkpoints/step-0000006"]
    remove_folder(home / "checkpoints" / "step-0000003")
    remove_folder(home / "checkpoints" / "step-0000006")
    checkpoint(home, 9)
    assert mirror.push()
    assert list(whole(objects, tmp_path / "later")) == ["checkpoints/step-0000009"]


def test_a_folder_that_is_being_replaced_is_not_removed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A better `best/model` takes the place of the last one in two renames; a walk between them meets neither."""
    home, objects = tmp_path / "home", LocalObjects(tmp_path / "there")
    mirror = pushed(objects, home)
    checkpoint(home, 3)
    (home / "best" / "model").mkdir(parents=True)
    (home / "best" / "model" / "model.json").write_text("{}")
    assert mirror.push()
    walks = iter([([], ["checkpoints/step-0000003"]), mirror._files_here()])
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_files_here", lambda: next(walks))
        assert not mirror.push()
    assert sorted(whole(objects, tmp_path / "seen")) == ["best/model", "checkpoints/step-0000003"]
    assert mirror.push()


def test_checkpoints_that_come_and_go_during_uploads_are_put_whole_or_not_at_all(tmp_path: Path) -> None:
    home, objects = tmp_path / "home", LocalObjects(tmp_path / "there")
    mirror, over = pushed(objects, home), threading.Event()

    def trains() -> None:
        for step in range(60):
            checkpoint(home, step)
            if step:
                remove_folder(home / "checkpoints" / f"step-{step - 1:07d}")
        over.set()

    trainer = threading.Thread(target=trains)
    trainer.start()
    rounds = []
    while not over.is_set():
        mirror.push()
        rounds.append(whole(objects, tmp_path / "seen"))
        assert rounds[-1] or not any(rounds)  # once there is a checkpoint, there is always one
    trainer.join()
    mirror.push()
    assert list(whole(objects, tmp_path / "seen")) == ["checkpoints/step-0000059"]
    for found in rounds:
        for name, files in found.items():
            assert {file: len(data) for file, data in files.items() if file.endswith("safetensors")} == {
                "model.safetensors": 2000, "optimizer.safetensors": 2000,
            }, name  # fmt: skip


def test_a_student_s_name_with_dots_is_a_folder(tmp_path: Path) -> None:
    home, objects = tmp_path / "home", LocalObjects(tmp_path / "there")
    mirror = pushed(objects, home)
    checkpoint(home / "timm:vit_tiny_patch16_224.augreg", 3)
    mirror.push()
    assert RunCopy(objects).folders() == ["timm:vit_tiny_patch16_224.augreg/checkpoints/step-0000003"]
    RunCopy(objects).fetch(tmp_path / "again")
    assert (tmp_path / "again" / "timm:vit_tiny_patch16_224.augreg" / "metrics.jsonl").is_file()


class _Network:
    """A mirror whose pushes end as they are told to."""

    def __init__(self, *ends: Callable[[], None]) -> None:
        self.url, self.ends, self.pushes = "s3://there/run", list(ends), 0

    def claim(self) -> None:
        pass

    def push(self, go_on: Callable[[], bool]) -> bool:
        self.pushes += 1
        if self.ends:
            self.ends.pop(0)()
        return True

    def missing(self) -> list[str]:
        return ["checkpoints/step-0000002"]


def down() -> None:
    raise StoreUnavailable("the network is down")


def refused() -> None:
    raise BadInput("another run was begun")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_training_does_not_wait_for_an_upload_and_its_end_does() -> None:
    slow = _Network(lambda: time.sleep(0.5))
    began = time.monotonic()
    with uploading(slow, lambda event: None) as told:
        for step in range(50):
            told({"event": "checkpoint", "step": step})
        trained = time.monotonic() - began
    assert trained < 0.4 < time.monotonic() - began
    assert slow.pushes == 2  # one was under way, the rest of the fifty were one


def asked(told: Callable[[dict[str, Any]], None]) -> bool:
    """Tell of another step, at which an upload that failed is noticed."""
    told({"event": "step"})
    return True


def test_a_failed_upload_is_a_warning_until_the_end_and_an_error_there() -> None:
    seen: list[dict[str, Any]] = []
    network = _Network(down)
    with uploading(network, seen.append) as told:
        told({"event": "checkpoint", "step": 2})
        until(lambda: asked(told) and any(event["event"] == "warning" for event in seen))
    assert [event["text"].split(";")[0] for event in seen if event["event"] == "warning"] == ["the network is down"]
    said = pytest.raises(StoreUnavailable, match="the run is finished on this machine, the same command uploads it")
    with said, uploading(_Network(down), seen.append):
        pass


def test_what_an_upload_may_not_survive_ends_the_run() -> None:
    network = _Network(refused)

    def training() -> None:
        with uploading(network, lambda event: None) as told:
            told({"event": "checkpoint", "step": 2})
            until(lambda: not asked(told))

    with pytest.raises(BadInput, match="another run was begun"):
        training()


@pytest.fixture
def url(bucket: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new run's URL, seen from a machine with nothing on it."""
    bucket.faults.clear()
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "machine"))
    return f"s3://runs/{uuid.uuid4().hex}"


def started(tiny: Any, url: str, steps: int) -> "subprocess.Popen[str]":
    """A training command in a process of its own."""
    arguments = [
        "train",
        "--stage",
        "2",
        "--store",
        tiny.store.url,
        "--data",
        "photos",
        "--features",
        "tiny-teacher",
        "--out",
        url,
        "--json",
    ]
    settings = [word for one in (*SETTINGS, f"run.steps={steps}") for word in ("--set", one)]
    program = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def resumed(tiny: Any, url: str, steps: int, on_event: Callable[[Any], None]) -> None:
    """The same command in this process."""
    train_command(store=tiny.store.url, out=url, settings=(*SETTINGS, f"run.steps={steps}"), on_event=on_event)


def await_step(child: "subprocess.Popen[str]", step: int) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if (event := json.loads(line))["event"] == "step" and event["step"] >= step:
            return
    raise AssertionError(child.stderr.read() if child.stderr else "")


@pytest.mark.fault
def test_sigterm_leaves_the_checkpoint_here_within_seconds_says_what_is_not_up_and_the_resume_puts_it(
    tiny_store: Any, url: str, bucket: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Trials(7) as trials:
        bucket.fail("PUT", *[None] * 3, *[Fault(stall_s=60.0)] * 50)  # the network is as good as gone after the claim
        child = started(tiny_store, url, 1000)
        await_step(child, 5)
        child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, errors = child.communicate(timeout=30)
        assert time.monotonic() - began < 10
        assert child.returncode == 2
        newest = max(path.name for path in (local_copy(url) / "checkpoints").iterdir())
        stopped_at = int(newest[-7:])
        assert f"stopped after step {stopped_at} of 1000" in errors
        assert f"Not yet in {url}: checkpoints/" in errors
        assert f"checkpoints/{newest}" in errors
        assert "The same command on this machine uploads it" in errors
        bucket.faults.clear()
        monkeypatch.setattr(run_uploads, "GRACE_S", 30.0)
        with pytest.raises(Interrupted, match=f"stopped after step {stopped_at + 1}") as stopped:
            resumed(tiny_store, url, 1000, interrupt_after(stopped_at + 1))
        assert "Not yet" not in str(stopped.value)
        found = whole(open_objects(url), tmp_path / "seen")
        assert {f"checkpoints/{newest}", f"checkpoints/step-{stopped_at + 1:07d}"} <= set(found)
        trials.note("recovered")


@pytest.mark.fault
@pytest.mark.parametrize("kills", [1, pytest.param(40, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_a_run_killed_at_random_never_shows_a_part_of_a_checkpoint(
    tiny_store: Any, url: str, bucket: FaultyServer, tmp_path: Path, kills: int
) -> None:
    generator, newest = random.Random(kills), 0
    with Trials(7) as trials:
        for kill in range(kills):
            bucket.faults.clear()
            bucket.fail("PUT", *[Fault(stall_s=0.02)] * 2000)
            child = started(tiny_store, url, 10**6)
            await_step(child, newest + 3)
            time.sleep(generator.random())
            child.kill()
            child.communicate()
            found = whole(open_objects(url), tmp_path / f"seen{kill}")
            assert all({"checkpoint.json", "model.safetensors"} <= set(files) for name, files in found.items() if "step-" in name)
            newest = max([newest, *(int(name[-7:]) for name in found if "step-" in name)])
            if kill % 2:  # the next one is another machine's: it goes on from what is up
                shutil.rmtree(local_copy(url).parent)
            else:
                newest = max(int(path.name[-7:]) for path in (local_copy(url) / "checkpoints").glob("step-*"))
            trials.note("recovered")
