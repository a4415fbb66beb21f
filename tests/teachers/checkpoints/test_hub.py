"""Weights from a hub: a server in this process with the hub's paths, headers and refusals, and real weight files behind it."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.teachers.checkpoints.hub import local_weights
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.frozen import build_timm
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

from ..encoders.test_transformers_towers import save, small_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "timm:test_vit.r160_in1k"


@dataclass
class Hub:
    """Repositories of a served folder (`OWNER/NAME/FILE`), and what was asked for."""

    folder: Path
    endpoint: str = ""
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def put(self, repo: str, source: Path) -> None:
        """Publish all files of a folder."""
        for file in source.iterdir():
            target = self.folder / repo / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, as the hub gives them."""
        self.asked.append(path)
        owner, name, _, commit, file = [*path.strip("/").split("/"), *[""] * 5][:5]
        repo, found = f"{owner}/{name}", self.folder / owner / name / file
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if not (self.folder / repo).is_dir():
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if commit != COMMIT:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if not found.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{file_sha256(found)}"'}, found.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    served = Hub(tmp_path / "served")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with timm's weights of a small model, under the names that timm publishes."""
    torch.manual_seed(5)
    architecture = resolve_teacher(MODEL, allow_random_weights=True).architecture
    save_weights(build_timm(architecture).backbone.state_dict(), tmp_path / "made" / "model.safetensors")
    return tmp_path / "made"


def test_a_pinned_file_is_fetched_once_and_its_sha256_is_the_identity(hub: Hub, weights: Path) -> None:
    hub.put("timm/test_vit.r160_in1k", weights)
    address = Path(f"hub:timm/test_vit.r160_in1k@{COMMIT}")
    spec = resolve_teacher(MODEL, weights=address)
    assert spec.weights_sha256 == file_sha256(weights / "model.safetensors")
    assert spec.identity() == resolve_teacher(MODEL, weights=weights / "model.safetensors").identity()
    tokens = load_teacher(spec)(torch.from_numpy(canary_images(1, 160)))
    assert tokens.patch_BHWD.isfinite().all()
    before = len(hub.asked)
    assert resolve_teacher(MODEL, weights=address) == spec
    assert len(hub.asked) == before  # a pinned commit is in the cache or it is not: nothing to ask


def test_a_transformers_model_comes_whole_and_has_the_repository_s_name(hub: Hub, tmp_path: Path) -> None:
    local = save(tmp_path / "dino", small_model("dinov3_vit"))
    hub.put("meta/dino-small", local)
    spec = resolve_teacher(f"hf:meta/dino-small@{COMMIT}")
    assert spec.name == "dino-small"
    assert spec.identity() == resolve_teacher(f"hf:{local}").identity()
    found, expected = (load_teacher(one)(torch.from_numpy(canary_images(2, 32))) for one in (spec, resolve_teacher(f"hf:{local}")))
    assert torch.equal(found.patch_BHWD, expected.patch_BHWD)


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@0123456789"])
def test_what_can_move_is_refused_without_asking_the_network(hub: Hub, revision: str) -> None:
    with pytest.raises(BadInput, match=r"pin it as timm/a@COMMIT with all 40 digits from https://huggingface\.co/timm/a"):
        resolve_teacher(MODEL, weights=Path(f"hub:timm/a{revision}"))
    with pytest.raises(BadInput, match="pin it"):
        resolve_teacher(f"hf:timm/a{revision}")
    assert not hub.asked


def test_a_licence_that_was_not_accepted_says_where_to_accept_it_and_where_to_put_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("facebook/dinov3")
    with pytest.raises(BadInput) as caught:
        local_weights(Path(f"hub:facebook/dinov3@{COMMIT}"))
    for expected in ("accept it at https://huggingface.co/facebook/dinov3", "HF_TOKEN", str(tmp_path / "home" / "weights"), "--weights"):
        assert expected in str(caught.value)


def test_a_repository_a_commit_and_a_file_that_are_not_there_are_told_apart(hub: Hub, weights: Path) -> None:
    with pytest.raises(BadInput, match="shows no timm/nothing"):
        local_weights(Path(f"hub:timm/nothing@{COMMIT}"))
    hub.put("timm/some", weights)
    with pytest.raises(BadInput, match=r"shows no timm/some at ffffffffffff"):
        local_weights(Path(f"hub:timm/some@{'f' * 40}"))
    (hub.folder / "timm" / "some" / "model.safetensors").rename(hub.folder / "timm" / "some" / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"lacks one of model\.safetensors.*import-weights"):
        local_weights(Path(f"hub:timm/some@{COMMIT}"))


def test_a_hub_that_does_not_answer_is_no_fault_of_the_user(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's library waits 23 s between its tries
    with pytest.raises(StoreUnavailable, match="the hub does not answer for timm/some"):
        local_weights(Path(f"hub:timm/some@{COMMIT}"))


def test_what_is_no_address_is_said_to_be_none(hub: Hub) -> None:
    with pytest.raises(BadInput, match="OWNER/NAME@COMMIT"):
        local_weights(Path("hub:nothing"))


def test_config_files_are_those_of_the_commit(hub: Hub, tmp_path: Path) -> None:
    local = save(tmp_path / "dino", small_model("dinov3_vit"))
    hub.put("meta/dino-small", local)
    record = json.loads((hub.folder / "meta" / "dino-small" / "preprocessor_config.json").read_text())
    assert resolve_teacher(f"hf:meta/dino-small@{COMMIT}").preprocessing.mean == tuple(record["image_mean"])
