"""`export`: a finished run, here or at a URL, in the formats that people deploy; its model card knows every evaluation."""

from dataclasses import replace
from typing import Any

from ..storage.core.events import OnEvent, ignore_event
from ..student.export.export import ExportOptions, export
from .evaluation.registry import hub_tasks
from .runs.run_source import local_run

__all__ = ["ExportOptions", "export_run"]


def export_run(options: ExportOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Write OUT/FORMAT for each format and return {format: {file, facts}}; a run or a proxy at a URL is fetched first. Raises BadInput."""
    proxy = None if options.proxy is None else local_run(options.proxy)
    return {**export(replace(options, run=local_run(options.run), proxy=proxy), on_event, hub_tasks()), "run": str(options.run)}
