"""What an NCP is told and what it remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flota.errors import FlotaError, InvalidInput
from flota.gateway.journal import DamagedJournal
from flota.gateway.ncp_journal import NcpJob, NcpJournal, NcpRecord
from flota.gateway.ncp_settings import NcpRunSettings
from flota.gateway.ncp_update_desk import update_job, with_verdict
from flota.protocols.blynk.ncp_states import UpdateState

JOB = NcpJob(7, UpdateState.STREAMING, "fw.bin", 3, "0f" * 32, "TMPLabcd1234", "1.2.4", "", sequence=5)
SETTINGS = NcpRunSettings("/dev/null", "http://127.0.0.1:8080", "pump-1", "state", ["trust.json"])


def test_what_is_kept_is_read_again_by_the_next_life(tmp_path: Path) -> None:
    record = NcpRecord("pump-1", JOB, runs_version="1.2.3", accepted_sequence=4)
    NcpJournal(tmp_path).save(record)
    assert NcpJournal(tmp_path).load("pump-1") == record
    assert (tmp_path / "ncp.json").stat().st_mode & 0o777 == 0o600


def test_nothing_kept_is_an_empty_record(tmp_path: Path) -> None:
    assert NcpJournal(tmp_path).load("pump-1") == NcpRecord("pump-1")
    assert NcpJournal(tmp_path).read() is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"schema":1}', b'{"schema":9,"record":{"device":"pump-1"}}', b"\xff" * 99]
)
def test_a_damaged_journal_is_never_guessed_at(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "ncp.json").write_bytes(data)
    with pytest.raises(DamagedJournal):
        NcpJournal(tmp_path).load("pump-1")
    assert (tmp_path / "ncp.json").read_bytes() == data


def test_the_journal_of_another_device_is_refused(tmp_path: Path) -> None:
    NcpJournal(tmp_path).save(NcpRecord("pump-2"))
    with pytest.raises(DamagedJournal, match="of another device"):
        NcpJournal(tmp_path).load("pump-1")


def test_only_a_success_raises_what_is_accepted() -> None:
    record = NcpRecord("pump-1", JOB, accepted_sequence=2)
    failed = with_verdict(record, outcome="failed", reason="r" * 2000, succeeded=False)
    assert failed.accepted_sequence == 2
    assert failed.job is not None
    assert (failed.job.outcome, len(failed.job.reason)) == ("failed", 500)
    succeeded = with_verdict(record, outcome="succeeded", reason="", succeeded=True)
    assert (succeeded.accepted_sequence, succeeded.accepted_version) == (5, "1.2.4")


def test_a_kept_job_and_its_file_make_the_machines_job() -> None:
    job = update_job(replace(JOB, was_accepted=True), b"abc")
    assert (job.size, job.is_prefetched, job.was_accepted) == (3, True, True)
    assert job.digests is not None
    assert job.digests.crc32 == 0x352441C2


@pytest.mark.parametrize(
    "change",
    [{"board": "esp32-c3"}, {"board": "nothing"}, {"baud": 12_345}, {"chunk_max_bytes": 63}, {"server": "pump"}],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(FlotaError):
        replace(SETTINGS, **change).checked()  # type: ignore[arg-type]


def test_an_mcu_without_a_way_back_is_believed_at_once() -> None:
    assert SETTINGS.checked().update_settings().settle_s == 90.0
    single = replace(SETTINGS, board="dual-mcu-ncp").checked().update_settings()
    assert (single.settle_s, single.left_to_boot_loader) == (0.0, True)
    assert replace(SETTINGS, settle_s=3.0).update_settings().settle_s == 3.0


def test_an_mcu_may_ask_for_no_rate_above_the_highest() -> None:
    bauds = replace(SETTINGS, max_baud=115_200).bauds()
    assert max(bauds) == 115_200
    assert 38_400 in bauds
    with pytest.raises(InvalidInput):
        replace(SETTINGS, baud=1).checked()
