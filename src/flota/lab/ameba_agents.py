"""The agent of a virtual AmebaD board, from its description: one that is pushed to, or one that fetches for itself."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Set
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from flota.errors import InvalidInput
from flota.lab.announcing import announce_ameba
from flota.protocols.ameba_http import TRIGGER_PORT, UI_PORT
from flota.virtual.agents.ameba_anchorota import BOARD as ANCHOROTA_BOARD
from flota.virtual.agents.ameba_anchorota import AnchorotaAgent
from flota.virtual.agents.ameba_ota_http import OtaHttpAgent, OtaHttpSettings
from flota.virtual.agents.ameba_pull import HttpUpdateOtaAgent, LocalUpdateAgent, PullSource
from flota.virtual.agents.ameba_push import AmebaPushAgent, Announce, PushSettings, silent
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.device import Agent

if TYPE_CHECKING:
    from flota.lab.fleet import DeviceSpec

HTTP_PORT: Final = 80


class AmebaQuirk(enum.StrEnum):
    """What may be different about an AmebaD board and its firmware."""

    FORCE_OTA1 = "force-ota1"
    """The pin that forces OTA1 is at its active level."""
    LEGACY_TARGET = "legacy-target"
    """A core from before March 2024: every update goes to OTA2, even when that runs."""
    OLD_LOG = "old-log"
    """A core from before October 2024: fewer lines on the console."""


LOOPBACK: Final = "127.0.0.1"


def ameba_agent(spec: DeviceSpec, dialect: str) -> Agent | None:
    """Return the agent; None for one that asks a server and was given none. Raises `InvalidInput` for its address."""
    push = replace(
        spec.push or PushSettings(),
        modern_log=AmebaQuirk.OLD_LOG not in spec.quirks,
        legacy_target_bug=AmebaQuirk.LEGACY_TARGET in spec.quirks,
    )
    announce: Announce = partial(announce_ameba, tells_version=spec.tells_version) if spec.announce else silent
    if dialect == "ameba-push":
        return AmebaPushAgent(push, announce=announce, on_listening=spec.on_listening)
    if dialect == "anchorota":
        announce = partial(announce_ameba, board=ANCHOROTA_BOARD) if spec.announce else silent
        return AnchorotaAgent(push, announce=announce, on_listening=spec.on_listening)
    if dialect == "update-ota-local":
        return LocalUpdateAgent(spec.orders or asyncio.Queue())
    if spec.server is None:
        return None
    if dialect == "http-update-ota":
        return HttpUpdateOtaAgent(pull_source(spec.server, default_port=HTTP_PORT))
    source = pull_source(spec.server, default_port=UI_PORT)
    host, port = spec.trigger or (LOOPBACK, TRIGGER_PORT)
    settings = OtaHttpSettings(source.host, source.port, host, port, tells_version=spec.tells_version)
    return OtaHttpAgent(settings, announce=announce, on_listening=spec.on_listening)


def set_straps(hardware: AmebaHardware, quirks: Set[AmebaQuirk]) -> None:
    """Wire the board as its quirks say."""
    hardware.straps.force_ota1 = AmebaQuirk.FORCE_OTA1 in quirks


def pull_source(url: str, *, default_port: int) -> PullSource:
    """Return what `http_update_ota` is called with. Raises `InvalidInput` for anything but http://HOST[:PORT][/PATH]."""
    try:
        parts = urlsplit(url)
        port = parts.port or default_port
    except ValueError:
        parts, port = urlsplit(""), 0
    text = f"{parts.path}?{parts.query}" if parts.query else parts.path
    if parts.scheme != "http" or not parts.hostname or parts.username is not None or not text.isascii():
        raise InvalidInput("not an address to pull from", expected="http://HOST[:PORT][/PATH]", found=repr(url[:120]))
    return PullSource(parts.hostname, port, text.removeprefix("/"))
