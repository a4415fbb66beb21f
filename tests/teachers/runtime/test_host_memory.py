"""Freed memory is used again: page faults of a process that makes and drops tensors, with and without the limits."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest
from eupe_pipeline.teachers.runtime import host_memory

ROUNDS, MEGABYTES = 40, 40  # glibc never keeps blocks of more than 32 MB by itself
FAULTS = f"""
import resource, sys, torch
from eupe_pipeline.teachers.runtime.host_memory import keep_freed_memory
keep_freed_memory(sys.argv[1])
def work():
    a = torch.ones({MEGABYTES} << 18)
    return (a * 2 + 1).sum().item()
for _ in range(8):  # until the heap is as large as it will be
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the allocator is not glibc's")


def page_faults(device: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name not in host_memory._SET_BY_USER}
    done = subprocess.run([sys.executable, "-c", FAULTS, device], env=clean | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_glibc
def test_a_cpu_uses_the_memory_that_it_had() -> None:
    a_round = MEGABYTES * (1 << 20) // resource.getpagesize()
    assert page_faults("cuda") > ROUNDS * a_round, "without the limits, memory is given back and fetched again"
    assert page_faults("cpu") < a_round


@needs_glibc
def test_limits_of_the_environment_stay() -> None:
    assert page_faults("cpu", MALLOC_MMAP_THRESHOLD_="131072") > ROUNDS


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutMallopt:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda name: WithoutMallopt())
    host_memory._set_limits.cache_clear()
    assert host_memory._set_limits() is False
    host_memory._set_limits.cache_clear()
