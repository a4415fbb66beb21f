"""What `train` does, without the command line: a recipe resolved, live teachers sorted out, then this process or several ranks.

Usable from a notebook as it is. Heavy imports stay inside the functions, as in `actions`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.core.urls import absolute, is_url
from ..recipes.load import ResolvedRecipe, load_recipe
from .actions import recipe_table

if TYPE_CHECKING:
    from ...jobs.training.evaluate_while_training import Watch


def train(*, stage: int, store: str, data: str | Sequence[str], features: Sequence[str], recipe: str | None,
          settings: Sequence[str], out: Path | str, proxy: Path | str | None, dry_run: bool, on_event: OnEvent, targets: str | None = None,
          live_teachers: Sequence[str] = (), students: Sequence[str] = (), workers: int = 0, address: str | None = None,
          allow_random_weights: bool = False, follow_minutes: float | None = None,
          shard_cache: Path | None = None, on_miss: str = "refuse", new_views: int = 1,
          evaluation: str | None = None, every: int = 2000, evaluate_data: str | None = None,
          evaluate_images: int = 2000, allow_overlap: bool = False) -> Mapping[str, Any]:  # fmt: skip
    """Run or resume one stage of distillation; with `dry_run` only say what it would need. Raises BadInput.

    `data` is one dataset, or several as NAME=SHARE, or none when the recipe mixes some.
    """
    from ...storage.core.cache_home import shards_folder
    from ...storage.store import FeatureStore

    dataset, shares = data_setting([data] if isinstance(data, str) else data)
    overlaid = [*settings, *([f"teacher.source={targets}"] if targets else []), *student_setting(students), *shares]
    resolved = load_recipe(recipe or f"eupe-stage{stage}", stage=stage, settings=overlaid)
    at_hand, live_teachers = (
        (live_teachers, ()) if on_miss == "compute" and resolved.recipe.teacher.source == "cached" else ((), live_teachers)
    )
    check_live_teachers(resolved, features, proxy, live_teachers)
    if on_miss == "compute" and follow_minutes is not None:
        raise BadInput("--follow waits for another process to extract, --on-miss compute extracts here; give one of them")
    cache = Path(absolute(str(shard_cache))) if shard_cache else shards_folder()
    opened = FeatureStore.open(store, shard_cache=cache)
    follow_s = None if follow_minutes is None else 60 * follow_minutes
    watch = watch_of(evaluation, every, evaluate_data, evaluate_images, allow_overlap)
    if dry_run:
        from ...jobs.estimates.training import plan_training

        complete = follow_s is None and on_miss == "refuse"
        plan = plan_training(resolved.recipe, opened, list(features), data=dataset, students=students, workers=workers,
                             complete=complete, begun=not is_url(str(out)) and any(Path(out).rglob("recipe.json")))  # fmt: skip
        return {"dry_run": True, "out": absolute(str(out)), **plan, "recipe": recipe_table(resolved.rows())}
    if on_miss == "compute":
        from ...jobs.training.fill_missing import fill_missing

        fill_missing(opened, features, list(resolved.recipe.data.shares) or [dataset], teachers=at_hand, views_per_image=new_views,
                     views=resolved.recipe.views.spec(),
                     allow_random_weights=allow_random_weights, on_event=on_event)  # fmt: skip
    if workers:
        from ...jobs.training.ranks import TrainOrder, train_on_workers

        order = TrainOrder(resolved.recipe, store, list(features), dataset, out, proxy, live_teachers, students, resolved.origins,
                           allow_random_weights, follow_s, cache, watch)  # fmt: skip
        return train_on_workers(order, workers, address=address, on_event=on_event)
    if address is not None:
        raise BadInput("--address is a Ray cluster's, and without --workers the training runs in this process; give --workers as well")
    from ...jobs.training.train import train as train_job

    return train_job(
        resolved.recipe, opened, list(features), data=dataset, out=out, proxy=proxy, live_teachers=live_teachers, students=students,
        on_event=on_event, origins=resolved.origins, allow_random_weights=allow_random_weights, follow_s=follow_s,
        watch=watch,
    )  # fmt: skip


def data_setting(data: Sequence[str]) -> tuple[str, list[str]]:
    """The one dataset, or "" and the recipe value that mixes several given as NAME=SHARE; raises BadInput."""
    if len(data) < 2 and "=" not in "".join(data):
        return "".join(data), []
    shares = [word.rpartition("=") for word in data]
    bad = [word for word, (name, _, share) in zip(data, shares, strict=True) if not name or not re.fullmatch(r"\d*\.?\d+", share)]
    if bad:
        raise BadInput(f"--data {bad[0]!r}: several datasets are given as NAME=SHARE, as in --data imagenet=0.1 --data lvd=0.9")
    return "", [f"data.shares={{{', '.join(f'{json.dumps(name)} = {float(share)}' for name, _, share in shares)}}}"]


def student_setting(students: Sequence[str]) -> list[str]:
    """One student is a recipe value like any other, with its origin; several have a run each."""
    return [f"student.architecture={students[0]}"] if len(students) == 1 else []


def watch_of(evaluation: str | None, every: int, data: str | None, images: int, allow_overlap: bool = False) -> "Watch | None":
    """The evaluation that goes on beside the training, None when none was asked for; raises BadInput for half of one."""
    from ...jobs.training.evaluate_while_training import Watch

    if (evaluation is None) != (data is None):
        raise BadInput("--evaluate and --evaluate-data go together: which evaluation, and on which labelled dataset that is not trained on")
    return None if evaluation is None or data is None else Watch(evaluation, every, data, images, allow_overlap)


def check_live_teachers(resolved: ResolvedRecipe, features: Sequence[str], proxy: Path | str | None, live_teachers: Sequence[str]) -> None:
    """Raise BadInput unless live targets have their teachers, and cached ones none."""
    live = resolved.recipe.teacher.source == "live"
    if proxy is not None and live_teachers:
        raise BadInput("--proxy and --teacher both name live teachers; give --teacher alone, one for each --features")
    names = {wanted.partition("@")[0] for wanted in features}
    if live_teachers and len(live_teachers) not in (len(features), len(names)):
        raise BadInput(f"{len(features)} --features need {len(features)} --teacher, one for each, got {len(live_teachers)}")
    if live and proxy is None and not live_teachers:
        raise BadInput(
            "the recipe's targets are live (teacher.source = 'live'), and no teacher was named: give --proxy RUN, the run whose model made "
            "the --features, or a --teacher for each of them"
        )
    if not live and (proxy is not None or live_teachers):
        raise BadInput(
            "the recipe's targets are cached (teacher.source = 'cached') and need no live teacher: leave --proxy and --teacher out, or say "
            "--targets live"
        )
