"""Which process of which machine: written down by one, so that another on the same machine can tell that it is gone.

Only a process under the same boot and in the same namespace of process ids can be judged: containers that share a store have ids of their
own, and another machine's processes are out of sight. An id that was given to a new process is told apart by when that was started.
"""

import os
from pathlib import Path

Process = dict[str, str | int]


def this_process() -> Process:
    """What identifies this process; {} where the system does not say (it is not Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = _started(os.getpid())
        namespace = os.readlink("/proc/self/ns/pid")
    except (OSError, ValueError, IndexError):
        return {}
    return {"boot": boot, "pid_namespace": namespace, "pid": os.getpid(), "started": started}


def is_gone(process: object) -> bool:
    """Whether a process that was written down has certainly ended; False for all that cannot be judged here."""
    here = this_process()
    if not here or not isinstance(process, dict) or any(process.get(key) != here[key] for key in ("boot", "pid_namespace")):
        return False
    pid, started = process.get("pid"), process.get("started")
    if type(pid) is not int or type(started) is not int or pid <= 0:
        return False
    try:
        return _started(pid) != started
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, ValueError, IndexError):
        return False


def _started(pid: int) -> int:
    """When a process was started, in ticks since the boot; raises FileNotFoundError when there is none, or only what is left of it."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # its name may hold spaces and brackets
    if fields[0] in (b"Z", b"X"):
        raise FileNotFoundError(pid)
    return int(fields[19])
