"""`distill`: from a folder of photos to deployed students."""

import sys
from pathlib import Path
from typing import Any

import click

from ...storage.core.choices import DISTILL_STAGES, EXPORT_FORMATS, GRAPH_EXPORTS, TARGET_SOURCES, DistillStages, LicenceUse, TargetSource
from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx
from .export import FormatName
from .group import cli, run
from .options import BAD_SHARE, JSON, LAYER_WEIGHTS, LAYERS, LICENCES, OVERLAP, TEACHERS, bytes_of, folder_or_url, options, sizes, store_url

NO_EXPORT = "none"


class FormatOrNone(FormatName):
    """The name of an export format, or none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name; raises click's usage error for an unknown one."""
        return value if value == NO_EXPORT else super().convert(value, param, ctx)


@cli.command()
@click.argument("photos")
@options(
    TEACHERS[0],
    click.option("--teacher-size", "teacher_sizes", multiple=True, metavar="TEACHER=PX", callback=sizes,
                 help="Input size; default: by rule, from the photos' size."),
    TEACHERS[2],
    click.option("--student", "students", multiple=True, required=True, metavar="NAME",
                 help="Architecture; repeatable, each has its own runs."),
    click.option("--out", required=True, callback=folder_or_url, metavar="FOLDER",
                 help="Folder of the result; run again, it goes on from what is there."),
    click.option("--test", default=None, metavar="PHOTOS", help="Labelled images that nothing is learnt from, for kNN: a folder a class."),
    click.option("--stages", type=click.Choice(DISTILL_STAGES), default="auto", show_default=True,
                 help="auto: 2 with one teacher, 1,2,3 with several."),
    LAYERS, LAYER_WEIGHTS,
    click.option("--proxy", default=None, metavar="NAME", help="Architecture of stage 1's proxy; default: by rule."),
    click.option("--targets", type=click.Choice(TARGET_SOURCES), default=None,
                 help="Of stage 3: from feature sets of each drawn size, or the proxy beside the student; default: by rule live."),
    click.option("--budget", "budget_bytes", default=None, callback=bytes_of, metavar="SIZE", help="Most that tokens may take, as 200GB."),
    click.option("--hours", type=click.FloatRange(0, min_open=True), default=None, help="Most time for extraction and training."),
    click.option("--export", "exports", multiple=True, type=FormatOrNone((*EXPORT_FORMATS, *GRAPH_EXPORTS)),
                 help="Format, a graph for devices among them, or none; repeatable; default: timm, else onnx."),
    click.option("--store", default=None, callback=store_url, metavar="URL",
                 help="Feature store; default: `store` beside OUT, for later calls too."),
    click.option("--name", default=None, help="What the dataset is called; default: as the photos' folder."),
    click.option("--recipe", default=None, help="Recipe with a table a stage, in the place of the rules; a name or a TOML file."),
    click.option("--workers", type=click.IntRange(0), default=None,
                 help="Extracting actors, on a cluster also the training's ranks; default: one a GPU or core; 0: none."),
    click.option("--address", default=None, help="Ray cluster; default: one is started on this machine."),
    OVERLAP, BAD_SHARE,
    click.option("--allow-removed", is_flag=True, help="Mark images that left the photos or the test images as removed, and go on."),
    *LICENCES,
    click.option("--yes", is_flag=True, help="Do not ask before long or large work."),
    click.option("--dry-run", is_flag=True, help="Decide, measure and say the plan; write nothing."), JSON,
)  # fmt: skip
def distill(
    as_json: bool, photos: str, teachers: tuple[str, ...], teacher_sizes: dict[str, SizePx], weights: dict[str, str],
    students: tuple[str, ...], out: Path | str, test: str | None, stages: DistillStages, layers: tuple[int, ...],
    weight_of_layer: dict[str, float], proxy: str | None, targets: TargetSource | None, budget_bytes: int | None, hours: float | None,
    exports: tuple[str, ...], store: str | None, name: str | None, recipe: str | None, workers: int | None, address: str | None,
    allow_overlap: bool, max_bad_share: float, allow_removed: bool, require_licence: LicenceUse | None, terms: dict[str, str], yes: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Go from photos to deployed students in one command. PHOTOS is a folder tree, WebDataset tars, or Parquet files with image bytes.

    Indexes, decides by rule, says the plan and what it costs, extracts, trains, evaluates, exports and writes a report.
    """
    from ...jobs.extraction.options import teacher_requests
    from ..console.plain_text import readable
    from ..console.progress import reporter
    from ..distillation.distill import prepare
    from ..distillation.options import DistillOptions
    from ..distillation.plan import needs_consent

    if NO_EXPORT in exports and len(exports) > 1:
        raise BadInput(f"--export {NO_EXPORT} means no format, and {', '.join(sorted(set(exports) - {NO_EXPORT}))} is asked for as well")
    request = DistillOptions(
        photos=photos, out=out, teachers=teacher_requests(teachers, teacher_sizes, weights), students=students, test=test, stages=stages,
        proxy=proxy, budget_bytes=budget_bytes, hours=hours, exports=() if NO_EXPORT in exports else exports or None, store=store,
        name=name, recipe=recipe, allow_overlap=allow_overlap, workers=workers, address=address, dry_run=dry_run,
        require_licence=require_licence, terms=terms, layers=layers, layer_weights=weight_of_layer,
        targets=targets, max_bad_share=max_bad_share, allow_removed=allow_removed,
    )  # fmt: skip
    with reporter(as_json=as_json) as on_event:
        prepared = prepare(request, on_event)
    if dry_run:
        run(lambda on_event: {"dry_run": True, **prepared.plan}, as_json)
        return
    if not as_json:
        print(readable(prepared.plan), file=sys.stderr, flush=True)
    cost = needs_consent(prepared.plan)
    if cost is not None and not yes:
        ask(cost, as_json)
    run(prepared.run, as_json)


def ask(cost: str, as_json: bool) -> None:
    """Ask on the terminal whether to go on; raises BadInput where nobody can answer, and click's Abort for a no."""
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInput(
            f"the plan takes {cost}; nothing was computed yet. Say --yes to do it without being asked, or give --hours or --budget"
        )
    click.confirm(f"This takes {cost}. Go on?", abort=True, err=True)
