"""Model cards: metadata that the Hub's own library reads back, with every figure, its protocol, and the teachers' terms."""

from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.evaluation.registry import hub_tasks
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.lineage import collect_terms, evaluations_of_weights, open_trained
from eupe_pipeline.student.export.model_card import HUB_LICENCES, hub_models, licence_fields, model_card
from eupe_pipeline.student.export.model_card_results import eval_results
from eupe_pipeline.student.probes.evaluation_records import list_records, write_record
from eupe_pipeline.teachers.registry.table import OFFICIAL_EUPE, ROWS, UNKNOWN, Terms
from huggingface_hub import ModelCard, ModelCardData

from .test_export import make_run

TERMS = {name: row.terms for name, row in ROWS.items()}
LABELLED = {"dataset": "photos-test@0123456789ab", "digest": "ab" * 32, "images": 100, "sample": None}
TRAIN = {**LABELLED, "dataset": "cifar10@ba9876543210", "digest": "cd" * 32}
KNN = {
    "size_px": 224, "differs_from_paper": ["the input is 256 px"], "train_images": 90, "test_images": 100,
    "cls": {"paper": 61.5, "ours": 62.25, "official": {"10": 63.0, "20": 64.0}},
    "mean_patch": {"paper": 51.5, "ours": 52.25, "official": {"10": 53.0, "20": 54.0}},
}  # fmt: skip
DENSE = {"data": {"train": {"pictures": 8, "digest": "1" * 64}, "val": {"pictures": 4, "digest": "2" * 64}}}


def card_of(run: Path, out: Path) -> ModelCard:
    """The card of a run, written and read back; without the export around it, which is tested elsewhere and slow."""
    trained = open_trained(run)
    terms, evaluations = collect_terms(run, None), evaluations_of_weights(trained)
    out.write_text(model_card(trained, "timm", {}, terms, evaluations, "import timm\n", hub_tasks()))
    card: ModelCard = ModelCard.load(out)
    return card


def data_of(card: ModelCard) -> dict[str, Any]:
    assert isinstance(card.data, ModelCardData)
    found: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    return found


def metrics_of(card: ModelCard) -> dict[str, float]:
    (model,) = data_of(card)["model-index"]
    return {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", "vit-mini", 32)


def test_a_card_without_results_says_what_the_model_is_and_names_no_figure(run: Path, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "out")
    assert data_of(card) == {
        "license": "other",
        "license_name": "dinov3-license",
        "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["image-feature-extraction", "vision", "knowledge-distillation", "vit", "timm"],
        "base_model": ["timm/vit_huge_plus_patch16_dinov3.lvd1689m"],
        "base_model_relation": "finetune",
    }
    assert card.text.lstrip().startswith("# a student: a folder that timm loads")


def test_every_figure_of_knn_stands_under_its_protocol_and_feature(run: Path, tmp_path: Path) -> None:
    write_record(run, "knn", {"train": TRAIN, "test": LABELLED}, KNN, 1.0)
    card = card_of(run, tmp_path / "out")
    assert metrics_of(card) == {
        "kNN, cls feature, top-1 accuracy (%), by the paper protocol": 61.5,
        "kNN, k = 10, cls feature, top-1 accuracy (%), by the official protocol": 63.0,
        "kNN, k = 20, cls feature, top-1 accuracy (%), by the official protocol": 64.0,
        "kNN, cls feature, top-1 accuracy (%), by our protocol": 62.25,
        "kNN, mean patch feature, top-1 accuracy (%), by the paper protocol": 51.5,
        "kNN, k = 10, mean patch feature, top-1 accuracy (%), by the official protocol": 53.0,
        "kNN, k = 20, mean patch feature, top-1 accuracy (%), by the official protocol": 54.0,
        "kNN, mean patch feature, top-1 accuracy (%), by our protocol": 52.25,
    }
    (result,) = data_of(card)["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification", "name": "Image classification"}
    assert result["dataset"] == {"name": "photos-test", "type": "photos-test", "revision": "ab" * 32}
    paper = result["metrics"][0]
    assert paper["type"] == "accuracy"
    assert paper["args"] == {
        "protocol": "paper", "train": "cifar10@ba9876543210", "feature": "cls", "differs": ["the input is 256 px"],
    }  # fmt: skip
    assert data_of(card)["metrics"] == ["accuracy"]


@pytest.mark.parametrize(("evaluation", "protocol", "results", "task", "named"), [
    ("linear", {"train": TRAIN, "test": LABELLED}, {"feature": "cls", "top1": 71.5, "validation_top1": 70.0}, "image-classification",
     {"linear probe, top-1 accuracy (%), by our protocol": 71.5}),
    ("zero-shot", {"test": LABELLED}, {"top1": 31.5, "top5": 60.0}, "zero-shot-image-classification",
     {"zero-shot, top-1 accuracy (%), by our protocol": 31.5, "zero-shot, top-5 accuracy (%), by our protocol": 60.0}),
    ("segmentation", {**DENSE, "name": "official"}, {"miou": 41.25, "best_miou": 42.0, "by_step": {}}, "image-segmentation",
     {"linear head, mIoU (%), by the official protocol": 41.25,
      "linear head, best mIoU of all measurements (%), by the official protocol": 42.0}),
    ("depth", DENSE, {"rmse": 0.5, "abs_rel": 0.125, "delta1": 0.75}, "depth-estimation",
     {"linear head, RMSE (m), by our protocol": 0.5, "linear head, absolute relative error, by our protocol": 0.125,
      "linear head, share within a factor of 1.25, by our protocol": 0.75}),
    ("correspondence", {"name": "paper", "data": {"split": "test", "pairs": 7, "digest": "3" * 64}}, {"pck": 33.0},
     "keypoint-matching", {"nearest patch token, PCK@0.1, mean over categories (%), by the paper protocol": 33.0}),
])  # fmt: skip
def test_each_evaluation_has_its_task_and_its_own_metrics(
    run: Path, tmp_path: Path, evaluation: str, protocol: dict[str, Any], results: dict[str, Any], task: str, named: dict[str, float]
) -> None:
    write_record(run, evaluation, protocol, results, 1.0)
    card = card_of(run, tmp_path / "out")
    assert metrics_of(card) == named
    assert [result["task"]["type"] for result in data_of(card)["model-index"][0]["results"]] == [task]


def test_results_read_back_are_those_that_were_measured(run: Path, tmp_path: Path) -> None:
    write_record(run, "knn", {"train": TRAIN, "test": LABELLED}, KNN, 1.0)
    write_record(run, "linear", {"train": TRAIN, "test": LABELLED}, {"feature": "cls", "top1": 71.5}, 1.0)
    write_record(run, "depth", DENSE, {"rmse": 0.5, "abs_rel": 0.125, "delta1": 0.75}, 1.0)
    write_record(run, "segmentation", {**DENSE, "classes": 3}, {"miou": 41.25}, 1.0)
    card = card_of(run, tmp_path / "out")
    assert isinstance(card.data, ModelCardData)
    measured = eval_results(list_records(run), hub_tasks())
    assert len(measured) == 8 + 1 + 3 + 1
    assert sorted(card.data.eval_results or [], key=repr) == sorted(measured, key=repr)
    assert card.data.model_name == "vit"


def test_what_was_given_without_a_protocol_stands_in_the_text_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"cls": {"paper": 61.5}}')
    (tmp_path / "dry.json").write_text('{"dry_run": true, "protocol": {"k": 10}}')
    export(ExportOptions(run, tmp_path / "exported", ("timm",), evaluations=(tmp_path / "other.json", tmp_path / "dry.json")))
    card = ModelCard.load(tmp_path / "exported" / "timm" / "README.md")
    assert "61.5" in card.text
    assert '"dry_run": true' in card.text
    assert "model-index" not in data_of(card)
    write_record(run, "an evaluation of somebody's own", {"x": 1}, {"y": 2.5}, 1.0)
    assert "model-index" not in data_of(card_of(run, tmp_path / "out2"))


@pytest.mark.parametrize("teacher", ["a: b", "# {{ x }}", "'quoted\" & %tag", "Zoë-編集者", "- dash", "line\n---\nbreak", "null"])
def test_names_with_special_characters_break_neither_metadata_nor_text(tmp_path: Path, teacher: str) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32, teacher=teacher)
    test = {**LABELLED, "dataset": f"{teacher}@0123456789ab"}
    write_record(run, "zero-shot", {"test": test}, {"top1": 31.5}, 1.0)
    card = card_of(run, tmp_path / "out")
    (result,) = data_of(card)["model-index"][0]["results"]
    assert result["dataset"]["name"] == teacher
    assert data_of(card)["license"] == "unknown"
    assert f"- {teacher}: not recorded" in card.text


def test_known_datasets_and_teachers_have_their_ids_on_the_hub(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32, teacher="clip-l")
    identities = (run / "identities.json").read_text()
    (run / "identities.json").write_text(identities[:-1] + ', "views": ["cifar10@0123456789ab", "photos@0123456789ab"]}')
    write_record(run, "linear", {"train": TRAIN, "test": TRAIN}, {"feature": "cls", "top1": 71.5}, 1.0)
    data = data_of(card_of(run, tmp_path / "out"))
    assert data["datasets"] == ["uoft-cs/cifar10"]
    assert data["base_model"] == ["timm/vit_large_patch14_clip_336.openai"]
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "uoft-cs/cifar10"
    assert data["license"] == "mit"


def test_random_weights_have_no_licence_no_teacher_and_no_distillation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "vit-mini", 32)
    make_run(tmp_path / "run" / "initial", "vit-mini", 32)
    for name in ("recipe.json", "identities.json", "summary.json"):
        (run / "initial" / name).unlink()
    data = data_of(card_of(run / "initial", tmp_path / "out"))
    assert data["tags"] == ["image-feature-extraction", "vision", "vit", "timm"]
    assert not {"license", "base_model", "base_model_relation"} & data.keys()


def test_a_licence_on_the_hubs_list_has_its_id_and_any_other_a_name_and_a_link() -> None:
    assert licence_fields({"dinov2-g": TERMS["dinov2-g"]}) == {"license": "apache-2.0"}
    assert licence_fields({"imported: x.pth": OFFICIAL_EUPE}) == {"license": "fair-noncommercial-research-license"}
    assert licence_fields({"c-radiov4-h": TERMS["c-radiov4-h"]}) == {
        "license": "other", "license_name": "nvidia-open-model-license", "license_link": "https://huggingface.co/nvidia/C-RADIOv4-H",
    }  # fmt: skip
    own = Terms("Our Own: Terms, v2", True, "https://example.org/terms")
    assert licence_fields({"mine": own}) == {
        "license": "other", "license_name": "our-own-terms-v2", "license_link": "https://example.org/terms",
    }  # fmt: skip


def test_several_licences_are_other_with_a_link_to_the_cards_list_and_equal_ones_are_one() -> None:
    assert licence_fields({"dinov2-g": TERMS["dinov2-g"], "sam-h": TERMS["sam-h"]}) == {"license": "apache-2.0"}
    mixed = licence_fields({"dinov2-g": TERMS["dinov2-g"], "x": UNKNOWN})
    assert mixed == {"license": "other", "license_name": "terms-of-its-teachers", "license_link": "README.md#licence"}
    assert licence_fields({}) == {"license": "unknown"}


@pytest.mark.parametrize("teacher", sorted(TERMS))
def test_every_teacher_of_the_table_gives_a_valid_licence(teacher: str) -> None:
    fields = licence_fields({teacher: TERMS[teacher]})
    assert fields["license"] in HUB_LICENCES or fields.keys() == {"license", "license_name", "license_link"}


def test_teachers_are_named_once_and_only_where_their_repository_is_known() -> None:
    names = ["pecore-g", "pecore-g-projected", "efficientnet-lite0", "keras-resnet50", "clip-l (through proxy)", "my-run",
             "timm:resnet18.a1_in1k", "timm:resnet18", "imported: x.pth"]  # fmt: skip
    assert hub_models({name: TERMS.get(name.split(" (")[0], UNKNOWN) for name in names}) == [
        "timm/vit_pe_core_gigantic_patch14_448.fb", "timm/tf_efficientnet_lite0.in1k", "timm/vit_large_patch14_clip_336.openai",
        "timm/resnet18.a1_in1k",
    ]  # fmt: skip
