"""What the command asks of the allocator, seen by the page faults of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from vit_hf.cli import memory

FAULTS = """
import importlib.util, resource, sys

spec = importlib.util.spec_from_file_location("memory", sys.argv[1])  # alone: the package takes seconds to import
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
if sys.argv[2] == "keeping":
    memory.keep_freed_memory()
    memory.keep_freed_memory()  # again changes nothing

def take_and_free():
    layers = [b"1" * (2**20 * size) for size in (12, 36, 160)]
    del layers

for _ in range(3):
    take_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str, **environment: str) -> int:
    """Return how many page faults it takes to have 208 MB again after they were freed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, memory.__file__, way]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_stays_with_the_process_unless_the_user_says_otherwise():
    assert faults("keeping") < 1_000
    without = faults("not keeping")
    if without < 10_000:
        pytest.skip(f"here it stays anyway, or pages are huge ({without} faults)")
    assert faults("keeping", MALLOC_TRIM_THRESHOLD_="131072") > 10_000
