"""A SLURM batch script that starts Ray on every node of an allocation and runs one command on the first.

`ray symmetric-run` is the same command on every node: on the first it starts the head and then the work, on the others a Ray node that
ends with the head. Each job has a token of its own, made on the head and passed in the environment: nothing of it stays on a disk, and two
jobs do not reach each other. A node that is lost does not end the job (`--no-kill`); the job's status is that of the command, which is
written down on the first node, because srun reports the lost node's. When the first node is lost the job is put into the queue again
(`--requeue`), and the command goes on from what is committed.
Limits: one job has whole nodes (`--exclusive`), because `ray symmetric-run` ends with `ray stop`, which stops every Ray of this user there.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ...storage.core.errors import BadInput

_WORD = re.compile(r"[\w.,:=@%/+\[\]*()|&-]+")
_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
LONGEST_NAME = 64


@dataclass(frozen=True)
class SlurmOptions:
    """What the batch script asks of SLURM; raises BadInput for a value that would be another line or option of it."""

    words: tuple[str, ...]
    """The command with its options, without `eupe-pipeline`."""
    nodes: int = 2
    gpus_per_node: int = 0
    """0: CPUs alone."""
    cpus_per_node: int | None = None
    """None: all of a node's."""
    time: str | None = None
    """As SLURM writes it: 12:00:00 or 2-00:00:00; None: the partition's own limit."""
    name: str = "eupe-pipeline"
    partition: str | None = None
    account: str | None = None
    more: tuple[str, ...] = ()
    """Further options of sbatch, each `--name=value` or `--name`."""
    setup: tuple[str, ...] = ()
    """Lines of shell that make `eupe-pipeline` and `ray` known on every node, such as `module load python`; run as they are."""
    port: int = 6379
    """Of the Ray head."""

    def __post_init__(self) -> None:
        for option, value in (("--name", self.name), ("--partition", self.partition), ("--account", self.account)):
            if value is not None and (not _WORD.fullmatch(value) or value.startswith("-") or len(value) > LONGEST_NAME):
                raise BadInput(f"{option} {value!r} is not a name that SLURM takes: letters, digits, `._-:` and the like, at most 64")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise BadInput(f"--time {self.time!r} is not a time of SLURM: minutes, HH:MM:SS or DAYS-HH:MM:SS, such as 12:00:00")
        for option in self.more:
            if not option.startswith("--") or not _WORD.fullmatch(option):
                raise BadInput(f"--sbatch {option!r} is not one option of sbatch; give it as --sbatch=--constraint=a100, one at a time")


def batch_script(options: SlurmOptions) -> str:
    """Return the script, for `sbatch FILE`."""
    work = "\n".join(f"  {shlex.quote(word)}" for word in ("eupe-pipeline", *options.words))
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {line}" for line in directives(options)),
        setup="".join(f"{line}\n" for line in options.setup),
        port=options.port,
        gpus=options.gpus_per_node,
        work=work,
    )


def directives(options: SlurmOptions) -> Sequence[str]:
    """Return the options of sbatch, those that keep a job alive without a node among them."""
    asked = [f"--job-name={options.name}", f"--nodes={options.nodes}", "--ntasks-per-node=1", "--exclusive"]
    asked += [f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []
    asked += [f"--cpus-per-task={options.cpus_per_node}"] if options.cpus_per_node else []
    named = (("time", options.time), ("partition", options.partition), ("account", options.account))
    asked += [f"--{name}={value}" for name, value in named if value]
    return [*asked, "--no-kill", "--requeue", "--open-mode=append", "--signal=TERM@120", *options.more]


_SCRIPT = """\
#!/bin/bash
# Written by `eupe-pipeline cluster slurm`. Submit it with `sbatch FILE`; submitted again, it does what is missing.
{directives}
set -euo pipefail
{setup}
# shellcheck disable=SC2016  # what stands in quotes is meant as it is
work=(
{work}
)

# The first node is the head, and this script runs on it. An address of loopback is none that the others reach.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${{nodes%%$'\\n'*}}
address=${{EUPE_HEAD_ADDRESS:-$(getent ahostsv4 "$head" | awk '$1 !~ /^127\\./ {{ print $1; exit }}' || true)}}
address=${{address:-$(hostname -I | awk '{{ print $1 }}')}}
if [[ -z $address ]]; then
  echo "the first node, $head, has no address that other nodes reach; set EUPE_HEAD_ADDRESS" >&2
  exit 1
fi

# Whoever reaches Ray's ports runs code, so every port asks for a token that this job alone knows.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -v -N 32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN
export RAY_ADDRESS="$address:{port}"
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600

# A node that is lost makes srun fail: the work's own status is what counts, and it is written down where the work runs.
outcome=$(mktemp -d)
export outcome
trap 'rm -rf "$outcome"' EXIT

# --wait=0 and --kill-on-bad-exit=0: a node that ends early takes no other along.
# shellcheck disable=SC2016  # expanded on the node, by the shell that is started there
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --no-kill --kill-on-bad-exit=0 --wait=0 \\
  ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \\
  --num-cpus="${{SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}}" --num-gpus={gpus} --disable-usage-stats \\
  -- bash -c '"$@" && status=0 || status=$?; echo "$status" >"$outcome/status"; exit "$status"' work "${{work[@]}}" || lost=$?

if [[ ! -s $outcome/status ]]; then
  echo "the command did not start or did not end (srun: ${{lost:-0}}); see above, then submit this again" >&2
  exit "${{lost:-1}}"
fi
status=$(<"$outcome/status")
if [[ ${{lost:-0}} -ne 0 && $status -eq 0 ]]; then
  echo "a node was lost on the way (srun: $lost); the command ended all the same, with everything done" >&2
fi
exit "$status"
"""
