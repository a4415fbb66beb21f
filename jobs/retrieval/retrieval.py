"""Image–text retrieval of a model: recall at 1, 5 and 10 in both directions over a folder of pictures and a file of their captions.

Images go the way of zero-shot: class tokens, through adapters and statistics to a teacher's space, through the image projection of the text
tower's model. Only pictures with a caption take part; how many have none is said. See `recall` for the protocol and
`storage.annotations.captions` for the files of captions.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...storage.annotations.captions import Captions, place_captions, read_captions
from ...storage.annotations.layout_report import LayoutReport
from ...storage.core.choices import Device
from ...storage.core.errors import BadInput
from ...storage.core.events import OnEvent, ignore_event
from ...storage.core.identity import digest
from ...storage.images.dataset import ImageDataset
from ...storage.sources.folder_source import list_folder
from ...storage.store import FeatureStore
from ...student.probes.knn import Embeddings
from ...teachers.registry.text_tower import load_text_tower
from ...teachers.runtime.devices import choose_device
from ..evaluation.knn import evaluated
from ..evaluation.labelled_features import EvaluatedImages, Split, embed_images, open_data, open_store, read_embeddings, read_upright
from ..evaluation.models import CachedModel, Model, open_evaluated
from ..evaluation.zero_shot import check_tower, doubts_of, projected, to_teacher_space
from .recall import retrieval_recalls

_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """A retrieval evaluation: of which model, over which pictures and captions, in which text tower's space."""

    model: str
    """A run's folder, an exported folder, a checkpoint file, a teacher, or a feature set (read, not computed)."""
    data: str = field(metadata={"help": "Folder of pictures, or a dataset of the store."})
    captions: Path = field(metadata={"help": "CSV, TSV, JSONL, Flickr30k's .token, COCO's or Karpathy's JSON."})
    text: Path = field(metadata={"help": "Text tower: a transformers or open_clip folder."})
    split: str | None = field(default=None, metadata={"help": "Of a file of captions that holds several."})
    teacher: str | None = field(default=None, metadata={"help": "Whose space the text tower shares; with a student's or RADIO's adapters."})
    proxy: Path | None = field(default=None, metadata={"help": "The proxy's run, when MODEL was taught by one."})
    store: str | None = field(default=None, metadata={"help": "Feature store; default: the evaluations' own."})
    size_px: int | None = field(default=None, metadata={"help": "Input size; default: the model's own."})
    crop_fraction: float = field(default=1.0, metadata={"help": "Of the shorter side."})
    batch_size: int = field(default=128, metadata={"help": "Images in one forward."})
    device: Device = field(default="auto", metadata={"help": "Where the model runs."})
    weights: Path | None = field(default=None, metadata={"help": "A named teacher's weight file."})
    out: Path | None = field(default=None, metadata={"help": "Folder that keeps the result; default: the model's own."})
    check: bool = field(default=False, metadata={"help": "Only tell what the data lack; status 2 where anything is missing."})
    dry_run: bool = field(default=False, metadata={"help": "Only say by what protocol, and where the result would be kept."})

    def __post_init__(self) -> None:
        if not 0 < self.crop_fraction <= 1 or self.batch_size < 1:
            raise BadInput(
                f"--crop-fraction is above 0 and at most 1, --batch-size at least 1; got {self.crop_fraction}, {self.batch_size}"
            )

    @property
    def images(self) -> EvaluatedImages:
        """Return how the images are read."""
        return EvaluatedImages(None, self.size_px, self.crop_fraction, self.batch_size, self.device)


def evaluate_retrieval(options: RetrievalOptions, on_event: OnEvent = ignore_event) -> dict[str, Any]:
    """Return recall at 1, 5 and 10 in percent, image → text and text → image; kept beside the model.

    Raises `BadInput` for captions of images that are not there, and for fewer than two images.
    """
    if options.check:
        return _check(options)
    captions = read_captions(options.captions, options.split)
    store = open_store(options.store)
    model = open_evaluated(options.model, store, size_px=options.size_px, weights=options.weights, out=options.out)
    split = Split(model, store, open_data(store, options.data, on_event), options.images, None, "test")
    placed, tower = _placed(split.dataset, captions, options, on_event), load_text_tower(options.text)
    space = to_teacher_space(model, store, options.text, teacher=options.teacher, proxy=options.proxy, weights=options.weights)
    protocol = {
        "test": split.protocol(), "text_tower": tower.identity,
        "texts_digest": digest({str(index): texts for index, texts in placed.items()}),
        "images": len(placed), "texts": sum(map(len, placed.values())), "ties": "count against", "way": space.identity,
        "teacher": space.teacher,
    }  # fmt: skip
    if options.dry_run:
        return {"dry_run": True, "model": options.model, "folder": str(model.folder), "protocol": protocol}

    def compute() -> dict[str, Any]:
        images, embeddings = _embedded(model, store, split, sorted(placed), on_event)
        if without := placed.keys() - set(images):
            raise BadInput(f"{len(without)} pictures with captions have no tokens, so nothing of them could be found; extract them again")
        vectors_ND = projected(space.map(embeddings), tower, space.kind)
        texts, image_of_T = _texts(images, placed)
        on_event({"event": "note", "text": f"{len(images):,} images, {len(texts):,} captions"})
        recalls = retrieval_recalls(vectors_ND, tower.embed(texts), image_of_T)
        doubts = doubts_of("a text → image R@1", recalls["text_to_image_r1"], len(texts), 1 / len(images), options.text, on_event)
        return {**recalls, **read_upright(split), **doubts, "images": len(images), "texts": len(texts)}

    return evaluated("retrieval", model, protocol, compute, on_event)


def _placed(dataset: ImageDataset, captions: Captions, options: RetrievalOptions, on_event: OnEvent) -> dict[int, list[str]]:
    placed, unknown = place_captions(captions, (dataset.row(index).id for index in range(len(dataset))))
    gone = set(dataset.removed().tolist()) if dataset.removed_count else set[int]()
    unknown += [dataset.row(index).id for index in placed.keys() & gone]
    if unknown:
        names = ", ".join(unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
        raise BadInput(f"{options.captions} has captions of {len(unknown):,} images that {dataset.key} does not hold ({names}); "
                       "give their folder as --data, with names as in the file")  # fmt: skip
    if len(placed) < 2:
        raise BadInput(f"{options.captions} has captions of {len(placed)} image: with one there is nothing to confuse it with")
    if rest := len(dataset) - len(gone) - len(placed):
        on_event({"event": "note", "text": f"{rest:,} images of {dataset.key} have no caption and take no part"})
    return placed


def _embedded(
    model: Model | CachedModel, store: FeatureStore, split: Split, wanted: list[int], on_event: OnEvent
) -> tuple[list[int], Embeddings]:
    """Return images with tokens and their embeddings: through the store where all are wanted or cached, else at once."""
    chosen = split.images[np.isin(split.images, wanted)]
    if isinstance(model, CachedModel):
        reader = model.over(split.dataset.digest)
        chosen = chosen[~np.isin(chosen, reader.failed_rows() // reader.views.views_per_image)]
        return chosen.tolist(), read_embeddings(reader, chosen, on_event)
    if len(chosen) == len(split.dataset):
        features = split.features(split.dataset.label_names, on_event)
        return features.images.tolist(), features.embeddings
    return chosen.tolist(), embed_images(model.load(choose_device(split.size.device).value), split.dataset, chosen, split.size)


def _texts(images: list[int], placed: dict[int, list[str]]) -> tuple[list[str], Tensor]:
    """Return all captions and the place of each one's image among `images`."""
    texts = [text for index in images for text in placed[index]]
    return texts, torch.tensor([place for place, index in enumerate(images) for _ in placed[index]])


def _check(options: RetrievalOptions) -> dict[str, Any]:
    """Return what pictures, captions and the tower's folder lack."""
    report = LayoutReport("pictures and captions", options.data)
    try:
        captions = read_captions(options.captions, options.split)
        report.found |= {"images with captions": len(captions), "captions": sum(map(len, captions.values()))}
    except BadInput as error:
        captions = {}
        report.lacks(str(error), "give a file of captions in one of the forms of docs/evaluations.md")
    if Path(options.data).is_dir():
        _, unknown = place_captions(captions, list_folder(options.data))
        report.files("images with captions are not there", unknown, f"put them below {options.data}, named as in {options.captions}")
    elif options.store is None:
        report.lacks(f"the folder {options.data}", "give the folder of the pictures, or a dataset's name with --store")
    check_tower(report, options.text, options.model, options.teacher, options.weights)
    return report.result()
