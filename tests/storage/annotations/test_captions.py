"""Captions are read from the files that people have; every form gives the same, and what is broken is named."""

import json
from pathlib import Path

import pytest
from eupe_pipeline.storage.annotations.captions import place_captions, read_captions
from eupe_pipeline.storage.core.errors import BadInput

WANTED = {"a.jpg": ["a red thing, large", "Red."], "b.jpg": ["blue"]}
KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a red thing, large"}, {"raw": "Red."}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "blue"}]},
        {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "green"}]},
    ]
}
COCO = {
    "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 5, "caption": "a red thing, large"}, {"image_id": 5, "caption": "Red."},
                    {"image_id": 2, "caption": "blue"}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "split"), [
    ("c.csv", 'image,caption\na.jpg,"a red thing, large"\na.jpg,Red.\nb.jpg,blue\n', None),
    ("c.txt", 'image,caption\na.jpg,"a red thing, large"\na.jpg,Red.\nb.jpg,blue\n', None),
    ("c.csv", '\ufeffimage_name| comment_number| comment\na.jpg| 0| a red thing, large\na.jpg| 1| Red.\nb.jpg| 0| blue\n', None),
    ("wide.tsv", "filename\tcaption_0\tcaption_1\na.jpg\ta red thing, large\tRed.\nb.jpg\tblue\t\n", None),
    ("c.token", "a.jpg#0\ta red thing, large\na.jpg#1\tRed.\nb.jpg#0\tblue\n", None),
    ("c.jsonl", '{"image": "a.jpg", "captions": ["a red thing, large", "Red."]}\n{"image": "b.jpg", "caption": "blue"}\n', None),
    ("karpathy.json", json.dumps(KARPATHY), "test"),
    ("coco.json", json.dumps(COCO), None),
])  # fmt: skip
def test_every_form_gives_the_same_captions(name: str, text: str, split: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_captions(tmp_path / name, split) == WANTED


@pytest.mark.parametrize(("name", "text", "says"), [
    ("c.csv", "image,caption\na.jpg,\n", "1th caption, of a.jpg, is ''"),
    ("c.csv", "picture,words\na,b\n", "has the columns picture, words"),
    ("c.jsonl", '{"image": "a.jpg", "captions": []}\n', "of a.jpg"),
    ("c.jsonl", '{"image": "a.jpg"\n', "no file of captions"),
    ("c.json", json.dumps(KARPATHY), "splits test, train; say which"),
    ("c.json", "{}", "no file of captions"),
    ("c.csv", "image,caption\n", "holds no caption"),
    ("absent.csv", None, "no file of captions"),
])  # fmt: skip
def test_what_is_broken_is_named(name: str, text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=says.replace("(", r"\(")):
        read_captions(tmp_path / name)


def test_images_are_found_by_their_path_or_by_a_name_that_only_one_has() -> None:
    ids = ["x/a.jpg", "y/a.jpg", "y/b.jpg", "c.jpg"]
    captions = {"y/a.jpg": ["one"], "b.jpg": ["two"], "elsewhere/c.jpg": ["three"], "a.jpg": ["four"], "d.jpg": ["five"]}
    assert place_captions(captions, ids) == ({1: ["one"], 2: ["two"], 3: ["three"]}, ["a.jpg", "d.jpg"])
