"""Exports, runs and feature sets go to a hub on loopback and come back, whole or not at all; a stop costs what was under way."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.jobs.hub import push as push_module
from eupe_pipeline.jobs.hub.manifest import MANIFEST, FileEntry, Manifest
from eupe_pipeline.jobs.hub.pull import PullOptions, pull
from eupe_pipeline.jobs.hub.push import PushOptions, push
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.reports.catalog import verify_features
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged, CacheMismatch, StoreUnavailable
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from huggingface_hub import DatasetCard, ModelCard

from ...hub_server import TOKEN, Hub, serving

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of httpx2, to huggingface_hub's uploads


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # whose servers are not on loopback
        yield hub


@pytest.fixture
def run(tiny_store: Any, tmp_path: Path) -> Path:
    """A run's folder of the test's own."""
    return Path(shutil.copytree(tiny_store.teacher_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_and_comes_back_to_the_byte_and_serves_as_teacher(hub: Hub, run: Path, tmp_path: Path) -> None:
    planned = push(PushOptions(str(run), "hub:me/run", dry_run=True))
    assert (planned["files"], planned["files_to_send"], hub.repositories) == (len(contents(run)), len(contents(run)), {})
    sent = push(PushOptions(str(run), "hub:me/run"))
    assert sent["address"] == f"hub:me/run@{hub.repositories['models/me/run'].head}"
    planned = pull(PullOptions(sent["address"], tmp_path / "back", dry_run=True))
    assert (planned["bytes_to_fetch"], (tmp_path / "back").exists()) == (sent["bytes"], False)
    pull(PullOptions(sent["address"], tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(run)
    ours, theirs = resolve_teacher(str(run)), resolve_teacher(str(tmp_path / "back"))
    assert theirs.weights_sha256 == ours.weights_sha256
    load_teacher(theirs)
    card = ModelCard(hub.repositories["models/me/run"].tree("main")["README.md"].decode())  # type: ignore[index]
    assert "pipeline_tag: image-feature-extraction" in card.content
    assert "- training-run" in card.content


def test_pushing_again_sends_nothing_and_pulling_again_fetches_nothing(hub: Hub, run: Path, tmp_path: Path) -> None:
    sent = push(PushOptions(str(run), "hub:me/run"))
    again = push(PushOptions(str(run), "hub:me/run"))
    assert (again["files_to_send"], again["commit"]) == (0, sent["commit"])
    pull(PullOptions(sent["address"], tmp_path / "back"))
    assert pull(PullOptions(sent["address"], tmp_path / "back"))["files_to_fetch"] == 0
    (run / "notes.json").write_text("{}")
    later = push(PushOptions(str(run), "hub:me/run"))
    assert (later["files_to_send"], later["commit"] != sent["commit"]) == (1, True)
    assert "notes.json" not in contents(tmp_path / "back")  # a commit is what it was


def test_a_feature_set_comes_into_another_store_and_verifies(hub: Hub, tiny_store: Any, tmp_path: Path) -> None:
    key = tiny_store.store.features("tiny-int8").key
    said: list[dict[str, Any]] = []
    sent = push(PushOptions("tiny-int8", "hub:datasets/me/features", tiny_store.store.url, private=True), said.append)
    assert hub.repositories["datasets/me/features"].private
    assert any("where its images lie" in event.get("text", "") for event in said)
    result = pull(PullOptions(sent["address"], store=str(tmp_path / "other")))
    assert result["features"] == key
    assert not verify_features(key=key, store=str(tmp_path / "other"))["findings"]
    ours, theirs = tiny_store.store.features(key), FeatureStore.open(str(tmp_path / "other")).features(key)
    rows = np.arange(ours.rows)
    np.testing.assert_array_equal(theirs.read(rows).patch, ours.read(rows).patch)
    assert not list((tmp_path / "home" / "hub").glob("*"))
    card = DatasetCard(hub.repositories["datasets/me/features"].tree("main")["README.md"].decode())  # type: ignore[index]
    assert "size_categories: n<1K\n" in card.content
    assert "license: unknown\n" in card.content
    assert f"--features {key}" in card.text


def test_an_unfinished_feature_set_and_a_damaged_export_are_not_sent(hub: Hub, run: Path, tiny_store: Any, tmp_path: Path) -> None:
    export(ExportOptions(run, tmp_path / "out", ("timm",)))
    folder = tmp_path / "out" / "timm"
    with pytest.raises(BadInput, match=r"several formats.*out/timm"):
        push(PushOptions(str(tmp_path / "out"), "hub:me/student"))
    sent = push(PushOptions(str(folder), "hub:me/student"))
    assert hub.repositories["models/me/student"].tree("main")["README.md"] == (folder / "README.md").read_bytes()  # type: ignore[index]
    pull(PullOptions(sent["address"], tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CacheDamaged, match=r"model.safetensors differ from SHA256SUMS"):
        push(PushOptions(str(folder), "hub:me/student"))
    copied = Path(shutil.copytree(tiny_store.store.url, tmp_path / "store"))
    record = next((copied / "features" / tiny_store.store.features("tiny-int8").key / "commits").rglob("*.json"))
    record.unlink()
    with pytest.raises(BadInput, match=r"lacks 1 of 3 shards"):
        push(PushOptions("tiny-int8", "hub:datasets/me/features", str(copied)))
    assert "datasets/me/features" not in hub.repositories


def test_a_push_that_was_stopped_goes_on_and_is_not_pulled_before_its_end(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "_FILES_A_COMMIT", 1)
    commits = 0

    def stop(event: dict[str, Any]) -> None:
        nonlocal commits
        commits += event.get("stage") == "push run"
        if commits == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(PushOptions(str(run), "hub:me/run"), stop)
    half = hub.repositories["models/me/run"].head
    with pytest.raises(BadInput, match=r"lacks a file"):
        pull(PullOptions(f"hub:me/run@{half}", tmp_path / "back"))
    sent = push(PushOptions(str(run), "hub:me/run"))
    assert sent["files_to_send"] == sent["files"] - 2
    pull(PullOptions(sent["address"], tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(run)


def test_a_pull_that_was_stopped_goes_on_and_never_overwrites(hub: Hub, run: Path, tmp_path: Path) -> None:
    sent = push(PushOptions(str(run), "hub:me/run"))
    files = 0

    def stop(event: dict[str, Any]) -> None:
        nonlocal files
        files += 1
        if files == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(PullOptions(sent["address"], tmp_path / "back"), stop)
    assert pull(PullOptions(sent["address"], tmp_path / "back"))["files_to_fetch"] == sent["files"] - 2
    assert contents(tmp_path / "back") == contents(run)
    victim = tmp_path / "back" / "model" / "model.json"
    victim.write_bytes(b"mine")
    with pytest.raises(CacheMismatch, match=r"model.json is there and is not the file that was pushed"):
        pull(PullOptions(sent["address"], tmp_path / "back"))
    assert victim.read_bytes() == b"mine"


def test_what_the_hub_altered_is_found_on_both_ways(hub: Hub, run: Path, tmp_path: Path) -> None:
    sent = push(PushOptions(str(run), "hub:me/run"))
    tree = hub.repositories["models/me/run"].tree("main")
    assert tree is not None
    data = bytearray(tree["model/backbone.safetensors"])
    data[100] ^= 1
    tree["model/backbone.safetensors"] = bytes(data)
    with pytest.raises(CacheDamaged, match=r"backbone.safetensors is not what was pushed"):
        pull(PullOptions(sent["address"], tmp_path / "back"))
    assert not (tmp_path / "back" / "model" / "backbone.safetensors").exists()
    again = push(PushOptions(str(run), "hub:me/run"))
    assert again["files_to_send"] == 1


def test_an_upload_that_fails_is_tried_again_or_says_how_to_go_on(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.failing = 2
    push(PushOptions(str(run), "hub:me/run"))
    hub.failing = 10**6
    (run / "model" / "more.safetensors").write_bytes(bytes(9000))
    with pytest.raises(StoreUnavailable, match=r"run the same command again to go on"):
        push(PushOptions(str(run), "hub:me/run"))


def test_the_token_is_needed_and_never_shown(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "--to", "hub:me/secret", "--private", "--json"]) == 0
    address = json.loads(capfd.readouterr().out.splitlines()[-1])["address"]
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1] + "x")
    assert main(["pull", address, "--out", str(tmp_path / "back")]) == 2
    assert main(["push", str(run), "--to", "hub:me/other"]) == 2
    text = "".join(capfd.readouterr())
    assert "token" in text
    assert TOKEN[:-1] not in text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN[:-1].encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PushOptions("run", "me/run"), "hub:OWNER/NAME"),
        (lambda: PushOptions("run", "hub:datasets/me/run"), "model repository"),
        (lambda: PushOptions("key", "hub:me/run", "store"), "dataset repository"),
        (lambda: PushOptions("run", f"hub:me/run@{'0' * 40}"), "names a commit"),
        (lambda: PullOptions("hub:me/run", Path("out")), "has no commit"),
        (lambda: PullOptions("hub:me/run@main", Path("out")), "can move"),
        (lambda: PullOptions(f"hub:me/run@{'0' * 40}", store="store"), "--out"),
        (lambda: PullOptions(f"hub:datasets/me/run@{'0' * 40}", Path("out")), "--store"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(make: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        make()


def test_another_thing_is_not_pushed_over_it(hub: Hub, run: Path, tmp_path: Path) -> None:
    push(PushOptions(str(run), "hub:me/run"))
    other = Path(shutil.copytree(run, tmp_path / "other"))
    with pytest.raises(BadInput, match=r"holds the run run, this is the run other"):
        push(PushOptions(str(other), "hub:me/run"))


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(path: str) -> None:
    data = Manifest("run", "run", {path: FileEntry(1, "0" * 64)}).to_bytes()
    with pytest.raises(CacheDamaged, match="no file of that repository"):
        Manifest.from_bytes(data, "hub:me/run")


def test_a_link_out_of_a_run_is_not_followed(hub: Hub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("secret")
    (run / "linked.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(BadInput, match=r"linked.txt is a link to .*private.txt"):
        push(PushOptions(str(run), "hub:me/run"))


def test_a_repository_that_we_did_not_push_is_refused(hub: Hub, tmp_path: Path) -> None:
    head = hub.make("models/me/other", {"config.json": b"{}"}).head
    with pytest.raises(BadInput, match=r"lacks a file"):
        pull(PullOptions(f"hub:me/other@{head}", tmp_path / "back"))
    assert MANIFEST not in [path.name for path in tmp_path.rglob("*")]
