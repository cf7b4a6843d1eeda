"""The boot choice and the OTA calls agree with vectors made by running ESP-IDF's own C.

`esp_otadata.json`: every pair of 85 otadata entries in 36 configurations. `esp_ota_api.json`: every call from every
reachable state, with every flash operation cut in eight ways, and the boot after each.
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest

from flota.images.esp_otadata import OtaEntry, OtaState, parse_entry
from flota.virtual.boot.esp_idf import (
    FACTORY,
    TEST_APP,
    AppRows,
    BootBuild,
    BootDecision,
    BurnSecureVersion,
    SecureVersions,
    SetState,
    WriteEntry,
    after_load,
    decide,
)
from flota.virtual.esp_ota import AppPartition, EspOta, EspOtaFailure, OtaData, OtaLayout
from flota.virtual.flash import Cut, CutPhase, FlashOperation, FlashOperationKind, NorFlash, PowerCut, words
from tests.golden.vendor_data import vendor_file

pytestmark = pytest.mark.golden

BUILDS = {"plain": BootBuild.PLAIN, "rb": BootBuild.ROLLBACK, "ar": BootBuild.ANTI_ROLLBACK}
SECTOR = 4096
SLOT_SECTORS = 2
WHOLE_OPERATION_MASK = 511

Entry = tuple[int, int, int]


@functools.cache
def vectors(name: str) -> dict[str, Any]:
    return json.loads(vendor_file(f"boot-vectors/{name}").read_text())


def entry_of(values: list[int] | Entry) -> OtaEntry:
    return OtaEntry(values[0], values[1], values[2])


def values_of(entry: OtaEntry) -> Entry:
    return (entry.seq, int(entry.state), entry.crc)


# --- the choice -------------------------------------------------------------------------------------------------------


def secure_versions(config: dict[str, Any]) -> SecureVersions | None:
    if config["build"] != "ar":
        return None
    apps = dict(enumerate(config["secure_version"]))
    if config["factory"]:
        apps[FACTORY] = config["factory_secure_version"]
    return SecureVersions(apps, config["efuse"])


def write_as_vector(write: object) -> list[Any]:
    match write:
        case SetState(sector, state):
            return ["set_state", sector, state.name]
        case BurnSecureVersion(version):
            return ["efuse", version]
    raise AssertionError(write)


def decision_as_outcome(decision: BootDecision) -> dict[str, Any]:
    return {
        "index": decision.index,
        "order": list(decision.order),
        "init": decision.initial,
        "ops": [write_as_vector(write) for write in decision.writes],
    }


@pytest.mark.parametrize("number", range(36))
def test_every_pair_of_entries_gives_the_vendors_choice_order_and_writes(number: int) -> None:
    data = vectors("esp_otadata.json")
    config = data["configs"][number]
    entries = [entry_of(values) for values in data["entries"]]
    rows = AppRows(frozenset(range(config["ota_slots"])), factory=config["factory"])
    build, versions = BUILDS[config["build"]], secure_versions(config)
    for first, row in zip(entries, config["grid"], strict=True):
        for second, key in zip(entries, row, strict=True):
            decision = decide((first, second), rows, build=build, secure_versions=versions)
            assert decision_as_outcome(decision) == config["outcomes"][key], (values_of(first), values_of(second))


def test_the_vector_file_has_the_36_configurations_that_are_tested() -> None:
    assert len(vectors("esp_otadata.json")["configs"]) == 36


def rows_of(case: dict[str, Any]) -> AppRows:
    name = case["name"]
    if name.startswith("gap_") or "ota2" in name:
        return AppRows(frozenset({0, 2}))
    return AppRows(frozenset(range(case["ota_slots"])), factory=case["factory"], test=name.startswith("test_app"))


def case_secure_versions(case: dict[str, Any]) -> SecureVersions | None:
    if case["build"] != "ar":
        return None
    return SecureVersions({int(index): value for index, value in case["secure_version"].items()}, case["efuse_before"])


def boot_case(case: dict[str, Any]) -> dict[str, Any]:
    """Run one special case: what is tried, what loads, and every operation, as the vector writes it."""
    build, versions = BUILDS[case["build"]], case_secure_versions(case)
    pair = [entry_of(values) for values in case["entries_before"]]
    without_otadata = case["name"].startswith("no_otadata")
    entries = None if without_otadata else (pair[0], pair[1])
    decision = decide(entries, rows_of(case), build=build, secure_versions=versions)
    ops: list[list[Any]] = []
    efuse = versions.efuse if versions else 0

    def make(writes: tuple[object, ...]) -> None:
        nonlocal efuse
        for write in writes:
            match write:
                case SetState(sector, state):
                    pair[sector] = OtaEntry(pair[sector].seq, state, pair[sector].crc)
                    ops.extend((["erase", sector], ["program", sector, list(values_of(pair[sector]))]))
                case WriteEntry(sector, seq, state):
                    pair[sector] = OtaEntry.for_seq(seq, state)
                    ops.extend((["erase", sector], ["program", sector, list(values_of(pair[sector]))]))
                case BurnSecureVersion(version):
                    ops.append(["efuse", ((1 << version) - 1) & ~((1 << efuse) - 1)])
                    efuse = version

    make(decision.writes)
    tried, loaded = [], None
    for index in decision.order:
        tried.append(index)
        if index in case["images_good"]:
            loaded = index
            break
    if loaded is not None:
        now = SecureVersions(versions.apps, efuse) if versions else None
        make(after_load(decision, loaded, secure_versions=now))
    return {
        "index": decision.index,
        "tried": tried,
        "loaded": loaded,
        "ops": ops,
        "entries_after": [list(values_of(entry)) for entry in pair],
    }


def test_the_special_cases_of_the_boot_choice_agree() -> None:
    for case in vectors("esp_otadata.json")["special_cases"]:
        found = boot_case(case)
        assert found == {key: case[key] for key in found}, case["name"]


# --- the OTA calls ----------------------------------------------------------------------------------------------------


class Bench:
    """Otadata and small slots on a flash, with images that are good by decree, as in the vectors."""

    def __init__(
        self, config: dict[str, Any], *, efuse: int = 1, versions: dict[int, int | None] | None = None
    ) -> None:
        self.build = BUILDS[config["build"]]
        indices = ([FACTORY] if config["factory"] else []) + list(range(config["ota_slots"]))
        self.slot_size = SLOT_SECTORS * SECTOR
        apps = {
            index: AppPartition(index, f"app{index}", 2 * SECTOR + place * self.slot_size, self.slot_size)
            for place, index in enumerate(indices)
        }
        self.layout = OtaLayout(0, apps)
        self.flash = NorFlash.blank(2 * SECTOR + len(indices) * self.slot_size)
        self.efuse = efuse
        self.apps = versions or dict.fromkeys(indices, 1)
        self.good = set(indices)
        self.operations: list[FlashOperation] = []
        self.programmed: list[Entry] = []
        self.flash.listener = self.note

    def note(self, operation: FlashOperation) -> None:
        self.operations.append(operation)
        if operation.kind is FlashOperationKind.PROGRAM:
            self.programmed.append(values_of(parse_entry(self.flash.read(operation.address, 32))))

    def versions(self) -> SecureVersions:
        return SecureVersions(self.apps, self.efuse)

    def burn(self, version: int) -> None:
        self.efuse = version

    def set_entries(self, entries: tuple[OtaEntry, OtaEntry]) -> None:
        self.flash.plan = None
        self.flash.power_on()
        otadata = OtaData(self.flash, 0)
        for sector in (0, 1):
            otadata.rewrite(sector, entries[sector])
        self.flash.power_on()
        self.operations.clear()
        self.programmed.clear()

    def entries(self) -> tuple[Entry, Entry]:
        self.flash.power_on()
        first, second = (parse_entry(self.flash.read(sector * SECTOR, 32)) for sector in (0, 1))
        return values_of(first), values_of(second)

    def ota(self, running: int) -> EspOta:
        return EspOta(
            self.flash,
            self.layout,
            running=running,
            build=self.build,
            verify=lambda partition: None if partition.index in self.good else "bad by decree",
            secure_versions=self.versions,
            burn=self.burn,
        )

    def boot(self) -> tuple[int, int | None]:
        """Boot with the otadata in flash; returns the index selected and the one loaded."""
        otadata = OtaData(self.flash, 0)
        rows = self.layout.rows
        versions = self.versions() if self.build is BootBuild.ANTI_ROLLBACK else None
        decision = decide(otadata.read(), rows, build=self.build, secure_versions=versions)
        self.make(otadata, decision.writes)
        loaded = next((index for index in decision.order if index in self.good), None)
        if loaded is not None:
            versions = self.versions() if versions is not None else None
            self.make(otadata, after_load(decision, loaded, secure_versions=versions))
        return decision.index, loaded

    def make(self, otadata: OtaData, writes: tuple[object, ...]) -> None:
        for write in writes:
            if isinstance(write, BurnSecureVersion):
                self.burn(write.version)
            elif isinstance(write, SetState | WriteEntry):
                otadata.apply(write)

    def call(self, name: str, running: int) -> int:
        """Make one call of the vectors; returns the error code as they write it."""
        call, _, argument = name.partition(":")
        ota = self.ota(running)
        try:
            match call:
                case "set_boot":
                    ota.set_boot(int(argument))
                case "mark_valid":
                    ota.mark_valid()
                case "mark_invalid":
                    ota.mark_invalid()
                case "erase_last":
                    ota.erase_last_boot_app_partition()
                case "begin":
                    ota.begin(int(argument))
        except EspOtaFailure as failure:
            return failure.error.value
        return 0

    def operations_as_vector(self, entries: list[Entry], efuse_before: int) -> list[str]:
        """Return the operations since the last `set_entries` as the vectors write them."""
        texts: list[str] = []
        programmed = iter(self.programmed)
        for operation in self.operations:
            if operation.address >= 2 * SECTOR:
                index = next(
                    index
                    for index, app in self.layout.apps.items()
                    if app.address <= operation.address < app.address + app.size
                )
                if not texts or texts[-1] != f"X{index}":
                    texts.append(f"X{index}")
            elif operation.kind is FlashOperationKind.ERASE:
                texts.append(f"E{operation.address // SECTOR}")
            else:
                texts.append(f"P{operation.address // SECTOR}:{entries.index(next(programmed))}")
        if self.efuse != efuse_before:
            texts.append(f"F{self.efuse}")
        return texts


@functools.cache
def api_entries() -> list[Entry]:
    return [(values[0], values[1], values[2]) for values in vectors("esp_ota_api.json")["entries"]]


def pair_entries(config: dict[str, Any], pair: int) -> tuple[OtaEntry, OtaEntry]:
    first, second = config["pairs"][pair]
    return entry_of(api_entries()[first]), entry_of(api_entries()[second])


def pair_values(config: dict[str, Any], pair: int) -> tuple[Entry, Entry]:
    first, second = config["pairs"][pair]
    return api_entries()[first], api_entries()[second]


def otadata_operations(bench: Bench) -> list[int]:
    """Return the numbers of the last call's operations on otadata."""
    return [operation.number for operation in bench.operations if operation.address < 2 * SECTOR]


def cut_plan(number: int, mask: int):  # type: ignore[no-untyped-def]
    cut = Cut(CutPhase.AFTER) if mask == WHOLE_OPERATION_MASK else Cut(CutPhase.INSIDE, words_of_entry(mask))
    return lambda operation: cut if operation.number == number else None


def words_of_entry(mask: int):  # type: ignore[no-untyped-def]
    """The vectors cut the eight words of the entry; the rest of an erased sector is blank before and after."""
    return words(mask)


@pytest.mark.sweep
@pytest.mark.parametrize("number", range(7))
def test_every_call_from_every_state_does_the_vendors_operations(number: int) -> None:
    config = vectors("esp_ota_api.json")["configs"][number]
    bench = Bench(config)
    for pair, running, info, calls in config["states"]:
        bench.set_entries(pair_entries(config, pair))
        ota = bench.ota(running)
        assert [ota.state_of(index) for index in range(config["ota_slots"])] == info["state"], (pair, running)
        assert ota.rollback_is_possible() == bool(info["rollback_possible"]), (pair, running)
        assert ota.boot_partition() == info["boot_partition"], (pair, running)
        assert ota.next_update_partition() == info["next_update"], (pair, running)
        assert ota.last_invalid_partition() == info["last_invalid"], (pair, running)
        for name, record in calls.items():
            error, pair_after, operations = record[:3]
            bench.set_entries(pair_entries(config, pair))
            bench.efuse = 1
            assert bench.call(name, running) == error, (pair, running, name)
            assert bench.entries() == pair_values(config, pair_after), (pair, running, name)
            assert bench.operations_as_vector(api_entries(), 1) == operations, (pair, running, name)


@pytest.mark.sweep
@pytest.mark.parametrize("number", range(7))
def test_every_cut_of_every_call_leaves_the_vendors_otadata(number: int) -> None:
    data = vectors("esp_ota_api.json")
    config, masks = data["configs"][number], data["cut_word_masks"]
    bench = Bench(config)
    for pair, running, _, calls in config["states"]:
        for name, record in calls.items():
            cuts = record[3]
            if not cuts:
                continue
            bench.set_entries(pair_entries(config, pair))
            bench.call(name, running)
            numbers = otadata_operations(bench)
            assert len(numbers) == len(cuts)
            for operation, row in zip(numbers, cuts, strict=True):
                for mask, pair_after in zip(masks, row, strict=True):
                    bench.set_entries(pair_entries(config, pair))
                    bench.flash.plan = cut_plan(operation, mask)
                    with pytest.raises(PowerCut):
                        bench.call(name, running)
                    assert bench.entries() == pair_values(config, pair_after), (pair, running, name, operation, mask)


@pytest.mark.sweep
@pytest.mark.parametrize("number", range(7))
def test_every_boot_from_every_otadata_that_a_cut_can_leave_agrees(number: int) -> None:
    data = vectors("esp_ota_api.json")
    config, masks = data["configs"][number], data["cut_word_masks"]
    bench = Bench(config)
    for pair, (selected, loaded, pair_after, operations, cuts) in enumerate(config["boot"]):
        bench.set_entries(pair_entries(config, pair))
        bench.efuse = 1
        assert bench.boot() == (selected, loaded), pair
        assert bench.entries() == pair_values(config, pair_after), pair
        assert bench.operations_as_vector(api_entries(), 1) == operations, pair
        for operation, row in enumerate(cuts):
            for mask, torn in zip(masks, row, strict=True):
                bench.set_entries(pair_entries(config, pair))
                bench.flash.plan = cut_plan(operation, mask)
                with pytest.raises(PowerCut):
                    bench.boot()
                assert bench.entries() == pair_values(config, torn), (pair, operation, mask)


def test_the_special_cases_of_the_ota_calls_agree() -> None:
    for case in vectors("esp_ota_api.json")["special_cases"]:
        versions = (
            {int(index): value for index, value in case["secure_version"].items()} if "secure_version" in case else None
        )
        bench = Bench(case, efuse=case.get("efuse_before", 1), versions=versions)
        bench.good = set(case["images_good"])
        bench.set_entries((entry_of(case["entries_before"][0]), entry_of(case["entries_before"][1])))
        argument = "" if case["arg"] is None else f":{case['arg']}"
        error = bench.call(case["call"] + argument, case["running"])
        expected = 0 if case["error"] is None else case["error"]
        assert error & 0xFFFF_FFFF == expected, case["name"]
        assert [list(values) for values in bench.entries()] == case["entries_after"], case["name"]
        erased = sorted({op[1] for op in case["ops"] if op[0] == "erase_slot"})
        touched = {
            index
            for index, app in bench.layout.apps.items()
            for operation in bench.operations
            if app.address <= operation.address < app.address + app.size
        }
        assert sorted(touched) == erased, case["name"]
        assert bench.efuse == case.get("efuse_after", bench.efuse), case["name"]
        check_next_boot(case, bench)


def check_next_boot(case: dict[str, Any], bench: Bench) -> None:
    """The boot after a special case, with every image good.

    Two of the four records with a factory row contradict the vectors' own state lists and grid: from the same otadata
    those boot factory. What the records say is the choice of a boot loader whose table has no factory row (the OTA
    calls found theirs in a list of their own). Both are checked, nothing is left out.
    """
    before = bench.entries()
    if case["factory"]:
        without_row = Bench({**case, "factory": False})
        without_row.set_entries((entry_of(before[0]), entry_of(before[1])))
        assert without_row.boot()[1] == case["next_boot_all_images_good"], case["name"]
        loaded = loaded_by_the_state_lists(case, before)
        assert loaded is not None, case["name"]
    else:
        loaded = case["next_boot_all_images_good"]
    bench.good = set(bench.layout.apps)
    assert bench.boot()[1] == loaded, case["name"]


def loaded_by_the_state_lists(case: dict[str, Any], entries: tuple[Entry, Entry]) -> int | None:
    """Return what boots from these entries by the records of every state, for a case's build, slots and factory row."""
    for config in vectors("esp_ota_api.json")["configs"]:
        if all(config[key] == case[key] for key in ("build", "ota_slots", "factory")):
            for pair, (_, loaded, *_) in enumerate(config["boot"]):
                if pair_values(config, pair) == entries:
                    return int(loaded)
    return None


def test_two_special_cases_contradict_the_state_lists_about_a_factory_row() -> None:
    contradicting = []
    for case in vectors("esp_ota_api.json")["special_cases"]:
        if case["factory"]:
            first, second = (tuple(values) for values in case["entries_after"])
            if loaded_by_the_state_lists(case, (first, second)) != case["next_boot_all_images_good"]:
                contradicting.append(case["name"])
    assert contradicting == ["mark_invalid_other_blank_factory", "mark_invalid_other_aborted_factory"]


def test_unknown_states_count_as_valid() -> None:
    unnamed = OtaEntry.for_seq(2, 0x12345678)
    decision = decide(
        (OtaEntry.for_seq(1, OtaState.VALID), unnamed), AppRows(frozenset({0, 1})), build=BootBuild.ROLLBACK
    )
    assert decision.index == 1


def test_without_rows_nothing_is_tried() -> None:
    for build in (BootBuild.PLAIN, BootBuild.ROLLBACK):
        assert decide((OtaEntry(), OtaEntry()), AppRows(frozenset()), build=build).order == ()


def test_the_test_app_is_the_last_resort() -> None:
    rows = AppRows(frozenset({0, 1}), factory=True, test=True)
    for first, second in itertools.product((OtaEntry(), OtaEntry.for_seq(2, OtaState.VALID)), repeat=2):
        assert decide((first, second), rows, build=BootBuild.PLAIN).order[-1] == TEST_APP
