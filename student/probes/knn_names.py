"""The names of kNN's protocols in results of any age.

Results that hold "paper" and no "ours" were written when our own protocol (k = 10, cosine) was called the paper's; it is the same figure
that is called "ours" since. Whoever reads records, metrics or a demonstration's results reads them through this, so that the two never
share a name, a column or a curve. The files stay as they are.
"""

from collections.abc import Mapping
from typing import Any


def rename_protocols(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return one feature's figures by protocol, or a table of such figures by feature, under today's names."""
    renamed = {key: rename_protocols(value) if isinstance(value, Mapping) else value for key, value in figures.items()}
    if "paper" in renamed and "ours" not in renamed:
        renamed = {"ours" if key == "paper" else key: value for key, value in renamed.items()}
    return renamed


def rename_record_protocols(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation's record with kNN's protocols under today's names, in its results and its protocol."""
    results = rename_protocols(record["results"]) if record["evaluation"] == "knn" else record["results"]
    if results == record["results"]:
        return dict(record)
    return {**record, "protocol": rename_protocols(record.get("protocol", {})), "results": results}
