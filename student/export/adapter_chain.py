"""The adapters beside an exported backbone, with the statistics that undo their normalisation: from the student to a teacher's space.

    FOLDER/adapters.safetensors   <step>/<teacher number>/<cls|patch>.<layer>…   and   <step>/<teacher number>/statistics/<array>
    FOLDER/chain.json             the steps in order, each with its teachers

Zero-shot evaluation goes student cls → adapter → de-normalise → proxy cls → the proxy's adapter → de-normalise → teacher's space (paper,
appendix C.1). Step 0 is the student's own run, step 1 the proxy's. The adapters know their statistics by digest only; the arrays come from
the feature store, and a store that does not hold them is an error. Axes: B images, H and W grid, D channels.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.features.layers import split_target
from ...storage.features.statistics import Statistics
from ...storage.store import FeatureStore
from ...teachers.encoders.tokens import Tokens
from ..model.student import TargetSpec, TeacherHeads
from ..training.run_folder import read_adapters
from .lineage import is_made_by, read_record, read_targets, run_title


def write_chain(run: Path, proxy: Path | None, store: FeatureStore, folder: Path) -> dict[str, Any]:
    """Write both files into `folder` and return chain.json's content.

    Raises BadInput for a run without adapters and for statistics that the store does not hold, CacheMismatch for a proxy that did not teach
    the run.
    """
    steps, tensors = [], dict[str, Tensor]()
    for step, taught in enumerate([run] if proxy is None else [run, proxy]):
        record = read_record(taught, "model/adapters.json")
        if not record.get("order"):
            raise BadInput(f"{taught} has no adapters: it was imported, or its training has not finished")
        adapters = read_adapters(taught / "model")
        names = [name for name in record["order"] if split_target(name)[1] is None]  # an intermediate layer is no space to go to
        for index, name in enumerate(names):
            statistics = _find_statistics(store, name, str(record["teachers"][name]["statistics"]))
            prefix = f"{step}/{index}"
            tensors |= {f"{prefix}/{key}": value for key, value in adapters[name].items()}
            tensors |= {f"{prefix}/statistics/{key}": torch.from_numpy(value.copy()) for key, value in statistics.only(()).arrays().items()}
        steps.append({"run": run_title(taught), "teachers": names})
    chain: dict[str, Any] = {"steps": steps, "through": _proxy_name(run, proxy)}
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "chain.json").write_text(json.dumps(chain, indent=1))
    return chain


def _proxy_name(run: Path, proxy: Path | None) -> str | None:
    """Return the name under which the student knows the proxy, None without one; raises CacheMismatch for another proxy."""
    if proxy is None:
        return None
    names = [name for name, target in read_targets(run).items() if is_made_by(target, proxy)]
    if not names:
        raise CacheMismatch(f"{proxy} is not the proxy that taught {run}: none of its targets has the sha256 of its weights")
    return names[0]


def _find_statistics(store: FeatureStore, teacher: str, digest: str) -> Statistics:
    """Return a teacher's statistics by their digest from any feature set of the store; raises BadInput when none has them."""
    for key in store.list_features():
        if key.split("@")[0] == teacher and (statistics := store.features(key).statistics).digest == digest:
            return statistics
    raise BadInput(
        f"{store.url} holds no feature set of {teacher} with the statistics {digest[:12]}… that its adapters were trained with; "
        "name the store of that training with --store"
    )


class AdapterChain:
    """A written chain, read back: maps fp32 tokens of the student into a teacher's own space."""

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / "chain.json").read_text())
        self.steps: list[list[str]] = [step["teachers"] for step in described["steps"]]
        self.through: str | None = described["through"]
        self._tensors = load_file(folder / "adapters.safetensors")

    def teachers(self) -> list[str]:
        """Return the names of the teachers whose spaces can be reached."""
        return [name for step in self.steps for name in step]

    def map(self, tokens: Tokens, teacher: str) -> Tokens:
        """Return the student's fp32 tokens, cls (B, D) and patch (B, H, W, D), in a teacher's own space.

        Raises BadInput for a teacher whose space these adapters do not reach.
        """
        for step, names in enumerate(self.steps):
            if teacher in names:
                return self._step(tokens, step, names.index(teacher))
            if step + 1 < len(self.steps) and self.through in names:
                tokens = self._step(tokens, step, names.index(self.through))
        raise BadInput(f"these adapters do not lead to {teacher!r}, only to: {', '.join(self.teachers())}")

    def _step(self, tokens: Tokens, step: int, index: int) -> Tokens:
        """Apply one teacher's adapters of a step, then undo the normalisation of its targets."""
        prefix = f"{step}/{index}/"
        tensors = {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}
        arrays = {key.removeprefix("statistics/"): value.numpy() for key, value in tensors.items() if key.startswith("statistics/")}
        statistics = Statistics.from_arrays(arrays, 0)  # how many views were measured no longer matters
        heads = _heads({key: value for key, value in tensors.items() if not key.startswith("statistics/")})
        with torch.no_grad():
            cls_BD, patch_BHWD = heads(tokens)
        restored = None if cls_BD is None else torch.from_numpy(statistics.denormalize_cls(cls_BD.numpy()))
        return Tokens(restored, torch.from_numpy(statistics.denormalize_patch(patch_BHWD.numpy())))


def _heads(weights: Mapping[str, Tensor]) -> TeacherHeads:
    """Return the adapters whose shapes the weights have, loaded strictly, in eval mode."""
    width, in_dim = weights["patch.0.weight"].shape
    cls_dim = len(weights["cls.3.weight"]) if "cls.3.weight" in weights else None
    cls_in_dim = weights["cls.0.weight"].shape[1] if cls_dim is not None else None
    heads = TeacherHeads(in_dim, width, TargetSpec(cls_dim, len(weights["patch.3.weight"]), (1, 1)), cls_in_dim)
    heads.load_state_dict(weights, strict=True)
    return heads.eval()
