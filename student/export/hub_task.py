"""What an evaluation measures, in the words of the Hub's model cards; the row of an evaluation has one.

The Hub knows tasks, datasets and metrics by fixed names (https://huggingface.co/tasks), from which it makes tables of models. Rows stand
above this room, so an export gets them as an argument. Nothing is imported here, so that the table of rows stays quick.
"""

from collections.abc import Mapping
from typing import NamedTuple


class HubTask(NamedTuple):
    """How the figures of one evaluation are entered in a model card's metadata."""

    id: str
    """The Hub's name of the task."""
    name: str
    """The same for people."""
    method: str
    """How our figure is measured; every metric's name begins with it."""
    metrics: Mapping[str, tuple[str, str]]
    """Key in the results → (the Hub's type of metric, its name with its unit)."""
    accuracies_by_feature: bool = False
    """Whether the results are feature → protocol → top-1 accuracy in percent instead, as kNN's are."""
