"""The evaluations: one row for each, with what is called, what comes out and how it is shown.

A record of any evaluation is RUN/evaluations/<name>-<digest12>.json (`student.probes.evaluation_records`); a report shows the first of the
row's `keys` that its results have. To add an evaluation is to write its module here (a frozen dataclass of options, and a function that
takes it and `on_event` and returns a JSON-able result) and to add its row: the command `evaluate NAME` is made from the dataclass, unless
pipeline/commands/evaluate.py has one of its own. Nothing heavy is imported before an evaluation is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ...student.export.hub_task import HubTask


@dataclass(frozen=True)
class Evaluation:
    """A row of the table."""

    module: str
    """File of this folder, without `.py`; `.WING.FILE` for one of another wing."""
    function: str
    """What it is run by: (options, on_event) → results, kept beside the model where the module keeps them."""
    title: str
    """Head of its column in reports."""
    unit: str
    """Of the figure: "%", "m"."""
    form: str
    """Format specification of the figure."""
    keys: tuple[str, ...]
    """Dotted names of the figure in `results`, in order of preference."""
    higher_is_better: bool = True
    named_protocols: bool = False
    """Whether a record without a protocol's name is by ours."""
    official_keys: tuple[str, ...] = ()
    """What stands before `keys` where a record is by the official protocol."""
    paper_data: str = ""
    paper: tuple[float, ...] = ()
    """EUPE's figures (arXiv 2603.22387, ViT-B students) by the rows of PAPER_ROWS, on `paper_data`."""
    options: str | None = None
    """The dataclass of options in `module` from which the command is made; None: the command line has a command of its own."""
    help: str = ""
    """What that command says of itself."""
    command: str = ""
    """Of `evaluate`, where it is not called as the evaluation: one command makes several."""
    hub: HubTask | None = None
    """How model cards enter its figures in the Hub's metadata; None: they stand in the card's text alone."""

    def load(self) -> Callable[..., Mapping[str, Any]]:
        """Import the function."""
        function: Callable[..., Mapping[str, Any]] = getattr(import_module(f".{self.module}", __package__), self.function)
        return function

    def load_options(self) -> type:
        """Import the dataclass of options."""
        assert self.options is not None
        options: type = getattr(import_module(f".{self.module}", __package__), self.options)
        return options


_CLASSIFICATION = "image-classification", "Image classification"
_TOP1 = "accuracy", "top-1 accuracy (%)"


def _vlm(title: str, key: str, metric: tuple[str, str], paper: tuple[float, ...], unit: str = "%") -> Evaluation:
    """Return the row of a task that a language model answers."""
    hub = HubTask("visual-question-answering", "Visual question answering", "LLaVA on frozen patch tokens", {key: metric})
    return Evaluation(
        ".vlm.vlm", "evaluate_vlm", title, unit, ".1f", (key,), paper_data=title.partition(",")[0], paper=paper, command="vlm", hub=hub
    )


_ACCURACY = "accuracy", "accuracy (%)"
PAPER_ROWS = ("stage 2 only", "stages 1, 2", "stages 1, 3", "stages 1, 2, 3")
EVALUATIONS: dict[str, Evaluation] = {
    "knn": Evaluation(
        "knn", "evaluate_knn", "kNN", "%", ".1f",
        ("cls.paper", "mean_patch.paper", "cls.ours", "mean_patch.ours"), paper_data="ImageNet-1k", paper=(84.0, 84.0, 84.3, 84.1),
        hub=HubTask(*_CLASSIFICATION, "kNN", {}, accuracies_by_feature=True),
    ),
    "linear": Evaluation(
        "linear", "evaluate_linear", "linear probe", "%", ".1f", ("top1",), hub=HubTask(*_CLASSIFICATION, "linear probe", {"top1": _TOP1})
    ),
    "zero-shot": Evaluation(
        "zero_shot", "evaluate_zero_shot", "zero-shot", "%", ".1f", ("top1", "accuracy"),
        named_protocols=True, paper_data="ImageNet-1k", paper=(79.6, 79.5, 80.0, 79.7),
        hub=HubTask(
            "zero-shot-image-classification", "Zero-shot image classification", "zero-shot",
            {"top1": _TOP1, "top5": ("top_5_accuracy", "top-5 accuracy (%)")},
        ),
    ),
    "retrieval": Evaluation(
        ".retrieval.retrieval", "evaluate_retrieval", "retrieval, text → image R@1", "%", ".1f", ("text_to_image_r1",),
        options="RetrievalOptions",
        help="Find pictures by captions and captions by pictures. Recall at 1, 5 and 10; in a text tower's space.",
        hub=HubTask(
            "zero-shot-image-classification", "Image–text retrieval", "cosine",
            {f"{way}_r{k}": ("recall", f"{name} recall@{k} (%)") for way, name in (("text_to_image", "text to image"),
                                                                                  ("image_to_text", "image to text")) for k in (1, 5, 10)},
        ),
    ),
    "segmentation": Evaluation(
        "segmentation", "evaluate_segmentation", "segmentation, mIoU", "%", ".1f",
        ("miou", "mean_iou", "mIoU"), named_protocols=True, official_keys=("best_miou",), paper_data="ADE20k",
        paper=(41.9, 43.3, 52.0, 52.4),
        hub=HubTask(
            "image-segmentation", "Semantic segmentation", "linear head",
            {"miou": ("mean_iou", "mIoU (%)"), "best_miou": ("mean_iou", "best mIoU of all measurements (%)"),
             "pixel_accuracy": ("pixel_accuracy", "pixel accuracy (%)"), "mean_accuracy": ("mean_accuracy", "mean class accuracy (%)")},
        ),
    ),
    "depth": Evaluation(
        "depth", "evaluate_depth", "depth, RMSE", "m", ".3f",
        ("rmse", "rmse_m", "RMSE"), higher_is_better=False, named_protocols=True, paper_data="NYUv2", paper=(0.616, 0.557, 0.388, 0.391),
        hub=HubTask(
            "depth-estimation", "Depth estimation", "linear head",
            {"rmse": ("rmse", "RMSE (m)"), "abs_rel": ("abs_rel", "absolute relative error"),
             "delta1": ("delta1", "share within a factor of 1.25")},
        ),
    ),
    "detection": Evaluation(
        ".detection.detection", "evaluate_detection", "detection, AP", "%", ".1f", ("ap",),
        hub=HubTask(
            "object-detection", "Object detection", "LW-DETR's detector",
            {"ap": ("mean_average_precision", "AP (%)"), "ap50": ("ap50", "AP at IoU 0.5 (%)"), "ap75": ("ap75", "AP at IoU 0.75 (%)")},
        ),
    ),
    "correspondence": Evaluation(
        "correspondence", "evaluate_correspondence", "PCK@0.1", "%", ".1f",
        ("pck", "pck@0.1", "mean", "all"), named_protocols=True, paper_data="SPair-71k", paper=(35.1, 41.0, 53.3, 51.3),
        hub=HubTask(
            "keypoint-matching", "Semantic correspondence", "nearest patch token",
            {"pck": ("pck", "PCK@0.1, mean over categories (%)"), "pck_of_all_keypoints": ("pck", "PCK@0.1, over keypoints (%)"),
             "pck_of_pairs": ("pck", "PCK@0.1, mean over pairs (%)")},
        ),
    ),
    "vlm-textvqa": _vlm("TextVQA", "accuracy", _ACCURACY, (46.8, 48.3, 49.5, 50.4)),
    "vlm-sqa": _vlm("ScienceQA", "accuracy", _ACCURACY, (69.6, 69.3, 69.2, 69.7)),
    "vlm-realworldqa": _vlm("RealWorldQA", "accuracy", _ACCURACY, (53.5, 55.1, 55.1, 55.5)),
    "vlm-pope": _vlm("POPE, F1", "f1", ("f1", "F1 (%)"), (85.3, 85.3, 84.6, 85.9)),
    "vlm-gqa": _vlm("GQA", "accuracy", _ACCURACY, (66.6, 66.4, 67.3, 67.3)),
    "vlm-mme": _vlm("MME, perception", "perception", ("mme_perception", "perception (points)"), (1337.9, 1345.6, 1399.7, 1374.5), ""),
    "agreement": Evaluation(
        "agreement", "evaluate_agreement", "agreement", "", ".3f", ("agreement",),
        hub=HubTask(
            "image-feature-extraction", "Image feature extraction", "agreement with the teachers",
            {"agreement": ("cosine_similarity", "mean cosine of class and patch tokens"),
             "cls_cosine": ("cosine_similarity", "mean cosine of class tokens"),
             "patch_cosine": ("cosine_similarity", "mean cosine of patch tokens"),
             "cls_cka": ("linear_cka", "linear CKA of class tokens"), "patch_cka": ("linear_cka", "linear CKA of patch tokens")},
        ),
    ),
}  # fmt: skip


def hub_tasks() -> dict[str, HubTask]:
    """Return how the figures of each evaluation are entered in a model card, by the evaluation's name."""
    return {name: row.hub for name, row in EVALUATIONS.items() if row.hub is not None}
