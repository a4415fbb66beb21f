"""`evaluate table`: the paper's table with our figures beside its own, each cell one evaluation by the paper's protocol.

A cell is reused where its record is beside the model already (the evaluations find it themselves), computed where weights and data are on
disk, and else says what is missing; nothing is downloaded. Run again, a stopped table goes on where it was. A data folder is known by
what it holds. The columns of language models are read from records alone: `evaluate vlm` makes those. A cell that fails is told and the
others go on; the command then ends with status 2. A figure of other data than the published ones, or by other settings, has an asterisk,
and a remark says why.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from ...jobs.evaluation.correspondence import CorrespondenceOptions, evaluate_correspondence
from ...jobs.evaluation.depth import DepthOptions, evaluate_depth
from ...jobs.evaluation.knn import KnnOptions, evaluate_knn
from ...jobs.evaluation.models import Model, open_model
from ...jobs.evaluation.segmentation import SegmentationOptions, evaluate_segmentation
from ...jobs.evaluation.zero_shot import ZeroShotOptions, check_way_to_texts, evaluate_zero_shot
from ...storage.annotations.dense_layout import depth_layout, segmentation_layout
from ...storage.annotations.layout_report import LayoutReport
from ...storage.annotations.pair_layout import IMAGENET_CLASSES, correspondence_layout
from ...storage.core.choices import Device
from ...storage.core.errors import BadInput, EupeError
from ...storage.core.events import OnEvent, ignore_event
from ...student.probes.evaluation_records import list_records
from ...student.probes.zero_shot import check_names, read_descriptions
from ...teachers.encoders.architectures import ARCHITECTURES
from ...teachers.encoders.build import canonical
from ...teachers.registry.spec import RANDOM_WEIGHTS
from ...teachers.registry.text_tower import missing_of_tower
from ..recipes.paper import PaperTable, paper_table
from ..recipes.typed_tables import leaves

CLASSIFIED_PX = 224
_LANGUAGE_PX = {14: 336, 16: 384}  # by patch size (appendix C.2)
RIVALS = {
    "pecore-b": "PEcore-B", "pespatial-b": "PEspatial-B", "siglip2-b": "SigLIP2-B", "dinov3-b": "DINOv3-ViT-B",
    "radiov2.5-b": "RADIOv2.5-B", "dune-b-448": "DUNE-B", "dune-b-336": "DUNE-B",
}  # fmt: skip
_TOWER_OF = {"radiov2.5-b": ", DFN CLIP's (apple/DFN5B-CLIP-ViT-H-14-378) or SigLIP's (google/siglip-so400m-patch14-384)"}
_OTHER_SETTINGS = {  # of the paper's own figure
    ("RADIOv2.5-B", "IN1k-ZS"): "the paper's figure is that of RADIO's README: 768 px, CLIP's 80 templates; ours is at 224 px by names",
}  # fmt: skip
_STUDENTS = {
    "eupe_vitb16": "EUPE-ViT-B", "eupe_vits16": "EUPE-ViT-S", "eupe_vitt16": "EUPE-ViT-T", "eupe_convnext_tiny": "EUPE-ConvNext-T",
    "eupe_convnext_small": "EUPE-ConvNext-S", "eupe_convnext_base": "EUPE-ConvNext-B",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Which models and data fill which of the paper's tables."""

    models: tuple[str, ...] = ()
    """`MODEL` or `ROW=MODEL`, as `Stage 2 only=RUN`; none: the rivals of Table 1 whose weights are on disk."""
    data: tuple[Path, ...] = ()
    """Folders of datasets, or folders that hold such folders."""
    text: tuple[str, ...] = ()
    """`MODEL=FOLDER` of its text tower, for zero-shot; `FOLDER` alone: of all models."""
    classes: Path | None = None
    """TOML with the classes' names."""
    table: int = 1
    store: str | None = None
    steps: int | None = None
    """Of heads, for a trial: such figures say that they differ."""
    device: Device = "auto"
    allow_random_weights: bool = False
    dry_run: bool = False


class Column(NamedTuple):
    """How a column of the paper's is measured."""

    evaluation: str
    """What makes its record."""
    data: str
    """Kind of dataset, "" where records alone are read."""
    keys: tuple[str, ...]
    """The figure in the results, in order of preference."""
    protocol: str = ""
    """Name that a record of it has."""


COLUMNS = {
    "IN1k-ZS": Column("zero-shot", "ImageNet-1k", ("top1",), "paper"),
    "IN1k-KNN": Column("knn", "ImageNet-1k", ("cls.paper",)),
    "TextVQA": Column("vlm-textvqa", "", ("accuracy",)),
    "SQA": Column("vlm-sqa", "", ("accuracy",)),
    "Realworld": Column("vlm-realworldqa", "", ("accuracy",)),
    "POPE": Column("vlm-pope", "", ("f1",)),
    "GQA": Column("vlm-gqa", "", ("accuracy",)),
    "MMEp": Column("vlm-mme", "", ("perception",)),
    "SPair": Column("correspondence", "SPair-71k", ("pck",), "paper"),
    "NYUv2": Column("depth", "NYUv2", ("rmse",), "official"),
    "ADE20k": Column("segmentation", "ADE20k", ("best_miou", "miou"), "official"),
}


def fill_table(options: TableOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return the paper's rows and ours: of each model and column our figure, the paper's, and where ours is from or why there is none."""
    table, folders = paper_table(options.table), found_data(options.data)
    _opened.cache_clear()
    _other_data.cache_clear()
    models = [_asked(named) for named in options.models] or [("", name) for name in RIVALS if _on_disk(name)]
    if not models:
        raise BadInput("no rival of Table 1 has its weights on disk; give --models, or put weights where `evaluate knn NAME` says")
    rows = [_row(options, table, asked, name, folders, on_event) for asked, name in models]
    rows += [_paper_row(table, name) for name in table.rows if name not in {row["row"] for row in rows}]
    failed = [
        f"{row['model']}, {column}: {cell['why']}" for row in rows for column, cell in row["cells"].items() if cell["state"] == "failed"
    ]
    return {
        "table": f"Table {options.table} of arXiv 2603.22387: {table.title}", "data": {kind: str(path) for kind, path in folders.items()},
        "lines": _lines(table, rows), "rows": rows, "remarks": _remarks(rows), "missing": _reasons(rows), "failed": failed,
        "complete": not failed,
    }  # fmt: skip


def _asked(named: str) -> tuple[str, str]:
    """Return (row of the paper, "" for the model's own; model) of `[ROW=]MODEL`; a folder whose name has an = is a model."""
    row, _, model = ("", "", named) if Path(named).exists() else named.rpartition("=")
    return row, model


def found_data(folders: Iterable[Path]) -> dict[str, Path]:
    """Return {kind of dataset: folder} of the folders and of those one level below; raises `BadInput` for two of a kind, or none of any."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"{folder} is no folder; give --data folders of datasets, or folders that hold such folders")
        own = _kind(folder)
        below = {} if own else {path: _kind(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        kinds = {folder: own} if own else {path: kind for path, kind in below.items() if kind}
        if not kinds:
            raise BadInput(
                f"{folder} is none of ImageNet-1k, ADE20k, NYUv2 and SPair-71k, nor is a folder in it; `evaluate … --check` says why"
            )
        for path, kind in kinds.items():
            if kind in found:
                raise BadInput(f"{found[kind]} and {path} both hold what is taken for {kind}; give one of them")
            found[kind] = path
    return found


def _kind(folder: Path) -> str:
    """Return what a folder holds, "" for none that a column needs."""
    if (folder / "PairAnnotation").is_dir():
        return "SPair-71k"
    if (folder / "nyu_train.txt").is_file():
        return "NYUv2"
    if (folder / "images").is_dir() and (folder / "annotations").is_dir() and segmentation_layout(folder).dataset == "ADE20k":
        return "ADE20k"
    splits = [
        [folder / name for name in names if (folder / name).is_dir()] for names in (("train", "training"), ("val", "validation", "test"))
    ]
    labelled = all(several and any(path.is_dir() for path in several[0].iterdir()) for several in splits)
    return "ImageNet-1k" if labelled and not (folder / "images").is_dir() else ""


def _on_disk(name: str) -> bool:
    try:
        open_model(name)
    except BadInput:
        return False
    return True


def _row(options: TableOptions, table: PaperTable, asked: str, name: str, folders: Mapping[str, Path], on_event: OnEvent) -> dict[str, Any]:
    if asked and asked not in table.rows:
        raise BadInput(f"Table {options.table} has no row {asked!r}; its rows are {', '.join(table.rows)}")
    try:
        model = open_model(name, allow_random_weights=options.allow_random_weights)
    except BadInput as error:
        cells = {column: _cell(table, asked or RIVALS.get(name, ""), column, "missing", str(error)) for column in table.columns}
        return {"model": name, "row": asked or RIVALS.get(name, ""), "random_weights": False, "cells": cells}
    row = asked or _paper_name(model)
    cells = {column: _figure(options, table, row, column, model, folders, on_event) for column in table.columns}
    return {"model": name, "row": row, "random_weights": model.spec.weights_sha256 == RANDOM_WEIGHTS, "cells": cells}


def _paper_row(table: PaperTable, name: str) -> dict[str, Any]:
    cells = {column: _cell(table, name, column, "missing", "no model was given for this row") for column in table.columns}
    return {"model": "", "row": name, "random_weights": False, "cells": cells}


def _paper_name(model: Model) -> str:
    """Return the paper's name of a model: by a rival's name, or a student's architecture; "" where it has none."""
    if model.name in RIVALS:
        return RIVALS[model.name]
    same = [name for name in _STUDENTS if canonical(name) == model.spec.architecture]
    return _STUDENTS[same[0]] if same and same[0] in ARCHITECTURES else ""


def _cell(table: PaperTable, row: str, column: str, state: str, why: str = "", **more: Any) -> dict[str, Any]:
    """Return a cell; `paper` is None where the paper has no figure of this row."""
    return {"ours": None, "paper": table.rows.get(row, {}).get(column), "state": state, "why": why, **more}


def _figure(
    options: TableOptions, table: PaperTable, row: str, name: str, model: Model, folders: Mapping[str, Path], on_event: OnEvent
) -> dict[str, Any]:
    column = COLUMNS.get(name)
    if column is None:
        return _cell(table, row, name, "missing", f"nothing here measures {name}")
    if not column.data:
        return _recorded_alone(table, row, name, column, model, options)
    if column.data not in folders:
        return _cell(table, row, name, "missing", f"no {column.data} among --data")
    text = _tower(options, model.name)
    if column.evaluation == "zero-shot" and (why := _no_texts(model, text, _test_split(folders[column.data]), options.classes)):
        return _cell(table, row, name, "missing", why)
    if column.evaluation in ("knn", "zero-shot") and model.spec.cls_dim is None:
        return _cell(table, row, name, "missing", "the model has no class token")
    if options.dry_run:
        return _planned(table, row, name, column, model, folders[column.data], options)
    try:
        result = _evaluate(options, column.evaluation, model.name, folders[column.data], text, on_event)
    except EupeError as error:
        return _cell(table, row, name, "failed", str(error))
    remarks = [*_differences(result), *_other_data(column.data, folders[column.data]), *_other_settings(row, name)]
    return _cell(table, row, name, "recorded" if result["already"] else "evaluated", record=result["record"], remarks=remarks) | {
        "ours": _value(result, column.keys)
    }


def _no_texts(model: Model, text: Path | None, test: Path, classes: Path | None) -> str:
    """Return why a model cannot be compared with texts, "" where it can as far as files tell."""
    if text is None:
        return f"no text tower: --text {model.name}=FOLDER{_TOWER_OF.get(model.name, '')}"
    if lacking := missing_of_tower(text):
        return f"{text} has no {', '.join(lacking)}"
    try:
        check_names((path.name for path in test.iterdir()), read_descriptions(classes, "names").names)
        check_way_to_texts(model.spec, text)
    except BadInput as error:
        return str(error)
    return ""


def _test_split(data: Path) -> Path:
    return next(data / name for name in ("val", "validation", "test") if (data / name).is_dir())


def _other_settings(row: str, column: str) -> tuple[str, ...]:
    return (_OTHER_SETTINGS[row, column],) if (row, column) in _OTHER_SETTINGS else ()


def _evaluate(options: TableOptions, evaluation: str, model: str, data: Path, text: Path | None, on_event: OnEvent) -> Mapping[str, Any]:
    """Return the results of one evaluation by the paper's protocol."""
    shared: dict[str, Any] = {"model": model, "device": options.device, "allow_random_weights": options.allow_random_weights}
    heads: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if evaluation == "knn":
        return evaluate_knn(KnnOptions(**shared, data=str(data), store=options.store, size_px=CLASSIFIED_PX), on_event)
    if evaluation == "zero-shot":
        assert text is not None
        asked = ZeroShotOptions(
            **shared,
            data=str(_test_split(data)),
            text=text,
            classes=options.classes,
            templates="names",
            store=options.store,
            size_px=CLASSIFIED_PX,
        )
        return evaluate_zero_shot(asked, on_event)
    if evaluation == "segmentation":
        return evaluate_segmentation(SegmentationOptions(**shared, **heads, data=data), on_event)
    if evaluation == "depth":
        return evaluate_depth(DepthOptions(**shared, **heads, data=data), on_event)
    return evaluate_correspondence(CorrespondenceOptions(**shared, data=data, protocol="paper"), on_event)


def _tower(options: TableOptions, model: str) -> Path | None:
    """Return the text tower of a model: its own before the one of all."""
    towers = {of: folder for of, _, folder in (text.rpartition("=") for text in options.text)}
    chosen = towers.get(model, towers.get(""))
    return None if chosen is None else Path(chosen)


@lru_cache(maxsize=64)
def _opened(name: str, size_px: int, allow_random: bool) -> Model:
    """Return a model at a size, opened once a table: its weights are hashed."""
    return open_model(name, size_px, allow_random_weights=allow_random)


def _records(model: Model, column: Column, size_px: int | None, allow_random: bool) -> list[dict[str, Any]]:
    at_size = model if size_px is None else _opened(model.name, size_px, allow_random)
    return [
        record for record in list_records(at_size.folder)
        if record["evaluation"] == column.evaluation and (not column.protocol or record["protocol"].get("name") == column.protocol)
        and record["protocol"].get("model", {}).get("weights_sha256") == at_size.spec.weights_sha256
    ]  # fmt: skip


def _planned(table: PaperTable, row: str, name: str, column: Column, model: Model, data: Path, options: TableOptions) -> dict[str, Any]:
    """Return what would be done: run, or reuse a record where it is of the same data and settings."""
    at_px = CLASSIFIED_PX if column.evaluation in ("knn", "zero-shot") else None
    records = _records(model, column, at_px, options.allow_random_weights)
    note = "".join(f"; {remark}" for remark in (*_other_data(column.data, data), *_other_settings(row, name)))
    if records:
        why = f"{len(records)} recorded, reused where data and settings are the same{note}"
        only = _value(records[0]["results"], column.keys) if len(records) == 1 else None
        return _cell(table, row, name, "recorded", why) | {"ours": only}
    return _cell(table, row, name, "would run", f"evaluate {column.evaluation} on {data}{note}")


def _recorded_alone(table: PaperTable, row: str, name: str, column: Column, model: Model, options: TableOptions) -> dict[str, Any]:
    """Return a column that is not run here, from the model's only record of it; of several none says which is meant."""
    records = _records(model, column, _LANGUAGE_PX.get(model.spec.stride_px), options.allow_random_weights)
    if not records:
        return _cell(table, row, name, "missing", f"not recorded: `evaluate vlm --task {column.evaluation.removeprefix('vlm-')}` makes it")
    if len(records) > 1:
        models = ", ".join(sorted({str(record["protocol"].get("llm", ""))[:12] for record in records}))
        why = f"{len(records)} records, by language models {models} or other settings; keep the one that is meant in evaluations/"
        return _cell(table, row, name, "missing", why)
    (record,) = records
    llm, tested = str(record["protocol"].get("llm", "?"))[:12], record["protocol"].get("test", {})
    remarks = [*_differences(record["results"]), f"by language model {llm}, {tested.get('questions', '?')} questions"]
    return _cell(table, row, name, "recorded", remarks=remarks) | {"ours": _value(record["results"], column.keys)}


def _differences(results: Mapping[str, Any]) -> list[str]:
    """Return what a record says of its figure beside it."""
    return [word for key in ("differs_from_paper", "differs_from_official", "warnings") for word in results.get(key, [])]


@lru_cache(maxsize=16)
def _other_data(kind: str, folder: Path) -> tuple[str, ...]:
    """Return in what a folder is not the published dataset, by its counts; ImageNet-1k's are its classes alone, for the sake of time."""
    if kind == "ImageNet-1k":
        train = next(folder / name for name in ("train", "training") if (folder / name).is_dir())
        classes = sum(path.is_dir() for path in train.iterdir())
        return () if classes == IMAGENET_CLASSES else (f"{folder} has {classes:,} classes, ImageNet-1k {IMAGENET_CLASSES:,}",)
    layouts: dict[str, Callable[[Path], LayoutReport]] = {
        "ADE20k": segmentation_layout,
        "NYUv2": depth_layout,
        "SPair-71k": partial(correspondence_layout, split="test"),
    }
    report = layouts[kind](folder)
    if report.dataset == kind and not report.findings:
        return ()
    return (f"{folder} is not {kind} as published ({len(report.findings)} findings; --check of its evaluation names them)",)


def _value(results: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    values = dict(leaves(results))
    return next((float(values[key]) for key in keys if isinstance(values.get(key), int | float)), None)


def _lines(table: PaperTable, rows: list[dict[str, Any]]) -> list[str]:
    """Return the table as aligned text: `ours (paper's)` in each cell, `–` where we have none."""
    grid = [["ours (the paper's)", *table.columns]]
    for row in rows:
        label = ": ".join(part for part in (row["row"], Path(row["model"]).name) if part)
        label += " [random weights]" if row["random_weights"] else ""
        grid.append([label, *(_shown(name, row["cells"][name]) for name in table.columns)])
    widths = [max(len(line[index]) for line in grid) for index in range(len(grid[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in grid]


def _shown(name: str, cell: Mapping[str, Any]) -> str:
    form = ".3f" if name == "NYUv2" else ".1f"
    ours = "–" if cell["ours"] is None else f"{cell['ours']:{form}}{'*' if cell.get('remarks') else ''}"
    ours = {"would run": "to run", "failed": "failed"}.get(cell["state"], ours)
    paper = "not at hand" if cell["paper"] is None else cell["paper"] if isinstance(cell["paper"], str) else f"{cell['paper']:{form}}"
    return f"{ours} ({paper})"


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Return why cells of the given models are empty, each reason once with its columns."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for column, cell in row["cells"].items():
            if cell["state"] == "missing" and row["model"]:
                reasons.setdefault((row["model"], cell["why"]), []).append(column)
    return [f"{model}, {', '.join(columns)}: {why}" for (model, why), columns in reasons.items()]


def _remarks(rows: list[dict[str, Any]]) -> list[str]:
    """Return what an asterisk stands for, each remark once with its columns."""
    remarks: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for column, cell in row["cells"].items():
            for remark in cell.get("remarks", ()):
                remarks.setdefault((row["model"], remark), []).append(column)
    return [f"{model}, {', '.join(columns)}: {remark}" for (model, remark), columns in remarks.items()]
