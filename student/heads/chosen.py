"""Which kept heads go along with a student, under which names, as one module that is traced with its encoder.

A head is asked for as `HEAD` or `NAME=HEAD`. HEAD is the evaluation that trained it (`linear`) where there is one of these weights,
else its file's name (`linear-0123456789ab`) or a path; NAME is what its outputs are called. A head of another encoder is refused: it
would run, and be wrong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...storage.core.errors import BadInput, CacheDamaged, CacheMismatch, unknown_name
from ...storage.views.input_size import SizePx, as_size
from ..probes.evaluation_records import list_records
from .kept import ENDING, KeptHead, describe_head, list_heads, name_of, read_head
from .modules import KINDS, Heads

_NAME = re.compile(r"[a-z][a-z0-9_]*")
ENCODER = "encoder."
"""Begins the names of a finetuned encoder's tensors in a kept head."""
_TAKEN = ("cls", "patch", "pixels")


@dataclass(frozen=True)
class NamedHead:
    """A kept head under the name of its outputs."""

    name: str
    file: Path
    kept: KeptHead

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of its outputs in their order."""
        return tuple(f"{self.name}{ending}" for ending in KINDS[self.kept.kind].outputs)

    @property
    def size_px(self) -> SizePx | None:
        """Return the side of the input that it was measured at, None for each picture's own."""
        size_px = self.kept.input["size_px"]
        return None if size_px is None else as_size(size_px)


def choose_heads(wanted: Sequence[str], folders: Sequence[Path], weights_sha256: str) -> tuple[NamedHead, ...]:
    """Return the heads that are asked for, of the encoder with these weights, kept in some models' folders or given by path.

    Raises `BadInput` that lists what there is, `CacheMismatch` with both digests for a head of another encoder.
    """
    kept, heads = list_heads(folders) if wanted else {}, list[NamedHead]()
    for text in wanted:
        name, _, head = text.rpartition("=")
        path = _path_of(head, kept, folders, weights_sha256)
        read = read_head(path)
        if read.kind not in KINDS:
            raise unknown_name("kind of head", read.kind, KINDS)
        if read.weights_sha256 != weights_sha256:
            raise CacheMismatch(
                f"{path} is the head of another encoder: it was trained on tokens of the weights {read.weights_sha256}, and these are "
                f"{weights_sha256}; evaluate this model, which trains a head of its own"
            )
        heads.append(NamedHead(_checked(name or read.kind), path, read))
    if repeated := next((one.name for one in heads if [other.name for other in heads].count(one.name) > 1), None):
        raise BadInput(f"two heads are called {repeated!r}, and outputs need different names; give one as NAME=HEAD")
    _refuse_apart(heads)
    return tuple(heads)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise BadInput(f"{name!r} is no name of an output: small letters, digits and _, a letter first, and not {', '.join(_TAKEN)}")
    return name


def _path_of(head: str, kept: Mapping[Path, KeptHead], folders: Sequence[Path], weights_sha256: str) -> Path:
    if head.endswith(ENDING):
        if not Path(head).is_file():
            raise BadInput(f"{head} is not there; a kept head is EVALUATION-DIGEST{ENDING} in the evaluations of a model")
        describe_head(Path(head))
        return Path(head)
    of_file = [path for path in kept if name_of(path) == head]
    of_kind = [path for path, one in kept.items() if one.kind == head]
    of_these_weights = [path for path in of_kind if kept[path].weights_sha256 == weights_sha256]
    found = of_file or of_these_weights or of_kind
    if not found:
        raise _none_kept(head, kept, folders)
    if len({name_of(path) for path in found}) > 1:
        listed = "\n".join(f"    {_line(path, kept[path])}" for path in found)
        raise BadInput(f"several heads are kept for {head!r}; give one by its name, as --head {name_of(found[0])}:\n{listed}")
    return found[0]


def _none_kept(head: str, kept: Mapping[Path, KeptHead], folders: Sequence[Path]) -> BadInput:
    where, evaluation = folders[0], re.sub(r"-[0-9a-f]{12}$", "", head)
    records = [record for folder in folders for record in list_records(folder) if record["evaluation"] == evaluation]
    again = f"`eupe-pipeline evaluate {evaluation} {where} …`"
    if evaluation in KINDS and records:
        return BadInput(f"{where} was evaluated by {evaluation}, but its head was not kept; evaluate again, which keeps it now: {again}")
    if evaluation in KINDS and not any(one.kind == evaluation for one in kept.values()):
        others = f" (kept: {', '.join(sorted({name_of(path) for path in kept}))})" if kept else ""
        return BadInput(f"{where} has no head {head!r}{others}; an evaluation keeps one: {again}")
    return unknown_name(f"head of {where}", head, [*KINDS, *(name_of(path) for path in kept)])


def _line(path: Path, head: KeptHead) -> str:
    figures = {name: value for name, value in head.results.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    shown = ", ".join(f"{name} {value:g}" for name, value in list(figures.items())[-3:])
    return f"{name_of(path)}: {head.protocol.get('name', 'ours')}, {shown}; weights {head.weights_sha256[:12]}"


def _refuse_apart(heads: Sequence[NamedHead]) -> None:
    tuned = [one for one in heads if one.kept.settings.get("finetuned")]
    if tuned and len(heads) > 1:
        raise BadInput(
            f"{name_of(tuned[0].file)} was trained with a finetuned copy of the encoder, so it shares none with other heads; "
            "export it alone, or train it on the frozen encoder (without --finetune)"
        )


def finetuned_encoder(heads: Sequence[NamedHead]) -> dict[str, Tensor] | None:
    """Return the tensors of the encoder that was finetuned with a head, None where the student's own goes with all."""
    tuned = next((one.kept for one in heads if one.kept.settings.get("finetuned")), None)
    if tuned is None:
        return None
    return {name.removeprefix(ENCODER): tensor for name, tensor in tuned.tensors.items() if name.startswith(ENCODER)}


def modules_of(heads: Sequence[NamedHead]) -> Heads:
    """Return the heads as one module in eval mode, fp32; raises `CacheDamaged` for tensors that do not fit."""
    with torch.random.fork_rng(devices=[]):
        modules = Heads([(one.name, one.kept.kind, one.kept.settings) for one in heads])
    for one in heads:
        tensors = {name: tensor for name, tensor in one.kept.tensors.items() if not name.startswith(ENCODER)}
        try:
            modules.named[one.name].load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise CacheDamaged(f"{one.file} does not hold the tensors of its head ({error}); remove it and evaluate again") from error
    return modules.eval().requires_grad_(False)
