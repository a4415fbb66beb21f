"""Every evaluation of the table has its task on the Hub, and agreement its five figures."""

from eupe_pipeline.jobs.evaluation.registry import EVALUATIONS, hub_tasks
from eupe_pipeline.student.export.model_card_results import eval_results


def test_no_evaluation_is_left_out_of_a_card() -> None:
    assert set(hub_tasks()) == set(EVALUATIONS)


def test_agreement_stands_in_a_card_with_its_images() -> None:
    images = {"dataset": "photos@0123456789ab", "digest": "1" * 64, "images": 40, "sample": None, "held_out": 0.1}
    figures = {"agreement": 0.8, "cls_cosine": 0.9, "patch_cosine": 0.7, "cls_cka": 0.6, "patch_cka": 0.5}
    found = eval_results(
        [{"evaluation": "agreement", "protocol": {"test": images}, "results": {**figures, "images": 4, "gap": {}}}], hub_tasks()
    )
    assert {one.metric_name: one.metric_value for one in found} == {
        f"agreement with the teachers, {name}, by our protocol": value
        for name, value in (
            ("mean cosine of class and patch tokens", 0.8), ("mean cosine of class tokens", 0.9), ("mean cosine of patch tokens", 0.7),
            ("linear CKA of class tokens", 0.6), ("linear CKA of patch tokens", 0.5),
        )
    }  # fmt: skip
    assert {(one.dataset_name, one.dataset_revision) for one in found} == {("photos", "1" * 64)}
