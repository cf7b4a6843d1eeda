"""Every state in which the vendor's own LDROM loader and Cloner were run ends alike in the `stock` profile.

Flash operations in their order, the console, the kind of reset, where vectors are mapped, the flash afterwards.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from flota.images.nuvoton.flash_map import APROM_SIZE, CLONER_ADDR, DESCRIPTOR_ADDR
from flota.virtual.boot.nuvoton_parts import ResetKind
from flota.virtual.boot.nuvoton_stock import first_wrong_field, run_cloner, run_ldrom, whatever_is_there
from tests.golden.vendor_data import vendor_json

pytestmark = pytest.mark.golden

AREAS = {"app": (0, 0x68000), "kv": (0x68000, 0x8000), "desc": (0x70000, 0x1000), "trailer": (0x71000, 0x1000)}
SPI_SIZE = 0x80000
NEVER_SHOWN = (b"\x66", b"\x99", b"\x9f")
"""Commands to the SPI flash that the vectors leave out; reads of data too."""


@cache
def vectors() -> dict[str, Any]:
    loaded: dict[str, Any] = vendor_json("boot-vectors/nuvoton.json")
    return loaded


@cache
def stream(tag: str, length: int) -> bytes:
    """The vectors' own filling."""
    blocks = (
        hashlib.sha256(tag.encode() + number.to_bytes(4, "little")).digest() for number in range(length // 32 + 1)
    )
    return b"".join(blocks)[:length]


def first_flash(descriptor: bytes, tail: str = "FF") -> bytearray:
    flash = bytearray(b"\xff" * APROM_SIZE)
    flash[0:0x68000] = stream("OLD", 0x68000)
    flash[0x68000:0x70000] = stream("KVS", 0x8000)
    flash[0x71000:0x72000] = stream("TRL", 0x1000)
    flash[DESCRIPTOR_ADDR : DESCRIPTOR_ADDR + 32] = descriptor
    if tail == "DSC":
        flash[DESCRIPTOR_ADDR + 32 : DESCRIPTOR_ADDR + 0x1000] = stream("DSC", 0x1000)[32:]
    return flash


BLANK_UNIT = b"\xff" * 8


class Controller:
    """A flash controller that keeps what is asked of it, and fails where told to.

    `operations` has neighbouring ones of one kind as one; `changes` each by itself, if they are to be kept.
    """

    def __init__(
        self,
        flash: bytearray,
        fault: dict[str, list[int]] | None = None,
        crc: int | None = None,
        *,
        keep_changes: bool = False,
    ) -> None:
        self.flash = flash
        self.operations: list[list[Any]] = [["start", 0, 0]]
        self.changes: list[tuple[int, bytes]] | None = [] if keep_changes else None
        self._fault = fault
        self._crc = crc
        self._count = {"erase": 0, "prog": 0}

    @property
    def merged(self) -> list[list[Any]]:
        return self.operations[1:]

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.flash[address : address + length])

    def erase_page(self, address: int) -> bool:
        failed = self._fault is not None and self._fails("erase")
        self._note("E-fail" if failed else "E", address, 0x1000)
        if not failed:
            self._change(address, b"\xff" * 0x1000)
        return not failed

    def program_unit(self, address: int, data: bytes) -> bool:
        last = self.operations[-1]
        if self._fault is None and last[0] == "P" and last[1] + last[2] == address and self.changes is None:
            # Millions of units: the same as below in one go.
            end = address + 8
            if self.flash[address:end] != BLANK_UNIT:
                data = (int.from_bytes(self.flash[address:end]) & int.from_bytes(data)).to_bytes(8)
            self.flash[address:end] = data
            last[2] += 8
            return True
        failed = self._fault is not None and self._fails("prog")
        self._note("P-fail" if failed else "P", address, 8)
        if not failed:
            before = self.flash[address : address + 8]
            if before != BLANK_UNIT:
                data = (int.from_bytes(before) & int.from_bytes(data)).to_bytes(8)
            self._change(address, data)
        assert len(data) == 8
        return not failed

    def crc32(self, address: int, length: int) -> int:
        self.operations.append(["CRC", address, length])
        return zlib.crc32(self.flash[address : address + length]) if self._crc is None else self._crc

    def map_vectors(self, address: int) -> None:
        self.operations.append(["VECMAP", address, 0])

    def _note(self, kind: str, address: int, length: int) -> None:
        last = self.operations[-1]
        if last[0] == kind and last[1] + last[2] == address:
            last[2] += length
        else:
            self.operations.append([kind, address, length])

    def _fails(self, kind: str) -> bool:
        assert self._fault is not None
        number = self._count[kind]
        self._count[kind] += 1
        return number in self._fault.get(kind, ())

    def _change(self, address: int, after: bytes) -> None:
        self.flash[address : address + len(after)] = after
        if self.changes is not None:
            self.changes.append((address, after))


class Spi:
    """An SPI flash as the emulated one answered."""

    def __init__(self, cells: bytes, jedec: bytes = b"\xef\x40\x16", dead: int | None = None) -> None:
        self._cells, self._jedec, self._dead = cells, jedec, dead
        self.commands: list[str] = []
        self.reads: list[int] = []

    def transfer(self, command: bytes, answer_length: int = 0) -> bytes:
        if command[0] == 0x0B:
            address = int.from_bytes(command[1:4], "big")
            self.reads.append(address)
            answer = self._cells[address : address + answer_length]
        elif command[0] == 0x9F:
            answer = self._jedec
        else:
            answer = b"\xff" * answer_length
        if command not in NEVER_SHOWN and command[0] != 0x0B:
            self.commands.append(command.hex())
        return answer if self._dead is None else bytes([self._dead]) * answer_length


@cache
def staged() -> bytes:
    return stream("NEW", 0x80000) + b"\xff" * 0x100000


def spi_of(given: dict[str, Any]) -> Spi:
    cells = staged()
    if given.get("spi") == "all FF":
        cells = b"\xff" * len(cells)
    dead = {"dead_00": 0, "dead_ff": 0xFF}.get(given.get("spimode", ""))
    return Spi(cells, bytes.fromhex(given.get("jedec", "ef4016")), dead)


def fault_of(row: dict[str, Any]) -> dict[str, list[int]]:
    """Which operations fail; in three rows the two numbers are first and last of a range."""
    fault: dict[str, list[int]] = dict(row["in"].get("fault", {}))
    if row["id"] in ("prog_fail_page1", "prog_fail_all", "prog_fail_desc_all"):
        first, last = fault["prog"]
        fault["prog"] = list(range(first, last + 1))
    return fault


def lines(numbers: list[int]) -> list[str]:
    return [vectors()["text"][number] for number in numbers]


def assert_same_console(ours: tuple[str, ...], theirs: list[str]) -> None:
    """Ours begin as theirs do; the CRC is the emulator's own."""
    shown = [line for text in ours for line in text.replace("\r", "\n").split("\n") if line]
    assert len(shown) == len(theirs), (shown, theirs)
    for mine, expected in zip(shown, theirs, strict=True):
        if "CRC32" in mine:
            assert expected.startswith(mine.partition("CRC32")[0])
        else:
            assert expected == mine or (mine.startswith("read Magic code") and expected.startswith(mine))


def digests(flash: bytearray) -> dict[str, str]:
    return {name: hashlib.sha256(flash[start : start + size]).hexdigest()[:16] for name, (start, size) in AREAS.items()}


def test_the_first_flash_is_that_of_the_vectors() -> None:
    given = vectors()["initial_flash"]["sha256_16"]
    row = next(row for row in vectors()["cloner"] if row["id"] == "flag_ff")
    assert (
        digests(first_flash(bytes.fromhex(row["in"]["desc"]), "DSC")).items()
        >= {name: digest for name, digest in given.items() if name != "desc"}.items()
    )


def test_the_loader_in_all_34_states_of_its_eight_bytes() -> None:
    rows = vectors()["ldrom"]["rows"]
    assert len(rows) == vectors()["runs"]["ldrom"] == 34
    for name, head, goes_to, vector_map, reset, console in rows:
        controller = Controller(first_flash(bytes.fromhex(head) + b"\xff" * 24))
        handover = run_ldrom(controller)
        assert (handover.vector_map, handover.reset.value) == (vector_map, reset), name
        assert (goes_to == "cloner") == (handover.vector_map == CLONER_ADDR)
        assert controller.merged == [["VECMAP", vector_map, 0]], name
        assert_same_console(handover.console, lines(console))


def test_all_720_combinations_of_addresses() -> None:
    rows = vectors()["cloner_limits"]["rows"]
    assert len(rows) == vectors()["runs"]["cloner_limits"] == 720
    flash = first_flash(b"\xff" * 32)
    for start, end, execute, verdict, vector_map in rows:
        fields = b"".join(number.to_bytes(4, "little") for number in (0x15, start, end, execute, 0, 0))
        descriptor = b"@AFRTOS\xfc" + fields
        flash[DESCRIPTOR_ADDR : DESCRIPTOR_ADDR + 32] = descriptor
        controller, spi = Controller(flash), spi_of({})
        handover = run_cloner(controller, spi)
        wrong = first_wrong_field(whatever_is_there(descriptor))
        names = {None: "valid", "start address": "start", "end address": "end", "execute address": "exec"}
        assert verdict == names[wrong]
        assert controller.merged == [["VECMAP", vector_map, 0]]
        assert (handover.vector_map, handover.reset) == (vector_map, ResetKind.CHIP)
        assert spi.reads == []


def test_all_129_full_runs_of_the_cloner() -> None:
    rows = vectors()["cloner"]
    assert len(rows) == vectors()["runs"]["cloner"] == 129
    for row in rows:
        check_run(row)


def check_run(row: dict[str, Any]) -> None:
    given, name = row["in"], row["id"]
    flash = first_flash(bytes.fromhex(given["desc"]), given.get("tail", "FF"))
    controller, spi = Controller(flash, fault_of(row), given.get("crc_ret")), spi_of(given)
    handover = run_cloner(controller, spi)
    assert controller.merged == row["ops"], name
    assert handover.reset.value == row["reset"], name
    assert handover.vector_map == row["ops"][-1][1], name
    assert spi.commands == row["spi_writes"], name
    reads = [spi.reads[0], spi.reads[-1], len(spi.reads)] if spi.reads else []
    assert reads == row["spi_reads"], name
    assert all(later - earlier == 0x1000 for earlier, later in pairwise(spi.reads)), name
    assert flash[DESCRIPTOR_ADDR : DESCRIPTOR_ADDR + 32].hex() == row["after"]["desc32"], name
    assert digests(flash) == row["after"]["sha256_16"], name
    assert_same_console(handover.console, lines(row["console"]))


def descriptor_of(size: int) -> bytes:
    fields = b"".join(number.to_bytes(4, "little") for number in (0x15, 0, size - 1, 0, 0, 0))
    return b"@AFRTOS\xff" + fields


@pytest.mark.sweep
@pytest.mark.timeout(240)
def test_every_cut_point_of_three_clones_and_what_a_start_through_ldrom_makes_of_it() -> None:
    """All 4,107 of them: what is left, where the loader goes, what the next run does, how the flash ends."""
    seen = 0
    for scenario in vectors()["cuts"]:
        size, tail = scenario["image_size"], scenario["descriptor_page_tail"]
        whole = Controller(first_flash(descriptor_of(size), tail), keep_changes=True)
        run_cloner(whole, spi_of({}))
        assert [operation for operation in whole.merged if operation[0] in "EP"] == scenario["ops"]
        assert digests(whole.flash) == scenario["uncut_result"]
        assert whole.changes is not None
        assert len(whole.changes) == scenario["flash_ops"]
        apps = Apps(size)
        flash = first_flash(descriptor_of(size), tail)
        for row in scenario["rows"]:
            first, last = row["cut_before_op"]
            for cut in range(first, last + 1):
                if cut:
                    address, after = whole.changes[cut - 1]
                    flash[address : address + len(after)] = after
                check_cut(row, bytearray(flash), whole.flash, apps)
                seen += 1
    assert seen == vectors()["runs"]["cut_points"] == 4107


class Apps:
    """What can stand at the app's place: the old app, the whole new one, or neither."""

    def __init__(self, size: int) -> None:
        old, new = stream("OLD", 0x68000), stream("NEW", 0x80000)
        copied = -(-(size - 1) // 0x1000) * 0x1000
        self.firsts = {old[:8]: "old", b"\xff" * 8: "blank", new[:8]: "new"}
        self._apps = ((old, "old"), (new[:copied] + old[copied:], "new_complete"))

    def name(self, flash: bytearray) -> str:
        content = memoryview(flash)[:0x68000]
        return next((name for app, name in self._apps if content == app), "mixed")


def check_cut(row: dict[str, Any], flash: bytearray, uncut: bytearray, apps: Apps) -> None:
    state = row["state"]
    assert apps.firsts[bytes(flash[:8])] == state["aprom_first8"]
    assert apps.name(flash) == state["app"]
    assert flash[DESCRIPTOR_ADDR : DESCRIPTOR_ADDR + 7] == b"@AFRTOS" or not state["magic_ok"]
    assert flash[DESCRIPTOR_ADDR + 7] == state["flag"]
    loader = run_ldrom(Controller(flash))
    assert (loader.vector_map == CLONER_ADDR) == (row["ldrom_goes_to"] == "cloner")
    if row["ldrom_goes_to"] != "cloner":
        assert loader.reset.value == row["reset"]
        return
    controller = Controller(flash)
    handover = run_cloner(controller, spi_of({}))
    assert controller.merged == row["ops"]
    assert handover.reset.value == row["reset"]
    assert_same_console(handover.console[-3:], lines(row["last_lines"]))
    assert (flash == uncut) == row["flash_equals_uncut_run"]
    assert apps.name(flash) == row["app_after"]
    assert flash[DESCRIPTOR_ADDR + 7] == row["flag_after"]
