"""`evaluate vlm`: a language model that sees by a model's patch tokens."""

from pathlib import Path
from typing import Any, TypedDict, Unpack

import click

from ...storage.core.choices import VLM_TASKS, VLM_TOKENS, Device, VlmTask, VlmTokens
from .evaluate import evaluate
from .group import run
from .options import ANY_STORE, DEVICE, DRY_RUN, EVALUATED_WEIGHTS, FILE, FOLDER, FORWARD, JSON, RESULTS, SETTINGS, options


def _data(name: str, what: str) -> tuple[Any, Any]:
    return (
        click.option(f"--{name}-data", type=FILE, required=True, metavar="JSON", help=f"{what}, in LLaVA's layout."),
        click.option(f"--{name}-images", type=FOLDER, required=True, metavar="DIR", help="Folder of their pictures."),
    )


class VlmValues(TypedDict):
    """The values of MODEL and of the other options of `evaluate vlm`."""

    model: str
    task: VlmTask
    task_data: Path
    llm: Path
    pretrain_data: Path
    pretrain_images: Path
    instruct_data: Path
    instruct_images: Path
    store: str | None
    tokens: VlmTokens
    batch_size: int
    micro_batch: int
    answer_batch: int
    keep_every: int
    workers: int
    address: str | None
    device: Device
    weights: Path | None
    out: Path | None
    dry_run: bool


@evaluate.command()
@click.argument("model")
@options(
    click.option("--task", type=click.Choice(VLM_TASKS), required=True),
    click.option("--task-data", type=FOLDER, required=True, metavar="DIR", help="Its official files; docs/evaluations.md lists them."),
    click.option("--llm", type=FOLDER, required=True, metavar="DIR", help="Language model with its tokenizer, a folder of transformers."),
    *_data("pretrain", "Captions"), *_data("instruct", "Conversations"),
    click.option("--recipe", default="llava-1.5", show_default=True, metavar="NAME|FILE", help="Of both stages and the prompt."),
    SETTINGS, ANY_STORE,
    click.option("--tokens", type=click.Choice(VLM_TOKENS), default="fp16", show_default=True,
                 help="Of training pictures: kept in the store, or computed in each step (live)."),
    FORWARD,
    click.option("--micro-batch", type=click.IntRange(1), default=16, show_default=True, help="Conversations in one forward."),
    click.option("--answer-batch", type=click.IntRange(1), default=16, show_default=True, help="Questions answered together."),
    click.option("--keep-every", type=click.IntRange(1), default=500, show_default=True, help="Steps between states to resume from."),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True,
                 help="Ranks of Ray Train that share the language model out; 0: this process alone."),
    click.option("--address", default=None, help="Ray cluster of the ranks; default: this machine."),
    DEVICE, EVALUATED_WEIGHTS, RESULTS, DRY_RUN, JSON,
)  # fmt: skip
def vlm(as_json: bool, recipe: str, settings: tuple[str, ...], **values: Unpack[VlmValues]) -> None:
    """Teach a language model to see by MODEL's patch tokens. It answers a task's questions; LLaVA's two stages."""
    from ...jobs.vlm.options import VlmOptions
    from ...jobs.vlm.vlm import evaluate_vlm
    from ..recipes.vlm import load_vlm_recipe

    resolved = load_vlm_recipe(recipe, settings)
    request = VlmOptions(recipe=resolved.recipe, origins=resolved.origins, **values)
    run(lambda on_event: evaluate_vlm(request, on_event), as_json)
