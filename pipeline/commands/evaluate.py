"""`evaluate`: measures of features."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypedDict, Union, Unpack, get_args, get_origin, get_type_hints

import click

from ...jobs.evaluation.registry import EVALUATIONS, Evaluation
from ...storage.core.choices import (
    HEAD_PROTOCOLS,
    MASK_DATASETS,
    PAIR_PROTOCOLS,
    PAIR_SPLITS,
    TEMPLATE_SETS,
    Device,
    HeadProtocol,
    MaskDataset,
    PairProtocol,
    PairSplit,
    TemplateSet,
)
from ...storage.core.events import OnEvent
from ...storage.views.input_size import SizePx
from .group import CheckedCommand, CheckedGroup, cli, run
from .options import (
    ANY_STORE,
    DEVICE,
    DRY_RUN,
    EVALUATED_WEIGHTS,
    FILE,
    FOLDER,
    FORWARD,
    INPUT_SIZE,
    JSON,
    JSON_HELP,
    OVERLAP,
    PATH,
    RESULTS,
    SEED,
    STORE,
    TEST_IMAGES,
    input_size,
    number_or_none,
    options,
)


class RowCommand(CheckedCommand):
    """The command of an evaluation that has none of its own: MODEL and an option for each field of its dataclass.

    The module is imported when its options are read, not when commands are listed.
    """

    def __init__(self, name: str, row: Evaluation) -> None:
        super().__init__(name, help=row.help, callback=self._evaluate)
        self._row = row

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the argument and the options."""
        if not self.params:
            self.params = [*option_fields(self._row.load_options()), click.Option(["--json", "as_json"], is_flag=True, help=JSON_HELP)]
        return super().get_params(ctx)

    def _evaluate(self, as_json: bool, **values: Any) -> int:  # Any: the fields are known when the row's dataclass is loaded
        request, function = self._row.load_options()(**values), self._row.load()
        return evaluated(lambda on_event: function(request, on_event), as_json)


def option_fields(options_type: type) -> list[click.Parameter]:
    """Return the parameters of a dataclass: `model` is the argument; a field's `metadata["help"]` is its help."""
    hints, parameters = get_type_hints(options_type), list[click.Parameter]()
    for field in fields(options_type):
        hint = hints[field.name]
        if get_origin(hint) in (Union, UnionType):
            hint = next(inner for inner in get_args(hint) if inner is not NoneType)
        kind = click.Choice(get_args(hint)) if get_origin(hint) is Literal else _KINDS[hint]
        if field.name == "model":
            parameters.append(click.Argument(["model"], type=kind))
            continue
        settings: dict[str, Any] = {"required": True} if field.default is MISSING else {"default": field.default}
        settings |= {"is_flag": True} if hint is bool else {"type": kind, "show_default": settings.get("default") is not None}
        parameters.append(click.Option([f"--{field.name.replace('_', '-')}", field.name], help=field.metadata.get("help"), **settings))
    return parameters


_KINDS: dict[Any, Any] = {str: click.STRING, int: click.INT, float: click.FLOAT, bool: click.BOOL, Path: PATH}


class Evaluations(CheckedGroup):
    """The commands below, and one for each other row of the table of evaluations."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(dict.fromkeys([*super().list_commands(ctx), *(name for name, row in EVALUATIONS.items() if row.options is not None)]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command of its own, else the row's."""
        row = EVALUATIONS.get(cmd_name)
        return super().get_command(ctx, cmd_name) or (RowCommand(cmd_name, row) if row is not None and row.options is not None else None)


@cli.group(cls=Evaluations)
def evaluate() -> None:
    """Measure how good features are."""


CHECK = click.option("--check", is_flag=True, help="Only tell what the data lack; status 2 where anything is missing.")


def evaluated(evaluation: Callable[[OnEvent], Mapping[str, Any]], as_json: bool, hidden: tuple[str, ...] = ()) -> int:
    """Run an evaluation and return the exit status: 2 where `--check` found something missing, or a cell of a table failed."""
    return 2 if run(evaluation, as_json, hidden).get("complete") is False else 0


CLASSIFIED = (
    ANY_STORE,
    click.option("--data", default=None, metavar="DIR", help="Folder with train/ and val/, each with a folder a class."),
    click.option("--train", "train_set", default=None, help="Dataset of the store, folder or Parquet files to learn from."),
    click.option("--test", "test_set", default=None, help="Dataset of the store, folder or Parquet files that is classified."),
    click.option("--train-images", type=click.IntRange(1), default=None, help="Take a random sample of this many; default: all."),
    TEST_IMAGES, INPUT_SIZE,
    click.option("--crop-fraction", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
                 help="Of the shorter side; 0.875 is the official code's resize to 256 and crop to 224."),
    FORWARD, OVERLAP, DEVICE, EVALUATED_WEIGHTS, RESULTS, CHECK, DRY_RUN, JSON,
)  # fmt: skip


class ClassifiedValues(TypedDict):
    """The values of MODEL and CLASSIFIED."""

    model: str
    store: str | None
    data: str | None
    train_set: str | None
    test_set: str | None
    train_images: int | None
    test_images: int | None
    size_px: SizePx | None
    crop_fraction: float
    batch_size: int
    allow_overlap: bool
    device: Device
    weights: Path | None
    out: Path | None
    check: bool
    dry_run: bool


KEEP_HEAD = click.option("--keep-head/--no-keep-head", default=True, show_default=True,
                         help="Keep the trained head beside the result, for `export --head`.")  # fmt: skip


@evaluate.command()
@click.argument("model")
@options(*CLASSIFIED)
def knn(as_json: bool, **values: Unpack[ClassifiedValues]) -> int:
    """Classify by nearest neighbours. MODEL: a run's folder, an exported folder, a teacher, or a feature set (read, not computed)."""
    from ...jobs.evaluation.knn import KnnOptions, evaluate_knn

    request = KnnOptions(**values)
    return evaluated(lambda on_event: evaluate_knn(request, on_event), as_json)


@evaluate.command()
@click.argument("model")
@options(*CLASSIFIED, SEED, KEEP_HEAD)
def linear(as_json: bool, seed: int, keep_head: bool, **values: Unpack[ClassifiedValues]) -> int:
    """Fit a linear probe on MODEL's class tokens. L-BFGS; its strength is chosen on a tenth of the training images."""
    from ...jobs.evaluation.linear import LinearOptions, evaluate_linear

    request = LinearOptions(seed=seed, keep_head=keep_head, **values)
    return evaluated(lambda on_event: evaluate_linear(request, on_event), as_json)


DENSE_DATA = click.option("--data", type=FOLDER, required=True, metavar="DIR", help="The dataset's folder, in its published layout.")


DENSE_SIDE = input_size("the protocol's")


HEAD = (
    DENSE_DATA,
    click.option("--protocol", type=click.Choice(HEAD_PROTOCOLS), default="official", show_default=True,
                 help="The official code's arithmetic, or ours; docs/evaluations.md lists the differences."),
    click.option("--steps", type=click.IntRange(2), default=None, help="Of the head's training; default: the official schedule."),
    click.option("--batch-size", type=click.IntRange(2), default=None, help="Pictures of a step; default: 16, the official."),
    DENSE_SIDE,
    click.option("--evaluate-every", type=click.IntRange(1), default=5000, show_default=True, help="Steps between measurements."),
    OVERLAP, SEED, KEEP_HEAD, DEVICE, EVALUATED_WEIGHTS, RESULTS, CHECK, DRY_RUN, JSON,
)  # fmt: skip


class DenseValues(TypedDict):
    """The values of MODEL and of the options that every evaluation of patch tokens has."""

    model: str
    data: Path
    size_px: SizePx | None
    device: Device
    weights: Path | None
    out: Path | None
    check: bool
    dry_run: bool


class HeadValues(DenseValues):
    """The values of MODEL and HEAD."""

    protocol: HeadProtocol
    steps: int | None
    batch_size: int | None
    evaluate_every: int
    allow_overlap: bool
    seed: int
    keep_head: bool


@evaluate.command()
@click.argument("model")
@options(
    *HEAD,
    click.option("--dataset", type=click.Choice(MASK_DATASETS), default=None, help="Default: known by what the folder holds."),
    click.option("--classes", type=click.IntRange(2), default=None, help="Number of classes; default: as in the training masks."),
    click.option("--zero-ignored/--zero-counts", "zero_is_ignored", default=None, help="Is class 0 nothing? Default: for ADE20k."),
    click.option("--ignore-index", "ignore", default="255", show_default=True, callback=number_or_none, metavar="VALUE|none",
                 help="Value of masks that means nothing; none: every value is a class."),
)  # fmt: skip
def segmentation(
    as_json: bool, dataset: MaskDataset | None, classes: int | None, zero_is_ignored: bool | None, ignore: int | None,
    **values: Unpack[HeadValues],
) -> int:  # fmt: skip
    """Train a linear head on patch tokens, measure mIoU. ADE20k's layout, or images/ and masks/."""
    from ...jobs.evaluation.segmentation import SegmentationOptions, evaluate_segmentation

    request = SegmentationOptions(dataset=dataset, classes=classes, zero_is_ignored=zero_is_ignored, ignore=ignore, **values)
    return evaluated(lambda on_event: evaluate_segmentation(request, on_event), as_json)


@evaluate.command()
@click.argument("model")
@options(
    *HEAD,
    click.option("--nyu-crops/--whole", "nyu_crops", default=None, help="NYU's frame and Eigen's crop? Default: with nyu_train.txt."),
    click.option("--per-metre", type=click.FloatRange(0, min_open=True), default=1000.0, show_default=True, help="Units of a PNG in 1 m."),
)
def depth(as_json: bool, nyu_crops: bool | None, per_metre: float, **values: Unpack[HeadValues]) -> int:
    """Train a linear head on patch tokens, measure depth. NYUv2's layout, or images/ and depth/."""
    from ...jobs.evaluation.depth import DepthOptions, evaluate_depth

    request = DepthOptions(nyu_crops=nyu_crops, per_metre=per_metre, **values)
    return evaluated(lambda on_event: evaluate_depth(request, on_event), as_json)


@evaluate.command()
@click.argument("model")
@options(
    DENSE_DATA,
    click.option("--finetune", is_flag=True, help="Train a copy of the encoder as well; default: it stays frozen."),
    click.option("--steps", type=click.IntRange(2), default=None, help="Of the detector's training; default: 20,000."),
    click.option("--batch-size", type=click.IntRange(1), default=None, help="Pictures of a step; default: 16."),
    click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=None, help="Its highest; default: 0.0002."),
    DENSE_SIDE, OVERLAP, SEED, KEEP_HEAD,
    DEVICE, EVALUATED_WEIGHTS, RESULTS, CHECK, DRY_RUN, JSON,
)  # fmt: skip
def detection(
    as_json: bool, finetune: bool, steps: int | None, batch_size: int | None, learning_rate: float | None, allow_overlap: bool, seed: int,
    keep_head: bool, **values: Unpack[DenseValues],
) -> int:  # fmt: skip
    """Train a detector on patch tokens, measure AP. COCO's layout; LW-DETR's detector of transformers."""
    from ...jobs.detection.detection import DetectionOptions, evaluate_detection

    request = DetectionOptions(
        finetune=finetune, steps=steps, batch_size=batch_size, learning_rate=learning_rate, allow_overlap=allow_overlap, seed=seed,
        keep_head=keep_head, **values,
    )  # fmt: skip
    return evaluated(lambda on_event: evaluate_detection(request, on_event), as_json)


@evaluate.command()
@click.argument("model")
@options(
    DENSE_DATA, DENSE_SIDE,
    click.option("--protocol", type=click.Choice(PAIR_PROTOCOLS), default="ours", show_default=True,
                 help="paper: 100 pairs a category, 448 px for patches of 14 px; ours: all pairs at 512 px."),
    click.option("--pairs-per-category", type=click.IntRange(1), default=None, help="Take so many of each; default: the protocol's."),
    click.option("--split", type=click.Choice(PAIR_SPLITS), default="test", show_default=True),
    DEVICE, EVALUATED_WEIGHTS, RESULTS, CHECK, DRY_RUN, JSON,
)  # fmt: skip
def correspondence(
    as_json: bool, protocol: PairProtocol, pairs_per_category: int | None, split: PairSplit, **values: Unpack[DenseValues]
) -> int:
    """Find keypoints again by patch tokens, untrained. SPair-71k's layout, PCK@0.1."""
    from ...jobs.evaluation.correspondence import CorrespondenceOptions, evaluate_correspondence

    request = CorrespondenceOptions(protocol=protocol, pairs_per_category=pairs_per_category, split=split, **values)
    return evaluated(lambda on_event: evaluate_correspondence(request, on_event), as_json)


@evaluate.command()
@click.argument("model")
@options(
    STORE,
    click.option("--features", multiple=True, metavar="KEY",
                 help="Feature set over other images by one of its teachers; repeatable. Default: those it learnt from."),
    click.option("--held-out", is_flag=True, help="Only images that the run held out; so it is for the run's own sets."),
    click.option("--images", type=click.IntRange(2), default=None, metavar="N", help="At most so many; default: all."),
    click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images in one forward."),
    DEVICE, RESULTS, DRY_RUN, JSON,
)  # fmt: skip
def agreement(
    as_json: bool, model: str, store: str, features: tuple[str, ...], held_out: bool, images: int | None, batch_size: int, device: Device,
    out: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Compare a run with its teachers, without labels. Cosines after the adapters, linear CKA; on held-out images or a test set."""
    from ...jobs.evaluation.agreement import AgreementOptions, evaluate_agreement

    asked = AgreementOptions(
        model=model, store=store, features=features, held_out=held_out, images=images, batch_size=batch_size, device=device, out=out,
        dry_run=dry_run,
    )  # fmt: skip
    run(lambda on_event: evaluate_agreement(asked, on_event), as_json)


@evaluate.command("zero-shot")
@click.argument("model")
@options(
    ANY_STORE,
    click.option("--data", "test_set", required=True, help="Dataset of the store, folder or Parquet files that is classified."),
    click.option("--text", type=FOLDER, required=True, metavar="DIR", help="Text tower: a transformers or open_clip folder."),
    click.option("--classes", type=FILE, default=None, metavar="TOML", help="Names and templates."),
    click.option("--templates", type=click.Choice(TEMPLATE_SETS), default=None,
                 help="names: nothing around a name, as in the paper; clip-80: CLIP's 80. Default: the file's, else photo."),
    click.option("--teacher", default=None, help="The teacher whose space the text tower shares; with a student's or RADIO's adapters."),
    click.option("--proxy", type=FOLDER, default=None, help="The proxy's run, when MODEL was taught by one."),
    TEST_IMAGES, INPUT_SIZE,
    click.option("--crop-fraction", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True),
    FORWARD, DEVICE, EVALUATED_WEIGHTS, RESULTS, CHECK, DRY_RUN, JSON,
)  # fmt: skip
def zero_shot(
    as_json: bool, model: str, store: str | None, test_set: str, text: Path, classes: Path | None, templates: TemplateSet | None,
    teacher: str | None, proxy: Path | None, test_images: int | None, size_px: SizePx | None, crop_fraction: float, batch_size: int,
    device: Device, weights: Path | None, out: Path | None, check: bool, dry_run: bool,
) -> int:  # fmt: skip
    """Classify by descriptions of the classes. In a text tower's space, which a student reaches through its adapters."""
    from ...jobs.evaluation.zero_shot import ZeroShotOptions, evaluate_zero_shot

    request = ZeroShotOptions(
        model=model, data=test_set, text=text, classes=classes, templates=templates, teacher=teacher, proxy=proxy, store=store,
        test_images=test_images, size_px=size_px, crop_fraction=crop_fraction, batch_size=batch_size, device=device, weights=weights,
        out=out, check=check, dry_run=dry_run,
    )  # fmt: skip
    return evaluated(lambda on_event: evaluate_zero_shot(request, on_event), as_json)
