"""The names of kNN's protocols in results of any age.

Results that hold "paper" and no "ours" were written when our own protocol (k = 10, cosine) was called the paper's; it is the same figure
that is called "ours" since. Read by the report, the curves of a run and the table of evaluations, so that the two never share a column.
"""

from collections.abc import Mapping
from typing import Any


def named_as_today(figures: Mapping[str, Any]) -> dict[str, Any]:
    """One feature's figures by protocol, or a table of such figures by feature, under today's names."""
    found = {key: named_as_today(value) if isinstance(value, Mapping) else value for key, value in figures.items()}
    if "paper" in found and "ours" not in found:
        found = {"ours" if key == "paper" else key: value for key, value in found.items()}
    return found
