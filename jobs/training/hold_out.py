"""The hold-out of a run: checked before anything is built, said, and recorded so that a run that goes on holds out the same images.

`data._order_of` leaves them out of the order, whatever kind of order it is; here nothing is drawn. Which images they are follows from
their ids and the recipe's `data.hold_out` (`storage.images.hold_out`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent
from ...storage.core.urls import is_url
from ...storage.images.dataset import ImageDataset
from ...storage.images.hold_out import RULE, Int64s, UInt64s, held_out_images, hold_out_ranks, share_of_rank
from ...student.export.lineage import part_of, read_record, recorded_share
from ...student.model.recipe import TrainRecipe
from ..runs.run_source import local_run
from .data import Part, excluded_images


def check_hold_out(share: float, parts: Sequence[Part], on_event: OnEvent, starts: Iterable[str] = ()) -> None:
    """Say how many images are held out; raises `BadInput` where a share selects none of a run's images, or all of a dataset's.

    Warns where one of `starts`, the runs whose weights are taken over, was trained on some of them.
    """
    if not share:
        return
    candidates = {part.views.dataset: _candidates(part) for part in parts}
    held_out = {dataset: np.intersect1d(held_out_images(dataset, share), images) for dataset, images in candidates.items()}
    if not any(map(len, candidates.values())):
        return  # the order says that nothing is left
    if not any(map(len, held_out.values())):
        raise BadInput(_none_held_out(share, candidates))
    for dataset, images in candidates.items():
        counts = f"data.hold_out = {share:.3g} holds out {len(held_out[dataset]):,} of {len(images):,} images of {dataset.key}"
        if len(held_out[dataset]) == len(images):
            last = share_of_rank(int(_ranks(dataset, images).max()))
            raise BadInput(f"{counts}, and none is left to train on; take a share below {last:.3g}")
        on_event({"event": "note", "text": f"{counts}, by their ids; they are never drawn"})
    for start in dict.fromkeys(filter(None, starts)):
        _warn_of_start(start, share, on_event)


def _candidates(part: Part) -> Int64s:
    """Return the images that are either drawn or held out: those with tokens, in the subset."""
    images = np.arange(len(part.views.dataset), dtype=np.int64) if part.subset is None else part.subset.stays()
    return np.setdiff1d(images, excluded_images(part.every_reader))


def _ranks(dataset: ImageDataset, images: Int64s) -> UInt64s:
    return hold_out_ranks(dataset.ids(0, len(dataset)))[images]


def _none_held_out(share: float, candidates: Mapping[ImageDataset, Int64s]) -> str:
    """Return the error, with the least share that would select an image."""
    first = min(share_of_rank(int(_ranks(dataset, images).min())) for dataset, images in candidates.items() if len(images))
    there, names = sum(map(len, candidates.values())), ", ".join(dataset.key for dataset in candidates)
    return (
        f"--hold-out {share:.3g} holds out none of {there:,} images of {names}: the share is of the hashes of their ids, and the first of "
        f"these lies at {first:.3g}; give a share above that, as large as a good sample needs (20 images or more)"
    )


def _warn_of_start(start: str, share: float, on_event: OnEvent) -> None:
    """Warn where the weights that a run starts from, or that those started from, come of a run that held out less.

    An imported model and a random start have seen nothing that is recorded; runs further back are looked at on this machine alone.
    """
    run, looked_at = local_run(start), set[Path]()
    while part_of(run) != "initial" and run not in looked_at and (record := read_record(run, "recipe.json")):
        looked_at.add(run)
        before = recorded_share(run)
        if before < share:
            text = f"{start} was trained with data.hold_out = {before:.3g}, so it may have seen images that are held out here"
            on_event({"event": "warning", "text": f"{text}; agreement on them then flatters this run. Give all stages one --hold-out"})
            return
        start = str(record["recipe"]["student"].get("init_from", ""))
        if not start or is_url(start):
            return
        run = Path(start)


def hold_out_record(recipe: TrainRecipe, parts: Iterable[Part]) -> dict[str, Any]:
    """Return what a run records of its hold-out: by which rule, and how many images of each dataset; {} without, as runs of before."""
    share = recipe.data.hold_out
    if not share:
        return {}
    counts = {part.views.dataset.key: len(held_out_images(part.views.dataset, share)) for part in parts}
    return {"hold_out": {"rule": RULE, "images": counts}}
