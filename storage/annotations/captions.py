"""Pictures with captions: which texts belong to which picture, from the files that people have.

    FILE.csv, .tsv, .txt   columns `image` and `caption` (any further `caption…`, `caption_1`, …); several rows of one image are joined
    FILE.token             Flickr30k's: `NAME#0<tab>CAPTION`, no header
    FILE.jsonl             {"image": "a.jpg", "caption": "…"} or "captions": ["…", "…"]
    FILE.json              COCO's captions (images, annotations with image_id and caption), or Karpathy's splits (images with filename,
                           split, sentences with raw)

Images are named as the dataset names them: the path below its folder, or the file's name alone where that is unique. Captions are kept as
they are written, in order; an empty one, and an image without any, are refused with their line.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..core.errors import BadInput

Captions = dict[str, list[str]]
_NAMES = ("image", "image_name", "file_name", "filename", "image_id", "file")


def read_captions(path: Path, split: str | None = None) -> Captions:
    """Return {image: its captions} in the file's order; `split` picks one of a file that holds several. Raises `BadInput`."""
    readers = {".jsonl": _jsonl, ".json": _json, ".token": _token}
    try:
        pairs = list(readers.get(path.suffix.lower(), _table)(path, split))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is no file of captions ({error!r}); docs/evaluations.md shows the forms that are read") from error
    captions: Captions = {}
    for number, (image, caption) in enumerate(pairs, start=1):
        if not isinstance(caption, str) or not caption.strip() or not image.strip():
            raise BadInput(f"{path}: the {number}th caption, of {image or 'no image'}, is {caption!r}; every image has a text")
        captions.setdefault(image.strip(), []).append(caption.strip())
    if not captions:
        raise BadInput(f"{path} holds no caption" + (f" of the split {split}" if split else ""))
    return captions


def _table(path: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        delimiter = max(",\t|", key=head.count)
        rows = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        fields = [str(field).strip() for field in rows.fieldnames or ()]
        rows.fieldnames = fields
        name = next((field for field in fields if field.lower() in _NAMES), None)
        texts = [
            field for field in fields if field.lower().startswith(("caption", "comment", "text")) and field.lower() != "comment_number"
        ]
        if name is None or not texts:
            raise BadInput(f"{path} has the columns {', '.join(fields)}; it needs one named image and one named caption")
        for row in rows:
            if split is None or row.get("split") in (None, split):
                given = [str(row[text]) for text in texts if row[text] is not None and str(row[text]).strip()]
                yield from ((str(row[name]), caption) for caption in given or [""])


def _jsonl(path: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            one = json.loads(line)
            if split is None or one.get("split", split) == split:
                name = next(str(one[key]) for key in _NAMES if key in one)
                texts = one.get("captions", one.get("caption"))
                yield from ((name, text) for text in ([texts] if isinstance(texts, str) else texts) or [""])


def _token(path: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            name, _, caption = line.partition("\t")
            yield name.rpartition("#")[0] or name, caption


def _json(path: Path, split: str | None) -> Iterable[tuple[str, Any]]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    images: list[dict[str, Any]] = content["images"]
    if "annotations" in content:
        names = {one["id"]: str(one["file_name"]) for one in images}
        return [(names[one["image_id"]], one["caption"]) for one in content["annotations"]]
    known = sorted({str(one.get("split")) for one in images})
    if split is None and len(known) > 1:
        raise BadInput(f"{path} holds the splits {', '.join(known)}; say which with --split")
    return [
        (str(Path(one.get("filepath", "")) / one["filename"]), sentence["raw"])
        for one in images if split is None or one.get("split") == split for sentence in one["sentences"]
    ]  # fmt: skip


def place_captions(captions: Captions, ids: Iterable[str]) -> tuple[dict[int, list[str]], list[str]]:
    """Return ({index of an image among `ids`: its captions}, names that are no image's); a bare name counts where only one image has it."""
    places = {identity: index for index, identity in enumerate(ids)}
    by_name: dict[str, list[int]] = {}
    for identity, index in places.items():
        by_name.setdefault(Path(identity).name, []).append(index)
    placed, unknown = dict[int, list[str]](), []
    for name, texts in captions.items():
        alone = by_name.get(Path(name).name, [])
        found = places[name] if name in places else alone[0] if len(alone) == 1 else None
        if found is None:
            unknown.append(name)
        else:
            placed.setdefault(found, []).extend(texts)
    return dict(sorted(placed.items())), unknown
