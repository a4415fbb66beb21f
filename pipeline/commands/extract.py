"""`index`, `extract-features`, `plan`: from images to feature sets."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack

import click

from ...storage.core.choices import (
    NORMALISATIONS,
    ORIENTATIONS,
    PAD_POSITIONS,
    PHOTOMETRIC_MODES,
    RENDERERS,
    RESIZE_ON,
    VIEW_KINDS,
    Normalisation,
    Orientation,
    PadPosition,
    PhotometricMode,
    RendererName,
    ResizeOn,
    ViewKind,
)
from ...storage.core.events import OnEvent
from .group import cli, run
from .options import BAD_SHARE, DATA, DRY_RUN, JSON, LICENCES, PIXELS, STORE, TEACHERS, ExtractionValues, options, pairs

if TYPE_CHECKING:
    from ...jobs.extraction.options import ExtractOptions
    from ...student.model.recipe import TrainRecipe


@cli.command()
@click.argument("source")
@options(
    STORE,
    click.option("--name", required=True, help="What the dataset is called."),
    click.option("--verify", is_flag=True, help="Only compare the source with the index that is there, image by image."),
    click.option("--dense-targets", is_flag=True, help="Take files such as 1.seg.png or 1.depth.png beside 1.jpg as images too."),
    click.option("--orientation", type=click.Choice(ORIENTATIONS), default=None,
                 help="Turn images as their EXIF orientation asks for, or leave them; default: as the dataset has it, or upright."),
    click.option("--allow-removed", is_flag=True, help="Mark images that left a known source as removed, instead of refusing it."),
    BAD_SHARE, JSON,
)  # fmt: skip
def index(
    as_json: bool,
    source: str,
    store: str,
    name: str,
    verify: bool,
    dense_targets: bool,
    orientation: Orientation | None,
    allow_removed: bool,
    max_bad_share: float,
) -> None:
    """Index images where they lie. SOURCE is a folder tree, WebDataset tars, or Parquet files with image bytes. One that grew is its
    dataset's next version."""
    from ...storage.index import IndexOptions
    from ...storage.index import index as index_source

    options = IndexOptions(source, store, name, max_bad_share, verify, dense_targets, orientation, allow_removed)
    run(lambda on_event: index_source(options, on_event), as_json)


def colour(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    """Return R,G,B as three levels from 0 to 255."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")]
    if len(words) != 3 or not all(word.isascii() and word.isdigit() and int(word) <= 255 for word in words):
        raise click.BadParameter(f"{value!r} is not R,G,B, such as 114,114,114", context, option)
    red, green, blue = map(int, words)
    return red, green, blue


@cli.command("extract-features")
@options(
    STORE, DATA, *TEACHERS, PIXELS, *LICENCES,
    click.option("--photometric", type=click.Choice(PHOTOMETRIC_MODES), default=None,
                 help="Who sees colour jitter, blur, solarisation: nobody, both, the student; default: the recipe's, or none."),
    click.option("--view-kind", type=click.Choice(VIEW_KINDS), default=None,
                 help="Default: the recipe's, or random_resized_crop; whole images are stretched to the input, letterboxed ones padded."),
    click.option("--pad-position", type=click.Choice(PAD_POSITIONS), default=None,
                 help="Of a letterbox's padding: right or bottom (end), or both sides; default: the recipe's, or end."),
    click.option("--pad-rgb", metavar="R,G,B", default=None, callback=colour,
                 help="Its colour, three levels from 0 to 255; default: the recipe's, or 124,116,104."),
    click.option("--seed", type=int, default=None, help="Seed of the views; default: the recipe's, or 0."),
    click.option("--statistics-batches", type=click.IntRange(1), default=None,
                 help="Of 32 views, for mean and std; default: all of up to 8,000 views, which pass the teacher once, 3 % of more."),
    click.option("--normalisation", type=click.Choice(NORMALISATIONS), default="mean-std", show_default=True, help="Of tokens."),
    click.option("--statistics-from", multiple=True, metavar="KEY", help="Use a feature set's statistics again; repeatable."),
    click.option("--workers", type=click.IntRange(0), default=None, help="Extracting actors; default: one a GPU or core; 0: none."),
    click.option("--num-gpus", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="GPUs of one worker."),
    click.option("--teacher-device", "teacher_devices", multiple=True, metavar="TEACHER=cuda:1", callback=pairs, help="Of a worker's."),
    click.option("--compile", is_flag=True, help="Teachers through torch.compile; a canary says whether tokens are the same."),
    click.option("--renderer", type=click.Choice(RENDERERS), default="auto", show_default=True,
                 help="What decodes and resizes new views; auto: as the store's own views, else fast; nvjpeg: a GPU decodes JPEGs."),
    click.option("--resize", type=click.Choice(RESIZE_ON), default="host", show_default=True,
                 help="Where views are resized, to the same bytes: by the processor, or in batches on the teacher's device."),
    click.option("--teachers-at-once", type=click.IntRange(1), default=None, help="Loaded at the same time; default: all."),
    click.option("--address", default=None, help="Ray cluster; default: one is started on this machine."),
    BAD_SHARE, DRY_RUN, JSON,
)  # fmt: skip
def extract_features(
    as_json: bool, photometric: PhotometricMode | None, view_kind: ViewKind | None, pad_position: PadPosition | None,
    pad_rgb: tuple[int, int, int] | None, seed: int | None, statistics_batches: int | None,
    normalisation: Normalisation, statistics_from: tuple[str, ...], workers: int | None, num_gpus: float, teacher_devices: dict[str, str],
    compile: bool, renderer: RendererName, resize: ResizeOn, teachers_at_once: int | None, address: str | None, max_bad_share: float,
    dry_run: bool, **values: Unpack[ExtractionValues],
) -> None:  # fmt: skip
    """Run teachers once and keep their tokens. Run again, it does only what is missing."""

    def work(on_event: OnEvent) -> Mapping[str, Any]:
        from ...jobs.extraction.extract import extract_features as extract

        request = extraction(values, on_event, devices=teacher_devices, kind=view_kind, seed=seed, photometric=photometric,
                             pad_position=pad_position, pad_rgb=pad_rgb)  # fmt: skip
        options = replace(
            request, statistics_batches=statistics_batches, normalisation=normalisation, statistics_from=statistics_from, workers=workers,
            num_gpus=num_gpus, compile=compile, renderer=renderer, resize=resize, teachers_at_once=teachers_at_once,
            address=address, max_bad_share=max_bad_share, dry_run=dry_run,
        )  # fmt: skip
        return extract(options, on_event)

    run(work, as_json)


def extraction(
    values: ExtractionValues, on_event: OnEvent, *, devices: Mapping[str, str] = MappingProxyType({}), kind: ViewKind | None = None,
    seed: int | None = None, photometric: PhotometricMode | None = None, pad_position: PadPosition | None = None,
    pad_rgb: tuple[int, int, int] | None = None,
) -> "ExtractOptions":  # fmt: skip
    """Return the extraction that the shared options describe, over a recipe's views, overridden by the options for views."""
    from ...jobs.extraction.options import ExtractOptions, teacher_requests
    from ..recipes.views import chosen_views

    teachers = teacher_requests(values["teachers"], values["teacher_sizes"], values["weights"], devices)
    spec, value_origins = chosen_views(
        values["recipe"], values["stage"], on_event, kind=kind, views_per_image=values["views"], seed=seed, photometric=photometric,
        pixels_px=values["pixels_px"], pad_position=pad_position, pad_rgb=pad_rgb,
    )  # fmt: skip
    return ExtractOptions(
        store=values["store"], data=values["data"], teachers=teachers, views=spec, precision=values["precision"], codec=values["codec"],
        tokens_per_view=values["tokens_per_view"], grid=values["grid"], images_per_shard=values["images_per_shard"],
        layers=values["layers"], batch_size=values["batch_size"], constants=values["constants"],
        allow_random_weights=values["allow_random_weights"], require_licence=values["require_licence"], terms=values["terms"],
        view_values=None if values["recipe"] is None else value_origins,
    )  # fmt: skip


def stage3_of(recipe: str | None, stage: int | None, student: str | None) -> "TrainRecipe | None":
    """Return the stage 3 of a recipe where it is that stage which is asked for, with the student that is given; None for others."""
    from ..recipes.load import load_recipe, read_document

    if recipe is None or (stage or read_document(recipe)[1].get("stage")) != 3:
        return None
    return load_recipe(recipe, stage=3, settings=[] if student is None else [f"student.architecture={student}"]).recipe


PRICE = click.FloatRange(0)


@cli.command()
@options(
    STORE, DATA, *TEACHERS, PIXELS, *LICENCES,
    click.option("--student", default=None, help="Architecture that will be trained; default: of stage 3 the recipe's, else eupe_vitt16."),
    click.option("--student-rate", "student_images_per_s", type=float, default=None, help="Its images a second; default: measured here."),
    click.option("--epochs", "epochs_of_a_run", type=float, default=100.0, show_default=True, help="Epochs of one student's run."),
    click.option("--device-hour", type=PRICE, default=0.0, metavar="MONEY", help="Price of a device for an hour."),
    click.option("--gigabyte-month", type=PRICE, default=0.0, metavar="MONEY", help="Price of storage."),
    click.option("--months", type=PRICE, default=12.0, show_default=True, help="How long the store is kept."),
    JSON,
)  # fmt: skip
def plan(
    as_json: bool, student: str | None, student_images_per_s: float | None, epochs_of_a_run: float, device_hour: float,
    gigabyte_month: float, months: float, **values: Unpack[ExtractionValues],
) -> None:  # fmt: skip
    """Say what an extraction costs, and when it pays. Bytes, device hours and money, from a few measured batches.

    With a recipe's stage 3 (--stage 3; default: eupe-stage3), also both ways to its targets: sets of each drawn size, or the live proxy."""

    def work(on_event: OnEvent) -> Mapping[str, Any]:
        from ...jobs.estimates.cost_model import Prices
        from ...jobs.estimates.extraction import PlanOptions, plan_extraction

        if values["stage"] == 3 and values["recipe"] is None:
            values["recipe"] = "eupe-stage3"
        stage3 = stage3_of(values["recipe"], values["stage"], student)
        of_recipe = None if stage3 is None else {**stage3.student.options, "name": stage3.student.architecture}
        options = PlanOptions(
            extraction(values, on_event), student or of_recipe or "eupe_vitt16", student_images_per_s=student_images_per_s,
            epochs_of_a_run=epochs_of_a_run, prices=Prices(device_hour, gigabyte_month, months), stage3=stage3,
        )  # fmt: skip
        return plan_extraction(options, on_event)

    run(work, as_json)
