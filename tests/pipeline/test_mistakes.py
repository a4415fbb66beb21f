"""What a newcomer gets wrong, a line each: status 2, one message that says what to do, never a traceback, and a store as it was before."""

import shlex
from pathlib import Path
from typing import Any

import fsspec
import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.commands.options import LARGEST_PX
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

TRAIN = "train --stage 2 --recipe demo --store {store} --data photos --features tiny-teacher --out {tmp}/run"
EXTRACT = "extract-features --store {store} --data photos --workers 0 --teacher {teacher}"
KNN = "evaluate knn {teacher} --store {store}"
CURATE = "features curate tiny-int8 --store {store} --name clean"
PCA = "pictures pca {tmp}/photo.png --model {teacher}"

MISTAKES = [
    # words
    ("indx {tmp} --store {store} --name x", "Did you mean 'index'?"),
    ("features lss --store {store}", "Did you mean 'ls'?"),
    ("index {tmp} --stoer {store} --name x", "Did you mean one of: '--json', '--store'?"),
    ("index {tmp} --store {store}", "Missing option '--name'"),
    (f"{EXTRACT} --codec zip", "'zip' is not one of 'fp32', 'fp16', 'int8', 'int4'"),
    # places
    ("index {tmp}/nothing --store {store} --name x", "does not exist; give a folder of images"),
    ("index {tmp}/empty --store {store} --name x", "no image was found in"),
    ("index {tmp}/text --store {store} --name x", "no image was found in"),
    ("index {tmp} --store {tmp}/photo.png --name x", "is a file; a store is a folder or a URL"),
    ("index {tmp} --store {tmp}/photo.png/deeper --name x", "a part of the path is a file"),
    ("index {tmp}/text --store /proc/store --name x", "cannot write /proc/store: nothing can be made at this place"),
    ("index {tmp}/text --store {tmp}/text --name x", "is not a feature store and is not empty"),
    ("index {store} --store {store} --name x", "holds a feature store (eupe-store.json)"),
    ("index {tmp} --store foo://bucket/x --name x", "Protocol not known: foo"),
    ("index s3://bucket/photos --store {store} --name x", "no credentials for s3://bucket/photos"),
    ("index {tmp} --store s3://bucket/store --name x", "set AWS_ACCESS_KEY_ID"),
    ("index {tmp} --store {store} --name a/b", "the name of a dataset has"),
    ("features ls --store {tmp}/nothing", "Make one with `eupe-pipeline index"),
    (f"{TRAIN} --out {{tmp}}/photo.png", "a file of that name is in the way"),
    (f"{TRAIN} --out {{tmp}}/text", "is not empty and holds no run"),
    (f"{TRAIN} --out /proc/run", "name another place"),
    ("features show tiny-int8 --store {store} --html /proc/page.html", "cannot write /proc/page.html"),
    ("runs show {tmp}/empty", "is not the folder of a training run"),
    (f"{PCA} --out {{tmp}}/picture.jpg", "does not end in .png"),
    (f"{PCA} --out /proc/picture.png", "cannot write /proc/picture.png"),
    (
        "import-weights {tmp}/photo.png --out {tmp}/imported",
        "is not a checkpoint of plain tensors (UnpicklingError); give a .pth of tensors",
    ),
    # names
    ("plan --store {store} --data photo --teacher x", "did you mean 'photos@"),
    (f"{EXTRACT} --teacher keras-resnet5", "did you mean 'keras-resnet50'?"),
    (f"{EXTRACT} --teacher {{tmp}}/empty", "holds no model/model.json: give a finished run"),
    (f"{EXTRACT} --teacher-size other=64", "--teacher-size names 'other', which is not among the teachers"),
    (f"{EXTRACT} --teacher-size 64", "'64' is not TEACHER=PX"),
    (f"{EXTRACT} --teacher-size {{teacher}}=32 --teacher-size {{teacher}}=48", "has several values; give it one"),
    (f"{EXTRACT} --weights {{teacher}}", "is not TEACHER=PATH"),
    (f"{TRAIN} --features tiny-teacherr", "did you mean 'tiny-teacher@"),
    (f"{TRAIN} --recipe demoo", "did you mean 'demo'?"),
    (f"{TRAIN} --recipe {{tmp}}/stageless.toml", "does not say its stage: write `stage = 2`"),
    (f"{TRAIN} --recipe {{tmp}}/typo.toml", "did you mean 'optimizer.learning_rate'?"),
    (f"{TRAIN} --recipe {{tmp}}/broken.toml", "is not valid TOML"),
    (f"{TRAIN} --set student.sizes_px=64", "wanted a list, each of it a whole number"),
    (f"{TRAIN} --set student.architecture=vitt", "did you mean 'vit'?"),
    (f"{TRAIN} --evaluate knn --evaluate-data nobody", "unknown datasets in"),
    # order and combination
    (f"{TRAIN} --proxy {{teacher}}", "need no live teacher: leave --proxy and --teacher out"),
    (f"{TRAIN} --targets live", "no teacher was named: give --proxy RUN"),
    (f"{TRAIN} --follow --on-miss compute", "give one of them"),
    (f"{KNN} --train photos", "give --train and --test"),
    ("export {tmp}/empty --format timm --out {tmp}/export", "finish that run first"),
    ("evaluate segmentation {teacher} --data {tmp}/empty", "has no folder images or rgb"),
    ("evaluate detection {teacher} --data {tmp}/empty", "has no instances_train*.json"),
    (
        "export {teacher} --format timm --head linear --out {tmp}/export",
        "timm holds the student alone; heads go along in transformers, onnx",
    ),
    (
        "export {teacher} --format onnx --head linear --out {tmp}/export",
        "has no head 'linear'; an evaluation keeps one: `eupe-pipeline evaluate",
    ),
    # numbers
    ("index {tmp} --store {store} --name x --max-bad-share nan", "--max-bad-share': nan is not a number"),
    ("plan --store {store} --data photos --teacher {teacher} --epochs 0", "these must be above 0: epochs of a run 0.0"),
    ("plan --store {store} --data photos --teacher {teacher} --device-hour inf", "--device-hour': inf is not a number"),
    (f"{EXTRACT} --views 0", "0 is not in the range x>=1"),
    (f"{EXTRACT} --views 1000000", "views_per_image must be between 1 and 1024"),
    (f"{EXTRACT} --num-gpus nan", "--num-gpus': nan is not a number"),
    (f"{EXTRACT} --batch-size {10**20}", f"--batch-size': {10**20} is not a number"),
    (f"{EXTRACT} --seed {10**20}", f"--seed': {10**20} is not a number"),
    (f"{EXTRACT} --teacher-size {{teacher}}={LARGEST_PX + 1}", "is not TEACHER=PX with 1 to 8,192 px"),
    (f"{EXTRACT} --teacher-size {{teacher}}=17", "the nearest is 16"),
    (f"{EXTRACT} --tokens-per-view 1000", "1000 tokens a view of a grid of"),
    (f"{EXTRACT} --grid 3", "'3' is not ROWSxCOLUMNS, such as 16x16"),
    (f"{EXTRACT} --view-kind center --views 2", "centre views are all alike"),
    (f"{TRAIN} --set run.steps=0", "expected 1 to"),
    (f"{TRAIN} --set run.reader_threads=1000000000", "expected 1 to 1,024"),
    (f"{TRAIN} --set loss.patch_cosine=inf", "and never nan or inf"),
    (f"{TRAIN} --set student.options.layer_scale=nan", "wanted a value, and never nan or inf"),
    (f"{TRAIN} --set optimizer.learning_rate=-1", "expected above 0, below 10"),
    (f"{TRAIN} --follow nan", "--follow': nan is not a number"),
    (f"{KNN} --train photos --test photos --crop-fraction nan", "--crop-fraction': nan is not a number"),
    (f"{KNN} --train photos --test photos --size 1000000", "'1000000' is neither a side of 1 to 8,192 px nor HEIGHTxWIDTH"),
    ("features verify tiny-int8 --store {store} --subset 0/3", "parts go from 1/3 to 3/3"),
    (f"{PCA} --size 17 --out {{tmp}}/p.png", "the nearest is 16"),
    # licences and losses
    (f"{EXTRACT} --require-licence commercial", "teacher: not recorded (terms unknown to us"),
    (f"{EXTRACT} --require-licence commerce", "'commerce' is not 'commercial'"),
    (f"{EXTRACT} --terms {{teacher}}=GPL", "what 'GPL' allows is not known here; say apache-2.0"),
    (f"{EXTRACT} --terms other=mit", "--terms names 'other', whose terms do not count here"),
    (f"{TRAIN} --require-licence commercial", "declare them: --terms 'tiny-teacher=LICENCE'"),
    (f"{TRAIN} --terms tiny-teacher", "is not TEACHER=LICENCE"),
    (f"{TRAIN} --set loss.cls=angles", "did you mean 'angle'?"),
    (f"{TRAIN} --set loss.relations=1", "did you mean 'loss.relation'?"),
    (f"{TRAIN} --set loss.shift=100", "expected 0 to 16"),
    # curation
    (f"{CURATE} --near-duplicates 95", "'95' is neither a cosine above 0 and at most 1, such as 0.95, nor auto"),
    (f"{CURATE} --balance 1.5", "'1.5' is neither a number of images nor a share such as 0.5 or 50%"),
    (f"{CURATE} --balance 1000", "--balance 1,000 asks for more images than are left, which are 24 of 24"),
    (CURATE, "say what to curate by: --near-duplicates auto"),
    ("features curate tiny-int8 --store {store} --near-duplicates auto", "a subset needs a name: give --name NAME"),
    (f"{CURATE} --against tiny-teacher", "are both over photos@"),
    (f"{CURATE} --near-duplicates auto --name a/b", "the name of a subset has"),
    (f"{TRAIN} --subset clean", "unknown subsets in"),
]


def standing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder but those of a run that was refused, with its length and the time it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and folder / "run" not in path.parents]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def mistaken(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands for {store}, {teacher} and {tmp}: the tiny store, its teacher's run, a folder of odds and ends; no credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    for name in ("empty", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "thesis.txt").write_text("mine")
    (tmp_path / "stageless.toml").write_text("")
    (tmp_path / "typo.toml").write_text("stage = 2\n[optimizer]\nlearning_rat = 1e-3\n")
    (tmp_path / "broken.toml").write_text("stage = 2\n[optimizer\n")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    return {"store": tiny_store.store.url, "teacher": str(tiny_store.teacher_run), "tmp": str(tmp_path)}


@pytest.mark.parametrize(("command", "says"), MISTAKES, ids=[f"{n}-{command.split()[0]}" for n, (command, _) in enumerate(MISTAKES)])
def test_a_mistake_is_said_and_nothing_is_lost(
    command: str, says: str, mistaken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # another test's server and credentials are no newcomer's
    before = standing(Path(mistaken["store"])), standing(tmp_path)
    assert main(shlex.split(command.format(**mistaken))) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert "Traceback" not in err
    assert not out
    assert (standing(Path(mistaken["store"])), standing(tmp_path)) == before


@pytest.mark.parametrize("mistake", ["--student vitt", "--set student.sizes_px=[17]", "--evaluate knn --evaluate-data nobody"])
def test_a_corrected_command_trains_in_the_folder_of_the_refused_one(mistake: str, mistaken: dict[str, str], tmp_path: Path) -> None:
    command = f"{TRAIN} --set run.steps=1 --set run.batch_size=4 --set student.sizes_px=[16]"
    assert main(shlex.split(f"{command} {mistake}".format(**mistaken))) == 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert main(shlex.split(command.format(**mistaken))) == 0
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "model" / "backbone.safetensors").stat().st_mode & 0o044  # others may read it, as the umask says


def test_a_dataset_of_the_store_is_taken_before_a_folder_of_the_same_name(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eupe_pipeline.jobs.evaluation.labelled_features import open_data

    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_data(tiny_store.store, "photos").key == tiny_store.store.dataset("photos").key


def test_other_images_under_a_known_name_are_kept_beside_it_with_a_warning(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["index", str(photos), "--store", str(tmp_path / "store"), "--name", "pets"]
    assert main(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "others").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "others" / "other.png")
    assert main([arguments[0], str(tmp_path / "others"), *arguments[2:]]) == 0
    first, second = FeatureStore.open(str(tmp_path / "store")).list_datasets()
    assert f"also names {first}" in (err := capsys.readouterr().err) or f"also names {second}" in err


def test_testing_on_what_was_learnt_from_is_refused_unless_it_is_meant(
    mistaken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(f"{KNN} --train photos --test photos --dry-run --out {tmp_path}/results".format(**mistaken))
    assert main(words) == 2
    assert "24 of 24 test images are also learnt from" in capsys.readouterr().err
    assert main([*words, "--allow-overlap"]) == 0
    assert "the figure measures memory as well" in capsys.readouterr().err


def test_a_dry_run_leaves_the_store_as_it_was(mistaken: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = standing(Path(mistaken["store"]))
    assert main(shlex.split(f"{EXTRACT} --views 2 --seed 77 --dry-run".format(**mistaken))) == 0
    assert "shards_missing: 1" in capsys.readouterr().out
    assert standing(Path(mistaken["store"])) == before
