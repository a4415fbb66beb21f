"""A trained student in the formats that people deploy, each in one self-contained folder.

    OUT/FORMAT/
      the model            see `formats`; FORMAT is `onnx-edge`, `onnx-edge-fp16` for those graphs
      README.md            the model card: origin, terms, evaluations, recipe
      usage.py             ten lines that run it
      heads.json           with --head: outputs, classes, figures of each head
      export.json          what was exported and how far it is from the trained student
      SHA256SUMS           of every other file
      adapters/            with --adapters: from the student's tokens to its teachers' spaces

Each writer runs what it wrote (or loads it with the library that it is for) before the folder is renamed to its name; an export that
cannot be checked is not made. Only the official hub's six shapes go out as `eupe`: its code can build no other. The price: an export
takes seconds to minutes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save

from ...storage.core.choices import GraphPrecision, GraphTarget
from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import file_sha256
from ...storage.core.urls import require_utf8
from ...storage.objects.atomic_files import replace_folder
from ...storage.store import FeatureStore
from ...storage.views.input_size import SizePx
from ...teachers.checkpoints.published import load_encoder
from ...teachers.encoders.architectures import Options
from ...teachers.registry.canary import IMAGES as CANARIES
from ...teachers.registry.canary import canary_images
from ...teachers.registry.table import Terms
from ..edge.choice import GraphChoice
from ..heads.chosen import NamedHead, choose_heads, finetuned_encoder
from ..heads.documents import FILE as HEADS_FILE
from ..heads.documents import HEADS_IN_INT8, headed_usage, heads_record
from ..heads.modules import KINDS
from ..quantised.sample import Sample, sample_of_folder, sample_of_views
from ..quantised.scheme import require_torchao
from .adapter_chain import write_chain
from .formats import FORMATS, row_of, usage_example
from .hub_task import HubTask
from .lineage import Trained, collect_terms, evaluations_of_weights, folders_of_models, hub_name, open_trained, read_record, run_title
from .model_card import model_card


@dataclass(frozen=True)
class ExportOptions:
    """Which run is exported where, in what formats, and what goes beside it."""

    run: Path | str
    """A finished run's folder; `jobs.export_run` takes its URL as well."""
    out: Path
    """Gets one folder a format."""
    formats: tuple[str, ...]
    """Names of `formats.FORMATS`."""
    size_px: SizePx | None = None
    """Input size of the graphs and of the preprocessing; None: the run's own."""
    adapters: bool = False
    """Also the adapters with their statistics."""
    store: str | None = None
    """URL of the feature store that holds those statistics, and the views that int8 ranges are measured on."""
    proxy: Path | str | None = None
    """The run of stage 1, when the student was taught by a proxy."""
    evaluations: tuple[Path, ...] = field(default=())
    """Further JSON results for the model card; those of `evaluate` are found in the run's folder."""
    target: GraphTarget = "open"
    """edge: graphs of one shape, by operators that devices have."""
    precision: GraphPrecision = "fp32"
    """Numbers of such a graph."""
    batch: int = 1
    """Pictures that such a graph takes at once."""
    heads: tuple[str, ...] = ()
    """Kept heads of this student that go along, each `HEAD` or `NAME=HEAD` (`heads.chosen`)."""
    calibrate: Path | None = None
    """int8: pictures that ranges are measured on, a folder or an archive, instead of the views in `store` that the run was trained on."""
    calibration_views: int = 256
    """int8: how many views or pictures are measured."""

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise unknown_name("format", name, FORMATS)
            _ = FORMATS[name]  # a plug-in that is broken is said before anything is done
        if not self.formats:
            raise BadInput(f"an export needs a format: {', '.join(FORMATS)}")
        if self.adapters != (self.store is not None) and not (self.store is not None and self.precision == "int8"):
            raise BadInput(
                "--adapters and --store go together: the store holds the statistics that undo the adapters' normalisation"
                " (--precision int8 takes --store alone, for its views)"
            )
        if self.precision != "int8" and (self.calibrate is not None or self.calibration_views != 256):
            raise BadInput("--calibrate and --calibration-views are of --precision int8, whose ranges are measured on pictures")
        if self.calibration_views < 1:
            raise BadInput(f"calibration_views is a number of pictures, at least 1; got {self.calibration_views}")
        for name in self.graph.asked():
            if not any(name in FORMATS[form].takes for form in self.formats):
                able = ", ".join(form for form in FORMATS if name in FORMATS[form].takes)
                raise BadInput(f"--{name} is of the formats {able}; of {', '.join(self.formats)} none takes it")
        for form in self.formats:
            row_of(form, self.graph)
            if self.heads and not FORMATS[form].heads:
                able = ", ".join(name for name in FORMATS if FORMATS[name].heads)
                raise BadInput(f"{form} holds the student alone; heads go along in {able}: export {form} without --head")

    @property
    def graph(self) -> GraphChoice:
        """Return how graphs are written."""
        return GraphChoice(self.target, self.precision, self.batch)


def export(options: ExportOptions, on_event: OnEvent = ignore_event, tasks: Mapping[str, HubTask] = MappingProxyType({})) -> dict[str, Any]:
    """Write OUT/FORMAT for each format and return {format: {file, facts}}; raise BadInput where a format cannot hold the student.

    `tasks` enters evaluations in the card's metadata, by their names; figures of others stand in the card's text alone.
    """
    run, out, proxy = Path(options.run), options.out, None if options.proxy is None else Path(options.proxy)
    require_utf8("--out", str(out), "safetensors")
    trained = open_trained(run, options.size_px)
    trained = with_heads(trained, choose_heads(options.heads, folders_of_models(run), trained.weights_sha256))
    _refuse_unexportable(trained, options.formats)
    if any(options.graph.of(FORMATS[form].takes).precision == "int8" for form in options.formats):
        _refuse_ranked(trained.heads)
        trained = replace(trained, sample=_int8_sample(trained, options))
        on_event({"event": "note", "text": _said_of(trained)})
    terms = collect_terms(run, proxy)
    evaluations = [*evaluations_of_weights(trained), *(_read_evaluation(path) for path in options.evaluations)]
    written: dict[str, Any] = {}
    for number, form in enumerate(options.formats):
        on_event({"event": "progress", "stage": f"export {form}", "done": number, "total": len(options.formats), "unit": "formats"})
        choice = options.graph.of(FORMATS[form].takes)
        with replace_folder(out / choice.folder(form)) as folder:
            files, facts = row_of(form, choice).write(trained, folder)
            if options.adapters:
                (folder / "adapters").mkdir()
                facts["adapters"] = write_chain(run, proxy, FeatureStore.open(str(options.store)), folder / "adapters")
            _write_documents(trained, form, files, facts, terms, evaluations, tasks, folder, choice)
        written[form] = {"folder": str(out / choice.folder(form)), "files": files, **facts}
    return {"run": str(run), "student": trained.name, "written": written}


def with_heads(trained: Trained, heads: tuple[NamedHead, ...]) -> Trained:
    """Return a student with the heads that go along; one that was finetuned with its head has that head's encoder."""
    tensors = finetuned_encoder(heads)
    if tensors is None:
        return replace(trained, heads=heads)
    encoder = load_encoder(trained.architecture, tensors)
    encoder.preprocessing = trained.preprocessing
    return replace(trained, heads=heads, encoder=encoder, weights_sha256=hashlib.sha256(save(tensors)).hexdigest())


def _int8_sample(trained: Trained, options: ExportOptions) -> Sample:
    """Return the pictures that an int8 student is measured and compared on; raises BadInput where nothing says which."""
    require_torchao()
    wanted, count = trained.preprocessing.input, options.calibration_views
    if options.calibrate is not None:
        return sample_of_folder(options.calibrate, count, wanted)
    if options.store is not None:
        return sample_of_views(options.store, read_record(trained.run, "identities.json").get("views", []), count, wanted)
    if trained.int8_ranges is None:
        raise BadInput(
            "--precision int8 measures ranges of activations on pictures, and none were named: give --store URL, the store of the run's "
            "training, for the views that it was trained on, or --calibrate FOLDER with pictures as the student will see them"
        )
    canaries = torch.from_numpy(canary_images(CANARIES, wanted.size_px))
    return Sample(canaries[:0], canaries, "canary pictures (no --store or --calibrate was given)")


def _refuse_ranked(heads: Sequence[NamedHead]) -> None:
    """Raise `BadInput` for a head of an int8 graph whose predictions cannot be compared with the trained one's."""
    if ranked := next((one.name for one in heads if KINDS[one.kept.kind].one_size), None):
        raise BadInput(
            f"an int8 graph takes linear, segmentation and depth heads; the detector {ranked} chooses its queries by rank, which int8 "
            "changes, so that no box has one to be compared with; export it with fp32"
        )


def _said_of(trained: Trained) -> str:
    """Return in words where int8 ranges come from."""
    assert trained.sample is not None
    measured, source = len(trained.sample.measured_BHWC), trained.sample.source
    ranges = f"measured on {measured} {source}" if trained.int8_ranges is None else "those that the run's last phase saw"
    return f"int8 ranges: {ranges}; compared on {len(trained.sample.compared_BHWC)} others"


def refuse_architecture(architecture: Options, formats: Sequence[str]) -> None:
    """Raise BadInput for a student's architecture (all options) that a format cannot hold, before anything is trained."""
    for form in formats:
        families = FORMATS[form].families
        if families is not None and architecture["name"] not in families:
            raise BadInput(f"{form} holds students of the families {', '.join(families)}; this one is a {architecture['name']}")
        if FORMATS[form].official_only and hub_name(architecture) is None:
            raise BadInput("the official hub builds six shapes only and this student is none of them; export it as timm or transformers")


def _refuse_unexportable(trained: Trained, formats: Sequence[str]) -> None:
    """Raise BadInput for a student that a format cannot hold: by its family, or by pixels that no preprocessing record describes."""
    prep, architecture = trained.preprocessing, trained.architecture
    refuse_architecture(architecture, formats)
    if (prep.pixel_scale, prep.channel_order) != (255.0, "rgb"):
        raise BadInput(
            f"the formats hold RGB pictures divided by 255; this student wants {prep.channel_order} divided by {prep.pixel_scale:g}"
        )


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Return a JSON result, or the last line of a .jsonl; raises BadInput for anything else."""
    try:
        return dict(json.loads(path.read_text().strip().splitlines()[-1] if path.suffix == ".jsonl" else path.read_text()))
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise BadInput(f"{path} is not the JSON result of an evaluation: {error}") from error


def _write_documents(
    trained: Trained, form: str, files: Sequence[str], facts: Mapping[str, Any], terms: Mapping[str, Terms],
    evaluations: Sequence[Mapping[str, Any]], tasks: Mapping[str, HubTask], folder: Path, choice: GraphChoice,
) -> None:  # fmt: skip
    """Write everything in a format's folder that is not the model."""
    prep, name = trained.preprocessing.identity(), trained.name
    if trained.heads:
        usage = headed_usage(form, trained.heads, file=files[0], preprocessing=prep, batch=choice.batch)
        (folder / HEADS_FILE).write_text(
            json.dumps(heads_record(trained.heads, facts.get(HEADS_IN_INT8, {})), indent=1, ensure_ascii=False)
        )
    else:
        usage = usage_example(form, name=name, file=files[0], architecture=trained.architecture, preprocessing=prep, choice=choice)
    record = {
        "format": form, "student": name, "run": run_title(trained.run), "architecture": trained.architecture, "preprocessing": prep,
        "files": list(files), "weights_sha256": trained.weights_sha256, "facts": facts, "torch": torch.__version__,
        **{name: getattr(choice, name) for name in FORMATS[form].takes},
        **({"heads": {one.name: one.file.name for one in trained.heads}} if trained.heads else {}),
    }  # fmt: skip
    (folder / "usage.py").write_text(usage)
    (folder / "export.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    (folder / "README.md").write_text(model_card(trained, form, facts, terms, evaluations, usage, tasks, choice))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}" for path in paths]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
