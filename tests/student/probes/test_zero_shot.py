"""Class vectors and accuracies by hand, and files of names and templates."""

from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.zero_shot import (
    Descriptions,
    build_classifier,
    check_names,
    class_cosines,
    read_descriptions,
    told_from_guessing,
    top_k_accuracy,
)
from torch import Tensor


def embed(texts: list[str]) -> Tensor:
    """A text is where its words are in the alphabet, at no particular length."""
    return torch.stack([torch.tensor([3.0 * text.count("cat"), 5.0 * text.count("dog"), 1.0 + text.count("drawing")]) for text in texts])


def test_images_that_are_their_classes_text_are_all_right() -> None:
    descriptions = Descriptions(("a photo of a {}.", "a drawing of a {}."))
    vectors = build_classifier(["cat", "dog"], descriptions, embed)
    images = torch.tensor([[9.0, 0.0, 3.0], [0.0, 2.0, 0.5]])
    assert top_k_accuracy(class_cosines(images, vectors), torch.tensor([0, 1]), 1) == 100.0
    assert top_k_accuracy(class_cosines(images, vectors), torch.tensor([1, 0]), 1) == 0.0
    assert top_k_accuracy(class_cosines(images, vectors), torch.tensor([1, 0]), 5) == 100.0


def test_a_class_is_the_mean_of_unit_vectors_of_all_its_texts() -> None:
    found = build_classifier(["x"], Descriptions(("{}",), {"x": ("cat", "dog")}), embed)[0]
    one, other = torch.tensor([3.0, 0.0, 1.0]) / 10**0.5, torch.tensor([0.0, 5.0, 1.0]) / 26**0.5
    wanted = (one + other) / (one + other).norm()
    torch.testing.assert_close(found, wanted)


def test_files_name_classes_and_templates(tmp_path: Path) -> None:
    path = tmp_path / "texts.toml"
    path.write_text('templates = "a {}"\n[classes]\nn01 = ["tench", "fish"]\n')
    assert read_descriptions(path).texts("n01") == ["a tench", "a fish"]
    assert read_descriptions(None).texts("tabby_cat") == ["a photo of a tabby cat."]
    with pytest.raises(BadInput, match="'n02'"):
        read_descriptions(path).texts("n02")


@pytest.mark.parametrize(("text", "why"), [
    ("templates = [", "not a TOML file"),
    ("template = ['a {}']", "unknown key 'template'"),
    ("templates = ['a photo']", "holds one {}"),
    ("[classes]\nx = 3", "must be a text"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "texts.toml").write_text(text)
    with pytest.raises(BadInput, match=why):
        read_descriptions(tmp_path / "texts.toml")


def test_ids_and_numbers_are_no_names_of_classes() -> None:
    check_names(["cat", "n01", "3d printer", "no 7"], None)
    check_names(["n01440764", "7"], {"n01440764": ("tench",), "7": ("seven",)})
    with pytest.raises(BadInput, match=r"2 labels are ids and no words \(7, n01440764\): give their names"):
        check_names(["n01440764", "cat", "7"], None)


def test_a_figure_counts_as_guessing_up_to_three_standard_errors() -> None:
    """Of 900 images and ten classes 10 % are guessed, with a standard error of one point."""
    assert [told_from_guessing(percent, 900, 0.1) for percent in (0.0, 10.0, 12.9, 13.1, 80.0)] == [False, False, False, True, True]
    assert not told_from_guessing(60.0, 24, 1 / 3)
    assert told_from_guessing(63.0, 24, 1 / 3)
