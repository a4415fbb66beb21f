"""Letterboxed views at an input that is not square, by the commands alone, with a teacher of the demo: from photos to an export."""

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.pictures.seen_views import as_teacher_saw, shown_size
from eupe_pipeline.pipeline.recipes.views import chosen_views
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.student.training.run_folder import read_metrics
from PIL import Image

TEACHER = "efficientnet-lite0"
SETTINGS = (
    "--set teacher.names=[] --set 'student.architecture=\"vit-mini\"' --set student.options={} --set 'student.sizes_px=[[32,48]]' "
    "--allow-random-weights --set adapter.width=32 --set run.steps=3 --set run.batch_size=6 --set run.log_every=1 "
    "--set 'precision=\"fp32\"' "
    "--set 'views.photometric=\"teacher_same\"' "
    "--set 'device=\"cpu\"' --set 'views.kind=\"letterbox\"'"
)


def command(line: str) -> dict[str, Any]:
    """Run a command and return the JSON that it ends with."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(shlex.split(line))
    assert status == 0, err.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return found


class Made:
    """A folder with photos, a store and one feature set over letterboxed views."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, root / "store"
        random = np.random.default_rng(0)
        for n, (height, width) in enumerate([(40, 90), (90, 40), (64, 96), (50, 50)] * 3):
            coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
            (root / "photos" / f"class{n % 2}").mkdir(parents=True, exist_ok=True)
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(root / "photos" / f"class{n % 2}" / f"{n:02d}.png")
        command(f"index {root}/photos --store {self.store} --name photos --json")
        self.extract = (
            f"extract-features --store {self.store} --data photos --teacher {TEACHER} --teacher-size {TEACHER}=64x96 --codec fp32 "
            "--view-kind letterbox --pad-position center --pad-rgb 114,114,114 --photometric teacher_same --views 2 --pixels 32x48 "
            "--shard-images 6 --workers 0 --allow-random-weights --json"
        )
        self.train = f"train --stage 2 --recipe demo --store {self.store} --data photos --features {TEACHER} {SETTINGS} --json"
        command(self.extract)

    @property
    def reader(self) -> FeatureReader:
        return FeatureStore.open(str(self.store)).features(TEACHER)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With a student that was trained on the cached tokens, in `cached`."""
    made = Made(tmp_path_factory.mktemp("letterbox"))
    command(f"{made.train} --out {made.root}/cached")
    return made


def test_the_demos_teacher_gives_cached_what_it_gives_live(made: Made, tmp_path: Path) -> None:
    spec, reader = made.reader.views.spec, made.reader
    assert (spec.letterbox, reader.grid, reader.input_px) == (Letterbox("center", (114, 114, 114)), (2, 3), (64, 96))
    assert command(made.extract.replace("--json", "--dry-run --json"))["shards_missing"] == 0
    command(f"{made.train} --out {tmp_path}/live --set 'teacher.source=\"live\"' --teacher {TEACHER}")
    live = [line["loss"] for line in read_metrics(tmp_path / "live")]
    assert live == pytest.approx([line["loss"] for line in read_metrics(made.root / "cached")], abs=1e-4)  # the forwards' batches differ
    assert json.loads((made.root / "cached" / "model" / "model.json").read_text())["size_px"] == [32, 48]


def test_a_view_is_shown_as_the_teacher_saw_it(made: Made, tmp_path: Path) -> None:
    seen = as_teacher_saw(made.reader.views, 0, shown_size(made.reader, 90))
    assert seen.shape == (60, 90, 3)
    assert (seen[:5] == 114).all()  # 40 × 90 px leave padding above and below
    command(f"report --store {made.store} --features {TEACHER} --out {tmp_path}/page.html --json")
    assert (tmp_path / "page.html").is_file()


@pytest.mark.long
def test_the_student_is_exported_and_evaluated_at_its_own_height_and_width(made: Made, tmp_path: Path) -> None:
    for form in ("onnx", "timm", "transformers"):
        command(f"export {made.root}/cached --format {form} --out {tmp_path}/{form} --json")
    assert "32×48 px" in next((tmp_path / "onnx").rglob("README.md")).read_text()
    processor = json.loads(next((tmp_path / "transformers").rglob("preprocessor_config.json")).read_text())
    assert processor["size"] == {"height": 32, "width": 48}
    knn = f"evaluate knn {made.root}/cached --store {made.store} --train photos --test photos --allow-overlap --json"
    assert command(knn)["size_px"] == [32, 48]


def test_a_size_that_is_no_size_and_padding_of_other_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = f"extract-features --store {tmp_path}/store --data photos --teacher {TEACHER}"
    for words, says in (
        (f"--teacher-size {TEACHER}=64x", "is not TEACHER=PX with 1 to 8,192 px, or HEIGHTxWIDTH"),
        ("--pixels 64x9000", "neither a side of 1 to 4,096 px nor HEIGHTxWIDTH"),
        ("--pad-rgb 1,2", "is not R,G,B, such as 114,114,114"),
        ("--pad-rgb 1,2,256", "is not R,G,B, such as 114,114,114"),
        ("--view-kind whole --pad-position end", "--pad-position and --pad-rgb are for letterboxed views, and these are whole"),
        ("--view-kind stretched", "'whole', 'letterbox'"),
    ):
        assert main(shlex.split(f"{begin} {words}")) == 2
        assert says in " ".join(capsys.readouterr().err.split())


def test_a_recipe_states_kinds_and_padding_and_the_command_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'stage = 2\n[views]\nkind = "letterbox"\npad_position = "center"\npad_rgb = [1, 2, 3]\nphotometric = "none"\n'
        "[student]\nsizes_px = [64, [64, 96]]\n"
    )
    spec, origins = chosen_views(str(recipe))
    assert spec.letterbox == Letterbox("center", (1, 2, 3))
    changed, origins = chosen_views(str(recipe), pad_position="end", pixels_px=(64, 96))
    assert changed.letterbox == Letterbox("end", (1, 2, 3))
    assert origins["pad_position"] == {"value": "end", "origin": "--pad-position, instead of the recipe's center"}
    assert changed.identity()["pixels"]["size_px"] == [64, 96]
    assert chosen_views(str(recipe), kind="whole")[0].letterbox is None
    recipe.write_text('stage = 2\n[views]\nkind = "letterbox"\npad_rgb = [1, 2]\n')
    with pytest.raises(BadInput, match="colour of padding"):
        chosen_views(str(recipe))
