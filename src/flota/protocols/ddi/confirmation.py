"""confirmationBase: a device is asked before it is told; and what a device says about what was installed without us."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from flota.errors import InvalidInput
from flota.protocols.ddi.addresses import DdiAddresses
from flota.protocols.ddi.deployment import Deployment, pack_deployment, parse_deployment_like
from flota.protocols.ddi.feedback import checked_details
from flota.protocols.ddi.reading import as_integer, decode

INITIATOR_MAX_LEN: Final = 64
REMARK_MAX_LEN: Final = 512
"""Characters; hawkBit's column sizes."""

NAME_MAX_LEN: Final = 128
VERSION_MAX_LEN: Final = 200
"""Characters of a chunk's name and version; hawkBit's own versions end at 64, ours may be longer."""

_INT32_MIN: Final = -(1 << 31)
_INT32_MAX: Final = (1 << 31) - 1


class Confirmation(enum.StrEnum):
    """Whether a device agrees to an action."""

    CONFIRMED = "confirmed"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class ConfirmationFeedback:
    """What a device answers; `details` are its own lines, not cleaned yet."""

    confirmation: Confirmation
    code: int | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AutoConfirmRequest:
    """Who lets the device agree to everything, and why; both are the device's own words."""

    initiator: str | None = None
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class AutoConfirm:
    """Whether the device agrees to everything. `activated_at_ms` is in milliseconds since 1970."""

    active: bool
    initiator: str | None = None
    remark: str | None = None
    activated_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class InstalledVersion:
    """What a device says it has installed: the name and version of a chunk."""

    name: str
    version: str


class _FeedbackMessage(msgspec.Struct):
    confirmation: Confirmation
    code: Any = None
    details: list[str] | None = None


class _ActivateMessage(msgspec.Struct):
    initiator: str | None = None
    remark: str | None = None


class _InstalledMessage(msgspec.Struct):
    name: str
    version: str


class _StateMember(msgspec.Struct):
    active: bool
    initiator: str | None = None
    remark: str | None = None
    activated_at: int | None = msgspec.field(default=None, name="activatedAt")


class _StateMessage(msgspec.Struct):
    auto_confirm: _StateMember = msgspec.field(name="autoConfirm")


_FEEDBACK = msgspec.json.Decoder(_FeedbackMessage)
_ACTIVATE = msgspec.json.Decoder(_ActivateMessage)
_INSTALLED = msgspec.json.Decoder(_InstalledMessage)
_STATE = msgspec.json.Decoder(_StateMessage)


def pack_confirmation(deployment: Deployment) -> bytes:
    """Return the compact JSON of an action that waits for the device's agreement: a deployment by another name."""
    return pack_deployment(deployment, member="confirmation")


def parse_confirmation(body: bytes) -> Deployment:
    """Return the action that a server asks about. Raises `MalformedMessage`."""
    return parse_deployment_like(body, member="confirmation")


def pack_confirmation_feedback(feedback: ConfirmationFeedback) -> bytes:
    """Return the compact JSON of a device's answer."""
    message: dict[str, object] = {"confirmation": feedback.confirmation.value}
    if feedback.code is not None:
        message["code"] = feedback.code
    message["details"] = list(feedback.details)
    return msgspec.json.encode(message)


def parse_confirmation_feedback(body: bytes, *, cbor: bool = False) -> ConfirmationFeedback:
    """Return a device's answer. Raises `MalformedMessage`, and `TooManyEntries` above 50 details."""
    message = decode(_FEEDBACK, body, "confirmation", cbor=cbor)
    return ConfirmationFeedback(
        confirmation=message.confirmation,
        code=as_integer(message.code, minimum=_INT32_MIN, maximum=_INT32_MAX),
        details=checked_details(message.details),
    )


def parse_auto_confirm_request(body: bytes, *, cbor: bool = False) -> AutoConfirmRequest:
    """Return who asks for automatic agreement; no body at all is fine. Raises `MalformedMessage`, `InvalidInput`."""
    if not body:
        return AutoConfirmRequest()
    message = decode(_ACTIVATE, body, "activation", cbor=cbor)
    for name, text, limit in (
        ("initiator", message.initiator, INITIATOR_MAX_LEN),
        ("remark", message.remark, REMARK_MAX_LEN),
    ):
        if text is not None and len(text) > limit:
            raise InvalidInput(f"the {name} is too long", expected=f"at most {limit} characters", found=len(text))
    return AutoConfirmRequest(message.initiator, message.remark)


def pack_auto_confirm(state: AutoConfirm, addresses: DdiAddresses, *, waiting: str | None = None) -> bytes:
    """Return the compact JSON of `/confirmationBase`: the state and links to change it.

    `waiting` is where the action is that waits for agreement, if one does.
    """
    told = {"initiator": state.initiator, "remark": state.remark, "activatedAt": state.activated_at_ms}
    member = {"active": state.active, **{name: value for name, value in told.items() if value is not None}}
    if state.active:
        links = {"deactivateAutoConfirm": {"href": addresses.deactivate_auto_confirm}}
    else:
        links = {"activateAutoConfirm": {"href": addresses.activate_auto_confirm}}
    if waiting is not None:
        links["confirmationBase"] = {"href": waiting}
    return msgspec.json.encode({"autoConfirm": member, "_links": links})


def parse_auto_confirm(body: bytes) -> AutoConfirm:
    """Return what a server knows about automatic agreement. Raises `MalformedMessage`."""
    state = decode(_STATE, body, "confirmation state").auto_confirm
    return AutoConfirm(state.active, state.initiator, state.remark, state.activated_at)


def parse_installed_version(body: bytes, *, cbor: bool = False) -> InstalledVersion:
    """Return what a device says it has installed. Raises `MalformedMessage`, `InvalidInput`."""
    message = decode(_INSTALLED, body, "installed version", cbor=cbor)
    for name, text, limit in (
        ("name", message.name, NAME_MAX_LEN),
        ("version", message.version, VERSION_MAX_LEN),
    ):
        if not 0 < len(text) <= limit:
            raise InvalidInput(f"not a {name}", expected=f"1 to {limit} characters", found=len(text))
    return InstalledVersion(message.name, message.version)
