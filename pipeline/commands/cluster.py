"""`cluster`: batch scripts and manifests that run a command on a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ...storage.core.errors import BadInput, unknown_name
from ...storage.core.events import OnEvent
from .group import cli, run
from .options import FILE, JSON, options, pairs

ON_A_CLUSTER = ("extract-features", "train", "distill")
WORDS = click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [OPTION]...")
OUT = click.option("--out", "-o", type=FILE, default=None, help="File; default: standard output.")
NAME = click.option("--name", default="eupe-pipeline", show_default=True, help="What the job is called.")


@cli.group()
def cluster() -> None:
    """Write what runs a command on a cluster. Nothing is submitted."""


def on_cluster(words: tuple[str, ...], address: str) -> tuple[str, ...]:
    """Return the command with the cluster's address; raises what it would raise for its options, before a job waits for its turn."""
    if words[0] not in ON_A_CLUSTER:
        raise unknown_name("command that runs on a cluster", words[0], ON_A_CLUSTER)
    command, words = cli.commands[words[0]], (*words, "--address", address)
    values = command.make_context(f"eupe-pipeline {words[0]}", list(words[1:])).params
    if words.count("--address") > 1 or values["address"] != address or any(word.startswith("--address=") for word in words):
        raise BadInput("--address is set to the cluster's own; leave it out of the command")
    if words[0] == "train" and not values["workers"]:
        raise BadInput("a training on a cluster has ranks; give --workers, the number of all nodes' GPUs or CPUs, after `train`")
    return words


def written(text: str, out: Path | None, as_json: bool, then: str) -> None:
    """Write the text to its file and say what comes next, or print it."""
    if out is None and not as_json:
        click.echo(text, nl=False)
        return

    def work(on_event: OnEvent) -> Mapping[str, Any]:
        if out is None:
            return {"text": text}
        from ...storage.objects.atomic_files import write_atomically

        write_atomically(out, text.encode())
        return {"written": str(out), "next": f"{then} {out}"}

    run(work, as_json)


@cluster.command()
@WORDS
@options(
    click.option("--nodes", type=click.IntRange(1), default=2, show_default=True),
    click.option("--gpus-per-node", type=click.IntRange(0), default=0, show_default=True),
    click.option("--cpus-per-node", type=click.IntRange(1), default=None, help="Default: all that a node has."),
    click.option("--time", default=None, metavar="HH:MM:SS", help="Default: the partition's own limit."),
    NAME,
    click.option("--partition", default=None), click.option("--account", default=None),
    click.option("--sbatch", "more", multiple=True, metavar="--OPTION=VALUE", help="Another option of sbatch; repeatable."),
    click.option("--setup", multiple=True, metavar="LINE", help="Shell line that makes the program known, as `module load …`; repeatable."),
    click.option("--port", type=click.IntRange(1024, 65535), default=6379, show_default=True, help="Of the Ray head."),
    OUT, JSON,
)  # fmt: skip
def slurm(
    as_json: bool, words: tuple[str, ...], nodes: int, gpus_per_node: int, cpus_per_node: int | None, time: str | None, name: str,
    partition: str | None, account: str | None, more: tuple[str, ...], setup: tuple[str, ...], port: int, out: Path | None,
) -> None:  # fmt: skip
    """Write a SLURM batch script for a command. A lost node does not end the job; submitted again, it does what is missing."""
    from ...jobs.cluster.slurm import SlurmOptions, batch_script

    if not words:
        raise BadInput(f"give the command behind `--`, one of {', '.join(ON_A_CLUSTER)} with its options")
    request = SlurmOptions(
        on_cluster(words, "auto"), nodes, gpus_per_node, cpus_per_node, time, name, partition, account, more, setup, port
    )  # fmt: skip
    written(batch_script(request), out, as_json, "sbatch")


@cluster.command()
@WORDS
@options(
    click.option("--image", required=True, help="Image of this package, by tag or digest."),
    NAME,
    click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Pods beside the head."),
    click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="Of each worker."),
    click.option("--cpus", type=click.IntRange(1), default=4, show_default=True, help="Of each worker."),
    click.option("--memory", default="16Gi", show_default=True, help="Of each pod."),
    click.option("--node-selector", multiple=True, metavar="LABEL=VALUE", callback=pairs, help="Of workers' nodes; repeatable."),
    click.option("--tolerate", "tolerations", multiple=True, metavar="TAINT=VALUE", callback=pairs, help="Of workers' nodes; repeatable."),
    click.option("--claim", default=None, help="PersistentVolumeClaim seen at /data by every pod."),
    click.option("--secret", default=None, help="Secret whose keys every pod has in its environment."),
    OUT, JSON,
)  # fmt: skip
def kuberay(
    as_json: bool, words: tuple[str, ...], image: str, name: str, workers: int, gpus: int, cpus: int, memory: str,
    node_selector: dict[str, str], tolerations: dict[str, str], claim: str | None, secret: str | None, out: Path | None,
) -> None:  # fmt: skip
    """Write a KubeRay manifest: a RayJob for a command, or a RayCluster without one."""
    from ...jobs.cluster.kuberay import KubeRayOptions, manifest

    command = on_cluster(words, "auto") if words else ()
    request = KubeRayOptions(image, command, name, workers, gpus, cpus, memory, node_selector, tolerations, claim, secret)
    written(manifest(request), out, as_json, "kubectl apply -f")
