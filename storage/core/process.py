"""Record which process holds a lock or a lease, so that another process of the same machine can tell when it has ended.

Only a process of the same boot and the same PID namespace can be judged: containers that share a store have PIDs of their own, and
processes of other machines are invisible. A reused PID is recognised by the start time of its process.
"""

import os
from pathlib import Path

Process = dict[str, str | int]


def this_process() -> Process:
    """Return what identifies this process: boot id, PID namespace, PID and start time; {} where there is no Linux /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        start_ticks = _start_ticks(os.getpid())
        namespace = os.readlink("/proc/self/ns/pid")
    except (OSError, ValueError, IndexError):
        return {}
    return {"boot": boot, "pid_namespace": namespace, "pid": os.getpid(), "started": start_ticks}


def has_ended(process: object) -> bool:
    """Return whether a recorded process has certainly ended; False for one that cannot be judged from here."""
    current = this_process()
    if not current or not isinstance(process, dict) or any(process.get(key) != current[key] for key in ("boot", "pid_namespace")):
        return False
    pid, start_ticks = process.get("pid"), process.get("started")
    if type(pid) is not int or type(start_ticks) is not int or pid <= 0:
        return False
    try:
        return _start_ticks(pid) != start_ticks
    except (FileNotFoundError, ProcessLookupError):
        return not _exists(pid)  # other users' processes may be hidden (proc mounted with hidepid)
    except (OSError, ValueError, IndexError):
        return False


def _start_ticks(pid: int) -> int:
    """Return the start time of a process in clock ticks since the boot, -1 of a zombie; raise FileNotFoundError when none is seen."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the process name before it may hold spaces and brackets
    if fields[0] in (b"Z", b"X"):
        return -1
    return int(fields[19])


def _exists(pid: int) -> bool:
    """Return whether there is a process of this number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
