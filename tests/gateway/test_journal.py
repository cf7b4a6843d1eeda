"""What a gateway remembers survives it, and damage is never taken for something that was remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flota.errors import Conflict
from flota.gateway.journal import DamagedJournal, DeviceEntry, Journal, UpdateRecord, one_gateway
from flota.gateway.update_states import Happening, Stage

RECORD = UpdateRecord(7, Stage.OFFERED, "2.0.0", 1000, "ab" * 32, "2026-11-21T00:00:00.000+00:00", sequence=4)

records = st.builds(
    UpdateRecord,
    action_id=st.integers(1, 2**31 - 1),
    stage=st.sampled_from(Stage),
    version=st.text(max_size=128).filter(lambda text: text.encode("utf-8", "ignore").decode() == text),
    size=st.integers(0, 2**40),
    sha256=st.just("ab" * 32),
    offered_at=st.just("2026-11-21T00:00:00.000+00:00"),
    attempts=st.integers(0, 100),
    success=st.booleans(),
)


async def test_an_entry_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    entry = DeviceEntry("pump/1 ä", RECORD.after(Happening.LOOKED_AT), "1.0.0", 3, "cd" * 32)
    await Journal(tmp_path).save(entry)
    assert Journal(tmp_path).load("pump/1 ä") == entry
    assert Journal(tmp_path).load("pump-2") == DeviceEntry("pump-2")
    assert Journal(tmp_path).all() == [entry]


@given(record=records)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_any_record_comes_back(tmp_path: Path, record: UpdateRecord) -> None:
    journal = Journal(tmp_path)
    await journal.save(DeviceEntry("one", record))
    assert journal.load("one").update == record


@given(data=st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_in_a_file_are_an_entry_or_a_damaged_journal(tmp_path: Path, data: bytes) -> None:
    journal = Journal(tmp_path)
    journal.path("one").write_bytes(data)
    with pytest.raises(DamagedJournal):
        journal.load("one")


async def test_every_cut_of_a_file_is_damage(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.save(DeviceEntry("one", RECORD))
    path = journal.path("one")
    whole = path.read_bytes().rstrip()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedJournal):
            journal.load("one")


async def test_another_devices_file_is_not_taken(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.save(DeviceEntry("one", RECORD))
    journal.path("one").rename(journal.path("two"))
    with pytest.raises(DamagedJournal):
        journal.load("two")


def test_what_an_interrupted_writer_left_is_removed_at_the_start(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    left = journal.path("one").with_suffix(".partial")
    left.write_bytes(b"{")
    Journal(tmp_path)
    assert not left.exists()


def test_one_gateway_at_a_time_has_the_directory(tmp_path: Path) -> None:
    with one_gateway(tmp_path), pytest.raises(Conflict), one_gateway(tmp_path):
        pass
    with one_gateway(tmp_path):
        pass
