"""A cluster of three nodes of one CPU each under token authentication; an extraction on it loses one node after its first shard.

A process of its own, because Ray reads its authentication once a process. Prints the summary as its last line.

    python cluster_run.py STORE TEACHER_RUN
"""

import json
import os
import secrets
import sys
from typing import Any

from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.storage.views.view_spec import ViewSpec

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def main(store_url: str, teacher: str) -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    doomed, _ = [nodes.add_node(**NODE) for _ in range(2)]
    lost: list[int] = []

    def lose_one(event: dict[str, Any]) -> None:
        if event["stage"].startswith("extract") and not lost:
            lost.append(event["done"])
            nodes.remove_node(doomed, allow_graceful=False)

    options = ExtractOptions(
        store_url, "photos", (TeacherRequest(teacher),), ViewSpec(views_per_image=2, seed=3), images_per_shard=1, codec="fp32",
        statistics_batches=4, batch_size=8, address=nodes.address,
    )  # fmt: skip
    try:
        summary = extract_features(options, lose_one)
        print(json.dumps({**summary, "lost_at": lost}, default=str))
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
