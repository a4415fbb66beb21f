"""Templates by name: the paper's bare names, one sentence, CLIP's 80; a file's own, never two at once."""

from pathlib import Path

import pytest
from eupe_pipeline.storage.core.choices import TEMPLATE_SETS
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.probes.zero_shot import TEMPLATES, read_descriptions


def test_every_named_set_is_there_and_clips_holds_80_different_ones() -> None:
    assert tuple(TEMPLATES) == TEMPLATE_SETS
    assert len(TEMPLATES["clip-80"]) == len(set(TEMPLATES["clip-80"])) == 80
    assert all(template.count("{}") == 1 for several in TEMPLATES.values() for template in several)


def test_the_papers_text_is_the_name_and_nothing_else() -> None:
    assert read_descriptions(None, "names").texts("great_white_shark") == ["great white shark"]
    assert read_descriptions(None).texts("cat") == ["a photo of a cat."]
    assert len(read_descriptions(None, "clip-80").texts("cat")) == 80


def test_a_file_may_name_a_set_or_leave_it_to_the_option(tmp_path: Path) -> None:
    path = tmp_path / "names.toml"
    path.write_text('templates = "clip-80"\n[classes]\nn01 = ["tench", "Tinca tinca"]\n')
    assert len(read_descriptions(path).texts("n01")) == 160
    with pytest.raises(BadInput, match="leave one away"):
        read_descriptions(path, "names")
    path.write_text('[classes]\nn01 = "tench"\n')
    assert read_descriptions(path, "names").texts("n01") == ["tench"]
    path.write_text('templates = "an {} of mine"\n')
    assert read_descriptions(path).texts("cat") == ["an cat of mine"]
