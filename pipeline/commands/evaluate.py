"""`evaluate`: measures of features."""

from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from ...jobs.evaluation.registry import EVALUATIONS, Evaluation
from .group import cli, run
from .options import (
    ANY_STORE,
    DEVICE,
    DRY_RUN,
    EVALUATED_WEIGHTS,
    FILE,
    FOLDER,
    INPUT_SIZE,
    JSON,
    JSON_HELP,
    OVERLAP,
    PLACE,
    RESULTS,
    SEED,
    input_size,
    number_or_none,
    options,
)


class RowCommand(click.Command):
    """The command of an evaluation that has none of its own: MODEL and an option for each field of its dataclass.

    The module is imported when its options are wanted, not when commands are listed.
    """

    def __init__(self, name: str, row: Evaluation) -> None:
        super().__init__(name, help=row.help, callback=self._evaluate)
        self._row = row

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the argument and the options."""
        if not self.params:
            self.params = [*option_fields(self._row.load_options()), click.Option(["--json", "as_json"], is_flag=True, help=JSON_HELP)]
        return super().get_params(ctx)

    def _evaluate(self, as_json: bool, **values: Any) -> None:
        asked, work = self._row.load_options()(**values), self._row.load()
        run(lambda on_event: work(asked, on_event), as_json)


def option_fields(options_type: type) -> list[click.Parameter]:
    """Return the parameters of a dataclass: `model` is the argument; a field's `metadata["help"]` is its help."""
    hints, found = get_type_hints(options_type), list[click.Parameter]()
    for one in fields(options_type):
        hint = hints[one.name]
        if get_origin(hint) in (Union, UnionType):
            hint = next(inner for inner in get_args(hint) if inner is not NoneType)
        kind = click.Choice(get_args(hint)) if get_origin(hint) is Literal else _KINDS[hint]
        if one.name == "model":
            found.append(click.Argument(["model"], type=kind))
            continue
        given: dict[str, Any] = {"required": True} if one.default is MISSING else {"default": one.default}
        given |= {"is_flag": True} if hint is bool else {"type": kind, "show_default": given.get("default") is not None}
        found.append(click.Option([f"--{one.name.replace('_', '-')}", one.name], help=one.metadata.get("help"), **given))
    return found


_KINDS: dict[Any, Any] = {str: click.STRING, int: click.INT, float: click.FLOAT, bool: click.BOOL, Path: PLACE}


class Evaluations(click.Group):
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


CLASSIFIED = (
    ANY_STORE,
    click.option("--data", default=None, metavar="DIR", help="Folder with train/ and val/, each with a folder a class."),
    click.option("--train", "train_set", default=None, help="Dataset of the store, folder or Parquet files to learn from."),
    click.option("--test", "test_set", default=None, help="Dataset of the store, folder or Parquet files that is classified."),
    click.option("--train-images", type=click.IntRange(1), default=None, help="Take a random sample of this many; default: all."),
    click.option("--test-images", type=click.IntRange(1), default=None, help="Take a random sample of this many; default: all."),
    INPUT_SIZE,
    click.option("--crop-fraction", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
                 help="Of the shorter side; 0.875 is the official code's resize to 256 and crop to 224."),
    click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images in one forward."),
    OVERLAP, DEVICE, EVALUATED_WEIGHTS, RESULTS, DRY_RUN, JSON,
)  # fmt: skip


@evaluate.command()
@click.argument("model")
@options(*CLASSIFIED)
def knn(as_json: bool, **values: Any) -> None:
    """Classify by nearest neighbours. MODEL: a run's folder, an exported folder, a teacher, or a feature set (read, not computed)."""
    from . import evaluations

    run(evaluations.knn, as_json, **values)


@evaluate.command()
@click.argument("model")
@options(*CLASSIFIED, SEED)
def linear(as_json: bool, **values: Any) -> None:
    """Fit a linear probe on MODEL's class tokens. L-BFGS; its strength is chosen on a tenth of the training images."""
    from . import evaluations

    run(evaluations.linear, as_json, **values)


DENSE_DATA = click.option("--data", type=FOLDER, required=True, metavar="DIR", help="The dataset's folder, in its published layout.")


DENSE_SIDE = input_size("the protocol's")


HEAD = (
    DENSE_DATA,
    click.option("--protocol", type=click.Choice(["official", "ours"]), default="official", show_default=True,
                 help="The official code's arithmetic, or ours; docs/evaluations.md lists the differences."),
    click.option("--steps", type=click.IntRange(2), default=None, help="Of the head's training; default: the official schedule."),
    click.option("--batch-size", type=click.IntRange(2), default=None, help="Pictures of a step; default: 16, the official."),
    DENSE_SIDE,
    click.option("--evaluate-every", type=click.IntRange(1), default=5000, show_default=True, help="Steps between measurements."),
    OVERLAP, SEED, DEVICE, EVALUATED_WEIGHTS, RESULTS, DRY_RUN, JSON,
)  # fmt: skip


@evaluate.command()
@click.argument("model")
@options(
    *HEAD,
    click.option("--dataset", type=click.Choice(["ade20k", "other"]), default=None, help="Default: known by what the folder holds."),
    click.option("--classes", type=click.IntRange(2), default=None, help="Number of classes; default: as in the training masks."),
    click.option("--zero-ignored/--zero-counts", "zero_is_ignored", default=None, help="Is class 0 nothing? Default: for ADE20k."),
    click.option("--ignore-index", "ignore", default="255", show_default=True, callback=number_or_none, metavar="VALUE|none",
                 help="Value of masks that means nothing; none: every value is a class."),
)  # fmt: skip
def segmentation(as_json: bool, **values: Any) -> None:
    """Train a linear head on patch tokens, measure mIoU. ADE20k's layout, or images/ and masks/."""
    from . import evaluations

    run(evaluations.segmentation, as_json, **values)


@evaluate.command()
@click.argument("model")
@options(
    *HEAD,
    click.option("--nyu-crops/--whole", "nyu_crops", default=None, help="NYU's frame and Eigen's crop? Default: with nyu_train.txt."),
    click.option("--per-metre", type=click.FloatRange(0, min_open=True), default=1000.0, show_default=True, help="Units of a PNG in 1 m."),
)
def depth(as_json: bool, **values: Any) -> None:
    """Train a linear head on patch tokens, measure depth. NYUv2's layout, or images/ and depth/."""
    from . import evaluations

    run(evaluations.depth, as_json, **values)


@evaluate.command()
@click.argument("model")
@options(
    DENSE_DATA, DENSE_SIDE,
    click.option("--protocol", type=click.Choice(["paper", "ours"]), default="ours", show_default=True,
                 help="paper: 100 pairs a category, 448 px for patches of 14 px; ours: all pairs at 512 px."),
    click.option("--pairs-per-category", type=click.IntRange(1), default=None, help="Take so many of each; default: the protocol's."),
    click.option("--split", type=click.Choice(["trn", "val", "test"]), default="test", show_default=True),
    DEVICE, EVALUATED_WEIGHTS, RESULTS, DRY_RUN, JSON,
)  # fmt: skip
def correspondence(as_json: bool, **values: Any) -> None:
    """Find keypoints again by patch tokens, untrained. SPair-71k's layout, PCK@0.1."""
    from . import evaluations

    run(evaluations.correspondence, as_json, **values)


@evaluate.command("zero-shot")
@click.argument("model")
@options(
    ANY_STORE,
    click.option("--data", "test_set", required=True, help="Dataset of the store, folder or Parquet files that is classified."),
    click.option("--text", type=FOLDER, required=True, metavar="DIR", help="Text tower: a transformers or open_clip folder."),
    click.option("--classes", type=FILE, default=None, metavar="TOML", help="Names and templates."),
    click.option("--teacher", default=None, help="The teacher whose space the text tower shares; with a student's adapters."),
    click.option("--proxy", type=FOLDER, default=None, help="The proxy's run, when MODEL was taught by one."),
    click.option("--test-images", type=click.IntRange(1), default=None, help="Take a random sample of this many; default: all."),
    INPUT_SIZE,
    click.option("--crop-fraction", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True),
    click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images in one forward."),
    DEVICE, EVALUATED_WEIGHTS, RESULTS, DRY_RUN, JSON,
)  # fmt: skip
def zero_shot(as_json: bool, **values: Any) -> None:
    """Classify by descriptions of the classes. In a text tower's space, which a student reaches through its adapters."""
    from . import evaluations

    run(evaluations.zero_shot, as_json, **values)
