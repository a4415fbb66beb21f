"""The text of a model card: what the model is, where it comes from, what it was measured at, whose terms it is under.

Plain Markdown made of what the run recorded; nothing is guessed. What the run does not know (an evaluation that nobody ran, the terms of
a teacher that we have not recorded) is said to be missing, because a card that leaves it out reads as if there were nothing to say.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...storage.views.input_size import size_hw
from ...teachers.registry.table import Terms, sentence
from ..edge.choice import GraphChoice
from ..heads.documents import heads_text
from ..model.student import count_parameters
from .formats import row_of
from .lineage import PARTS, Trained, read_record, read_targets
from .model_card_results import is_record

_ON_THE_WAY = ("by_step", "validation_by_power")
_OUTPUT = "Outputs: a class token per picture, and a grid of patch tokens (rows top to bottom, columns left to right)"


def _cls(trained: Trained) -> str:
    encoder = trained.encoder
    if trained.architecture.get("family") != "map":
        return ", both normed."
    return f", the last feature map of timm's {trained.architecture['model']}. Class token: {encoder.cls}, {encoder.cls_width} channels."


def card_text(
    trained: Trained, form: str, facts: Mapping[str, Any], terms: Mapping[str, Terms], evaluations: Sequence[Mapping[str, Any]], usage: str,
    choice: GraphChoice = GraphChoice(),  # noqa: B008 - frozen
) -> str:  # fmt: skip
    """Return the Markdown of one format's folder."""
    prep, name = trained.preprocessing, trained.hub_name or "a student"
    height, width = size_hw(prep.size_px)
    parameters = count_parameters(trained.encoder)
    sections = {
        f"{name}: {row_of(form, choice).title}": (
            f"{parameters:,} parameters, one token per {trained.encoder.stride_px} px, {trained.encoder.width} channels.\n\n"
            f"{_OUTPUT}{_cls(trained)}\n\n"
            f"In: RGB, {height}×{width} px ({prep.interpolation}), divided by {prep.pixel_scale:g}, minus {list(prep.mean)},"
            f" divided by {list(prep.std)}."
        ),
        **({"Heads": heads_text(trained.heads, prep.size_px, facts)} if trained.heads else {}),
        "Use": f"    python usage.py PICTURE\n\n```python\n{usage}```",
        "This file against the trained student": _table(facts),
        "Licence": _licence(terms) if trained.part != "initial" else "Random weights: no teacher has shaped them.",
        "Evaluations": "\n\n".join(_evaluation(evaluation) for evaluation in evaluations)
        or "Nobody has evaluated this run yet: `eupe-pipeline evaluate`.",
        "Training": _training(trained),
        "Identity": f"Weights of the trained student: sha256 {trained.weights_sha256}. Files here: `sha256sum -c SHA256SUMS`.",
    }
    return "\n".join(f"{'#' if number == 0 else '##'} {title}\n\n{text}\n" for number, (title, text) in enumerate(sections.items()))


def _licence(terms: Mapping[str, Terms]) -> str:
    """Return the teachers' terms as a list, with a warning in front where commercial use is forbidden or unknown."""
    lines = [f"- {sentence(name, each)}" for name, each in terms.items()] or ["- no teacher is recorded: terms unknown to us"]
    unsafe = any(each.non_commercial is not False for each in terms.values()) or not terms
    warning = (
        "**At least one teacher forbids commercial use or has terms that we do not know. They may bind this model.**\n\n" if unsafe else ""
    )
    return f"{warning}The weights were distilled from these teachers; each one's terms are passed on to whoever uses them:\n\n" + "\n".join(
        lines
    )


def _training(trained: Trained) -> str:
    """Return where the weights come from: the source of an imported model, or a run's targets, recipe and result."""
    run = trained.run
    if origin := read_record(run, "imported.json"):
        return f"Imported from {origin['source']} ({origin['layout']} layout), not trained here.\n\n" + "\n".join(
            f"- {note}" for note in origin["notes"]
        )
    recipe, targets, summary = read_record(run, "recipe.json"), read_targets(run), read_record(run, "summary.json")
    features = {name: _feature_identity(target) for name, target in targets.items()}
    result = "Result" if trained.part is None else "Result of the run's last step"
    parts = {
        "Targets, by teacher (data and views are named by digest)": features,
        "Recipe, each value with its origin in `origins`": {"recipe": recipe.get("recipe", {}), "origins": recipe.get("origins", {})},
        result: summary,
    }
    sections = [f"{title}:\n\n{_code(part)}" if part else f"{title}: not recorded." for title, part in parts.items()]
    return "\n\n".join([*_which(trained, summary), *sections])


def _which(trained: Trained, summary: Mapping[str, Any]) -> list[str]:
    """Return a sentence on which of its run's models this is, [] for the run's own."""
    if trained.part is None:
        return []
    step = f", of step {summary['best_step']}" if trained.part == "best" and "best_step" in summary else ""
    return [f"These weights are {PARTS[trained.part]}{step}."]


def _feature_identity(target: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a target, without the fields that repeat the rest of the card."""
    identity = target.get("identity", {})
    kept = {key: value for key, value in target.items() if key != "identity"}
    return {**kept, **{key: identity[key] for key in ("views", "statistics", "layout", "teacher") if key in identity}}


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    """Return the results under their name, then their protocol; measurements of earlier steps are left out."""
    if not is_record(evaluation):
        return _code(evaluation)
    results = {name: value for name, value in evaluation["results"].items() if name not in _ON_THE_WAY}
    return f"{evaluation['evaluation']}:\n\n{_code(results)}\n\nby the protocol\n\n{_code(evaluation['protocol'])}"


def _table(facts: Mapping[str, Any]) -> str:
    """Return facts as a Markdown table of two columns."""
    rows = "\n".join(f"| {key} | {json.dumps(value, ensure_ascii=False)} |" for key, value in facts.items())
    return f"| | |\n|---|---|\n{rows}"


def _code(value: Any) -> str:
    """Return a value as a fenced block of JSON."""
    return f"```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"
