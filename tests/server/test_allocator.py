"""The C library's settings are wishes: taken by glibc in a process of its own, left alone elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from flota.server.allocator import keep_large_blocks

BLOCKS_THAT_COME_AND_GO = """
import resource
from flota.server.allocator import keep_large_blocks
assert keep_large_blocks()
keep = bytearray(512 * 1024)
del keep
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    block = bytearray(512 * 1024)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not run: the C library is not glibc")
def test_glibc_uses_large_blocks_again_instead_of_asking_the_kernel_for_each() -> None:
    ran = subprocess.run([sys.executable, "-c", BLOCKS_THAT_COME_AND_GO], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 2000, "200 blocks of 128 pages, mapped anew each time, are 25,600 page faults"


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_large_blocks() is False
