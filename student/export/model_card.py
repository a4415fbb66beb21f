"""The README of an export folder: the Hub's metadata in front, the text for people behind it.

`huggingface_hub` writes and reads the metadata, so that a card which it cannot read is never written. Nothing is guessed: only teachers
whose repository on the Hub is recorded stand in `base_model`, only datasets with a known id in `datasets`. A distilled student is bound by
the terms of all of its teachers, and the Hub's `license` holds one: several are `other`, and the link leads to the card's own list.
Limit: the Hub's own check (`ModelCard.validate`) needs the network and is not run.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.repocard import ModelCard
from huggingface_hub.repocard_data import ModelCardData

from ...teachers.registry.resolve import TIMM_PREFIX
from ...teachers.registry.table import TEACHERS, UNKNOWN, Terms
from ..edge.choice import GraphChoice
from .hub_task import HubTask
from .lineage import Trained, read_record, read_targets
from .model_card_results import HUB_DATASETS, eval_results
from .model_card_text import card_text

PIPELINE_TAG = "image-feature-extraction"
_LIBRARIES = {"eupe": "pytorch"}  # the others are called as their library is
_HUB_ADDRESS = re.compile(r"huggingface\.co/([\w.-]+/[\w.-]+)")
_SEVERAL = {"license": "other", "license_name": "terms-of-its-teachers", "license_link": "README.md#licence"}
HUB_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openmdw-1.0", "openrail",
    "openrail++", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""The licences that the Hub knows by an id (huggingface.co/docs/hub/repositories-licenses)."""


def model_card(
    trained: Trained,
    form: str,
    facts: Mapping[str, Any],
    terms: Mapping[str, Terms],
    evaluations: Sequence[Mapping[str, Any]],
    usage: str,
    tasks: Mapping[str, HubTask],
    choice: GraphChoice = GraphChoice(),  # noqa: B008 - frozen
) -> str:
    """Return the README of one format's folder: metadata between `---` lines, then Markdown."""
    data = card_data(trained, form, terms, evaluations, tasks)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{card_text(trained, form, facts, terms, evaluations, usage, choice)}"))


def card_data(
    trained: Trained, form: str, terms: Mapping[str, Terms], evaluations: Sequence[Mapping[str, Any]], tasks: Mapping[str, HubTask]
) -> ModelCardData:
    """Return the Hub's metadata of a student in one format; what is not known has no key."""
    teachers, datasets, results = hub_models(terms), _hub_datasets(trained), eval_results(evaluations, tasks)
    distilled = ["knowledge-distillation"] if read_targets(trained.run) and trained.part != "initial" else []
    return ModelCardData(
        **licence_fields({} if trained.part == "initial" else terms, random_weights=trained.part == "initial"),
        library_name=_LIBRARIES.get(form, form),
        pipeline_tag=PIPELINE_TAG,
        tags=[PIPELINE_TAG, "vision", *distilled, str(trained.architecture["name"]), form],
        base_model=teachers or None,
        base_model_relation="finetune" if teachers else None,  # unsaid, several teachers would be shown as a merge of their weights
        datasets=datasets or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=trained.name if results else None,
        eval_results=results or None,
    )


def licence_fields(terms: Mapping[str, Terms], *, random_weights: bool = False) -> dict[str, Any]:
    """Return `license`, and `license_name` with `license_link` where the Hub has no id for it; {} for random weights."""
    if random_weights:
        return {}
    licences = [_licence_of(row) for row in terms.values()] or [_licence_of(UNKNOWN)]
    return licences[0] if all(licence == licences[0] for licence in licences) else dict(_SEVERAL)


def _licence_of(terms: Terms) -> dict[str, Any]:
    """Return the Hub's fields for one teacher's terms: an id of HUB_LICENCES, or `other` with a name and a link."""
    if terms.licence == UNKNOWN.licence:
        return {"license": "unknown"}
    name = re.sub(r"[^a-z0-9.+]+", "-", terms.licence.split(" (")[0].lower()).strip("-")
    if name in HUB_LICENCES:
        return {"license": name}
    address = terms.source.split(" (")[0]
    if " " in address:  # words, such as who declared it
        return {"license": "other", "license_name": name}
    return {"license": "other", "license_name": name, "license_link": address if "://" in address else f"https://{address}"}


def hub_models(terms: Mapping[str, Terms]) -> list[str]:
    """Return the Hub's ids (`OWNER/NAME`) of the teachers in a table of terms, each once; teachers without a known one are left out."""
    models = (_hub_model(name.split(" (through ")[0], row) for name, row in terms.items())
    return list(dict.fromkeys(model for model in models if model is not None))


def _hub_model(teacher: str, terms: Terms) -> str | None:
    """Return the repository on the Hub that a teacher's weights come from, None where it is not recorded."""
    if teacher.startswith(TIMM_PREFIX):
        model = teacher.removeprefix(TIMM_PREFIX)
        return f"timm/{model}" if "." in model else None  # without a tag timm chooses the weights, and the name does not say which
    definition = TEACHERS.get(teacher)
    for text in (definition.source, terms.source) if definition else ():
        if address := _HUB_ADDRESS.search(text):
            return address[1].rstrip(".")
    return None


def _hub_datasets(trained: Trained) -> list[str]:
    """Return the Hub's ids of the datasets that the run learnt from, as far as their names are known there."""
    names = [str(key).split("@")[0] for key in read_record(trained.run, "identities.json").get("views", ())]
    return sorted({HUB_DATASETS[name] for name in names if name in HUB_DATASETS})
