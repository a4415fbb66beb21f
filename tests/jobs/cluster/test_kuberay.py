"""KubeRay manifests: as the operator and Kubernetes take them, those that lie in docker/kuberay included."""

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from eupe_pipeline.jobs.cluster.kuberay import KubeRayOptions, manifest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput

SCHEMA = json.loads((Path(__file__).parent / "ray_io_v1.schema.json").read_text())
IMAGE = "registry.example/eupe-pipeline@sha256:" + "a" * 64


def made(*words: str, **options: Any) -> Any:
    """A manifest that was read back, and is as the schema asks."""
    document = yaml.safe_load(manifest(KubeRayOptions(IMAGE, words, **options)))
    jsonschema.validate(document, SCHEMA)
    return document


def pods(document: Any) -> list[Any]:
    """The pods of the head and of the workers."""
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_a_command_is_a_job_and_none_is_a_cluster() -> None:
    assert made("train")["kind"] == "RayJob"
    assert made()["kind"] == "RayCluster"


def test_the_commands_words_survive_the_shell_that_runs_them() -> None:
    words = ("train", "two words", "it's", "$HOME", "a: b", "#", "line\nbreak", "- x")
    assert shlex.split(made(*words)["spec"]["entrypoint"]) == ["eupe-pipeline", *words]


def test_the_head_stands_on_lasting_nodes_and_the_workers_on_those_that_may_go() -> None:
    document = made("train", gpus=1, node_selector={"spot": "true"}, tolerations={"spot": "true", "nvidia.com/gpu": ""}, workers=3)
    head, worker = pods(document)
    assert "nodeSelector" not in head
    assert worker["nodeSelector"] == {"spot": "true"}
    assert worker["tolerations"][1] == {"key": "nvidia.com/gpu", "operator": "Exists"}
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    cluster = document["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["workerGroupSpecs"][0]["replicas"] == 3
    assert document["spec"]["backoffLimit"] > 0


def test_ports_ask_for_a_token_and_pods_run_as_an_ordinary_user_with_memory_for_rays_objects() -> None:
    document = made("train", claim="shared", secret="s3")
    assert document["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/data"}
        assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]


@pytest.mark.parametrize("wrong", [{"name": "A"}, {"name": "x" * 60}, {"memory": "much"}, {"claim": "a b"}, {"secret": "a\nb"}])
def test_what_kubernetes_would_refuse_is_refused_here(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="Kubernetes"):
        KubeRayOptions(IMAGE, **wrong)


def test_an_image_is_one_word() -> None:
    with pytest.raises(BadInput, match="--image"):
        KubeRayOptions("a b")


def test_the_schema_notices_a_field_that_the_operator_would_drop_in_silence() -> None:
    document = made("train")
    document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(document, SCHEMA)


def test_the_command_writes_a_manifest(tmp_path: Path) -> None:
    words = ["train", "--stage", "2", "--store", "s3://b/s", "--data", "d", "--features", "f", "--out", "s3://b/r", "--workers", "2"]
    out = tmp_path / "job.yaml"
    assert main(["cluster", "kuberay", "--image", IMAGE, "--out", str(out), "--", *words]) == 0
    document = yaml.safe_load(out.read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["spec"]["entrypoint"] == shlex.join(["eupe-pipeline", *words, "--address", "auto"])


FOLDER = Path(__file__).parents[3] / "docker" / "kuberay"


@pytest.mark.parametrize("name", ["raycluster", "extract", "train"])
def test_the_manifests_of_the_checkout_are_what_the_command_writes_today(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    document = yaml.safe_load(text)
    jsonschema.validate(document, SCHEMA)
    _, worker = pods(document)
    amounts = worker["containers"][0]["resources"]["limits"]
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    words = ["cluster", "kuberay", "--image", worker["containers"][0]["image"], "--name", document["metadata"]["name"]]
    words += ["--workers", str(cluster["workerGroupSpecs"][0]["replicas"]), "--gpus", amounts["nvidia.com/gpu"]]
    words += [
        "--cpus",
        amounts["cpu"],
        "--memory",
        amounts["memory"],
        "--secret",
        worker["containers"][0]["envFrom"][0]["secretRef"]["name"],
    ]
    words += [f"--node-selector={key}={value}" for key, value in worker.get("nodeSelector", {}).items()]
    words += [f"--tolerate={one['key']}={one['value']}" for one in worker.get("tolerations", [])]
    claims = [one["persistentVolumeClaim"]["claimName"] for one in worker["volumes"] if "persistentVolumeClaim" in one]
    words += ["--claim", *claims] if claims else []
    entrypoint = shlex.split(document["spec"].get("entrypoint", ""))
    words += ["--", *entrypoint[1:-2]] if entrypoint else []
    assert main(words) == 0
    assert capsys.readouterr().out == text


def test_extraction_runs_on_workers_that_may_be_preempted_and_a_training_does_not() -> None:
    extract, train = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("extract", "train"))
    assert pods(extract)[1]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert "nodeSelector" not in pods(train)[1]
