"""Things: devices that a client certificate lets in, and how new ones get theirs. Names as AWS IoT bounds them.

Source: docs/reference/aws-iot.md, "Things and certificates".
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flota.errors import InvalidInput
from flota.fleet.devices import Device, UnknownDevices

THING_NAME_RULE: Final = "1 to 128 of A-Z a-z 0-9 : _ -"
_THING_NAME: Final = re.compile(r"[A-Za-z0-9:_-]{1,128}\Z")

TEMPLATE_NAME_RULE: Final = "1 to 36 of A-Z a-z 0-9 _ -"
_TEMPLATE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,36}\Z")

JOB_ID_MAX_LEN: Final = 64
JOB_ID_PREFIX: Final = "AFR_OTA-"
"""What every job of an over-the-air update begins with; the agent's own tests and operators' scripts look for it."""

JOB_NAME_MAX_LEN: Final = JOB_ID_MAX_LEN - len(JOB_ID_PREFIX)
JOB_NAME_RULE: Final = f"1 to {JOB_NAME_MAX_LEN} of A-Z a-z 0-9 _ -"
_JOB_NAME: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_NOT_IN_JOB_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")
JOB_MARK_LEN: Final = 8
"""Characters of the digest that keep two names apart whose job ids would be one."""

DEVICE_TEXT_MAX_LEN: Final = 256
"""Characters of a path on the device: agents hold 260 bytes of `filepath` and `certfile`."""

PARAMETERS_MAX: Final = 32
PARAMETER_MAX_LEN: Final = 128
THING_NAME_TEMPLATE_MAX_LEN: Final = 256
DEFAULT_THING_NAME: Final = "{SerialNumber}"
_REFERENCE: Final = re.compile(r"\{([A-Za-z0-9:_.-]{1,64})\}")


class CertificateStatus(enum.StrEnum):
    """Only an active certificate lets anybody in. A revoked one stays so."""

    ACTIVE = "ACTIVE"
    PENDING_ACTIVATION = "PENDING_ACTIVATION"
    """Made for a claim, not yet turned into a thing's own."""
    REVOKED = "REVOKED"


class CertificatePurpose(enum.StrEnum):
    """What a certificate is good for."""

    THING = "thing"
    CLAIM = "claim"
    """Many devices have the same one, and may do nothing with it but ask for one of their own."""


CERTIFICATE_TRANSITIONS: Final[Mapping[CertificateStatus, frozenset[CertificateStatus]]] = {
    CertificateStatus.PENDING_ACTIVATION: frozenset({CertificateStatus.ACTIVE, CertificateStatus.REVOKED}),
    CertificateStatus.ACTIVE: frozenset({CertificateStatus.REVOKED}),
    CertificateStatus.REVOKED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """A certificate to be known from now on. `fingerprint` is the hex SHA-256 of its DER form.

    `issued_here`: by this server's authority; another one is believed for itself. `ownership_token_sha256` (hex) and
    `ownership_until` are given for one that waits for its thing.
    """

    fingerprint: str
    purpose: CertificatePurpose
    status: CertificateStatus
    issued_here: bool
    subject: str
    pem: str
    not_before: datetime
    not_after: datetime
    device_name: str | None = None
    template_name: str | None = None
    ownership_token_sha256: str | None = None
    ownership_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """What of a certificate has to be known of each device that connects: tens of thousands of these are kept.

    `ends_at`: it was replaced, and works until then, or until its successor is used.
    """

    fingerprint: str
    purpose: CertificatePurpose
    status: CertificateStatus
    not_before: datetime
    not_after: datetime
    template_name: str | None = None
    ends_at: datetime | None = None

    def is_good(self, *, now: datetime) -> bool:
        """Whether it lets its holder in now."""
        replaced = self.ends_at is not None and now >= self.ends_at
        return self.status is CertificateStatus.ACTIVE and self.not_before <= now < self.not_after and not replaced


@dataclass(frozen=True, slots=True)
class ThingCertificate:
    """A known certificate. `device_name` is None for claims and for those that wait for their thing."""

    id: int
    fingerprint: str
    purpose: CertificatePurpose
    status: CertificateStatus
    issued_here: bool
    subject: str
    pem: str
    not_before: datetime
    not_after: datetime
    created_at: datetime
    changed_at: datetime
    device_name: str | None = None
    template_name: str | None = None
    ends_at: datetime | None = None
    ownership_until: datetime | None = None

    @property
    def held(self) -> HeldCertificate:
        """What is looked at when a device shows it."""
        return HeldCertificate(
            self.fingerprint,
            self.purpose,
            self.status,
            self.not_before,
            self.not_after,
            self.template_name,
            self.ends_at,
        )

    def is_good(self, *, now: datetime) -> bool:
        """Whether it lets its holder in now."""
        return self.held.is_good(now=now)


@dataclass(frozen=True, slots=True)
class ProvisioningTemplate:
    """What becomes of a device that asks with a claim certificate: its type, its name, whether it is let in at once.

    `thing_name` has parameters of the request in braces. `unknown_devices` says what happens to a name that nobody has
    registered; a registered one gets its certificate if it has none that works.
    """

    id: int
    name: str
    type_name: str
    thing_name: str
    unknown_devices: UnknownDevices
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CertificateHolder:
    """Whom a certificate stands for: a device, or everybody who has a claim of `template_name`.

    `ends_others`: the device has certificates that end as soon as this one is used.
    """

    tenant_id: int
    certificate: HeldCertificate
    device: Device | None = None
    ends_others: bool = False


def parse_thing_name(text: str) -> str:
    """Return a thing's name; raises `InvalidInput` unless it can stand in AWS's topics."""
    if not _THING_NAME.match(text):
        raise InvalidInput(
            "not a name that a thing can have",
            expected=THING_NAME_RULE,
            found=repr(text[:140]),
            hint="It becomes part of MQTT topics. Other devices may have dots in their names, things may not.",
        )
    return text


def parse_template_name(text: str) -> str:
    """Return a provisioning template's name; raises `InvalidInput`."""
    if not _TEMPLATE_NAME.match(text):
        raise InvalidInput("not a name for a template", expected=TEMPLATE_NAME_RULE, found=repr(text[:80]))
    return text


def parse_thing_name_template(text: str) -> str:
    """Return the text from which things get their names; raises `InvalidInput` unless it has a parameter in braces.

    What is not a parameter has to be made of characters that a thing's name may have.
    """
    rest = _REFERENCE.sub("", text)
    if not _REFERENCE.search(text) or (rest and not _THING_NAME.match(rest)) or len(text) > THING_NAME_TEMPLATE_MAX_LEN:
        raise InvalidInput(
            "not a rule for names of things",
            expected=f"text with a parameter in braces, e.g. pump-{DEFAULT_THING_NAME}",
            found=repr(text[:140]),
        )
    return text


def thing_name_of(template: str, parameters: Mapping[str, str]) -> str:
    """Return the name that a template gives a device with these parameters; raises `InvalidInput`."""
    missing = [name for name in _REFERENCE.findall(template) if name not in parameters]
    if missing:
        raise InvalidInput(f"the parameter {missing[0]} is missing", expected=template)
    return parse_thing_name(_REFERENCE.sub(lambda found: parameters[found[1]], template))


def parse_job_name(text: str) -> str:
    """Return the name of a rollout to things; raises `InvalidInput` unless `AFR_OTA-` and it make a job's id."""
    name = text.removeprefix(JOB_ID_PREFIX)
    if not _JOB_NAME.match(name) or len(name) > JOB_NAME_MAX_LEN:
        raise InvalidInput(
            "not a name for a rollout to things",
            expected=JOB_NAME_RULE,
            found=repr(text[:80]),
            hint=f"Devices see it as the id of a job, {JOB_ID_PREFIX}NAME.",
        )
    return text


def job_id_of(name: str) -> str:
    """Return the job id of the rollout of this name: `AFR_OTA-NAME`, or the name itself if it begins so.

    A name that no job id can have keeps what is allowed in it, and a mark of its digest.
    """
    plain = name.removeprefix(JOB_ID_PREFIX)
    if _JOB_NAME.match(plain) and len(plain) <= JOB_NAME_MAX_LEN:
        return JOB_ID_PREFIX + plain
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:JOB_MARK_LEN]
    kept = _NOT_IN_JOB_IDS.sub("-", plain)[: JOB_NAME_MAX_LEN - JOB_MARK_LEN - 1]
    return f"{JOB_ID_PREFIX}{kept}-{mark}"


def parse_device_text(what: str, text: str) -> str:
    """Return a name or path on the device, for a job document; raises `InvalidInput` unless an agent can hold it."""
    if not (0 < len(text.encode("utf-8", "surrogatepass")) <= DEVICE_TEXT_MAX_LEN and text.isprintable()):
        raise InvalidInput(
            f"not a usable {what}",
            expected=f"1 to {DEVICE_TEXT_MAX_LEN} bytes of printable text",
            found=repr(text[:80]),
        )
    return text
