"""Manifests for the KubeRay operator: a RayCluster, or a RayJob that makes one for a command and takes it down afterwards.

The head has no Ray CPUs, so that the command alone runs there, on a node that is not taken away; actors and ranks run in the workers. A
worker that is preempted is replaced by the operator, and what it had begun is done again. When the head is lost the job starts again
(`backoffLimit`) and goes on from what is committed. Ports ask for a token, which the operator makes (`authOptions`, KubeRay 1.5.1 and
later). Pods run as the image's ordinary user, without any capability.
Limits: field names are KubeRay's `ray.io/v1`; nothing here has run on a Kubernetes cluster.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ...storage.core.errors import BadInput

USER = 10001
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?")  # KubeRay appends to it, and a label has at most 63 letters
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?")
_REPEATS = 6
GRACE_S = 60


@dataclass(frozen=True)
class KubeRayOptions:
    """What the manifest asks of Kubernetes; raises BadInput for what it would refuse."""

    image: str
    """With a tag or, better, a digest."""
    words: tuple[str, ...] = ()
    """The command with its options, without `eupe-pipeline`; (): a cluster alone."""
    name: str = "eupe-pipeline"
    workers: int = 2
    gpus: int = 0
    """Of each worker."""
    cpus: int = 4
    """Of each worker; the head has one."""
    memory: str = "16Gi"
    """Of each pod."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the workers' nodes, such as those of preemptible ones."""
    tolerations: Mapping[str, str] = field(default_factory=dict)
    """Taints of the workers' nodes that are accepted, value by key; "" accepts any value."""
    claim: str | None = None
    """PersistentVolumeClaim that every pod sees at /data; needed unless the store and the runs are at URLs."""
    secret: str | None = None
    """Secret whose keys every pod has in its environment, such as AWS_ACCESS_KEY_ID."""
    ray_version: str = "2.60.0"
    """Of the image."""

    def __post_init__(self) -> None:
        for option, value in (("--name", self.name), ("--claim", self.claim), ("--secret", self.secret)):
            if value is not None and not _LABEL.fullmatch(value):
                raise BadInput(f"{option} {value!r} is not a name that Kubernetes takes: small letters, digits and dashes, at most 47")
        if not self.image or re.search(r"\s", self.image):
            raise BadInput(f"--image {self.image!r} is not an image, such as registry/eupe-pipeline:0.1.0 or …@sha256:…")
        if not _QUANTITY.fullmatch(self.memory):
            raise BadInput(f"--memory {self.memory!r} is not an amount that Kubernetes takes, such as 16Gi")


def manifest(options: KubeRayOptions) -> str:
    """Return the manifest as YAML, for `kubectl apply -f FILE`."""
    document = ray_job(options) if options.words else head_and_workers("RayCluster", options, ray_cluster(options))
    text: str = yaml.safe_dump(document, sort_keys=False, width=120)
    return f"# Written by `eupe-pipeline cluster kuberay`, for KubeRay 1.5.1 or later: kubectl apply -f FILE\n{text}"


def head_and_workers(kind: str, options: KubeRayOptions, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of KubeRay."""
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": options.name}, "spec": dict(spec)}


def ray_job(options: KubeRayOptions) -> dict[str, Any]:
    """Return a RayJob: the command on the head, with a cluster of its own."""
    spec = {
        "entrypoint": shlex.join(("eupe-pipeline", *options.words)),
        "backoffLimit": _REPEATS,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "submissionMode": "K8sJobMode",
        "rayClusterSpec": ray_cluster(options),
    }
    return head_and_workers("RayJob", options, spec)


def ray_cluster(options: KubeRayOptions) -> dict[str, Any]:
    """Return the specification of head and workers."""
    workers = {
        "groupName": "workers",
        "replicas": options.workers,
        "minReplicas": 0,
        "maxReplicas": options.workers,
        "rayStartParams": {},
        "template": {"spec": worker_pod(options)},
    }
    return {
        "rayVersion": options.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": pod(options, "head", 1, 0)}},
        "workerGroupSpecs": [workers],
    }


def worker_pod(options: KubeRayOptions) -> dict[str, Any]:
    """Return a worker's pod on the nodes that are meant for it; what it had begun is handed back within the grace period."""
    asked = pod(options, "worker", options.cpus, options.gpus) | {"terminationGracePeriodSeconds": GRACE_S}
    if options.node_selector:
        asked["nodeSelector"] = dict(options.node_selector)
    if options.tolerations:
        asked["tolerations"] = [
            {"key": key, "operator": "Equal", "value": value} if value else {"key": key, "operator": "Exists"}
            for key, value in options.tolerations.items()
        ]
    return asked


def pod(options: KubeRayOptions, name: str, cpus: int, gpus: int) -> dict[str, Any]:
    """Return a pod of one container that runs as the image's user and may not become another."""
    amounts = {"cpu": str(cpus), "memory": options.memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    container: dict[str, Any] = {
        "name": name,
        "image": options.image,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # Ray's objects; a pod's own has 64 MB
    if options.secret:
        container["envFrom"] = [{"secretRef": {"name": options.secret}}]
    if options.claim:
        container["volumeMounts"].append({"name": "data", "mountPath": "/data"})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": options.claim}})
    context = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"automountServiceAccountToken": False, "securityContext": context, "containers": [container], "volumes": volumes}
