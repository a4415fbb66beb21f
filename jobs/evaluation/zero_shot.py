"""Zero-shot classification: a model's class tokens in the space of a text tower.

A student is mapped there by its adapters and the statistics that undo their normalisation (paper, appendix C.1): from its run (with the
proxy's, when it was taught by one, and the store that has the statistics) or from the `adapters/` of its export. A teacher is in that
space already. Then comes the image projection of the text tower's own model, unless the teacher's class token has passed it. A RADIOv2.5 is
in no text's space: one of the adaptors in its file leads to that of its own teacher, CLIP or SigLIP, past that one's projection; a student
that it taught goes on through the same. See `student.probes.zero_shot` for the protocol and `teachers.registry.text_tower` for the towers.
Axes: N images, D channels.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...storage.annotations.layout_report import LayoutReport
from ...storage.core.choices import TemplateSet
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import digest, file_sha256
from ...storage.store import FeatureStore
from ...student.export.adapter_chain import AdapterChain, write_chain
from ...student.export.lineage import read_record, read_targets
from ...student.probes.knn import Embeddings
from ...student.probes.zero_shot import (
    PAPER_TEMPLATES,
    build_classifier,
    check_names,
    class_cosines,
    read_descriptions,
    told_from_guessing,
    top_k_accuracy,
)
from ...teachers.checkpoints.radio_adaptors import RadioAdaptor, check_adaptor, has_adaptors, load_adaptor
from ...teachers.checkpoints.sharded import weights_sha256
from ...teachers.encoders.tokens import Tokens
from ...teachers.registry.resolve import resolve_teacher
from ...teachers.registry.spec import RANDOM_WEIGHTS, TeacherSpec
from ...teachers.registry.table import TEACHERS
from ...teachers.registry.text_tower import IN_TEXTS_SPACE, TextTower, load_text_tower, missing_of_tower, text_width
from .knn import differences, evaluated, say_distilled_on
from .labelled_features import EvaluatedImages, Split, failed_counts, open_data, open_store, read_upright, warn_upright
from .models import CachedModel, Model, open_evaluated
from .split_checks import digests_of, labelled_layout, refuse_one_class

_MAPPED_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(EvaluatedImages):
    """A zero-shot evaluation: which model's images are compared with which texts, and by which adapters."""

    model: str
    """A run's folder, an exported folder, a checkpoint file, a teacher, or a feature set (read, not computed)."""
    data: str
    """Dataset of the store, folder or Parquet files that is classified."""
    text: Path
    """Folder of the text tower."""
    classes: Path | None = None
    """TOML with names and templates; None: the dataset's labels are the names."""
    templates: TemplateSet | None = None
    """Around a class's name: `names` alone as in the paper, `photo`, `clip-80`; None: the file's, else `photo`."""
    teacher: str | None = None
    """The teacher whose space the adapters lead to; None: the only one that they know, of RADIO the only one as wide as the texts."""
    proxy: Path | None = None
    """The proxy's run."""
    store: str | None = None
    """Folder or URL of the feature store; None: the evaluations' own below $EUPE_PIPELINE_HOME."""
    weights: Path | None = None
    """A named teacher's weight file."""
    out: Path | None = None
    """Folder that keeps the result; None: the model's own."""
    allow_random_weights: bool = False
    """A named teacher without its file gets random weights, for trials; its record says so."""
    check: bool = False
    """Only tell what data, names and tower lack, and a RADIO's file; other models are not looked at, and no store is written."""
    dry_run: bool = False
    """Only say by what protocol, and where the result would be kept."""


@dataclass(frozen=True)
class TeacherSpace:
    """The map from a model's own class tokens to a teacher's: through a chain of adapters, a RADIO's adaptor, both, or none."""

    chain: AdapterChain | None
    teacher: str | None
    kind: str
    """What the teacher uses as class token, one of `spec.CLS_KINDS`."""
    identity: dict[str, Any] | None
    adaptor: RadioAdaptor | None = None

    def map(self, embeddings: Embeddings) -> Tensor:
        """Return the images' features (N, D) in the teacher's space; raises `BadInput` without class tokens."""
        if embeddings.cls_ND is None:
            raise BadInput("zero-shot needs class tokens, and this model has none")
        cls_ND = torch.from_numpy(embeddings.cls_ND)
        if self.chain is not None and self.teacher is not None:
            cls_ND = self._through(self.chain, self.teacher, cls_ND, embeddings)
        return cls_ND if self.adaptor is None else torch.cat([self.adaptor(part) for part in torch.split(cls_ND, _MAPPED_AT_ONCE)])

    @staticmethod
    def _through(chain: AdapterChain, teacher: str, cls_ND: Tensor, embeddings: Embeddings) -> Tensor:
        mean_ND, mapped_parts = torch.from_numpy(embeddings.mean_patch_ND), []
        for start in range(0, len(cls_ND), _MAPPED_AT_ONCE):
            part = slice(start, start + _MAPPED_AT_ONCE)
            mapped = chain.map(Tokens(cls_ND[part], mean_ND[part, None, None]), teacher).cls_BD
            if mapped is None:
                raise BadInput(f"{teacher} has no class token, so nothing of it can be compared with texts")
            mapped_parts.append(mapped)
        return torch.cat(mapped_parts)


def evaluate_zero_shot(options: ZeroShotOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return top-1 and top-5 accuracy in percent over a labelled dataset; kept in the model's folder."""
    if options.check:
        return _check(options)
    store = open_store(options.store)
    model = open_evaluated(
        options.model, store, size_px=options.size_px, weights=options.weights, out=options.out,
        allow_random_weights=options.allow_random_weights,
    )  # fmt: skip
    split = Split(model, store, open_data(store, options.data, on_event), options, options.test_images, "test")
    tower, descriptions = load_text_tower(options.text), read_descriptions(options.classes, options.templates)
    labels, space = split.dataset.label_names, to_teacher_space(
        model, store, options.text, teacher=options.teacher, proxy=options.proxy, weights=options.weights
    )  # fmt: skip
    refuse_one_class(split.dataset, labels)
    check_names(labels, descriptions.names)
    say_distilled_on(split, list(digests_of(split.dataset, split.images.tolist())), on_event)
    texts = {label: descriptions.texts(label) for label in labels}
    paper = descriptions.templates == PAPER_TEMPLATES
    protocol = {
        **({"name": "paper"} if paper else {}), "test": split.protocol(), "text_tower": tower.identity, "texts_digest": digest(texts),
        "templates": list(descriptions.templates),
        "classes": len(labels), "way": space.identity, "teacher": space.teacher,
    }  # fmt: skip
    upright = read_upright(split)
    warn_upright(model, upright, "the figure is not the published protocol's", on_event)
    if options.dry_run:
        return {"dry_run": True, "model": options.model, "folder": str(model.folder), "protocol": protocol}

    def compute() -> dict[str, Any]:
        features = split.features(labels, on_event)
        if not labels or features.labels.min(initial=0) < 0:
            raise BadInput("zero-shot classification is measured on images with labels; index a source whose folders name the class")
        cosine_NK = class_cosines(
            projected(space.map(features.embeddings), tower, space.kind),
            build_classifier(labels, descriptions, tower.embed),
        )
        truth = torch.from_numpy(features.labels)
        tops = {f"top{top}": top_k_accuracy(cosine_NK, truth, top) for top in (1, 5)}
        differing = differences(split.size_px) if paper else {}
        doubts = doubts_of("a top-1", tops["top1"], len(truth), 1 / len(labels), options.text, on_event)
        counts = {"test_images": len(truth), **failed_counts(test=features.failed), "classes": len(labels)}
        return {**tops, **(upright or differing), **doubts, **counts}

    return evaluated("zero-shot", model, protocol, compute, on_event)


def doubts_of(figure: str, percent: float, trials: int, chance: float, text: Path, on_event: OnEvent) -> dict[str, list[str]]:
    """Return the `warnings` of a figure that guessing gives as well, which a tower of the same width that is another model's leads to."""
    if told_from_guessing(percent, trials, chance):
        return {}
    doubt = (
        f"{figure} of {percent:.1f} % in {trials:,} trials cannot be told from guessing ({100 * chance:.1f} %): see whether {text} is the "
        "text tower that the model was trained with, and whether the texts are those of the images"
    )
    on_event({"event": "warning", "text": doubt})
    return {"warnings": [doubt]}


def _check(options: ZeroShotOptions) -> dict[str, Any]:
    """Return what the test set, the file of names and the tower's folder lack."""
    report = LayoutReport("labelled pictures and texts", options.data)
    labels = labelled_layout(report, "test", options.data, options.store)
    try:
        names = read_descriptions(options.classes, options.templates).names
        check_names(labels, names)
        report.files(
            "labels have no name", labels - names.keys() if names is not None else (), f"add them to [classes] of {options.classes}"
        )
    except BadInput as error:
        report.lacks(str(error), "docs/evaluations.md shows the file")
    check_tower(report, options.text, options.model, options.teacher, options.weights)
    return report.result()


def check_tower(report: LayoutReport, text: Path, model: str, teacher: str | None, weights: Path | None) -> None:
    """Add what the folder of the text tower lacks, and the file of a RADIO that is evaluated by its name."""
    missing = missing_of_tower(text)
    for what in missing:
        report.lacks(f"{text} has no {what}", "give the folder of a CLIP, SigLIP or PE model, from transformers or open_clip")
    if not missing and model in TEACHERS and has_adaptors(TEACHERS[model].architecture):
        try:
            check_way_to_texts(resolve_teacher(model, weights=weights), text, teacher)
        except BadInput as error:
            report.lacks(str(error), "docs/evaluations.md says which file and which tower belong together")


def check_way_to_texts(spec: TeacherSpec, text: Path, teacher: str | None = None) -> None:
    """Raise `BadInput` where a RADIO's file has no adaptor to the texts of a tower; headers are read alone. Other models need none."""
    if has_adaptors(spec.architecture):
        _refuse_random(spec.name, spec.weights_sha256)
        check_adaptor(spec.weights_path, spec.architecture, teacher, _width_of_texts(text))


def projected(images_ND: Tensor, tower: TextTower, kind: str) -> Tensor:
    """Return images of a teacher's space in the texts' space; raises `BadInput` where their widths differ."""
    projected, width = tower.project(images_ND, kind), tower.embed(["a"]).shape[1]
    if projected.shape[1] != width:
        raise BadInput(f"the texts have {width} channels and the images {projected.shape[1]}: tower and teacher are not of one model")
    return projected


def to_teacher_space(
    model: Model | CachedModel, store: FeatureStore, text: Path, *, teacher: str | None, proxy: Path | None, weights: Path | None
) -> TeacherSpace:
    """Return the way from a model's class tokens to the space of a teacher, None: of the only one; raises `BadInput` without one.

    Of a RADIO the only one is the adaptor that is as wide as the texts of the tower.
    """
    cls_kind, architecture = str(model.identity["cls"]), model.identity["architecture"]
    if has_adaptors(architecture):
        sha256 = model.identity["weights_sha256"]
        _refuse_random(model.name, sha256)
        file = model.spec.weights_path if isinstance(model, Model) else _radio_file(model.name, architecture, sha256, weights)
        adaptor = load_adaptor(file, architecture, teacher, _width_of_texts(text))
        return TeacherSpace(None, adaptor.name, IN_TEXTS_SPACE, _described(adaptor), adaptor)
    if isinstance(model, CachedModel):
        return TeacherSpace(None, None, cls_kind, None)
    folder = Path(model.name)
    if (folder / "adapters" / "chain.json").is_file():
        return _through_adapters(folder / "adapters", teacher, {}, text)
    if read_record(folder, "model/adapters.json").get("order"):
        with tempfile.TemporaryDirectory() as written:
            write_chain(folder, proxy, store, Path(written))
            runs = [folder] if proxy is None else [folder, proxy]
            targets = {name: target for run in runs for name, target in read_targets(run).items()}
            return _through_adapters(Path(written), teacher, targets, text)
    if teacher is not None:
        raise BadInput(f"{model.name} has no adapters that could lead to {teacher}; export it with --adapters, or give its run")
    return TeacherSpace(None, None, cls_kind, None)


def _radio_file(name: str, architecture: dict[str, Any], sha256: str | None, weights: Path | None) -> Path:
    """Return the weights of a RADIO by its row, which hold its adaptors; raise `BadInput` where they are not those that `sha256` says."""
    row = next(name for name, row in TEACHERS.items() if row.architecture == architecture)
    spec = resolve_teacher(row, weights=weights)
    if sha256 is not None and spec.weights_sha256 != sha256:
        raise BadInput(
            f"the tokens of {name} are of weights with sha256 {sha256[:12]}…, and {spec.weights_path}, where the adaptors are looked "
            f"for, has {spec.weights_sha256[:12]}…; put the file of the tokens there, or name it with --weights where they are evaluated"
        )
    return spec.weights_path


def _described(adaptor: RadioAdaptor) -> dict[str, Any]:
    return {"adaptor": adaptor.name, "class_token": adaptor.token}


def _refuse_random(name: str, sha256: str) -> None:
    if sha256 == RANDOM_WEIGHTS:
        raise BadInput(f"{name} has random weights, so there is no file with its adaptors")


def _width_of_texts(folder: Path) -> int:
    width = text_width(folder)
    if width is None:
        raise BadInput(f"the weights in {folder} hold no text tower of CLIP or SigLIP")
    return width


def _through_adapters(folder: Path, teacher: str | None, targets: dict[str, Any], text: Path) -> TeacherSpace:
    chain = AdapterChain(folder)
    ends = [name for name in chain.steps[-1] if name != chain.through]
    if teacher is None and len(ends) != 1:
        raise BadInput(f"the adapters lead to several teachers, say which with --teacher: {', '.join(ends)}")
    name = teacher or ends[0]
    if name not in chain.teachers():
        raise BadInput(f"these adapters do not lead to {name!r}, only to: {', '.join(chain.teachers())}")
    recorded = targets.get(name, {}).get("identity", {}).get("teacher", {})
    known = TEACHERS[name].architecture if name in TEACHERS else {"name": "", "cls": "class token"}
    identity = {file: file_sha256(folder / file) for file in ("adapters.safetensors", "chain.json")}
    if has_adaptors(architecture := recorded.get("architecture", known)):
        file = _radio_file(name, architecture, recorded.get("weights_sha256"), None)
        adaptor = load_adaptor(file, architecture, None, _width_of_texts(text))
        return TeacherSpace(chain, name, IN_TEXTS_SPACE, {**identity, **_described(adaptor), "radio": weights_sha256(file)}, adaptor)
    return TeacherSpace(chain, name, str(recorded.get("cls") or known["cls"]), identity)
