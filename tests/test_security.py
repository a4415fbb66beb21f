"""What docs/security.md says of hostile input that no other test shows, and that each test which it names is there."""

import json
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.teachers.checkpoints.convert import convert_weights
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "security.md"


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 20
    assert [f"{file}::{test}" for file, test in named if f"def {test}(" not in (CHECKOUT / file).read_text()] == []


class Harm:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("how", ["zip", "plain", "inside"])
def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_runs(how: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "harm", tmp_path / "weights.pth"
    if how == "plain":
        file.write_bytes(pickle.dumps(Harm(mark), protocol=2))
    else:
        torch.save({"a": torch.zeros(2), "b": Harm(mark)} if how == "inside" else Harm(mark), file)
    with pytest.raises(BadInput, match="tensors"):
        convert_weights(file, tmp_path / "out.safetensors")
    assert main(["import-weights", str(file), "--out", str(tmp_path / "run")]) == 2
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_code_in_a_folder_of_transformers_is_not_run(tmp_path: Path) -> None:
    import transformers

    mark, folder = tmp_path / "harm", tmp_path / "tower"
    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)
    transformers.Dinov2Model(config).save_pretrained(folder)
    record = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    harm = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (folder / "evil.py").write_text(f"{harm}from transformers import Dinov2Model as Evil\nEvilConfig = Evil.config_class\n")
    written = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.Evil"}
    changed = {**written, "auto_map": mapped, "_attn_implementation_internal": "evil/kernels", "_attn_implementation": "evil/kernels"}
    for described in ({**written, "auto_map": mapped}, changed, {**written, "model_type": "evil", "auto_map": mapped}):
        (folder / "config.json").write_text(json.dumps(described))
        with suppress(BadInput, ImportError, ValueError, OSError):  # refused is right as well
            load_teacher(resolve_teacher(f"hf:{folder}"))
        assert not mark.exists()


def test_an_index_of_weights_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    from eupe_pipeline.teachers.checkpoints.weights import read_weights, save_weights

    save_weights({"a": torch.zeros(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    for place in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        index.write_text(json.dumps({"weight_map": {"a": place}}))
        with pytest.raises(BadInput, match="secret"):
            read_weights(index)


@contextmanager
def serving(pages: dict[str, bytes | str]) -> Iterator[tuple[str, list[str]]]:
    """A web server with some pages; text is an address that it redirects to. Gives its URL and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            body = pages.get(self.path)
            if isinstance(body, str):
                self.send_response(302)
                self.send_header("Location", body)
                body = b""
            else:
                self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body or b"")

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def picture(tiny_store: Any) -> bytes:
    return bytes(next((tiny_store.teacher_run.parent / "images").rglob("*.png")).read_bytes())


def test_a_listing_leads_to_no_other_server(picture: bytes, tmp_path: Path) -> None:
    with serving({"/b.png": picture}) as (other, asked_of_other):
        host = other.partition("//")[2]
        links = ("a.png", f"{other}/b.png", f"//{host}/b.png", "../c.png", "/d.png", "file:///etc/passwd", "..%2fc.png")
        listing = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
        with serving({"/photos/": listing, "/photos": listing, "/photos/a.png": picture}) as (url, asked):
            assert main(["index", f"{url}/photos/", "--store", str(tmp_path / "s"), "--name", "x", "--max-bad-share", "1"]) == 0
        assert asked_of_other == []
        assert {path for path in asked if not path.startswith("/photos")} == set()
    assert FeatureStore.open(tmp_path / "s").dataset("x").ids(0, 1) == ["a.png"]


def test_what_a_redirect_leads_to_is_not_kept_unless_it_is_an_image(picture: bytes, tmp_path: Path) -> None:
    secret = b"AKIA-a-secret-of-another-service"
    with serving({"/latest/meta-data": secret}) as (inner, asked_of_inner):
        pages: dict[str, bytes | str] = {"/": b'<a href="a.png">a</a> <a href="z.png">z</a>', "/a.png": picture}
        with serving({**pages, "/z.png": f"{inner}/latest/meta-data"}) as (url, _):
            assert main(["index", url, "--store", str(tmp_path / "s"), "--name", "x", "--max-bad-share", "1"]) == 0
        assert asked_of_inner, "redirects are followed, as the page says"
    assert len(FeatureStore.open(tmp_path / "s").dataset("x")) == 1
    assert [path for path in (tmp_path / "s").rglob("*") if path.is_file() and secret in path.read_bytes()] == []


def test_a_teacher_of_ones_own_says_that_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import sys\nprint('the code itself', file=sys.stderr)\ndef build(weights):\n    raise ValueError('no')\n")
    code = "import sys; from eupe_pipeline.teachers.registry.resolve import resolve_teacher; resolve_teacher(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, f"{file}:build"], capture_output=True, text=True, check=False)
    assert re.match(
        rf"running {re.escape(str(file))} \(sha256 [0-9a-f]{{12}}\) as a teacher, with this user's rights\nthe code itself", done.stderr
    )


def test_nothing_here_unpickles() -> None:
    """Neither pickle nor an unrestricted torch.load; tools/layers.py refuses imports, this looks at calls."""
    rooms = ("pipeline", "jobs", "student", "teachers", "storage")
    text = {path: path.read_text() for room in rooms for path in (CHECKOUT / room).rglob("*.py")}
    loads = [(path, line) for path, source in text.items() for line in source.splitlines() if "torch.load(" in line]
    assert [str(path) for path, line in loads if "weights_only=True" not in line] == []
    wrong = re.compile(
        r"^\s*(import|from) (pickle|cloudpickle|marshal|joblib)\b(?! import UnpicklingError$)|allow_pickle=True|yaml\.load\(", re.MULTILINE
    )
    assert [str(path) for path, source in text.items() if wrong.search(source)] == []
