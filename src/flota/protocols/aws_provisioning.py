"""AWS IoT fleet provisioning by claim over MQTT: topics and messages of both roles, in JSON and in CBOR. No decisions.

A device that has a claim certificate asks for one of its own, and gets a token with it; with the token and its
parameters it becomes a thing by a template.
Source: docs/reference/aws-iot.md, "Fleet provisioning"; awsdocs/aws-iot-docs: fleet-provision-api.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flota.errors import PeerError
from flota.protocols.cbor import pack_cbor, parse_cbor
from flota.protocols.malformed import MalformedMessage

CERTIFICATES_PREFIX: Final = "$aws/certificates/"
TEMPLATES_PREFIX: Final = "$aws/provisioning-templates/"

REQUEST_MAX_BYTES: Final = 32 * 1024
"""Bounds what is read as JSON or CBOR; the largest real request, with a CSR for RSA-4096, has under 4 KiB."""

PARAMETERS_MAX: Final = 32
PARAMETER_MAX_CHARS: Final = 1024
TOKEN_MAX_CHARS: Final = 1024
MESSAGE_MAX_CHARS: Final = 400

_TEMPLATE = re.compile(r"[A-Za-z0-9_-]{1,36}\Z")
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9:_.-]{1,64}\Z")


class PayloadFormat(enum.StrEnum):
    """The last level of a topic."""

    JSON = "json"
    CBOR = "cbor"


class ProvisioningOperation(enum.StrEnum):
    """What a device asks for."""

    CREATE_KEYS = "create"
    CREATE_FROM_CSR = "create-from-csr"
    PROVISION = "provision"


class ProvisioningRejection(enum.Enum):
    """Why a request is refused: the status code and a word for it."""

    INVALID_CSR = (400, "InvalidCSR")
    INVALID_PARAMETERS = (400, "InvalidParameters")
    FORBIDDEN = (403, "Forbidden")
    NOT_FOUND = (404, "ResourceNotFound")
    THROTTLED = (429, "TooManyRequests")
    INTERNAL = (500, "InternalError")


@dataclass(frozen=True, slots=True)
class ProvisioningTopic:
    """A topic that a device with a claim publishes to; `template` only where it is to become a thing."""

    operation: ProvisioningOperation
    format: PayloadFormat
    template: str | None = None

    @property
    def text(self) -> str:
        """The topic."""
        if self.operation is ProvisioningOperation.PROVISION:
            return f"{TEMPLATES_PREFIX}{self.template}/provision/{self.format.value}"
        return f"{CERTIFICATES_PREFIX}{self.operation.value}/{self.format.value}"

    @property
    def accepted(self) -> str:
        """Where the answer goes."""
        return f"{self.text}/accepted"

    @property
    def rejected(self) -> str:
        """Where the rejection goes."""
        return f"{self.text}/rejected"


class ProvisioningRejected(PeerError):
    """A request that is answered with a rejection."""

    code = "provisioning-rejected"

    def __init__(self, rejection: ProvisioningRejection, message: str) -> None:
        super().__init__(message, found=rejection.value[1])
        self.rejection = rejection


@dataclass(frozen=True, slots=True)
class CertificateMade:
    """The answer with a certificate (PEM). `private_key` (PEM) only if the server was asked to make one."""

    certificate_id: str
    certificate: str
    ownership_token: str
    private_key: str | None = None

    def __repr__(self) -> str:
        """Show which certificate, no secret."""
        return f"CertificateMade({self.certificate_id})"


@dataclass(frozen=True, slots=True)
class ProvisionRequest:
    """A device that wants to become a thing."""

    ownership_token: str = field(repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The answer: the thing's name, and what the template has for it."""

    thing_name: str
    configuration: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejection as a device reads it."""

    status: int
    error: str
    message: str


def parse_provisioning_topic(topic: str) -> ProvisioningTopic | None:
    """Return what a topic that a device published to asks for; None when it is no request to fleet provisioning."""
    if topic.startswith(CERTIFICATES_PREFIX):
        match topic[len(CERTIFICATES_PREFIX) :].split("/"):
            case [("create" | "create-from-csr") as verb, ("json" | "cbor") as form]:
                return ProvisioningTopic(ProvisioningOperation(verb), PayloadFormat(form))
    elif topic.startswith(TEMPLATES_PREFIX):
        match topic[len(TEMPLATES_PREFIX) :].split("/"):
            case [template, "provision", ("json" | "cbor") as form] if _TEMPLATE.match(template):
                return ProvisioningTopic(ProvisioningOperation.PROVISION, PayloadFormat(form), template)
    return None


def parse_csr_request(payload: bytes, form: PayloadFormat) -> str:
    """Return the certificate signing request (PEM, not looked into). Raises `ProvisioningRejected`."""
    csr = _members(payload, form).get("certificateSigningRequest")
    if not isinstance(csr, str) or not csr:
        raise ProvisioningRejected(ProvisioningRejection.INVALID_CSR, "certificateSigningRequest is missing or no text")
    return csr


def pack_csr_request(csr: str, form: PayloadFormat) -> bytes:
    """Return the request for a certificate as a device writes it."""
    return _packed({"certificateSigningRequest": csr}, form)


def parse_keys_request(payload: bytes, form: PayloadFormat) -> None:
    """Return if a request for a key too is well formed: nothing, or an object. Raises `ProvisioningRejected`."""
    _members(payload, form)


def parse_provision_request(payload: bytes, form: PayloadFormat) -> ProvisionRequest:
    """Return the request to become a thing. Raises `ProvisioningRejected`."""
    members = _members(payload, form)
    token = members.get("certificateOwnershipToken")
    if not isinstance(token, str) or not 0 < len(token) <= TOKEN_MAX_CHARS:
        raise _invalid("certificateOwnershipToken is missing or no text")
    parameters = members.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or len(parameters) > PARAMETERS_MAX:
        raise _invalid(f"parameters is an object of at most {PARAMETERS_MAX} members")
    for name, value in parameters.items():
        fine = isinstance(value, str) and len(value) <= PARAMETER_MAX_CHARS and (value.isprintable())
        if not fine or not _PARAMETER_NAME.match(name):
            raise _invalid("a parameter has a name or a value that is not allowed")
    return ProvisionRequest(token, parameters)


def pack_provision_request(request: ProvisionRequest, form: PayloadFormat) -> bytes:
    """Return the request to become a thing as a device writes it."""
    members: dict[str, object] = {"certificateOwnershipToken": request.ownership_token}
    if request.parameters:
        members["parameters"] = dict(request.parameters)
    return _packed(members, form)


def pack_certificate_made(made: CertificateMade, form: PayloadFormat) -> bytes:
    """Return the answer with a certificate."""
    members = {"certificateId": made.certificate_id, "certificatePem": made.certificate}
    if made.private_key is not None:
        members["privateKey"] = made.private_key
    return _packed({**members, "certificateOwnershipToken": made.ownership_token}, form)


def parse_certificate_made(payload: bytes, form: PayloadFormat) -> CertificateMade:
    """Return the answer with a certificate as a device reads it. Raises `MalformedMessage`."""
    members = _answer_members(payload, form)
    return CertificateMade(
        certificate_id=_text(members, "certificateId"),
        certificate=_text(members, "certificatePem"),
        ownership_token=_text(members, "certificateOwnershipToken"),
        private_key=_text(members, "privateKey") if "privateKey" in members else None,
    )


def pack_provisioned(provisioned: Provisioned, form: PayloadFormat) -> bytes:
    """Return the answer to a device that is a thing now."""
    members = {"deviceConfiguration": dict(provisioned.configuration), "thingName": provisioned.thing_name}
    return _packed(members, form)


def parse_provisioned(payload: bytes, form: PayloadFormat) -> Provisioned:
    """Return the answer to a device that is a thing now, as it reads it. Raises `MalformedMessage`."""
    members = _answer_members(payload, form)
    configuration = members.get("deviceConfiguration", {})
    if not isinstance(configuration, dict) or not all(isinstance(value, str) for value in configuration.values()):
        raise MalformedMessage("deviceConfiguration is no object of texts")
    return Provisioned(_text(members, "thingName"), configuration)


def pack_rejection(rejected: ProvisioningRejected, form: PayloadFormat) -> bytes:
    """Return the message for the topic `…/rejected`."""
    status, word = rejected.rejection.value
    members = {"statusCode": status, "errorCode": word, "errorMessage": rejected.message[:MESSAGE_MAX_CHARS]}
    return _packed(members, form)


def parse_rejection(payload: bytes, form: PayloadFormat) -> Rejection:
    """Return a rejection as a device reads it. Raises `MalformedMessage`."""
    members = _answer_members(payload, form)
    status = members.get("statusCode")
    if not isinstance(status, int) or isinstance(status, bool):
        raise MalformedMessage("statusCode is missing or no number")
    return Rejection(status, _text(members, "errorCode"), _text(members, "errorMessage"))


def _packed(members: Mapping[str, object], form: PayloadFormat) -> bytes:
    if form is PayloadFormat.CBOR:
        return pack_cbor(members)
    return json.dumps(members, separators=(",", ":")).encode("utf-8")


def _members(payload: bytes, form: PayloadFormat) -> dict[str, Any]:
    """Return a request's members; an empty payload has none."""
    if not payload:
        return {}
    if len(payload) > REQUEST_MAX_BYTES:
        raise _invalid(f"a request has at most {REQUEST_MAX_BYTES} bytes")
    try:
        return _answer_members(payload, form)
    except MalformedMessage as error:
        raise _invalid(error.message) from error


def _answer_members(payload: bytes, form: PayloadFormat) -> dict[str, Any]:
    if form is PayloadFormat.CBOR:
        members = parse_cbor(payload)
    else:
        try:
            members = json.loads(payload)
        except (ValueError, RecursionError):
            raise MalformedMessage("the payload is not JSON in UTF-8") from None
    if not isinstance(members, dict):
        raise MalformedMessage("the payload is no object", found=type(members).__name__)
    return members


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"{name} is missing or no text")
    return value


def _invalid(message: str) -> ProvisioningRejected:
    return ProvisioningRejected(ProvisioningRejection.INVALID_PARAMETERS, message)
