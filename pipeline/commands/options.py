"""Options that several commands share, each defined once, and the click types and callbacks that parse their values.

A group of options has a TypedDict of what click makes of it, so that mypy compares them with the fields of the request that they fill.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import click

from ...storage.core.choices import CODECS, CONSTANTS, DEVICES, LICENCE_USES, PRECISIONS, Codec, Constants, LicenceUse, Precision
from ...storage.core.errors import BadInput
from ...storage.core.urls import absolute
from ...storage.views.input_size import SizePx, as_size, parse_size, size_hw

Command = TypeVar("Command", bound=Callable[..., Any])


LARGEST_PX = 8192  # of an input: beyond, one picture's tokens fill any memory


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


class InputSize(click.ParamType[Any]):
    """The side of a square in pixels, or HEIGHTxWIDTH."""

    name = "size"

    def __init__(self, largest_px: int) -> None:
        self.largest_px = largest_px

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SizePx:
        """Return the size; fail as click's own types do."""
        with contextlib.suppress(BadInput):
            size = parse_size(value) if isinstance(value, str) else as_size(value)
            if max(size_hw(size)) <= self.largest_px:
                return size
        self.fail(f"{value!r} is neither a side of 1 to {self.largest_px:,} px nor HEIGHTxWIDTH, such as 384x512", param, ctx)


def sizes(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, SizePx]:
    """Return repeated NAME=PIXELS words as a dict; PIXELS is a side, or HEIGHTxWIDTH."""
    kind, found = InputSize(LARGEST_PX), dict[str, SizePx]()
    for name, text in pairs(context, option, values).items():
        try:
            found[name] = kind.convert(text, option, context)
        except click.BadParameter as error:
            wanted = f"{option.make_metavar(context)} with 1 to {LARGEST_PX:,} px"
            raise click.BadParameter(f"{f'{name}={text}'!r} is not {wanted}, or HEIGHTxWIDTH", context, option) from error
    return found


def patch_cell(context: click.Context, option: click.Parameter, value: str) -> tuple[int, int]:
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


def cosine_or_auto(context: click.Context, option: click.Parameter, value: str | None) -> float | Literal["auto"] | None:
    """Return a threshold of a cosine, above 0 and at most 1, or the word auto."""
    if value is None or value == "auto":
        return "auto" if value else None
    cosine = _number(value)
    if cosine is None or not 0 < cosine <= 1:
        raise click.BadParameter(f"{value!r} is neither a cosine above 0 and at most 1, such as 0.95, nor auto", context, option)
    return cosine


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def bytes_of(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Return the bytes of a size such as 200GB, 1.5 TB or 500MiB."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise click.BadParameter(f"{value!r} is not a size such as 200GB, 1.5TB or 500MiB", context, option)
    return round(float(match[1]) * _UNITS[match[2].upper()])


def count_or_share(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Return a count of at least 1, or a share between 0 and 1, which may be in percent."""
    if value is None:
        return None
    number = _number(value)
    if value.endswith("%"):
        number = _number(value[:-1])
        number = None if number is None or not 0 < number < 100 else number / 100
    if number is None or not 0 < number <= 2**53 or (number >= 1 and not value.isdecimal()):
        raise click.BadParameter(f"{value!r} is neither a number of images nor a share such as 0.5 or 50%", context, option)
    return number


def share_held_out(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Return a share from 0 to below 1, which may be in percent; 1 is refused, because it may mean one percent or everything."""
    if value is None:
        return None
    share = _number(value.removesuffix("%"))
    share = share / 100 if share is not None and value.endswith("%") else share
    if share is not None and 0 <= share < 1:
        return share
    why = "is not a share such as 1% or 0.01"
    if share is not None and 1 <= share < 100 and not value.endswith("%"):
        why = f"would hold out every image; a share is below 1: for {share:g} percent say {share:g}% or {share / 100:g}"
    elif share is not None and share >= 1:
        why = "would hold out every image, and none would be left to train on; say 1% or 0.01"
    raise click.BadParameter(f"{value!r} {why}", context, option)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def grid_of(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return (rows, columns) of a word such as 16x16."""
    if value is None:
        return None
    rows, _, columns = value.lower().replace("×", "x").partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise click.BadParameter(f"{value!r} is not ROWSxCOLUMNS, such as 16x16", context, option)
    return int(rows), int(columns)


def layer_list(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the blocks of a word such as 4,8,12."""
    words = [] if value is None else value.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise click.BadParameter(f"{value!r} is not N,N,…: numbers of blocks, counted from 1, such as 4,8,12", context, option)
    return tuple(int(word) for word in words)


def layer_weights(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    """Return repeated [TEACHER/]BLOCK=WEIGHT words as a dict."""
    words = pairs(context, option, values)
    weights = {layer: _number(value) for layer, value in words.items()}
    bad = [f"{layer}={words[layer]}" for layer, weight in weights.items() if weight is None]
    if bad:
        raise click.BadParameter(f"{bad[0]!r} is not {option.make_metavar(context)} with a number as weight", context, option)
    return {layer: weight for layer, weight in weights.items() if weight is not None}


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator for several options, shown in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(decorators):
            command = option(command)
        return command

    return decorate


def input_size(default: str) -> Callable[[Command], Command]:
    """Return the option --size, an input's side in pixels or HEIGHTxWIDTH; `default` says what it is without."""
    return click.option("--size", "size_px", type=InputSize(LARGEST_PX), default=None, metavar="PX",
                        help=f"Input size, as 256 or 384x512; default: {default}.")  # fmt: skip


FOLDER = AbsolutePath(file_okay=False, path_type=Path)


FILE = AbsolutePath(dir_okay=False, path_type=Path)


PATH = AbsolutePath(path_type=Path)


STORE = click.option(
    "--store", required=True, callback=store_url, metavar="URL", help="Feature store: a folder or an fsspec URL such as s3://…."
)


JSON_HELP = "Print events and the result as JSON lines on stdout."
JSON = click.option("--json", "as_json", is_flag=True, help=JSON_HELP)


DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


BAD_SHARE = click.option("--max-bad-share", type=click.FloatRange(0, 1), default=0.001, show_default=True,
                         help="Stop when more than this share of the images cannot be read.")  # fmt: skip


RANDOM = click.option("--allow-random-weights", is_flag=True, help="For trials: a teacher without weights gets random ones, and says so.")


SETTINGS = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Overlay one recipe value (TOML syntax); repeatable.")


TEACHER = click.option("--teacher", default=None,
                       help="The teacher that made the set, its run's folder or its FILE; default: by the set's name.")  # fmt: skip


WEIGHTS_FILE = click.option("--weights", type=PATH, default=None, help="Its weight file; default: the weights folder.")


DATA = click.option("--data", required=True, help="Dataset, by name or name@digest.")


STAGE = click.option("--stage", type=click.IntRange(1, 3), default=None, help="One stage of a recipe that holds several.")


TEACHERS = (
    click.option(
        "--teacher",
        "teachers",
        multiple=True,
        required=True,
        help="Teacher's name, a run's folder, FILE.onnx, or FILE.py:FUNCTION, whose code is run here and by the workers; repeatable.",
    ),
    click.option(
        "--teacher-size",
        "teacher_sizes",
        multiple=True,
        metavar="TEACHER=PX",
        callback=sizes,
        help="Input size, as 256 or 384x512; default: own.",
    ),
    click.option("--weights", multiple=True, metavar="TEACHER=PATH", callback=pairs, help="Weight file; default: the weights folder."),
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="auto: by device."),
    click.option("--recipe", default=None, help="Recipe's name or TOML file whose views are drawn; default: a crop and a flip."),
    STAGE,
    click.option("--views", type=click.IntRange(1), default=None, help="Recorded views of each image; default: the recipe's, or 1."),
    click.option("--codec", type=click.Choice(CODECS), default="int8", show_default=True),
    click.option("--tokens-per-view", type=click.IntRange(1), default=None, metavar="T", help="Keep T random patch tokens; default: all."),
    click.option("--grid", default=None, metavar="HxW", callback=grid_of, help="Store a larger teacher's grid resampled, as 16x16."),
    click.option(
        "--layers",
        default=None,
        metavar="N,N",
        callback=layer_list,
        help="Store these blocks' patch tokens too, counted from 1; the last block's are stored in any case.",
    ),
    click.option("--shard-images", "images_per_shard", type=click.IntRange(1), default=128, show_default=True, help="Images of one shard."),
    click.option("--batch-size", default="32", show_default=True, callback=count_or_auto, help="Views in one forward, or auto."),
    click.option("--constants", type=click.Choice(CONSTANTS), default="own", show_default=True, help="Mean and std of the input."),
    RANDOM,
)


LICENCES = (
    click.option("--require-licence", type=click.Choice(LICENCE_USES), default=None,
                 help="Compute nothing unless the terms of all weights behind the student allow this use."),
    click.option("--terms", multiple=True, metavar="TEACHER=LICENCE", callback=pairs,
                 help="Declare the licence of weights whose terms are not known, as Apache-2.0 or commercial:WORDS; recorded."),
)  # fmt: skip


class ExtractionValues(TypedDict):
    """The values of STORE, DATA, TEACHERS, PIXELS and LICENCES."""

    store: str
    data: str
    teachers: tuple[str, ...]
    teacher_sizes: dict[str, SizePx]
    weights: dict[str, str]
    precision: Precision
    recipe: str | None
    stage: int | None
    views: int | None
    codec: Codec
    tokens_per_view: int | None
    grid: tuple[int, int] | None
    layers: tuple[int, ...]
    images_per_shard: int
    batch_size: int | None
    constants: Constants
    allow_random_weights: bool
    pixels_px: SizePx | None
    require_licence: LicenceUse | None
    terms: dict[str, str]


PIXELS = click.option("--pixels", "pixels_px", type=InputSize(4096), default=None, metavar="PX",
                      help="Store the views' pixels too, at the student's size, as 256 or 384x512: training needs no images.")  # fmt: skip


ANY_STORE = click.option(
    "--store", default=None, callback=store_url, metavar="URL", help="Feature store; default: one below $EUPE_PIPELINE_HOME."
)


RESULTS = click.option("--out", type=FOLDER, default=None, help="Folder that keeps the result; default: MODEL's own.")


TEST_IMAGES = click.option("--test-images", type=click.IntRange(1), default=None, help="Take a random sample of this many; default: all.")


FORWARD = click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images in one forward.")


INPUT_SIZE = input_size("the model's")


OVERLAP = click.option("--allow-overlap", is_flag=True, help="Test on images that are learnt from as well; say it instead of refusing.")


DEVICE = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)


SEED = click.option("--seed", type=int, default=0, show_default=True)


EVALUATED_WEIGHTS = click.option("--weights", type=PATH, default=None, help="A named teacher's weight file.")


IMAGES = click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=PATH)


PNG = click.option("--out", type=FILE, required=True, callback=png_file, metavar="FILE.png", help="Where it goes.")


MODELS = (
    click.option("--model", "models", multiple=True, required=True, metavar="NAME", help="Teacher's name or a run's folder; repeatable."),
    input_size("each model's own"),
    click.option("--model-size", "model_sizes", multiple=True, callback=sizes, metavar="NAME=PX", help="Another size for one model."),
    click.option("--weights", multiple=True, callback=pairs, metavar="NAME=PATH", help="A model's weight file; repeatable."),
)


class ModelsValues(TypedDict):
    """The values of MODELS."""

    models: tuple[str, ...]
    size_px: SizePx | None
    model_sizes: dict[str, SizePx]
    weights: dict[str, str]
