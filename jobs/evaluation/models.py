"""Open the model that is evaluated: a run's folder, an exported folder or a checkpoint file, a teacher by name, or cached tokens.

The first three compute, cached tokens are read; each evaluation states which it takes. Results of a folder are kept in it. Those of a
teacher, of a file and of cached tokens go to `--out`, or to `evaluations/NAME@DIGEST` below $EUPE_PIPELINE_HOME: they belong to no store,
because the same weights give the same numbers over any of them. The folder of an ONNX or ExecuTorch export is refused: it is checked
against the student when it is written, and the timm or transformers folder beside it gives the same tokens. FILE.onnx is a teacher.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...storage.core.cache_home import evaluations_folder
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.identity import digest, short
from ...storage.features.features import FeatureReader
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx, size_hw
from ...student.export.formats import FORMATS
from ...teachers.checkpoints.published import Published, load_encoder, read_published
from ...teachers.checkpoints.sharded import is_index, weights_in, weights_sha256
from ...teachers.encoders.build import cls_width, facts
from ...teachers.encoders.preprocessing import Preprocessing
from ...teachers.registry.onnx_file import names_onnx_file
from ...teachers.registry.resolve import MODEL_FILE, load_teacher, resolve_teacher
from ...teachers.registry.spec import TeacherSpec
from ...teachers.registry.table import TEACHERS
from ...teachers.registry.teacher import Teacher

_CHECKPOINTS = (".pth", ".safetensors")


@dataclass(frozen=True)
class Model:
    """A model that computes tokens: resolved, not yet loaded."""

    name: str
    spec: TeacherSpec
    folder: Path
    """Where results are kept."""
    load: Callable[[str], Teacher]
    """The frozen model on a device."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides its tokens."""
        return self.spec.identity()


@dataclass(frozen=True)
class CachedModel:
    """A teacher's tokens in a store; which of its feature sets is read depends on the data."""

    name: str
    store: FeatureStore
    identity: dict[str, Any]
    folder: Path

    def over(self, dataset_digest: str) -> FeatureReader:
        """Return its only complete feature set over a dataset; raises `BadInput` for none or several."""
        return self.store.features(cached_features_of(self.store, self.name, dataset_digest))


def open_evaluated(
    name: str, store: FeatureStore | None, *, size_px: SizePx | None = None, weights: Path | None = None, out: Path | None = None,
    allow_random_weights: bool = False,
) -> Model | CachedModel:  # fmt: skip
    """Open the model or the cached tokens that `name` stands for; raises `BadInput` that lists what it could have been.

    A folder or file comes first, then a feature set of the store, then a teacher's name.
    """
    if Path(name).exists() or name in TEACHERS or ":" in name:
        in_store = store is not None and not Path(name).exists() and _named_sets(store, name)
        return (
            open_cached(name, store, out)
            if store is not None and in_store
            else open_model(name, size_px, weights, out, allow_random_weights=allow_random_weights)
        )
    if store is not None and _named_sets(store, name):
        return open_cached(name, store, out)
    known = {key.split("@")[0] for key in store.list_features()} if store is not None else set()
    location = f" with features in {store.url}" if store is not None else ""
    raise unknown_name(f"run, exported folder, checkpoint or teacher{location}", name, [*known, *TEACHERS])


def open_model(
    name: str, size_px: SizePx | None = None, weights: Path | None = None, out: Path | None = None, *, allow_random_weights: bool = False
) -> Model:
    """Open a run, an exported folder, a checkpoint file or a named teacher; raises `BadInput` when it is none of these.

    `allow_random_weights` gives a named teacher whose file is missing random ones, for trials; its identity says so.
    """
    path = Path(name)
    if (path / MODEL_FILE).is_file() or not path.exists() or (path.is_file() and names_onnx_file(name)):
        spec = resolve_teacher(name, size_px=size_px, weights=weights, allow_random_weights=allow_random_weights)
        folder = path if path.is_dir() else _default_folder(spec.name, spec.identity())
        return Model(name, spec, out or folder, lambda device: load_teacher(spec, device))
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", "export.json")):
        raise BadInput(f"{name} holds no trained model (no {MODEL_FILE}) and no exported one (no config.json); finish that run first")
    return _published(path, size_px, out)


def _published(path: Path, size_px: SizePx | None, out: Path | None) -> Model:
    record: dict[str, Any] = json.loads((path / "export.json").read_text()) if (path / "export.json").is_file() else {}
    export_format = str(record.get("format"))
    read_from = FORMATS[export_format].evaluated_from if export_format in FORMATS else "folder"
    if read_from is None:
        raise BadInput(
            f"{path} is an export for {export_format}, which is not evaluated here; give the run, or its export as timm or transformers"
        )
    source = path / record["files"][0] if read_from == "file" else path
    if source.is_file() and source.suffix not in _CHECKPOINTS and not is_index(source):
        raise BadInput(f"{source} is no checkpoint: expected {' or '.join(_CHECKPOINTS)}, the index of several, or a folder")
    published = read_published(source)
    prep = Preprocessing.from_dict(record["preprocessing"]) if read_from == "file" else published.preprocessing
    file = source if source.is_file() else _weights_of(source)
    spec = _spec_of(published, prep, path, file)
    spec = spec if size_px is None else spec.at_size(size_px)
    folder = path if path.is_dir() else _default_folder(spec.name, spec.identity())
    return Model(str(path), spec, out or folder, lambda device: _loaded(published, spec, device))


def _weights_of(folder: Path) -> Path:
    """Return the index of a folder's weights, else its first file of them."""
    whole = weights_in(folder)
    return whole if is_index(whole) else next(iter(sorted(folder.glob("*.safetensors"))), whole)


def _spec_of(published: Published, prep: Preprocessing, path: Path, file: Path) -> TeacherSpec:
    width, stride_px, cls = facts(published.architecture)
    height, width_px = size_hw(prep.size_px)
    grid, cls_dim = (height // stride_px, width_px // stride_px), cls_width(published.architecture)
    return TeacherSpec(path.resolve().stem, published.architecture, file, weights_sha256(file), prep, cls, cls_dim, width, grid)


def _loaded(published: Published, spec: TeacherSpec, device: str) -> Teacher:
    encoder = load_encoder(published.architecture, published.tensors)
    encoder.preprocessing = replace(spec.preprocessing)
    return Teacher(spec, encoder.to(device))


def open_cached(name: str, store: FeatureStore, out: Path | None = None) -> CachedModel:
    """Open a teacher's cached tokens by the name or key of its feature sets; raises `BadInput` when several teachers made them."""
    identities = {digest(identity): identity for identity in (store.features_identity(key)["teacher"] for key in _named_sets(store, name))}
    if len(identities) != 1:
        keys = ", ".join(_named_sets(store, name)) or "none"
        raise BadInput(f"{name!r} stands for feature sets of {len(identities)} different teachers in {store.url} ({keys}); give one key")
    identity = next(iter(identities.values()))
    return CachedModel(name, store, identity, out or _default_folder(name.split("@")[0], identity))


def _named_sets(store: FeatureStore, name: str) -> list[str]:
    return [key for key in store.list_features() if name in (key, key.split("@")[0])]


def cached_features_of(store: FeatureStore, teacher: str, dataset_digest: str) -> str:
    """Return the key of the only complete feature set of a teacher (name or key) over a dataset; raises `BadInput` for none or several.

    A key stands for its teacher: over another dataset than its own, the teacher's set there is taken.
    """
    named = _named_sets(store, teacher)
    if not named:
        raise unknown_name(
            f"run folder or teacher with features in {store.url}:", teacher, {key.split("@")[0] for key in store.list_features()}
        )
    teacher_identity = store.features_identity(named[0])["teacher"] if teacher in named else None
    candidates = (
        named
        if teacher_identity is None
        else [key for key in store.list_features() if store.features_identity(key)["teacher"] == teacher_identity]
    )
    readers = [reader for reader in map(store.features, candidates) if reader.views.dataset.digest == dataset_digest and reader.complete]
    exact = [reader for reader in readers if reader.key == teacher]
    same_name = [reader for reader in readers if reader.name == teacher.split("@")[0]]
    readers = exact or same_name or readers
    readers = [reader for reader in readers if reader.views.dataset.orientation == "stored"] or readers  # as evaluations read images
    if len(readers) != 1:
        keys = ", ".join(reader.key for reader in readers) or "none"
        raise BadInput(
            f"an evaluation of cached tokens needs one complete feature set of {teacher} over each dataset; over dataset "
            f"{_key_of(store, dataset_digest)} there are {len(readers)}: {keys}. Extract it, or give one by its key"
        )
    return readers[0].key


def _key_of(store: FeatureStore, dataset_digest: str) -> str:
    return next((key for key in store.list_datasets() if key.endswith(f"@{short(dataset_digest)}")), f"@{short(dataset_digest)}")


def _default_folder(name: str, identity: dict[str, Any]) -> Path:
    return evaluations_folder() / f"{name}@{short(digest(identity))}"
