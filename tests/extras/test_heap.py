"""Large blocks come from memory that the process already has."""

import platform
import resource
import subprocess
import sys

import pytest


SCRIPT = """
import resource, sys
import torch
from llamafactory.extras.heap import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):
    torch.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_a_freed_tensor_costs_no_new_pages() -> None:
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", SCRIPT, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    pages = 10 * 48_000_000 // resource.getpagesize()
    assert faults("leave") > 0.9 * pages  # else there is nothing to gain here
    assert faults("keep") < 0.1 * pages
