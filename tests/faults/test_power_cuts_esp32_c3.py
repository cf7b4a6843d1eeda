"""The plug is pulled before, inside and after every flash operation of one update of an ESP32-C3.

After each cut the device boots the old image or the new one, whole, never anything else; with its DDI agent it then
ends with the new image confirmed and success reported, or with the old one and a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from flota.protocols.ddi import FeedbackFinished
from flota.transports.ddi_link import DdiLink
from flota.transports.http import http_client
from flota.virtual.agents.ddi import DdiAgent
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.esp_ota import WITH_SEQUENTIAL_WRITES
from flota.virtual.esp_slots import EspSlots
from flota.virtual.flash import TEARS, Cut, CutPhase, FlashOperation, NorFlash, PowerCut
from tests.virtual.benches import EspBench, until
from tests.virtual.images import app_image
from tests.virtual.small_ddi import SmallDdi
from tests.virtual.small_server import small_server

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=14_000)
NAMES = {hashlib.sha256(OLD).hexdigest(): "old", hashlib.sha256(NEW).hexdigest(): "new"}

CUTS: list[tuple[str, Cut]] = [
    ("before", Cut(CutPhase.BEFORE)),
    *((f"inside, {name}", Cut(CutPhase.INSIDE, tear)) for name, tear in TEARS.items()),
    ("after", Cut(CutPhase.AFTER)),
]


def what_runs(bench: EspBench) -> str | None:
    """Boot once and name the released image that runs; None for anything else."""
    bench.flash.plan = None
    bench.flash.power_on()
    report = bench.hardware().boot()
    return None if report.app is None else NAMES.get(report.app.sha256)


def update_and_confirm(bench: EspBench) -> None:
    """One update by the OTA calls, the restart, and the new app's confirmation."""
    report = bench.hardware().boot()
    assert isinstance(report.slots, EspSlots)
    ota = report.slots.ota
    handle = ota.begin(ota.next_update_partition(), WITH_SEQUENTIAL_WRITES)
    for start in range(0, len(NEW), 4096):
        ota.write(handle, NEW[start : start + 4096])
    ota.end(handle)
    ota.set_boot(handle.partition.index)
    report = bench.hardware().boot()
    assert report.slots is not None
    report.slots.confirm()


def operations_of(bench: EspBench, work: Callable[[EspBench], None]) -> list[FlashOperation]:
    """Return the flash operations of `work`, counted from 0."""
    operations: list[FlashOperation] = []
    bench.flash.plan = lambda operation: operations.append(operation)  # type: ignore[func-returns-value]
    bench.flash.power_on()
    work(bench)
    bench.flash.plan = None
    return operations


def cut_at(number: int, cut: Cut) -> Callable[[FlashOperation], Cut | None]:
    return lambda operation: cut if operation.number == number else None


def snapshots(build: BootBuild, *, updates_before: int) -> tuple[bytes, int]:
    """Return the flash before the update under test, and how many operations that update takes."""
    bench = EspBench(OLD, build=build)
    assert what_runs(bench) == "old"
    for _ in range(updates_before):
        update_and_confirm(bench)
    before = bench.flash.read(0, bench.flash.size)
    return before, len(operations_of(bench, update_and_confirm))


def restored(before: bytes, build: BootBuild) -> EspBench:
    bench = EspBench(build=build)
    bench.flash = NorFlash(bytearray(before))
    return bench


@pytest.mark.parametrize("build", list(BootBuild))
@pytest.mark.parametrize("updates_before", [0, 1, 2])
def test_every_cut_of_an_update_leaves_the_old_or_the_new_image_running(build: BootBuild, updates_before: int) -> None:
    before, count = snapshots(build, updates_before=updates_before)
    assert count >= 12
    for number, (name, cut) in itertools.product(range(count), CUTS):
        bench = restored(before, build)
        bench.flash.plan = cut_at(number, cut)
        with pytest.raises(PowerCut):
            update_and_confirm(bench)
        assert what_runs(bench) in ("old", "new"), f"cut {name} operation {number}"


@pytest.mark.parametrize("build", [BootBuild.PLAIN, BootBuild.ROLLBACK])
def test_a_second_cut_during_the_boot_after_a_cut_is_survived_too(build: BootBuild) -> None:
    before, count = snapshots(build, updates_before=1)
    for number, (name, cut) in itertools.product(range(count), CUTS):
        bench = restored(before, build)
        bench.flash.plan = cut_at(number, cut)
        with pytest.raises(PowerCut):
            update_and_confirm(bench)
        torn = bench.flash_content()
        boot_operations = len(operations_of(restored(torn, build), lambda each: [each.hardware().boot()].clear()))
        for second, (second_name, second_cut) in itertools.product(range(boot_operations), CUTS):
            again = restored(torn, build)
            again.flash.plan = cut_at(second, second_cut)
            with pytest.raises(PowerCut):
                again.hardware().boot()
            assert what_runs(again) in ("old", "new"), f"{name} {number}, then {second_name} {second}"


class PlugPuller:
    """Counts what can be interrupted (flash operations and store commits) and pulls the plug once, at one of them."""

    def __init__(self, bench: EspBench, target: int | None, cut: Cut) -> None:
        self._bench = bench
        self._target = target
        self._cut = cut
        self.count = 0
        bench.flash.plan = self._flash
        bench.nvs.around_commit = self._store

    def _flash(self, operation: FlashOperation) -> Cut | None:
        self.count += 1
        return self._cut if self.count - 1 == self._target else None

    def _store(self, moment: str) -> None:
        if moment == "before":
            self.count += 1
        due = self.count - 1 == self._target
        if due and (moment == "before") == (self._cut.phase is not CutPhase.AFTER):
            self._target = None
            self._bench.flash.cut_power()
            raise PowerCut(f"{moment} a store commit")


async def live_through(target: int | None, cut: Cut) -> tuple[EspBench, SmallDdi, int]:
    """Run a whole DDI update with the plug pulled at the `target`-th moment; returns when the action is closed."""
    bench = EspBench(OLD)
    ddi = SmallDdi(NEW)
    puller = PlugPuller(bench, target, cut)
    async with small_server(ddi.handle) as server, http_client() as client:
        ddi.server = server
        stop = asyncio.Event()
        device = bench.device(DdiAgent(DdiLink(client, ddi.addresses, None)))
        life = asyncio.create_task(device.run(stop))
        try:
            await until(lambda: life.done() or (ddi.closing is not None and device.confirmed), told=bench.events)
        finally:
            stop.set()
            await life
    return bench, ddi, puller.count


def moments(count: int) -> Iterator[tuple[int, str, Cut]]:
    for number, (name, cut) in itertools.product(range(count), CUTS):
        yield number, name, cut


@pytest.mark.timeout(180)
async def test_with_its_agent_the_device_converges_after_a_cut_at_any_moment_and_reports_the_truth() -> None:
    _, ddi, count = await live_through(None, CUTS[0][1])
    assert ddi.closing is not None
    assert ddi.closing.finished is FeedbackFinished.SUCCESS
    outcomes: dict[str, int] = {}
    for number, name, cut in moments(count):
        bench, ddi, _ = await live_through(number, cut)
        where = f"cut {name} moment {number}"
        assert ddi.closing is not None, where
        runs = what_runs(bench)
        outcomes[f"{runs}"] = outcomes.get(f"{runs}", 0) + 1
        if ddi.closing.finished is FeedbackFinished.SUCCESS:
            assert runs == "new", where
        else:
            assert runs == "old", where
            assert ddi.closing.details, where
            assert ddi.closing.details[0], where
    assert outcomes["new"] > outcomes.get("old", 0), outcomes


def test_the_sweep_catches_an_installer_that_overwrites_the_running_slot() -> None:
    before = EspBench(OLD).flash_content()
    found = set()
    for number, (_, cut) in itertools.product(range(8), CUTS):
        bench = restored(before, BootBuild.ROLLBACK)
        row = bench.hardware().table().find("ota_0")
        assert row is not None
        bench.flash.power_on()
        bench.flash.plan = cut_at(number, cut)
        with contextlib.suppress(PowerCut):
            bench.flash.erase(row.offset, 0x4000)
            for start in range(0, len(NEW) // 4 * 4, 4096):
                bench.flash.program(row.offset + start, NEW[: len(NEW) // 4 * 4][start : start + 4096])
        found.add(what_runs(bench))
    assert None in found
