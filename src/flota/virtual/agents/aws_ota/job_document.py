"""The job as the C agent takes it: the shared reader of `afr_ota`, then its own fixed buffers and its one signature.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; aws/ota-for-aws-iot-embedded-sdk:source/ota.c
(`otaJobDocModelParamStructure`).
"""

from __future__ import annotations

import base64
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flota.errors import PeerError
from flota.protocols.aws_ota import FIRMWARE_FILE_TYPE, URL_MAX_LEN, DataProtocol, OtaUpdate, parse_ota_document
from flota.protocols.malformed import MalformedMessage

DEFAULT_SIGNATURE_KEY: Final = "sig-sha256-ecdsa"
"""The one signature that the firmware was built to read."""

JOB_ID_MAX_BYTES: Final = 72
STREAM_NAME_MAX_BYTES: Final = 44
PATH_MAX_BYTES: Final = 260
"""Of `filepath` and of `certfile`."""

SIGNATURE_MAX_BYTES: Final = 384
UINT32_MAX: Final = 0xFFFF_FFFF

_STRTOUL: Final = re.compile(r"\s*\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]*)|([1-9][0-9]*))\Z", re.ASCII)


class ParseFailure(enum.IntEnum):
    """Why a job was not taken; the C agent's numbers, which a status carries."""

    NULL_JOB = 1
    UPDATE_CURRENT_JOB = 2
    ZERO_FILE_SIZE = 3
    NON_CONFORMING = 4
    BAD_MODEL = 5
    NO_CONTEXT = 6
    NO_ACTIVE_JOBS = 7


class JobNotTaken(PeerError):
    """There is no job in the message, or none that this agent understands; `job_id` if the message names one."""

    code = "ota-job-not-taken"

    def __init__(self, failure: ParseFailure, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message, found=failure.name.lower().replace("_", " "))
        self.failure = failure
        self.job_id = job_id


@dataclass(frozen=True, slots=True)
class OtaFile:
    """The one file of a job: size in bytes, `signature` decoded (empty: none that this firmware reads)."""

    size: int
    file_id: int = 0
    file_type: int = FIRMWARE_FILE_TYPE
    path: str = ""
    certificate_path: str = ""
    signature: bytes = field(default=b"", repr=False)
    url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class OtaJob:
    """A job. `updated_by` is the version word of the app that installed what is being tested, 0 if not said."""

    job_id: str
    protocols: frozenset[DataProtocol]
    file: OtaFile
    stream: str = ""
    in_self_test: bool = False
    updated_by: int = 0


def parse_job(payload: bytes, *, signature_key: str = DEFAULT_SIGNATURE_KEY) -> OtaJob:
    """Return the job in an answer to `$next/get` or in a `notify-next`. Raises `JobNotTaken`, and nothing else."""
    execution = _execution(payload)
    job_id = execution.get("jobId")
    document = execution.get("jobDocument")
    if not isinstance(job_id, str) or not job_id or document is None:
        raise JobNotTaken(ParseFailure.NO_ACTIVE_JOBS, "the message names no job")
    if len(job_id.encode("utf-8", "replace")) > JOB_ID_MAX_BYTES or not job_id.isprintable():
        raise JobNotTaken(ParseFailure.NON_CONFORMING, "the job's id does not fit its buffer")
    details = execution.get("statusDetails")
    try:
        job = _job(job_id, parse_ota_document(document), details if isinstance(details, dict) else {}, signature_key)
    except MalformedMessage as error:
        raise JobNotTaken(ParseFailure.NON_CONFORMING, error.message, job_id=job_id) from error
    if job.file.size == 0:
        raise JobNotTaken(ParseFailure.ZERO_FILE_SIZE, "the file has no bytes", job_id=job_id)
    return job


def strtoul(text: str) -> int | None:
    """Return the number as C reads it with base 0: decimal, 0x hexadecimal, 0 octal; None if it is none of 32 bits."""
    match = _STRTOUL.match(text[:32])
    if match is None:
        return None
    hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(decimal) if decimal else int(octal or "0", 8)
    return value if value <= UINT32_MAX else None


def _execution(payload: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        raise JobNotTaken(ParseFailure.NO_ACTIVE_JOBS, "the message is no JSON") from None
    execution = message.get("execution") if isinstance(message, dict) else None
    if not isinstance(execution, dict):
        raise JobNotTaken(ParseFailure.NO_ACTIVE_JOBS, "there is no job for this thing")
    return execution


def _job(job_id: str, update: OtaUpdate, details: Mapping[str, Any], signature_key: str) -> OtaJob:
    """Return the job with every text in its buffer. Raises `MalformedMessage`."""
    described = update.file
    return OtaJob(
        job_id,
        frozenset(update.protocols),
        OtaFile(
            size=described.size,
            file_id=described.file_id,
            file_type=described.file_type,
            path=_fitting("filepath", described.path, PATH_MAX_BYTES),
            certificate_path=_fitting("certfile", described.certfile, PATH_MAX_BYTES),
            signature=_signature(described.signatures.get(signature_key, "")),
            url=_fitting("update_data_url", described.url, URL_MAX_LEN),
        ),
        stream=_fitting("streamname", update.stream, STREAM_NAME_MAX_BYTES),
        in_self_test="self_test" in details,
        updated_by=_updated_by(details.get("updatedBy")),
    )


def _fitting(name: str, value: str | None, limit: int) -> str:
    text = value or ""
    if len(text.encode("utf-8", "replace")) > limit:
        raise MalformedMessage(f"{name} does not fit its buffer", expected=f"at most {limit} bytes", found=len(text))
    return text


def _signature(text: str) -> bytes:
    signature = base64.b64decode(text)
    if len(signature) > SIGNATURE_MAX_BYTES:
        raise MalformedMessage(
            "the signature does not fit its buffer", expected=f"at most {SIGNATURE_MAX_BYTES}", found=len(signature)
        )
    return signature


def _updated_by(value: object) -> int:
    if value is None:
        return 0
    number = strtoul(value) if isinstance(value, str) else None
    if number is None:
        raise MalformedMessage("updatedBy is no number of 32 bits", found=repr(value)[:40])
    return number
