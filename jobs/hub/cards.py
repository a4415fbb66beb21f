"""Cards of what goes to the hub beside exports: a run with its checkpoints, and a feature set.

`huggingface_hub` writes and reads the metadata, as for `model_card`; nothing is guessed, and what no record says has no key.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import DatasetCard, ModelCard
from huggingface_hub.repocard_data import DatasetCardData, ModelCardData

from ...storage.features.features import FeatureReader
from ...student.export.lineage import collect_terms, read_record, read_targets
from ...student.export.model_card import PIPELINE_TAG, hub_models, licence_fields
from ...teachers.registry.table import Terms, sentence
from ..runs.licences import terms_of_set

_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7),
          ("10M<n<100M", 10**8), ("100M<n<1B", 10**9), ("1B<n<10B", 10**10))  # fmt: skip


def run_card(run: Path) -> str:
    """Return the README of a run's repository: metadata between `---` lines, then Markdown."""
    terms = collect_terms(run, None)
    teachers = hub_models(terms)
    data = ModelCardData(
        **licence_fields(terms), pipeline_tag=PIPELINE_TAG, tags=[PIPELINE_TAG, "vision", "knowledge-distillation", "training-run"],
        base_model=teachers or None, base_model_relation="finetune" if teachers else None,
    )  # fmt: skip
    recipe = read_record(run, "recipe.json").get("recipe", {})
    text = {
        f"{run.name}: a training run": (
            "A run's folder of eupe-pipeline: model, checkpoints, recipe, metrics. To go on with it, to evaluate or to export it:\n\n"
            "    eupe-pipeline pull hub:OWNER/NAME@COMMIT --out RUN"
        ),
        "Licence": _licence(terms),
        "Taught by": "\n".join(f"- {name}" for name in read_targets(run)) or "- no teacher is recorded",
        "Recipe": f"```json\n{json.dumps(recipe, indent=1, sort_keys=True)}\n```" if recipe else "None is recorded.",
    }
    return str(ModelCard(_card(data.to_yaml(), text)))


def features_card(reader: FeatureReader) -> str:
    """Return the README of a feature set's repository: metadata between `---` lines, then Markdown."""
    teacher, views = reader.identity["teacher"], reader.views
    terms = terms_of_set(reader)
    data = DatasetCardData(**licence_fields(terms), tags=["image-features", "knowledge-distillation"], size_categories=_size(reader.rows))
    facts = {
        "Teacher": f"{reader.name}, weights sha256 {teacher.get('weights_sha256', 'not recorded')}",
        "Images": f"{len(views.dataset):,} of {views.dataset.key}; the pictures themselves are not here",
        "Rows": f"{reader.rows:,}, {views.views_per_image} views an image ({views.key})",
        "Tokens": f"{reader.grid[0]}×{reader.grid[1]} of {reader.patch_dim} channels, {reader.codec}; class token of {reader.cls_dim}",
    }
    text = {
        f"{reader.key}: features of a frozen teacher": (
            "A feature set of eupe-pipeline, from which students are distilled without the teacher:\n\n"
            "    eupe-pipeline pull hub:datasets/OWNER/NAME@COMMIT --store STORE\n"
            f"    eupe-pipeline train --stage 2 --store STORE --features {reader.key} --out RUN\n\n"
            "Training cuts its views from the images: index your copy of them into the same store under the dataset's name first."
        ),
        "What it holds": "\n".join(f"- {title}: {fact}" for title, fact in facts.items()),
        "Licence": _licence(terms),
        "Identity": f"```json\n{json.dumps(reader.identity, indent=1, sort_keys=True)}\n```",
    }
    return str(DatasetCard(_card(data.to_yaml(), text)))


def _size(rows: int) -> str:
    return next((name for name, limit in _SIZES if rows < limit), "10B<n<100B")


def _card(metadata: str, sections: Mapping[str, str]) -> str:
    texts = [f"{'#' if number == 0 else '##'} {title}\n\n{text}\n" for number, (title, text) in enumerate(sections.items())]
    return f"---\n{metadata}\n---\n\n" + "\n".join(texts)


def _licence(terms: Mapping[str, Terms]) -> str:
    lines: list[Any] = [f"- {sentence(name, each)}" for name, each in terms.items()]
    return "The terms of the teachers' weights may bind what is made of them:\n\n" + "\n".join(lines or ["- no teacher is recorded"])
