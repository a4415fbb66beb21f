"""The user's surface: the command line, recipes, plans, reports and the demo; and the same in Python, described in docs/api.md.

    from eupe_pipeline.pipeline import ExtractOptions, extract_features

Each command has one function, and its request is one frozen value. A name is looked up when it is first used, so that importing this costs
no torch; type checkers see the imports below. What stands here is frozen by tests/pipeline/test_public_surface.py.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .console.known_holes import refuse_known_holes

if TYPE_CHECKING:
    from ..jobs.curation.curate import curate_features as curate_features
    from ..jobs.curation.options import CurateOptions as CurateOptions
    from ..jobs.detection.detection import DetectionOptions as DetectionOptions
    from ..jobs.detection.detection import evaluate_detection as evaluate_detection
    from ..jobs.estimates.cost_model import Prices as Prices
    from ..jobs.estimates.extraction import PlanOptions as PlanOptions
    from ..jobs.estimates.extraction import plan_extraction as plan_extraction
    from ..jobs.estimates.training import plan_training as plan_training
    from ..jobs.evaluation.agreement import AgreementOptions as AgreementOptions
    from ..jobs.evaluation.agreement import evaluate_agreement as evaluate_agreement
    from ..jobs.evaluation.correspondence import CorrespondenceOptions as CorrespondenceOptions
    from ..jobs.evaluation.correspondence import evaluate_correspondence as evaluate_correspondence
    from ..jobs.evaluation.depth import DepthOptions as DepthOptions
    from ..jobs.evaluation.depth import evaluate_depth as evaluate_depth
    from ..jobs.evaluation.knn import KnnOptions as KnnOptions
    from ..jobs.evaluation.knn import evaluate_knn as evaluate_knn
    from ..jobs.evaluation.linear import LinearOptions as LinearOptions
    from ..jobs.evaluation.linear import evaluate_linear as evaluate_linear
    from ..jobs.evaluation.segmentation import SegmentationOptions as SegmentationOptions
    from ..jobs.evaluation.segmentation import evaluate_segmentation as evaluate_segmentation
    from ..jobs.evaluation.zero_shot import ZeroShotOptions as ZeroShotOptions
    from ..jobs.evaluation.zero_shot import evaluate_zero_shot as evaluate_zero_shot
    from ..jobs.export_run import export_run as export_run
    from ..jobs.extraction.extract import extract_features as extract_features
    from ..jobs.extraction.options import ExtractOptions as ExtractOptions
    from ..jobs.extraction.options import TeacherRequest as TeacherRequest
    from ..jobs.extraction.options import teacher_requests as teacher_requests
    from ..jobs.hub.pull import PullOptions as PullOptions
    from ..jobs.hub.pull import pull as pull
    from ..jobs.hub.push import PushOptions as PushOptions
    from ..jobs.hub.push import push as push
    from ..jobs.repair.repair import FidelityOptions as FidelityOptions
    from ..jobs.repair.repair import RepairOptions as RepairOptions
    from ..jobs.repair.repair import fidelity as fidelity
    from ..jobs.repair.repair import repair_features as repair_features
    from ..jobs.retrieval.retrieval import RetrievalOptions as RetrievalOptions
    from ..jobs.retrieval.retrieval import evaluate_retrieval as evaluate_retrieval
    from ..jobs.training.launch import train as train
    from ..jobs.training.options import TrainOptions as TrainOptions
    from ..jobs.training.options import Watch as Watch
    from ..jobs.vlm.options import VlmOptions as VlmOptions
    from ..jobs.vlm.vlm import evaluate_vlm as evaluate_vlm
    from ..storage.core.errors import BadInput as BadInput
    from ..storage.core.errors import CacheDamaged as CacheDamaged
    from ..storage.core.errors import CacheMismatch as CacheMismatch
    from ..storage.core.errors import EupeError as EupeError
    from ..storage.core.errors import Interrupted as Interrupted
    from ..storage.core.errors import StoreUnavailable as StoreUnavailable
    from ..storage.core.events import OnEvent as OnEvent
    from ..storage.index import IndexOptions as IndexOptions
    from ..storage.index import index as index
    from ..storage.store import FeatureStore as FeatureStore
    from ..storage.views.view_spec import StoredPixels as StoredPixels
    from ..storage.views.view_spec import ViewSpec as ViewSpec
    from ..student.data.stored_views import StoredViews as StoredViews
    from ..student.export.export import ExportOptions as ExportOptions
    from ..student.export.import_published import import_weights as import_weights
    from ..student.export.latency import LatencyOptions as LatencyOptions
    from ..student.export.latency import latency as latency
    from ..student.model.recipe import TrainRecipe as TrainRecipe
    from ..teachers.checkpoints.convert import convert_weights as convert_weights
    from .distillation.distill import distill as distill
    from .distillation.options import DistillOptions as DistillOptions
    from .pictures.pictures import draw_neighbours as draw_neighbours
    from .pictures.pictures import draw_pca as draw_pca
    from .pictures.pictures import draw_similarity as draw_similarity
    from .recipes.load import ResolvedRecipe as ResolvedRecipe
    from .recipes.load import list_recipes as list_recipes
    from .recipes.load import load_recipe as load_recipe
    from .recipes.training import training_recipe as training_recipe
    from .recipes.views import chosen_views as chosen_views
    from .recipes.vlm import load_vlm_recipe as load_vlm_recipe
    from .reports.catalog import compact_features as compact_features
    from .reports.catalog import copy_feature_set as copy_feature_set
    from .reports.catalog import list_store as list_store
    from .reports.catalog import prune_features as prune_features
    from .reports.catalog import show_features as show_features
    from .reports.catalog import verify_features as verify_features
    from .reports.page_contents import PictureChoice as PictureChoice
    from .reports.page_contents import ReportOptions as ReportOptions
    from .reports.page_contents import report as report
    from .reports.replay import replay_step as replay_step
    from .reports.runs import compare_runs as compare_runs
    from .reports.runs import list_runs as list_runs
    from .reports.runs import show_run as show_run

_NAMES = {
    "..jobs.curation.curate": ("curate_features",),
    "..jobs.curation.options": ("CurateOptions",),
    "..jobs.estimates.cost_model": ("Prices",),
    "..jobs.estimates.extraction": ("PlanOptions", "plan_extraction"),
    "..jobs.estimates.training": ("plan_training",),
    "..jobs.evaluation.agreement": ("AgreementOptions", "evaluate_agreement"),
    "..jobs.evaluation.correspondence": ("CorrespondenceOptions", "evaluate_correspondence"),
    "..jobs.detection.detection": ("DetectionOptions", "evaluate_detection"),
    "..jobs.evaluation.depth": ("DepthOptions", "evaluate_depth"),
    "..jobs.evaluation.knn": ("KnnOptions", "evaluate_knn"),
    "..jobs.evaluation.linear": ("LinearOptions", "evaluate_linear"),
    "..jobs.evaluation.segmentation": ("SegmentationOptions", "evaluate_segmentation"),
    "..jobs.evaluation.zero_shot": ("ZeroShotOptions", "evaluate_zero_shot"),
    "..jobs.export_run": ("export_run",),
    "..jobs.extraction.extract": ("extract_features",),
    "..jobs.extraction.options": ("ExtractOptions", "TeacherRequest", "teacher_requests"),
    "..jobs.hub.pull": ("PullOptions", "pull"),
    "..jobs.hub.push": ("PushOptions", "push"),
    "..jobs.repair.repair": ("FidelityOptions", "RepairOptions", "fidelity", "repair_features"),
    "..jobs.retrieval.retrieval": ("RetrievalOptions", "evaluate_retrieval"),
    "..jobs.training.launch": ("train",),
    "..jobs.training.options": ("TrainOptions", "Watch"),
    "..jobs.vlm.options": ("VlmOptions",),
    "..jobs.vlm.vlm": ("evaluate_vlm",),
    "..storage.core.errors": ("BadInput", "CacheDamaged", "CacheMismatch", "EupeError", "Interrupted", "StoreUnavailable"),
    "..storage.core.events": ("OnEvent",),
    "..storage.index": ("IndexOptions", "index"),
    "..storage.store": ("FeatureStore",),
    "..storage.views.view_spec": ("StoredPixels", "ViewSpec"),
    "..student.data.stored_views": ("StoredViews",),
    "..student.export.export": ("ExportOptions",),
    "..student.export.import_published": ("import_weights",),
    "..student.export.latency": ("LatencyOptions", "latency"),
    "..student.model.recipe": ("TrainRecipe",),
    "..teachers.checkpoints.convert": ("convert_weights",),
    ".distillation.distill": ("distill",),
    ".distillation.options": ("DistillOptions",),
    ".pictures.pictures": ("draw_neighbours", "draw_pca", "draw_similarity"),
    ".recipes.load": ("ResolvedRecipe", "list_recipes", "load_recipe"),
    ".recipes.training": ("training_recipe",),
    ".recipes.views": ("chosen_views",),
    ".recipes.vlm": ("load_vlm_recipe",),
    ".reports.catalog": (
        "compact_features", "copy_feature_set", "list_store", "prune_features", "show_features", "verify_features",
    ),
    ".reports.page_contents": ("PictureChoice", "ReportOptions", "report"),
    ".reports.replay": ("replay_step",),
    ".reports.runs": ("compare_runs", "list_runs", "show_run"),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; raises `BadInput` for a function where a library has a known hole, as commands do."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.islower():
        refuse_known_holes()
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
