"""Virtual devices put together from a description, one or many in a process."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import httpx

from flota.boards.catalogue import board as board_named
from flota.boards.model import Route
from flota.errors import InvalidInput
from flota.images.esp_partitions import PartitionTable
from flota.lab.ameba_agents import AmebaQuirk, ameba_agent, set_straps
from flota.lab.announcing import announce_esp
from flota.lab.aws_agents import AwsOptions, aws_agent
from flota.lab.mcu_agents import McuOptions, is_primary_mcu, line_of, mcu_agent
from flota.lab.nuvoton_agents import code_certificate_of, is_nuvoton, nuvoton_agent
from flota.lab.nuvoton_programmer import provision
from flota.lab.programmer import flash_size_for, prepare_blank
from flota.lab.state_directory import StateDirectory
from flota.lab.uart_ends import PseudoTerminal
from flota.protocols.ddi import DEFAULT_TENANT, DdiAddresses
from flota.protocols.viam import POLL_PERIOD_S
from flota.transports.ddi_link import DdiLink
from flota.transports.http import http_client, tls_context
from flota.trust.image_keys import ImagePublicKey
from flota.trust.trust_file import TrustedSigners
from flota.virtual.agents.ameba_push import PushSettings, silent
from flota.virtual.agents.ddi import DdiAgent, DdiSettings
from flota.virtual.agents.esp_https_ota import TIME_OUT_S, USER_AGENT, EspHttpsOtaAgent, FetchMode
from flota.virtual.agents.espota import EspotaAgent, EspotaSettings
from flota.virtual.agents.http_update import HttpUpdateAgent
from flota.virtual.agents.viam_config import ConfigAddress, ConfigFile, ConfigSource
from flota.virtual.agents.viam_link import device_tls
from flota.virtual.agents.viam_micro_rdk import MicroRdkAgent
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.device import Agent, Identity, VirtualDevice
from flota.virtual.events import DeviceEvent, Listener
from flota.virtual.m2354_board import M2354Hardware
from flota.virtual.nuvoton_board import M487Hardware
from flota.virtual.pace import Pace

ESP_HTTPS_OTA_REDIRECTS: Final = 10


class Dialect(enum.StrEnum):
    """Which update client the device carries."""

    HTTP_UPDATE = "http-update"
    ESP_HTTPS_OTA = "esp-https-ota"
    DDI = "ddi"
    VIAM = "viam"
    AMEBA_PUSH = "ameba-push"
    AWS_IOT = "aws-iot"
    BLYNK_NCP = "blynk-ncp"
    """A primary MCU: its NCP asks for it."""
    ESPOTA = "espota"
    """Both wait to be pushed to, and ask nobody."""
    ANCHOROTA = "anchorota"
    """A third party's sketch for AmebaD, pushed to with the bare image."""
    HTTP_UPDATE_OTA = "http-update-ota"
    OTA_HTTP = "ota-http"
    UPDATE_OTA_LOCAL = "update-ota-local"
    """AmebaD apps that fetch for themselves; the last one when its console is told to."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A virtual device to run.

    `server` is the base URL (None: the device has no network). `firmware` is what it left the factory with, used only
    if it is blank, `firmware_version` its version where the file does not tell. `poll_interval_s` is device time
    (scaled by `speed`), None = what dialect or server say.
    `viam_config` is the file or http address of a micro-RDK's machine configuration, in place of Viam's cloud.
    `push`, `espota`: where a board that is pushed to listens; `on_listening` hears of host and port at each boot.
    `trigger` is host and TCP port where OTA_Http waits for its start, `tells_version` adds the version to its posts;
    `orders` are the lines typed on the console of update_ota_local.
    `signers` are the keys that it trusts (DDI only), None = it installs unsigned releases too. `seed` makes its waits
    repeatable.
    """

    name: str
    board: str
    state: Path
    server: str | None = None
    token: str | None = None
    device_type: str | None = None
    dialect: Dialect | None = None
    tenant: str = DEFAULT_TENANT
    speed: float = 1.0
    cacert: Path | None = None
    signers: TrustedSigners | None = None
    poll_interval_s: float | None = None
    firmware: bytes | None = field(default=None, repr=False)
    firmware_version: str | None = None
    table: PartitionTable | None = field(default=None, repr=False)
    build: BootBuild | None = None
    fetch_mode: FetchMode = FetchMode.RESUME
    mac: str | None = None
    hardware_revision: str | None = None
    viam_config: str | None = None
    push: PushSettings | None = None
    espota: EspotaSettings | None = None
    aws: AwsOptions | None = None
    """How a device that speaks AWS IoT reaches its MQTT server; None: it has no network."""
    mcu: McuOptions | None = None
    """The line and the build of a primary MCU; None: nothing is at the end of its line."""
    boot_keys: tuple[ImagePublicKey, ...] = ()
    """What the boot loader of a blank M2354 is built with."""
    trigger: tuple[str, int] | None = None
    tells_version: bool = False
    quirks: frozenset[AmebaQuirk] = frozenset()
    """What is special about an AmebaD board."""
    orders: asyncio.Queue[str] | None = field(default=None, repr=False)
    announce: bool = True
    """Whether a board that is pushed to announces itself by mDNS."""
    on_listening: Callable[[str, int], None] | None = None
    seed: int | None = None


PUSHED_TO: Final = frozenset({Dialect.AMEBA_PUSH, Dialect.ANCHOROTA, Dialect.ESPOTA})
"""Dialects of devices that wait to be pushed to."""

AMEBA_DIALECTS: Final = frozenset(
    {Dialect.AMEBA_PUSH, Dialect.ANCHOROTA, Dialect.HTTP_UPDATE_OTA, Dialect.OTA_HTTP, Dialect.UPDATE_OTA_LOCAL}
)
ASK_NOBODY: Final = PUSHED_TO | {Dialect.UPDATE_OTA_LOCAL, Dialect.BLYNK_NCP}
"""Dialects of devices that know no server."""


def default_dialect(board: str) -> Dialect:
    """Return what a board speaks unless told otherwise: HTTPUpdate on ESP chips, DDI elsewhere."""
    declared = board_named(board)
    if Route.AMEBA_PUSH in declared.routes:
        return Dialect.AMEBA_PUSH
    if Route.AWS_IOT in declared.routes:
        return Dialect.AWS_IOT
    if Route.BLYNK_NCP in declared.routes:
        return Dialect.BLYNK_NCP
    return Dialect.HTTP_UPDATE if declared.chip is not None else Dialect.DDI


def update_url(spec: DeviceSpec) -> str:
    """Return the URL that HTTPUpdate and esp_https_ota ask: per device with a token, else per type."""
    if spec.server is None:
        raise InvalidInput("a device without a server asks nobody")
    path = f"/update/{quote(spec.device_type or spec.board, safe='')}"
    if spec.token is not None:
        path += f"/{quote(spec.name, safe='')}?{urlencode({'token': spec.token})}"
    return spec.server.rstrip("/") + path


@dataclass(slots=True)
class RunningDevice:
    """A device with everything that has to be closed after it."""

    device: VirtualDevice
    directory: StateDirectory
    client: httpx.AsyncClient | None
    terminal: PseudoTerminal | None = None

    async def close(self) -> None:
        """Close connections and files, and let go of the state directory."""
        if self.client is not None:
            await self.client.aclose()
        if self.terminal is not None:
            self.terminal.close()
        self.device.hardware.close()
        self.directory.unlock()


def open_device(spec: DeviceSpec, listener: Listener) -> RunningDevice:
    """Return the device of a description, its state directory locked and, if it was blank, programmed.

    Raises `Conflict` if a process runs it already, `InvalidInput` for settings that contradict each other.
    """
    dialect = _checked_dialect(spec)
    directory = StateDirectory(spec.state).lock()
    try:
        flash_size = flash_size_for(spec.table, board_named(spec.board).flash_size)
        record = directory.introduce(spec.board, name=spec.name, mac=spec.mac, build=spec.build, flash_size=flash_size)
        pace = Pace(spec.speed)
        nvs = directory.nvs()
        machine = directory.machine(record, nvs, pace)
        prepare_blank(machine, nvs, spec.firmware, spec.table, spec.firmware_version)
        if isinstance(machine, M487Hardware | M2354Hardware):
            provision(machine, record.name, code_certificate_of(spec.aws), spec.boot_keys)
        if isinstance(machine, AmebaHardware):
            set_straps(machine, spec.quirks)
        terminal = None if spec.mcu is None else line_of(spec.mcu, spec.state)
        agent, client = _agent(replace(spec, name=record.name, board=record.board), dialect, terminal)
    except BaseException:
        directory.unlock()
        raise
    identity = Identity(record.name, record.board, record.mac, spec.device_type or record.board)
    rng = random.Random(spec.seed)  # noqa: S311 - jitter of waits, nothing secret
    device = VirtualDevice(identity, machine, nvs, agent, pace=pace, rng=rng, listener=listener)
    return RunningDevice(device, directory, client, terminal)


async def run_fleet(
    specs: Sequence[DeviceSpec],
    stop: asyncio.Event,
    *,
    listener: Listener | None = None,
    on_started: Callable[[Sequence[VirtualDevice]], None] | None = None,
) -> None:
    """Run virtual devices as tasks of this process until `stop` is set.

    `listener` hears every event of every device; `on_started` gets the devices (to press reset, to cut power).
    A device that breaks a rule of its flash ends the whole fleet: that is a bug, not a device failure.
    """
    running: list[RunningDevice] = []
    try:
        for spec in specs:
            running.append(open_device(spec, listener or _ignore))  # noqa: PERF401 - what was opened is closed on an error
        if on_started is not None:
            on_started([each.device for each in running])
        lives = [asyncio.create_task(each.device.run(stop), name=each.device.identity.name) for each in running]
        try:
            done, _ = await asyncio.wait(lives, return_when=asyncio.FIRST_EXCEPTION)
            for life in done:
                life.result()
        finally:
            for life in lives:
                life.cancel()
            for life in lives:
                with contextlib.suppress(asyncio.CancelledError):
                    await life
    finally:
        for each in running:
            await each.close()


def _ignore(event: DeviceEvent) -> None:
    """Hear nothing."""


def _checked_dialect(spec: DeviceSpec) -> Dialect:
    board = board_named(spec.board)
    dialect = spec.dialect or (Dialect.VIAM if spec.viam_config is not None else default_dialect(spec.board))
    if (dialect is Dialect.VIAM) != (spec.viam_config is not None):
        raise InvalidInput(
            f"a device that speaks {dialect.value} and its configuration do not go together",
            expected="a machine configuration with viam, and with viam only",
            hint="Give the file that stands for Viam's cloud with --viam-config.",
        )
    if dialect is Dialect.VIAM and (spec.server is not None or spec.token is not None):
        raise InvalidInput(
            "micro-RDK asks no server of its own",
            hint="Address and token of the image stand in its configuration: leave out --server and --token.",
        )
    if spec.quirks and dialect not in AMEBA_DIALECTS:
        raise InvalidInput(f"{board.name} has none of these quirks", found=", ".join(sorted(spec.quirks)))
    if (dialect in AMEBA_DIALECTS) != (Route.AMEBA_PUSH in board.routes):
        raise InvalidInput(
            f"{board.name} does not speak {dialect.value}", hint="flota lab boards shows what it speaks."
        )
    if dialect in ASK_NOBODY and (spec.server is not None or spec.token is not None):
        raise InvalidInput(
            f"a device that speaks {dialect.value} asks no server: it waits to be told",
            hint="Leave out --server and --token; use flota push, a gateway, or the console of update-ota-local.",
        )
    if dialect in AMEBA_DIALECTS - ASK_NOBODY and spec.token is not None:
        raise InvalidInput(f"a device that speaks {dialect.value} carries no token", hint="Leave out --token.")
    if (dialect is Dialect.AWS_IOT) != (Route.AWS_IOT in board.routes):
        raise InvalidInput(
            f"{board.name} does not speak {dialect.value}", hint="flota lab boards shows what it speaks."
        )
    if dialect is Dialect.AWS_IOT:
        return _checked_aws(spec)
    if spec.aws is not None:
        raise InvalidInput(
            f"a device that speaks {dialect.value} needs no MQTT server", hint="Leave out --mqtt and --credentials."
        )
    if (dialect is Dialect.BLYNK_NCP) != is_primary_mcu(board):
        raise InvalidInput(
            f"{board.name} does not speak {dialect.value}", hint="flota lab boards shows what it speaks."
        )
    if spec.mcu is not None and dialect is not Dialect.BLYNK_NCP:
        raise InvalidInput(f"{board.name} has no serial line to an NCP", hint="Leave out --serial.")
    if board.chip is None and dialect not in (Dialect.DDI, Dialect.BLYNK_NCP):
        raise InvalidInput(f"{board.name} speaks DDI only", expected=Dialect.DDI.value, found=dialect.value)
    if spec.signers is not None and dialect is not Dialect.DDI:
        raise InvalidInput(
            f"a device that speaks {dialect.value} cannot check signatures",
            hint="Only DDI carries the signed manifest: leave out --trust, or use --dialect ddi.",
        )
    return dialect


def _checked_aws(spec: DeviceSpec) -> Dialect:
    if spec.server is not None:
        raise InvalidInput(
            "a device that speaks aws-iot asks an MQTT server",
            hint="Give its address with --mqtt HOST:PORT, or a directory of credentials, and leave out --server.",
        )
    if spec.signers is not None:
        raise InvalidInput(
            "AWS's agent knows no manifest: it checks the signature over the file",
            hint="Give the code-signing certificate with --code-certificate, and leave out --trust.",
        )
    if spec.aws is None and spec.token is not None:
        raise InvalidInput("a token without an MQTT server", hint="Give its address with --mqtt HOST:PORT.")
    return Dialect.AWS_IOT


def _agent(
    spec: DeviceSpec, dialect: Dialect, terminal: PseudoTerminal | None
) -> tuple[Agent | None, httpx.AsyncClient | None]:
    if spec.viam_config is not None:
        return _micro_rdk(spec, spec.viam_config)
    if dialect in AMEBA_DIALECTS:
        return ameba_agent(spec, dialect.value), None
    if dialect is Dialect.ESPOTA:
        return _arduino_ota(spec), None
    if spec.mcu is not None:
        return mcu_agent(spec.mcu, terminal, spec.state), None
    if spec.aws is not None and is_nuvoton(board_named(spec.board)):
        return nuvoton_agent(board_named(spec.board), spec.name, spec.token, spec.cacert, spec.aws), None
    if spec.aws is not None:
        return aws_agent(spec.name, spec.token, spec.cacert, spec.aws), None
    if spec.server is None:
        return None, None
    board = board_named(spec.board)
    if dialect is Dialect.HTTP_UPDATE:
        tls = tls_context(spec.cacert) if spec.server.startswith("https:") else None
        period = {} if spec.poll_interval_s is None else {"period_s": spec.poll_interval_s}
        chip_size = flash_size_for(spec.table, board.flash_size) or board.flash_size
        return HttpUpdateAgent(update_url(spec), tls=tls, chip_size=chip_size, **period), None
    if dialect is Dialect.ESP_HTTPS_OTA:
        client = http_client(cacert=spec.cacert, user_agent=USER_AGENT, silence_limit_s=TIME_OUT_S)
        client.follow_redirects, client.max_redirects = True, ESP_HTTPS_OTA_REDIRECTS
        period = {} if spec.poll_interval_s is None else {"period_s": spec.poll_interval_s}
        chip = board.chip or board.name
        return EspHttpsOtaAgent(update_url(spec), client, mode=spec.fetch_mode, chip=chip, **period), client
    client = http_client(cacert=spec.cacert)
    addresses = DdiAddresses(spec.server.rstrip("/"), spec.tenant, spec.name)
    settings = DdiSettings(
        period_s=spec.poll_interval_s,
        signers=spec.signers,
        now=lambda: datetime.now(UTC),
        hardware_revision=spec.hardware_revision,
    )
    return DdiAgent(DdiLink(client, addresses, spec.token), settings), client


def _arduino_ota(spec: DeviceSpec) -> Agent:
    settings = spec.espota or EspotaSettings()
    announce = partial(announce_esp, password=settings.password is not None) if spec.announce else silent
    return EspotaAgent(settings, announce=announce, on_listening=spec.on_listening)


def _micro_rdk(spec: DeviceSpec, config: str) -> tuple[Agent, httpx.AsyncClient | None]:
    """Return a micro-RDK whose firmware knows the certificates in `cacert`, else the system's."""
    source: ConfigSource
    client: httpx.AsyncClient | None = None
    if urlsplit(config).scheme in ("http", "https"):
        client = http_client(cacert=spec.cacert)
        source = ConfigAddress(config, client)
    else:
        source = ConfigFile(Path(config))
    period_s = POLL_PERIOD_S if spec.poll_interval_s is None else spec.poll_interval_s
    return MicroRdkAgent(source, tls=device_tls(tls_context(spec.cacert)), period_s=period_s), client
