"""What becomes of the server's offers for the MCU behind an NCP: judged, fetched, made a job, reported. No serial line.

Everything that the MCU does not check is checked here, before it hears of the update: signatures by the NCP's own keys,
the board, the file, its firmware tag. Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from flota.errors import Refused
from flota.gateway.driver import AdoptedDevice
from flota.gateway.journal import DeviceEntry
from flota.gateway.judgement import AcceptedOffer, judge_file, judge_offer
from flota.gateway.ncp_journal import NcpJob, NcpRecord
from flota.images.blynk_tag import BUILD_KEY, MCU_KEY, TYPE_KEY
from flota.images.inspection import inspect
from flota.protocols.blynk.ncp_job import FileDigests, UpdateJob
from flota.protocols.blynk.ncp_states import UpdateState
from flota.protocols.ddi import Deployment
from flota.protocols.peer_text import clean_text
from flota.trust.trust_file import TrustedSigners

FILENAME_MAX_LEN: Final = 64
REASON_MAX_LEN: Final = 500


@dataclass(frozen=True, slots=True)
class ReadyJob:
    """A job with its file, and what is to be said about it."""

    record: NcpJob
    update: UpdateJob
    warnings: tuple[str, ...] = ()


def judge_deployment(
    deployment: Deployment,
    device: AdoptedDevice,
    record: NcpRecord,
    signers: Sequence[TrustedSigners],
    *,
    now: datetime,
) -> AcceptedOffer:
    """Return the offer's file and release, before anything is fetched. Raises what `judge_offer` raises."""
    entry = DeviceEntry(
        device.name,
        accepted_version=record.accepted_version,
        accepted_sequence=record.accepted_sequence,
        accepted_manifest_sha256=record.accepted_manifest_sha256,
    )
    return judge_offer(deployment, device, entry, signers, now=now)


def ready_job(
    deployment: Deployment, offer: AcceptedOffer, data: bytes, device: AdoptedDevice, record: NcpRecord
) -> ReadyJob:
    """Return the job that a fetched file makes. Raises `DoesNotFit`, `ReleaseRefused`; `Refused` for another type."""
    warnings = judge_file(data, device, offer.release, sha256=offer.artifact.sha256)
    tag = inspect(data).firmware_tag
    if record.runs_type and tag[TYPE_KEY] != record.runs_type:
        raise Refused("the firmware is of another type than the MCU's", expected=record.runs_type, found=tag[TYPE_KEY])
    manifest = offer.release.manifest
    job = NcpJob(
        action_id=deployment.action_id,
        state=UpdateState.IDLE,
        filename=clean_text(offer.artifact.filename, max_len=FILENAME_MAX_LEN) or "firmware.bin",
        size=len(data),
        sha256=offer.artifact.sha256,
        fw_type=tag[TYPE_KEY],
        version=tag[MCU_KEY],
        build=tag.get(BUILD_KEY, ""),
        sequence=manifest.sequence,
        manifest_sha256=offer.release.sha256,
    )
    return ReadyJob(job, update_job(job, data), warnings)


def update_job(job: NcpJob, data: bytes) -> UpdateJob:
    """Return what the protocol machine is given for a kept job and its file."""
    digests = FileDigests(
        zlib.crc32(data), hashlib.md5(data, usedforsecurity=False).digest(), hashlib.sha256(data).digest()
    )
    return UpdateJob(
        job.filename,
        job.size,
        job.fw_type,
        job.version,
        job.build,
        digests,
        is_prefetched=True,
        was_accepted=job.was_accepted,
    )


def with_verdict(record: NcpRecord, *, outcome: str, reason: str, succeeded: bool) -> NcpRecord:
    """Return the record with the verdict about its job."""
    job = record.job
    assert job is not None
    decided = replace(record, job=replace(job, outcome=outcome, reason=reason[:REASON_MAX_LEN]))
    if not succeeded:
        return decided
    return replace(
        decided,
        accepted_version=job.version,
        accepted_sequence=max(job.sequence, record.accepted_sequence),
        accepted_manifest_sha256=job.manifest_sha256,
    )
