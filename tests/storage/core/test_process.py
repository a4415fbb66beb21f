"""A process that is gone is known to be so under the same boot and namespace; about all others nothing is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.process import Process, has_ended, this_process
from eupe_pipeline.storage.objects.objects import LocalObjects
from eupe_pipeline.storage.upkeep.leases import Lease, drop_expired, holders, refuse_leased

LEASER = """
import sys
from pathlib import Path
from eupe_pipeline.storage.upkeep.leases import Lease
from eupe_pipeline.storage.objects.objects import LocalObjects
lease = Lease(LocalObjects(Path(sys.argv[1])), "set@0123456789ab", "train-here")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dead() -> Process:
    """A process that was written down and has ended."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return {**this_process(), "pid": child}


def test_this_process_is_not_gone_and_one_that_ended_is(dead: Process) -> None:
    assert not has_ended(this_process())
    assert has_ended(dead)
    assert has_ended({**this_process(), "started": 1})  # its number was given to another


def test_what_cannot_be_judged_counts_as_alive(dead: Process) -> None:
    changed: list[Process] = [{"boot": "another"}, {"pid_namespace": "pid:[1]"}, {"pid": "7"}, {"pid": -1}, {"started": "1"}]
    others: list[object] = [{}, None, [], "x", *({**dead, **change} for change in changed)]
    for other in others:
        assert not has_ended(other)


def test_the_lease_of_a_killed_process_ends_at_once(tmp_path: Path) -> None:
    objects, key = LocalObjects(tmp_path), "set@0123456789ab"
    command = [sys.executable, "-c", LEASER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert len(holders(objects, key)) == 1
        with pytest.raises(BadInput, match="train-here"):
            refuse_leased(objects, key)
        process.kill()
    assert len(objects.names(f"leases/{key}")) == 1
    assert holders(objects, key) == []
    refuse_leased(objects, key)
    with Lease(objects, key, "another"):
        drop_expired(objects, key)
        assert len(objects.names(f"leases/{key}")) == 1
        with pytest.raises(BadInput, match=r"being read by another-[0-9a-f]+;"):
            refuse_leased(objects, key)


def test_leases_of_before_and_of_elsewhere_last_as_their_names_say(tmp_path: Path) -> None:
    objects, key = LocalObjects(tmp_path), "set@0123456789ab"
    objects.create(f"leases/{key}/old-99999999999.json", [b"{}"])
    objects.create(f"leases/{key}/broken-99999999999.json", [b"\xff"])
    objects.create(f"leases/{key}/empty-99999999999.json", [b""])
    (tmp_path / "leases" / key / "folder-99999999999.json").mkdir()
    assert holders(objects, key) == ["broken", "empty", "folder", "old"]
