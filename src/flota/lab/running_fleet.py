"""A fleet of virtual devices in a thread of its own, and what can be seen of them: the demo and scenarios use it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from flota.durable_files import write_durably
from flota.errors import PeerError
from flota.lab.aws_agents import AwsOptions
from flota.lab.fleet import PUSHED_TO, DeviceSpec, Dialect, run_fleet
from flota.lab.mcu_agents import McuOptions
from flota.trust.image_keys import ImagePublicKey
from flota.trust.trust_file import TrustedSigners
from flota.virtual.agents.ameba_push import PushSettings
from flota.virtual.agents.blynk_firmware import McuBuild
from flota.virtual.device import VirtualDevice
from flota.virtual.events import DeviceEvent, EventKind

START_WITHIN_S: Final = 30.0
END_WITHIN_S: Final = 20.0
FIRST_PUSHED_TO: Final = 11
"""Last byte of the loopback address of the first board that is pushed to."""

QUIET: Final = frozenset({EventKind.POLL})
"""Events that say nothing new to an onlooker."""


def free_port(host: str) -> int:
    """Return a TCP port of one of this machine's addresses that nobody has right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def has_loopback_addresses(count: int) -> bool:
    """Return whether this machine has an address for each of so many boards that are pushed to."""
    try:
        for number in range(count):
            free_port(f"127.0.0.{FIRST_PUSHED_TO + number}")
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """A device of a running fleet. `route` is the dialect that it speaks."""

    name: str
    board: str
    type_name: str
    route: str
    mac: str


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """A device as it is now, seen from the device: which slot runs, which version, whether it is confirmed."""

    name: str
    board: str
    route: str
    slot: str | None
    running_version: str | None
    confirmed: bool
    doing: str
    progress_percent: int


@dataclass(slots=True)
class _Watched:
    device: FleetDevice
    shell: VirtualDevice | None = None
    doing: str = "off"
    progress_percent: int = 0


@dataclass(slots=True)
class RunningFleet:
    """Virtual devices that run from `with` to its end. `add` them before."""

    directory: Path
    server_url: str
    signers: TrustedSigners
    speed: float
    poll_interval_s: float
    _specs: list[DeviceSpec] = field(default_factory=list)
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _started: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None

    def add(
        self,
        device: FleetDevice,
        *,
        image: bytes,
        version: str,
        token: str | None,
        aws: AwsOptions | None = None,
        boot_keys: tuple[ImagePublicKey, ...] = (),
    ) -> None:
        """Put a device with its factory image into the fleet. Devices that speak DDI check our signature.

        A micro-RDK asks no server: its machine configuration begins without services, and `configure` changes it.
        `aws` is how a device that speaks AWS IoT connects; `token` None: it shows a certificate. `boot_keys` are built
        into the boot loader of an M2354. A primary MCU waits for its NCP at `uart_of` its name.
        """
        dialect = Dialect(device.route)
        viam = dialect is Dialect.VIAM
        behind_ncp = dialect is Dialect.BLYNK_NCP
        pushed_to = dialect in PUSHED_TO or behind_ncp
        if viam:
            self.configure(device.name)
        self._watched[device.name] = _Watched(device)
        self._specs.append(
            DeviceSpec(
                name=device.name,
                board=device.board,
                state=self.directory / device.name,
                server=None if viam or pushed_to or aws is not None else self.server_url,
                token=None if viam or pushed_to else token,
                device_type=device.type_name,
                dialect=dialect,
                speed=self.speed,
                signers=self.signers if dialect is Dialect.DDI else None,
                poll_interval_s=self.poll_interval_s,
                firmware=image,
                firmware_version=version,
                mac=device.mac,
                aws=aws,
                boot_keys=boot_keys,
                mcu=McuOptions(self.uart_of(device.name), McuBuild(speed=self.speed)) if behind_ncp else None,
                viam_config=str(self._viam_config(device.name)) if viam else None,
                push=self._next_place() if dialect is Dialect.AMEBA_PUSH else None,
                seed=len(self._specs),
            )
        )

    def uart_of(self, name: str) -> Path:
        """Return where the line of a primary MCU is, for its NCP."""
        return self.directory.absolute() / f"{name}.uart"

    def push_port(self, name: str) -> int:
        """Return the TCP port at which a board that is pushed to listens, on loopback."""
        settings = next(spec.push for spec in self._specs if spec.name == name)
        if settings is None:
            raise PeerError(f"{name} is not pushed to")
        return settings.port

    def _next_place(self) -> PushSettings:
        """Return a loopback address of its own: gateways know boards by their addresses."""
        taken = sum(spec.push is not None for spec in self._specs)
        host = f"127.0.0.{FIRST_PUSHED_TO + taken}"
        return PushSettings(host=host, port=free_port(host))

    def configure(self, name: str, *services: Mapping[str, object]) -> None:
        """Set the services in a micro-RDK's machine configuration, as an operator does in Viam's app."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_durably(self._viam_config(name), json.dumps({"services": services}, indent=2).encode())

    def snapshots(self) -> Sequence[DeviceSnapshot]:
        """Return every device as it is now, in the order of `add`; raises `PeerError` if the fleet broke down."""
        if self._failure is not None:
            raise PeerError("the virtual fleet broke down", found=repr(self._failure)) from self._failure
        return [self._snapshot(each) for each in self._watched.values()]

    def cut_power(self, name: str) -> None:
        """Pull the plug of a device now; power comes back after a moment."""
        shell = self._watched[name].shell
        if shell is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(shell.cut_power)

    def _viam_config(self, name: str) -> Path:
        return self.directory / f"{name}.viam.json"

    def _snapshot(self, watched: _Watched) -> DeviceSnapshot:
        app = watched.shell.app if watched.shell else None
        return DeviceSnapshot(
            name=watched.device.name,
            board=watched.device.board,
            route=watched.device.route,
            slot=app.slot if app else None,
            running_version=app.version if app else None,
            confirmed=bool(watched.shell and watched.shell.confirmed),
            doing=watched.doing,
            progress_percent=watched.progress_percent,
        )

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="virtual fleet", daemon=True)
        self._thread.start()
        self._started.wait(START_WITHIN_S)
        self.snapshots()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(END_WITHIN_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as failure:  # noqa: BLE001 - told to the thread that looks
            self._failure = failure
        finally:
            self._started.set()

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await run_fleet(self._specs, self._stop, listener=self._hear, on_started=self._powered)

    def _powered(self, devices: Sequence[VirtualDevice]) -> None:
        for device in devices:
            self._watched[device.identity.name].shell = device
        self._started.set()

    def _hear(self, event: DeviceEvent) -> None:
        watched = self._watched[event.device]
        if event.kind is EventKind.PROGRESS:
            done, of = event.facts.get("done"), event.facts.get("of")
            if isinstance(done, int) and isinstance(of, int) and of:
                watched.progress_percent = 100 * done // of
        elif event.kind in (EventKind.BOOT, EventKind.UPDATE_FAILED, EventKind.ROLLED_BACK):
            watched.progress_percent = 0
        if event.kind not in QUIET:
            watched.doing = event.text
