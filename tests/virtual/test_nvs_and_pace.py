"""The device's small store keeps what it says it keeps; the pace scales what a device does alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace, program_time_s


def test_values_survive_the_process(tmp_path: Path) -> None:
    NonVolatileStore(tmp_path / "nvs.json").set("a", {"b": 1})
    store = NonVolatileStore(tmp_path / "nvs.json")
    assert store.get_record("a") == {"b": 1}
    store.set("a", None)
    assert NonVolatileStore(tmp_path / "nvs.json").get("a") is None


def test_a_cut_before_the_commit_leaves_the_old_value(tmp_path: Path) -> None:
    store = NonVolatileStore(tmp_path / "nvs.json")
    store.set("a", 1)

    def die(moment: str) -> None:
        raise KeyboardInterrupt(moment)

    store.around_commit = die
    with pytest.raises(KeyboardInterrupt):
        store.set("a", 2)
    assert NonVolatileStore(tmp_path / "nvs.json").get("a") == 1


def test_too_much_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    store = NonVolatileStore(tmp_path / "nvs.json")
    with pytest.raises(InvalidInput, match="full"):
        store.set("a", "x" * 30_000)
    assert store.get("a") is None


@pytest.mark.parametrize("text", ["", "[]", "nonsense"])
def test_a_file_of_another_make_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "nvs.json").write_text(text)
    with pytest.raises(InvalidInput, match="not a device's store"):
        NonVolatileStore(tmp_path / "nvs.json")


async def test_device_time_is_scaled_and_waiting_for_a_peer_is_not() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace = Pace(20, sleep)
    await pace.spend(10)
    await pace.wait_for_peer(10)
    assert slept == [0.5, 10]


async def test_small_amounts_are_collected_into_one_sleep() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace = Pace(1, sleep)
    for _ in range(10):
        pace.owe(0.001)
        await pace.pay()
    assert sum(slept) == pytest.approx(0.008)
    assert len(slept) == 2


@pytest.mark.parametrize("speed", [0, -1, 1e9])
def test_an_absurd_speed_is_refused(speed: float) -> None:
    with pytest.raises(InvalidInput):
        Pace(speed)


def test_programming_a_sector_takes_sixteen_pages() -> None:
    assert program_time_s(4096) == pytest.approx(16 * 0.0007)
    assert program_time_s(1) == pytest.approx(0.0007)
