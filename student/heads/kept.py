"""The head that an evaluation trained, kept beside its record: everything that makes the evaluated prediction from an encoder's tokens.

    FOLDER/evaluations/<evaluation>-<digest12>.json                  the record (`student.probes.evaluation_records`)
    FOLDER/evaluations/<evaluation>-<digest12>.head.safetensors      the head's tensors; its metadata `head` is the rest, as JSON

A head is a function of the tokens of one encoder: with other weights it runs and is wrong. So its file names the encoder by the sha256 of
its weights, and what takes a head compares. The figures in it are those of this very head; it is written before its record, atomically, so
that a record of an evaluation that keeps heads has its head. Records from before heads were kept have none: the evaluation is then made
again, also where its record is there.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...storage.core.errors import CacheDamaged, StoreUnavailable
from ...storage.core.events import OnEvent
from ...storage.core.identity import canonical_json
from ...storage.objects.atomic_files import write_atomically

ENDING = ".head.safetensors"
_KEY = "head"


@dataclass(frozen=True)
class KeptHead:
    """A trained head with what it belongs to."""

    kind: str
    """The evaluation that trained it; `modules.KINDS` has what is computed."""
    encoder: Mapping[str, Any]
    """Identity of the encoder: architecture, `weights_sha256`, preprocessing."""
    protocol: Mapping[str, Any]
    """How it was trained and measured, as in the record."""
    settings: Mapping[str, Any]
    """What the head needs beside its tensors to compute its outputs."""
    input: Mapping[str, Any]
    """How the evaluation made the encoder's input of a picture: `size_px` (None: each picture's own), `rule` in words, and their values."""
    labels: tuple[str, ...] = ()
    """Names of its classes in their order; () where it has none."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """The figures of this head."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def weights_sha256(self) -> str:
        """Return the sha256 of the weights of the encoder."""
        return str(self.encoder["weights_sha256"])


def head_path(record: Path) -> Path:
    """Return where the head of an evaluation's record is kept."""
    return record.with_name(record.name.removesuffix(".json") + ENDING)


def write_head(path: Path, head: KeptHead) -> None:
    """Write a head at once or not at all; raises `StoreUnavailable`."""
    described = {one.name: getattr(head, one.name) for one in fields(head) if one.name != "tensors"}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.tensors.items()}
    write_atomically(path, save(tensors, {_KEY: canonical_json(described).decode()}))


def keep_head(path: Path, head: KeptHead, on_event: OnEvent) -> None:
    """Write a head; where that fails, warn and go on: the figures are worth more than the head."""
    try:
        write_head(path, head)
    except StoreUnavailable as error:
        on_event({"event": "warning", "text": f"the head is not kept, so it cannot be exported: {error}; --out names another folder"})


def describe_head(path: Path) -> KeptHead:
    """Return a head without its tensors; raises `CacheDamaged` for a file that is none."""
    return _read(path, with_tensors=False)


def read_head(path: Path) -> KeptHead:
    """Return a head; raises `CacheDamaged` for a file that is none."""
    return _read(path, with_tensors=True)


def _read(path: Path, *, with_tensors: bool) -> KeptHead:
    try:
        with safe_open(path, "pt") as opened:
            described = json.loads((opened.metadata() or {})[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()} if with_tensors else {}  # noqa: SIM118
        head = KeptHead(**{**described, "labels": tuple(described["labels"])}, tensors=tensors)
        _ = head.weights_sha256
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CacheDamaged(f"{path} is not a kept head ({error}); remove it and evaluate again") from error
    return head


def list_heads(folders: Iterable[Path]) -> dict[Path, KeptHead]:
    """Return every kept head in the `evaluations` of some models' folders, by its file in their order, without the tensors."""
    paths = [path for folder in folders for path in sorted((folder / "evaluations").glob(f"*{ENDING}"))]
    return {path: describe_head(path) for path in paths}


def name_of(path: Path) -> str:
    """Return the name of a head's file: `<evaluation>-<digest12>`."""
    return path.name.removesuffix(ENDING)


def described(head: KeptHead) -> dict[str, Any]:
    """Return a head without its tensors, as JSON-able data."""
    return {name: value for name, value in asdict(head).items() if name != "tensors"}
