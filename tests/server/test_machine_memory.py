"""How much memory there is: the machine's, or the limit of a control group around the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from flota.server.api.file_bodies import ROOM_MAX_BYTES, room_bytes
from flota.server.machine_memory import memory_limit


def a_system(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/\n", {"memory.max": "268435456\n"}),
        ("0::/system.slice/flota.service\n", {"system.slice/flota.service/memory.max": "268435456\n"}),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "268435456\n"}),
        ("5:cpu,memory:/docker/1\n0::/\n", {"memory/docker/1/memory.limit_in_bytes": "268435456\n"}),
        ("0::/../../elsewhere\n", {"memory.max": "268435456\n"}),
    ],
)
def test_the_smallest_limit_of_the_groups_around_the_process_counts(
    tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    assert memory_limit(a_system(tmp_path, groups, files)) == 256 << 20


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {}),
        ("0::/\n", {}),
        ("0::/\n", {"memory.max": "max\n"}),
        ("0::/\n", {"memory.max": "\xb2\n"}),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}),
        ("no group at all", {}),
    ],
)
def test_without_a_limit_it_is_the_machine_s(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert memory_limit(a_system(tmp_path, groups, files)) == memory_limit(tmp_path / "nothing") > 1 << 20


def test_a_small_machine_gives_downloads_a_small_part_of_its_memory() -> None:
    assert room_bytes(256 << 20) == 32 << 20
    assert room_bytes(1 << 40) == ROOM_MAX_BYTES
