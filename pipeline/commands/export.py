"""`export`, `import-weights`, `convert-weights`, `benchmark`, `push` and `pull`: students out of the pipeline and into it."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from ...storage.core.choices import EXPORT_FORMATS, GRAPH_PRECISIONS, GRAPH_TARGETS, ExportFormat, GraphPrecision, GraphTarget
from ...storage.views.input_size import SizePx
from .group import cli, run
from .options import DRY_RUN, FILE, FOLDER, JSON, PATH, folder_or_url, input_size, options, store_url


class FormatName(click.Choice):  # type: ignore[type-arg] # generic since click 8.2, and 8.1 is enough
    """The name of one of our formats, or of one that an installed plug-in adds; those are looked for only where ours are not meant."""

    name = "choice"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name; raises click's usage error for an unknown one."""
        if value not in self.choices and any(plugin.name == value for plugin in entry_points(group="eupe_pipeline.exports")):
            return value
        return super().convert(value, param, ctx)


@cli.command()
@click.argument("run_folder", metavar="RUN|URL", callback=folder_or_url)
@options(
    click.option("--format", "formats", multiple=True, required=True,
                 type=FormatName(EXPORT_FORMATS), help="Repeatable."),
    click.option("--out", type=FOLDER, required=True, help="Gets one folder a format."),
    input_size("the run's own"),
    click.option("--adapters", is_flag=True, help="Also the adapters, with the statistics that --store holds (zero-shot)."),
    click.option("--store", default=None, callback=store_url, metavar="URL",
                 help="Feature store of the training; with --adapters, and for int8."),
    click.option("--proxy", callback=folder_or_url, default=None, metavar="RUN|URL",
                 help="The proxy's run: its teachers' terms go into the card, its adapters into the chain."),
    click.option("--evaluation", "evaluations", multiple=True, type=FILE,
                 help="Another JSON result for the model card, beside those in RUN's evaluations; repeatable."),
    click.option("--target", type=click.Choice(GRAPH_TARGETS), default="open", show_default=True,
                 help="ONNX for inputs of any size, or of one shape and opset 18 for edge devices."),
    click.option("--precision", type=click.Choice(GRAPH_PRECISIONS), default="fp32", show_default=True,
                 help="Numbers of an edge graph; int8 also of ExecuTorch."),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures at once of an edge graph."),
    click.option("--head", "heads", multiple=True, metavar="[NAME=]HEAD",
                 help="A head that an evaluation of RUN kept (linear, segmentation, …, a file) goes along; repeatable."),
    click.option("--calibrate", type=PATH, default=None, help="int8: pictures to measure ranges on, instead of views in --store."),
    click.option("--calibration-views", type=click.IntRange(1), default=256, show_default=True, help="int8: how many are measured."),
    JSON,
)  # fmt: skip
def export(
    as_json: bool, run_folder: Path | str, formats: tuple[ExportFormat, ...], out: Path, size_px: SizePx | None, adapters: bool,
    store: str | None, proxy: Path | str | None, evaluations: tuple[Path, ...], target: GraphTarget, precision: GraphPrecision, batch: int,
    heads: tuple[str, ...], calibrate: Path | None, calibration_views: int,
) -> None:  # fmt: skip
    """Write a student in formats that people deploy. Each with a model card, checksums and a usage example."""
    from ...jobs.export_run import ExportOptions, export_run

    request = ExportOptions(
        run_folder,
        out,
        formats,
        size_px,
        adapters,
        store,
        proxy,
        evaluations,
        target,
        precision,
        batch,
        heads,
        calibrate,
        calibration_views,
    )
    run(lambda on_event: export_run(request, on_event), as_json)


@cli.command("import-weights")
@click.argument("source", type=PATH)
@options(
    click.option("--out", type=FOLDER, required=True, help="A run's folder: a teacher, or a start."),
    input_size("the checkpoint's own"),
    JSON,
)
def import_weights(as_json: bool, source: Path, out: Path, size_px: SizePx | None) -> None:
    """Take in a published student. SOURCE is an official EUPE .pth, .safetensors or index of several, a timm or a transformers folder."""
    from ...student.export.import_published import import_weights as import_published

    run(lambda on_event: import_published(source, out, size_px), as_json)


@cli.command("convert-weights")
@click.argument("source", type=PATH)
@options(click.option("--out", type=FILE, required=True, help="The safetensors file to write."), JSON)
def convert_weights(as_json: bool, source: Path, out: Path) -> None:
    """Turn a teacher's .pt into safetensors.

    SOURCE (.pt or .pth) is a flat state dict of plain tensors; nothing from it is run.
    """
    from ...teachers.checkpoints.convert import convert_weights as convert

    run(lambda on_event: convert(source, out), as_json)


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
def latency(as_json: bool, folder: Path, threads: int, warmup: int, calls: int, runtimes: tuple[str, ...]) -> None:
    """Time one picture in each runtime of an export. Eager, torch.compile, and what is installed for the formats in DIR."""
    from ...student.export.latency import LatencyOptions
    from ...student.export.latency import latency as measure

    request = LatencyOptions(folder, threads, warmup, calls, runtimes)
    run(lambda on_event: measure(request, on_event), as_json)


@cli.command()
@click.argument("what", metavar="FOLDER|KEY")
@options(
    click.option("--to", required=True, metavar="hub:OWNER/NAME", help="For a feature set hub:datasets/OWNER/NAME; made when absent."),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Store of the feature set KEY."),
    click.option("--private", is_flag=True, help="Make a new repository a private one."),
    DRY_RUN, JSON,
)  # fmt: skip
def push(as_json: bool, what: str, to: str, store: str | None, private: bool, dry_run: bool) -> None:
    """Send an export, run or feature set to a hub. Verified; run again, it sends what is missing. Your token is the one
    of `hf auth login`, or HF_TOKEN."""
    from ...jobs.hub.push import PushOptions
    from ...jobs.hub.push import push as send

    request = PushOptions(what, to, store, private, dry_run)
    run(lambda on_event: send(request, on_event), as_json)


@cli.command()
@click.argument("address", metavar="hub:OWNER/NAME@COMMIT")
@options(
    click.option("--out", type=FOLDER, default=None, help="Folder of an export or of a run."),
    click.option("--store", default=None, callback=store_url, metavar="URL", help="Store that gets a feature set, made when absent."),
    DRY_RUN, JSON,
)  # fmt: skip
def pull(as_json: bool, address: str, out: Path | None, store: str | None, dry_run: bool) -> None:
    """Fetch what `push` has sent. Every file is verified; run again, it fetches what is missing."""
    from ...jobs.hub.pull import PullOptions
    from ...jobs.hub.pull import pull as fetch

    request = PullOptions(address, out, store, dry_run)
    run(lambda on_event: fetch(request, on_event), as_json)
