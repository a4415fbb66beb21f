"""The command line, and the only file that knows click: it turns words into typed values and hands them to `actions`.

Nothing heavy is imported before a command runs (torch, ray and timm cost seconds; `--help` has 0.3 s). Results go to stdout, progress to
stderr; with --json every event and then the result are JSON lines on stdout. Exit status: 0 done, 1 a check found damage, 2 the
user can mend it (bad input, a store that is not there, a full disk, Ctrl-C: what was done is kept, the same command goes on), 3 done, but
the result could not be written to standard output.
"""

import errno
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...storage.core.cache_home import name_user
from ...storage.core.errors import BadInput, EupeError
from ...storage.core.stop_signals import interrupt_on_stop
from ...storage.core.urls import absolute
from ..console.streams import lasting_streams

if TYPE_CHECKING:
    from ..console import doctor as examination
    from ..pictures import pictures as drawing
    from ..reports import catalog, page_contents
    from ..reports import runs as training_runs
    from . import actions, evaluations, training
else:

    class _Later:
        """A module of this folder that is imported when something of it is used."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(f".{self._name}", __package__), attribute)

    actions, catalog, evaluations, page_contents, training = map(_Later, ("actions", "catalog", "evaluations", "page_contents", "training"))
    examination, drawing, training_runs = map(_Later, ("doctor", "pictures", "runs"))

Command = TypeVar("Command", bound=Callable[..., Any])
EXTRAS = {**dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "eupe-pipeline[export]"), "executorch": "eupe-pipeline[executorch]"}
LARGEST_PX = 8192  # of an input: beyond, one picture's tokens fill any memory
STOPPED = "stopped; everything finished so far is kept, the same command goes on from there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status and never raises what the user can mend."""
    with lasting_streams() as output:
        interrupt_on_stop()  # a scheduler's stop and a closed terminal keep state as Ctrl-C does
        status = _status(arguments)
        output.flush()
        if status == 0 and output.lost is not None and output.lost.errno != errno.EPIPE:  # `| head` has read what it wanted
            print(f"eupe-pipeline: done, but the result could not be written to standard output ({output.lost.strerror})", file=sys.stderr)
            return 3
        return status


def _status(arguments: Sequence[str] | None) -> int:
    try:
        status = cli.main(arguments, prog_name="eupe-pipeline", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        print(f"eupe-pipeline: {STOPPED}", file=sys.stderr)
    except EupeError as error:
        print(f"eupe-pipeline: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == __package__.partition(".")[0]:
            raise
        wanted = EXTRAS.get(package, package)
        print(f"eupe-pipeline: this needs the package {package}, which is not installed; run: pip install '{wanted}'", file=sys.stderr)
    except MemoryError as error:
        print(f"eupe-pipeline: out of memory ({error}); take a smaller --size or --batch-size, or fewer workers", file=sys.stderr)
    except UnicodeEncodeError as error:
        name = ascii(error.object)
        print(f"eupe-pipeline: {name} has bytes that are not UTF-8, which cannot be recorded here; rename it", file=sys.stderr)
    return 2


def run(action: Callable[..., Mapping[str, Any]], as_json: bool, /, **values: Any) -> Mapping[str, Any]:
    """Run an action with its progress shown; prints the result as JSON (last line) or as readable text, and returns it."""
    from ..console.plain_text import readable
    from ..console.progress import reporter

    refuse_boundless(click.get_current_context())
    name_user()
    with reporter(as_json=as_json) as on_event:
        result = {**action(**values, on_event=on_event), "event": "result"}
    shown = {key: value for key, value in result.items() if key != "event"}
    print(json.dumps(result, default=str) if as_json else readable(shown), flush=True)
    return result


def refuse_boundless(context: click.Context) -> None:
    """Raise click's usage error for an option that is nan, infinite, or a number beyond what is exact: ranges let those pass."""
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if isinstance(value, (int, float)) and not abs(value) <= 2**53:
            raise click.BadParameter(f"{value} is not a number that can be counted with", context, option)


def pairs(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Return repeated NAME=VALUE words as a dict; the last `=` splits, since a run folder's path may hold one."""
    split = [word.rpartition("=") for word in values]
    bad = [word for word, (name, _, value) in zip(values, split, strict=True) if not name or not value]
    if bad:
        raise click.BadParameter(f"{bad[0]!r} is not {option.make_metavar(context)}", context, option)
    names = [name for name, _, _ in split]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise click.BadParameter(f"{twice[0]!r} has several values; give it one", context, option)
    return {name: value for name, _, value in split}


def sizes(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """Return repeated NAME=PIXELS words as a dict."""
    found = pairs(context, option, values)
    bad = [f"{name}={value}" for name, value in found.items() if not value.isdecimal() or not 1 <= int(value) <= LARGEST_PX]
    if bad:
        metavar = option.make_metavar(context)
        raise click.BadParameter(f"{bad[0]!r} is not {metavar} with 1 to {LARGEST_PX:,} px", context, option)
    return {name: int(value) for name, value in found.items()}


def place(context: click.Context, option: click.Parameter, value: str) -> tuple[int, int]:
    """Return ROW,COL as two numbers from 0."""
    words = value.split(",")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise click.BadParameter(f"{value!r} is not ROW,COL, such as 3,4", context, option)
    return int(words[0]), int(words[1])


def number_or_none(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """Return a whole number, or None for the word none."""
    if value == "none":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a whole number nor the word none", context, option) from None


def folder_or_url(context: click.Context, option: click.Parameter, value: str | None) -> Path | str | None:
    """Return an absolute path, or a URL such as s3://… as it is; a path would lose one of its slashes."""
    return value if value is None or "://" in value else Path(absolute(value))


def store_url(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Return a store's folder as an absolute path, or its URL as it is."""
    return None if value is None else absolute(value)


class AbsolutePath(click.Path):
    """A path, made absolute where it enters; hub:OWNER/NAME@COMMIT stays as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a word, checked as click's own type does."""
        return super().convert(absolute(str(value)), param, ctx)


def png_file(context: click.Context, option: click.Parameter, value: Path) -> Path:
    """Return the path of a PNG to be; another ending would promise another format."""
    if value.suffix.lower() != ".png":
        raise click.BadParameter(f"{str(value)!r} does not end in .png, and a PNG is what will be written", context, option)
    return value


def folders_or_urls(context: click.Context, option: click.Parameter, values: Sequence[str]) -> list[Path | str | None]:
    """Return each as `folder_or_url` does."""
    return [folder_or_url(context, option, value) for value in values]


def count_or_auto(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """Return a count of at least 1, None for "auto"."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a count nor auto", context, option)
    return int(value)


def grid_of(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return (rows, columns) of a word such as 16x16."""
    if value is None:
        return None
    rows, _, columns = value.lower().replace("×", "x").partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise click.BadParameter(f"{value!r} is not ROWSxCOLUMNS, such as 16x16", context, option)
    return int(rows), int(columns)


def options(*given: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator for several options, shown in the order given."""

    def decorate(command: Command) -> Command:
        for one in reversed(given):
            command = one(command)
        return command

    return decorate


def input_size(default: str) -> Callable[[Command], Command]:
    """Return the option --size, an input's side in pixels; `default` says what it is without."""
    return click.option("--size", "size_px", type=click.IntRange(1, LARGEST_PX), default=None, metavar="PX",
                        help=f"Input size; default: {default}.")  # fmt: skip


FOLDER = AbsolutePath(file_okay=False, path_type=Path)
FILE = AbsolutePath(dir_okay=False, path_type=Path)
PLACE = AbsolutePath(path_type=Path)
STORE = click.option(
    "--store", required=True, callback=store_url, metavar="URL", help="Feature store: a folder or an fsspec URL such as s3://…."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print events and the result as JSON lines on stdout.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
BAD_SHARE = click.option("--max-bad-share", type=click.FloatRange(0, 1), default=0.001, show_default=True,
                         help="Stop when more than this share of the images cannot be read.")  # fmt: skip
RANDOM = click.option("--allow-random-weights", is_flag=True, help="For trials: a teacher without weights gets random ones, and says so.")
SETTINGS = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Overlay one recipe value (TOML syntax); repeatable.")


TEACHER = click.option("--teacher", default=None, help="The teacher that made the set, or its run's folder; default: by the set's name.")
WEIGHTS_FILE = click.option("--weights", type=PLACE, default=None, help="Its weight file; default: the weights folder.")


class InOrder(click.Group):
    """Commands are listed in the order in which they are used, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands as they stand in this file."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="eupe-pipeline")
def cli() -> None:
    """Run large frozen vision teachers once; share their features among any number of student runs."""


@cli.command()
@click.argument("source")
@options(
    STORE,
    click.option("--name", required=True, help="What the dataset is called."),
    click.option("--verify", is_flag=True, help="Only compare the source with the index that is there, image by image."),
    click.option("--dense-targets", is_flag=True, help="Take files such as 1.seg.png or 1.depth.png beside 1.jpg as images too."),
    click.option("--orientation", type=click.Choice(["stored", "upright"]), default=None,
                 help="Turn images as their EXIF orientation asks for, or leave them; default: upright."),
    BAD_SHARE, JSON,
)  # fmt: skip
def index(as_json: bool, **values: Any) -> None:
    """Index images where they lie. SOURCE is a folder tree, WebDataset tars, or Parquet files with image bytes."""
    run(actions.index, as_json, **values)


DATA = click.option("--data", required=True, help="Dataset, by name or name@digest.")
TEACHERS = (
    click.option("--teacher", "teachers", multiple=True, required=True, help="Teacher's name or a run's folder; repeatable."),
    click.option("--teacher-size", "teacher_sizes", multiple=True, metavar="TEACHER=PX", callback=sizes, help="Input size; default: own."),
    click.option("--weights", multiple=True, metavar="TEACHER=PATH", callback=pairs, help="Weight file; default: the weights folder."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "auto"]), default="fp32", show_default=True, help="auto: by device."),
    click.option("--recipe", default=None, help="Recipe's name or TOML file whose views are drawn; default: a crop and a flip."),
    click.option("--stage", type=click.IntRange(1, 3), default=None, help="One stage of a recipe that holds several."),
    click.option("--views", type=click.IntRange(1), default=None, help="Recorded views of each image; default: the recipe's, or 1."),
    click.option("--codec", type=click.Choice(["fp32", "fp16", "int8", "int4"]), default="int8", show_default=True),
    click.option("--tokens-per-view", type=click.IntRange(1), default=None, metavar="T", help="Keep T random patch tokens; default: all."),
    click.option("--grid", default=None, metavar="HxW", callback=grid_of, help="Store a larger teacher's grid resampled, as 16x16."),
    click.option("--shard-images", "images_per_shard", type=click.IntRange(1), default=128, show_default=True, help="Images of one shard."),
    click.option("--batch-size", default="32", show_default=True, callback=count_or_auto, help="Views in one forward, or auto."),
    click.option(
        "--constants", type=click.Choice(["own", "imagenet"]), default="own", show_default=True, help="Mean and std of the input."
    ),
    RANDOM,
)
PIXELS = click.option("--pixels", "pixels_px", type=click.IntRange(1, 4096), default=None, metavar="PX",
                      help="Store the views' pixels too, at the student's size: training needs no images.")  # fmt: skip


@cli.command("extract-features")
@options(
    STORE, DATA, *TEACHERS, PIXELS,
    click.option("--photometric", type=click.Choice(["none", "teacher_same", "student_only"]), default=None,
                 help="Who sees colour jitter, blur, solarisation: nobody, both, the student; default: the recipe's, or none."),
    click.option("--view-kind", type=click.Choice(["random_resized_crop", "center"]), default=None,
                 help="Default: the recipe's, or random_resized_crop."),
    click.option("--seed", type=int, default=None, help="Seed of the views; default: the recipe's, or 0."),
    click.option("--statistics-batches", type=click.IntRange(1), default=500, show_default=True, help="Of 32 views, for mean and std."),
    click.option("--normalisation", type=click.Choice(["mean-std", "phi-s"]), default="mean-std", show_default=True, help="Of tokens."),
    click.option("--statistics-from", multiple=True, metavar="KEY", help="Use a feature set's statistics again; repeatable."),
    click.option("--workers", type=click.IntRange(0), default=None, help="Extracting actors; default: one a GPU or core; 0: none."),
    click.option("--num-gpus", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="GPUs of one worker."),
    click.option("--teacher-device", "teacher_devices", multiple=True, metavar="TEACHER=cuda:1", callback=pairs, help="Of a worker's."),
    click.option("--compile", is_flag=True, help="Teachers through torch.compile; a canary says whether tokens are the same."),
    click.option("--teachers-at-once", type=click.IntRange(1), default=None, help="Loaded at the same time; default: all."),
    click.option("--address", default=None, help="Ray cluster; default: one is started on this machine."),
    BAD_SHARE, DRY_RUN, JSON,
)  # fmt: skip
def extract_features(as_json: bool, **values: Any) -> None:
    """Run teachers once and keep their tokens. Run again, it does only what is missing."""
    run(actions.extract, as_json, **values)


PRICE = click.FloatRange(0)
EXTRACTION = ("codec", "tokens_per_view", "grid", "images_per_shard", "batch_size", "precision", "constants", "allow_random_weights")


@cli.command()
@options(
    STORE, DATA, *TEACHERS, PIXELS,
    click.option("--student", default="eupe_vitt16", show_default=True, help="Architecture that will be trained."),
    click.option("--student-rate", "student_images_per_s", type=float, default=None, help="Its images a second; default: measured here."),
    click.option("--epochs", "epochs_of_a_run", type=float, default=100.0, show_default=True, help="Epochs of one student's run."),
    click.option("--device-hour", type=PRICE, default=0.0, metavar="MONEY", help="Price of a device for an hour."),
    click.option("--gigabyte-month", type=PRICE, default=0.0, metavar="MONEY", help="Price of storage."),
    click.option("--months", type=PRICE, default=12.0, show_default=True, help="How long the store is kept."),
    JSON,
)  # fmt: skip
def plan(as_json: bool, **values: Any) -> None:
    """Say what an extraction costs, and when it pays. Bytes, device hours and money, from a few measured batches."""
    extraction = {name: values.pop(name) for name in EXTRACTION}
    run(actions.plan, as_json, extraction=extraction, **values)


@cli.command()
@options(
    click.option("--stage", type=click.IntRange(1, 3), required=True, help="1: to the proxy, 2: to the student, 3: several sizes."),
    STORE,
    click.option("--data", multiple=True, metavar="NAME[=SHARE]", help="Dataset; several, each with its share of the batches, are mixed."),
    click.option("--features", multiple=True, required=True, metavar="KEY", help="Feature set, by name or name@digest; repeatable."),
    click.option("--recipe", default=None, help="Recipe's name or TOML file; default: eupe-stageN."),
    SETTINGS,
    click.option("--out", required=True, callback=folder_or_url, metavar="FOLDER|URL", help="Run's folder; a run found there resumes."),
    click.option("--proxy", default=None, callback=folder_or_url, metavar="RUN|URL", help="Stage 3: the proxy's run, used live."),
    click.option("--targets", type=click.Choice(["cached", "live"]), default=None, help="Read targets or compute them; default: recipe's."),
    click.option("--teacher", "live_teachers", multiple=True, help="Live targets: the teacher of each --features; repeatable."),
    click.option("--student", "students", multiple=True, metavar="NAME", help="Architecture; several train in one pass, to OUT/NAME."),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Ranks through Ray Train; 0: this process."),
    click.option("--address", default=None, help="Ray cluster for --workers; default: one is started on this machine."),
    click.option("--follow", "follow_minutes", type=click.FloatRange(0), is_flag=False, flag_value=30, default=None, metavar="[MINUTES]",
                 help="Wait for shards that are still being extracted; give up when none has come for so long (30)."),
    click.option("--on-miss", type=click.Choice(["refuse", "compute"]), default="refuse", show_default=True,
                 help="Shards that are not there: compute them first, by the set's teacher (or --teacher), for later runs as well."),
    click.option("--views", "new_views", type=click.IntRange(1), default=1, show_default=True, help="Of sets that --on-miss begins."),
    click.option("--shard-cache", type=FOLDER, default=None, help="Whole shards of a remote store are kept here; default: ~/.cache."),
    click.option("--evaluate", "evaluation", type=click.Choice(["knn"]), default=None, help="Measure the student while it trains."),
    click.option("--every", type=click.IntRange(1), default=2000, show_default=True, help="Steps between two of these."),
    click.option("--evaluate-data", default=None, metavar="NAME", help="Labelled dataset that is not trained on, for --evaluate."),
    click.option("--evaluate-images", type=click.IntRange(20), default=2000, show_default=True, help="Of it; half are the neighbours."),
    click.option("--allow-overlap", is_flag=True, help="Evaluate on images that are trained on as well; say it instead of refusing."),
    RANDOM, DRY_RUN, JSON,
)  # fmt: skip
def train(as_json: bool, **values: Any) -> None:
    """Distil cached tokens into a student. Run again with the same values, it resumes at the last checkpoint."""
    run(training.train, as_json, **values)


@cli.group()
def evaluate() -> None:
    """Measure how good features are."""


ANY_STORE = click.option(
    "--store", default=None, callback=store_url, metavar="URL", help="Feature store; default: one below $EUPE_PIPELINE_HOME."
)
RESULTS = click.option("--out", type=FOLDER, default=None, help="Folder that keeps the result; default: MODEL's own.")
INPUT_SIZE = input_size("the model's")
OVERLAP = click.option("--allow-overlap", is_flag=True, help="Test on images that are learnt from as well; say it instead of refusing.")
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
SEED = click.option("--seed", type=int, default=0, show_default=True)
EVALUATED_WEIGHTS = click.option("--weights", type=PLACE, default=None, help="A named teacher's weight file.")
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
    run(evaluations.knn, as_json, **values)


@evaluate.command()
@click.argument("model")
@options(*CLASSIFIED, SEED)
def linear(as_json: bool, **values: Any) -> None:
    """Fit a linear probe on MODEL's class tokens. L-BFGS; its strength is chosen on a tenth of the training images."""
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
    run(evaluations.zero_shot, as_json, **values)


@cli.group()
def features() -> None:
    """Look at what a store holds."""


@features.command("ls")
@options(STORE, JSON)
def features_ls(as_json: bool, **values: Any) -> None:
    """List datasets, views and feature sets."""
    run(catalog.list_store, as_json, **values)


@features.command("show")
@click.argument("key")
@options(STORE, click.option("--html", type=FILE, default=None, help="Write a page to look at."), JSON)
def features_show(as_json: bool, **values: Any) -> None:
    """Show one feature set. Rows, bytes, what is missing, its statistics, its identity; --html: its views and tokens as well."""
    run(catalog.show_features, as_json, **values)


ANY_KEY = click.argument("key", required=False, default=None)


@features.command("verify")
@ANY_KEY
@options(STORE, click.option("--subset", default="1/1", show_default=True, metavar="K/N", help="Check the K-th of N parts."), JSON)
def features_verify(as_json: bool, **values: Any) -> int:
    """Check every byte of a store, or of what KEY needs. All damage is listed, with what helps; exit status 1 when there is any."""
    return 1 if run(catalog.verify_features, as_json, **values)["findings"] else 0


@features.command("repair")
@ANY_KEY
@options(STORE, TEACHER, WEIGHTS_FILE, DRY_RUN, JSON)
def features_repair(as_json: bool, **values: Any) -> int:
    """Mend a store, or what KEY needs. Nothing whole is touched; exit status 1 when something cannot be mended, which is said."""
    return 1 if run(actions.repair, as_json, **values)["left"] else 0


@features.command("fidelity")
@click.argument("key")
@options(STORE, TEACHER, WEIGHTS_FILE, click.option("--sample", type=click.IntRange(1), default=64, show_default=True), JSON)
def features_fidelity(as_json: bool, **values: Any) -> None:
    """Compare stored tokens with fresh ones. A sample of views: mean, 1st percentile and least cosine."""
    run(actions.fidelity, as_json, **values)


@features.command("prune")
@click.argument("key")
@options(STORE, DRY_RUN, JSON)
def features_prune(as_json: bool, **values: Any) -> None:
    """Delete one feature set, KEY with its digest. Refused while a run reads it."""
    run(catalog.prune_features, as_json, **values)


@features.command("cp")
@click.argument("key")
@options(
    STORE, click.option("--to", "target", required=True, callback=store_url, metavar="URL", help="The other store, made when absent."), JSON
)
def features_cp(as_json: bool, **values: Any) -> None:
    """Copy a feature set to another store. With its views and dataset index; verified and resumable."""
    run(catalog.copy_feature_set, as_json, **values)


@features.command("compact")
@click.argument("key")
@options(STORE, JSON)
def features_compact(as_json: bool, **values: Any) -> None:
    """Put commit records into ledgers. A set of millions of shards then opens in seconds."""
    run(catalog.compact_features, as_json, **values)


@cli.group()
def runs() -> None:
    """Look at training runs, and compare them."""


@runs.command("ls")
@click.argument("folder", callback=folder_or_url, metavar="FOLDER|URL")
@options(JSON)
def runs_ls(as_json: bool, **values: Any) -> None:
    """List the training runs at or below a folder or a URL."""
    run(training_runs.list_runs, as_json, **values)


@runs.command("show")
@click.argument("out", callback=folder_or_url, metavar="RUN|URL")
@options(JSON)
def runs_show(as_json: bool, **values: Any) -> None:
    """Show one run. How far it is, its losses, what it learns from, its recipe."""
    run(training_runs.show_run, as_json, **values)


@runs.command("compare")
@click.argument("outs", nargs=-1, required=True, callback=folders_or_urls, metavar="RUN|URL...")
@options(JSON)
def runs_compare(as_json: bool, **values: Any) -> None:
    """Compare runs side by side. Their results, and the recipe values in which they differ."""
    run(training_runs.compare_runs, as_json, **values)


@cli.group()
def recipe() -> None:
    """Look at the recipes."""


@recipe.command("ls")
@options(JSON)
def recipe_ls(as_json: bool) -> None:
    """List the recipes that come with the package."""
    run(actions.list_recipe_names, as_json)


@recipe.command("show")
@click.argument("name")
@options(click.option("--stage", type=click.IntRange(1, 3), default=None, help="One stage of a recipe that holds several."), SETTINGS, JSON)
def recipe_show(as_json: bool, **values: Any) -> None:
    """Print each value of a recipe with its origin. NAME or a TOML file; the paper's, ours and why, a file, --set, default."""
    run(actions.show_recipe, as_json, **values)


@cli.group()
def pictures() -> None:
    """Draw what encoders see, as PNG. `report` has the same in a page."""


IMAGES = click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=PLACE)
PNG = click.option("--out", type=FILE, required=True, callback=png_file, metavar="FILE.png", help="Where it goes.")
MODELS = (
    click.option("--model", "models", multiple=True, required=True, metavar="NAME", help="Teacher's name or a run's folder; repeatable."),
    input_size("each model's own"),
    click.option("--model-size", "model_sizes", multiple=True, callback=sizes, metavar="NAME=PX", help="Another size for one model."),
    click.option("--weights", multiple=True, callback=pairs, metavar="NAME=PATH", help="A model's weight file; repeatable."),
)


@pictures.command("pca")
@IMAGES
@options(*MODELS, click.option("--foreground", is_flag=True, help="Leave the background black; guessed from the tokens."), PNG, JSON)
def pictures_pca(as_json: bool, **values: Any) -> None:
    """Patch tokens of several encoders as colours. Side by side: their three strongest directions as colours, one basis an encoder."""
    run(drawing.pca, as_json, **values)


@pictures.command("similarity")
@IMAGES
@options(*MODELS, click.option("--patch", callback=place, required=True, metavar="ROW,COL", help="In the first model's grid."), PNG, JSON)
def pictures_similarity(as_json: bool, **values: Any) -> None:
    """How alike every patch is to the named one. By cosine, for several encoders side by side."""
    run(drawing.similarity, as_json, **values)


@pictures.command("neighbours")
@click.argument("key")
@options(
    STORE,
    click.option("--query", "queries", multiple=True, metavar="ID", help="Image id; repeatable; default: one of each of six labels."),
    click.option("--count", type=click.IntRange(1, 32), default=8, show_default=True, help="Neighbours of each."),
    PNG, JSON,
)  # fmt: skip
def pictures_neighbours(as_json: bool, **values: Any) -> None:
    """Nearest neighbours by cached class tokens. Those of feature set KEY, with cosine distances."""
    run(drawing.neighbours, as_json, **values)


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=FOLDER)
@options(
    click.option("--store", default=None, callback=store_url, metavar="URL",
                 help="Feature store: adds its health, neighbours, photos for the pictures."),
    click.option("--features", multiple=True, metavar="KEY", help="Feature set; repeatable; default: those the runs learnt from."),
    click.option("--verify", is_flag=True, help="Read every byte of the feature sets and report damage."),
    click.option("--image", "images", multiple=True, type=PLACE, help="Photo for the pictures; repeatable."),
    click.option("--query", "queries", multiple=True, metavar="ID", help="Image whose neighbours are shown; repeatable."),
    click.option("--model", "models", multiple=True, metavar="NAME", help="Another encoder beside the runs; repeatable."),
    *MODELS[1:],
    click.option("--foreground", is_flag=True, help="Leave the pictures' background black; guessed from the tokens."),
    click.option("--out", type=FILE, required=True, help="Where the page goes."), JSON,
)  # fmt: skip
def report(as_json: bool, **values: Any) -> None:
    """Write one HTML page about runs or feature sets. It needs no other file and no script."""
    run(page_contents.report, as_json, **values)


@cli.command()
@click.argument("run_folder", metavar="RUN|URL", callback=folder_or_url)
@options(
    click.option("--format", "formats", multiple=True, required=True,
                 type=click.Choice(["eupe", "timm", "transformers", "onnx", "executorch"]), help="Repeatable."),
    click.option("--out", type=FOLDER, required=True, help="Gets one folder a format."),
    input_size("the run's own"),
    click.option("--adapters", is_flag=True, help="Also the adapters, with the statistics that --store holds (zero-shot)."),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Feature store of the training; with --adapters."),
    click.option("--proxy", callback=folder_or_url, default=None, metavar="RUN|URL",
                 help="The proxy's run: its teachers' terms go into the card, its adapters into the chain."),
    click.option("--evaluation", "evaluations", multiple=True, type=FILE,
                 help="Another JSON result for the model card, beside those in RUN's evaluations; repeatable."),
    JSON,
)  # fmt: skip
def export(as_json: bool, run_folder: Path | str, **values: Any) -> None:
    """Write a student in formats that people deploy. Each with a model card, checksums and a usage example."""
    run(actions.export, as_json, run=run_folder, **values)


@cli.command("import-weights")
@click.argument("source", type=PLACE)
@options(
    click.option("--out", type=FOLDER, required=True, help="A run's folder: a teacher, or a start."),
    input_size("the checkpoint's own"),
    JSON,
)
def import_weights(as_json: bool, **values: Any) -> None:
    """Take in a published student. SOURCE is an official EUPE .pth or .safetensors, a timm or a transformers folder."""
    run(actions.import_weights, as_json, **values)


@cli.command("convert-weights")
@click.argument("source", type=PLACE)
@options(click.option("--out", type=FILE, required=True, help="The safetensors file to write."), JSON)
def convert_weights(as_json: bool, **values: Any) -> None:
    """Turn a teacher's .pt into safetensors.

    SOURCE (.pt or .pth) is a flat state dict of plain tensors; nothing from it is run.
    """
    from . import actions

    run(actions.convert_weights, as_json, **values)


@cli.group()
def benchmark() -> None:
    """Measure how fast things are on this machine."""


@benchmark.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@options(
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of every runtime."),
    click.option("--warmup", type=click.IntRange(0), default=10, show_default=True, help="Calls before the first that counts."),
    click.option("--calls", type=click.IntRange(1), default=50, show_default=True, help="Calls that count."),
    click.option("--runtime", "runtimes", multiple=True, help="One of the runtimes; repeatable; default: all that DIR holds."),
    JSON,
)
def latency(as_json: bool, **values: Any) -> None:
    """Time one picture in each runtime of an export. Those of DIR: eager, torch.compile, ONNX Runtime, ExecuTorch."""
    run(actions.latency, as_json, **values)


@cli.command()
@options(
    click.option("--out", type=FOLDER, default=Path("runs/demo"), show_default=True),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Feature store; default: OUT/store."),
    click.option("--fetch-only", is_flag=True, help="Fetch and verify the photos and weights, then stop."),
    JSON,
)
def demo(as_json: bool, out: Path, store: str | None, fetch_only: bool) -> None:
    """Go from photos and teachers to a report, in minutes."""
    run(actions.demo, as_json, out=out, store=store or str(out / "store"), fetch_only=fetch_only)


@cli.command()
@options(click.option("--folder", type=FOLDER, default=Path(), help="Where the disk is measured."), JSON)
def doctor(as_json: bool, folder: Path) -> None:
    """Print versions, devices, weights, traps and cures."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; --folder names an existing one whose disk is to be measured")
    run(examination.examine, as_json, folder=folder)
