"""The figures of a task from its questions and a model's answers; which answer is right stands in `answers`. In percent, MME's in points.

POPE: accuracy, precision, recall and F1 of `yes`, and the share of `yes`, for each subset, and the means over the three (the paper's figure
is F1, and does not say how the subsets are joined). MME: of each category the percent of right answers plus the percent of pictures with
both right, 200 at most; summed over ten categories of perception (the paper's figure) and four of cognition.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...storage.annotations.questions import MME_COGNITION, MME_PERCEPTION, POPE_SUBSETS, Question
from ...storage.core.choices import VlmTask
from .answers import is_equal, is_right_in_the_real_world, letter_of, mme_word, vqa_score, yes_or_no

Answered = Sequence[tuple[Question, str]]


def score(task: VlmTask, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """Return the figures of answers, in the order of the questions."""
    return _SCORES[task](list(zip(questions, answers, strict=True)))


def _mean(right: Callable[[Question, str], float]) -> Callable[[Answered], dict[str, Any]]:
    return lambda answered: {"accuracy": 100 * sum(right(question, answer) for question, answer in answered) / len(answered)}


def _pope(answered: Answered) -> dict[str, Any]:
    subsets = {
        name: _of_subset([(yes_or_no(answer), question.answers[0]) for question, answer in answered if question.group == name])
        for name in POPE_SUBSETS
    }
    names = next(iter(subsets.values()))
    return {**{name: sum(figures[name] for figures in subsets.values()) / len(subsets) for name in names}, "subsets": subsets}


def _of_subset(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return a subset's figures of (said, right); what has no `yes` to divide by is 0."""
    hits = sum(said == right == "yes" for said, right in pairs)
    said_yes, are_yes = sum(said == "yes" for said, _ in pairs), sum(right == "yes" for _, right in pairs)
    precision, recall = hits / max(1, said_yes), hits / max(1, are_yes)
    return {
        "f1": 100 * 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": 100 * sum(said == right for said, right in pairs) / len(pairs),
        "precision": 100 * precision, "recall": 100 * recall, "yes_ratio": 100 * said_yes / len(pairs),
    }  # fmt: skip


def _mme(answered: Answered) -> dict[str, Any]:
    by_category: dict[str, dict[str, list[bool]]] = {}
    for question, answer in answered:
        pictures = by_category.setdefault(question.group, {})
        pictures.setdefault(question.picture_name, []).append(mme_word(answer) == question.answers[0])
    categories = {name: _of_category(pictures) for name, pictures in by_category.items()}
    sums = {
        kind: sum(categories[name]["score"] for name in names)
        for kind, names in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION))
    }
    return {**sums, "categories": categories}


def _of_category(pictures: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    answers = [right for of_one in pictures.values() for right in of_one]
    accuracy = 100 * sum(answers) / len(answers)
    both = 100 * sum(all(of_one) for of_one in pictures.values()) / len(pictures)
    return {"score": accuracy + both, "accuracy": accuracy, "accuracy_plus": both}


_SCORES: dict[VlmTask, Callable[[Answered], dict[str, Any]]] = {
    "textvqa": _mean(lambda question, answer: vqa_score(answer, question.answers)),
    "gqa": _mean(lambda question, answer: is_equal(answer, question.answers[0])),
    "pope": _pope,
    "sqa": _mean(lambda question, answer: letter_of(answer, int(question.group)) == question.answers[0]),
    "realworldqa": _mean(lambda question, answer: is_right_in_the_real_world(answer, question.answers[0])),
    "mme": _mme,
}
