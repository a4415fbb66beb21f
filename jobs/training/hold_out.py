"""The hold-out of a run: checked before anything is built, said, and recorded so that a run that goes on holds out the same images.

`data._order_of` leaves them out of the order, whatever kind of order it is; here nothing is drawn. Which images they are follows from
their ids and the recipe's `data.hold_out` (`storage.images.hold_out`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.images.hold_out import RULE, Int64s, held_out_images, hold_out_ranks, share_of_rank
from ...student.export.lineage import read_record, recorded_share
from ...student.model.recipe import TrainRecipe
from ..runs.run_source import local_run
from .data import Part, excluded_images


def check_hold_out(share: float, parts: Sequence[Part], on_event: OnEvent, starts: Iterable[str] = ()) -> None:
    """Say how many images are held out; raises `BadInput` where a share selects none of a run's images, or all of a dataset's.

    Warns where one of `starts`, the runs whose weights are taken over, was trained on some of them.
    """
    if not share:
        return
    held_out = {part.name: np.setdiff1d(held_out_images(part.views.dataset, share), _left_out(part)) for part in parts}
    for part in parts:
        there = len(part.views.dataset) - len(_left_out(part))
        if len(held_out[part.name]) == there:
            raise BadInput(f"{_of(share, there, there, part)}, and none is left to train on; take a share below {_extremes(part)[1]:.3g}")
    if not sum(map(len, held_out.values())):
        there, nearest = sum(len(part.views.dataset) - len(_left_out(part)) for part in parts), min(_extremes(part)[0] for part in parts)
        names = ", ".join(part.views.dataset.key for part in parts)
        raise BadInput(
            f"--hold-out {share:.3g} holds out none of {there:,} images of {names}: the share is of the hashes of their ids, and the first "
            f"of these lies at {nearest:.3g}; give a share above that, as large as a good sample needs (20 images or more)"
        )
    for part in parts:
        count, there = len(held_out[part.name]), len(part.views.dataset) - len(_left_out(part))
        on_event({"event": "note", "text": f"{_of(share, count, there, part)}, by their ids; they are never drawn"})
    for start in filter(None, starts):
        _warn_of_start(start, share, on_event)


def _of(share: float, count: int, there: int, part: Part) -> str:
    return f"data.hold_out = {share:.3g} holds out {count:,} of {there:,} images of {part.views.dataset.key}"


def _left_out(part: Part) -> Int64s:
    """Return the images that no share would draw or measure: failed ones, and those outside of the subset."""
    failed = excluded_images(part.readers.values())
    return failed if part.subset is None else np.union1d(failed, part.subset.left_out())


def _extremes(part: Part) -> tuple[float, float]:
    """Return the shares at which the first and the last image of a dataset would be held out."""
    dataset, left_out = part.views.dataset, _left_out(part)
    ranks = np.delete(hold_out_ranks(dataset.ids(0, len(dataset))), left_out)
    return share_of_rank(int(ranks.min())), share_of_rank(int(ranks.max()))


def _warn_of_start(start: str, share: float, on_event: OnEvent) -> None:
    """Warn where the weights that a run starts from come of a run that held out less; an imported model has no recipe."""
    run = local_run(start)
    before = recorded_share(run)
    if read_record(run, "recipe.json") and before < share:
        text = f"{start} was trained with data.hold_out = {before:.3g}, so it may have seen images that are held out here"
        on_event({"event": "warning", "text": f"{text}; agreement on them then flatters this run. Give both stages one --hold-out"})


def hold_out_record(recipe: TrainRecipe, parts: Iterable[Part]) -> dict[str, Any]:
    """Return what a run records of its hold-out: by which rule, and how many images of each dataset; {} without, as runs of before."""
    share = recipe.data.hold_out
    if not share:
        return {}
    counts = {part.views.dataset.key: len(held_out_images(part.views.dataset, share)) for part in parts}
    return {"hold_out": {"rule": RULE, "images": counts}}


def trained_images(part: Part, share: float) -> Int64s | None:
    """Return the images that a run with this share may draw of a dataset, failed ones included; None for all."""
    if not share and part.subset is None:
        return None
    stays = np.arange(len(part.views.dataset), dtype=np.int64) if part.subset is None else part.subset.stays()
    return np.setdiff1d(stays, held_out_images(part.views.dataset, share))
