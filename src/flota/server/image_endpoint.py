"""A development endpoint that hands out one firmware file over plain HTTP/1.1 and h2c: `flota image serve`.

No database, no devices, no authentication: for a desk and its network. What it promises about downloads is the same as
the real server does, because it is the same code.
Source: docs/reference/esp-merged-image.md, "The development endpoint".
"""

from __future__ import annotations

import asyncio
import glob
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from flota.digests import digests_of
from flota.errors import FlotaError, InvalidInput, NotFound, Refused
from flota.images.esp_app import MINIMUM_APP_SIZE
from flota.images.inspection import inspect
from flota.images.model import ImageFormat, Inspection
from flota.images.text import cleaned_text
from flota.server.api.artifacts import DeliveryOutcome, send_artifact
from flota.server.listeners import Listener
from flota.server.problems import problem, problem_response
from flota.server.settings import Address
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LATEST_NAME: Final = "latest.bin"
"""The path under which a watched directory's newest image is found: the URL stays while the file changes."""
FILE_MAX_BYTES: Final = 256 * 1024 * 1024
"""Read into memory to be looked into; no microcontroller image comes near it."""
CANDIDATES_MAX: Final = 32
"""How many files of a watched place, newest first, are looked into before it counts as holding no image."""
COPIES_KEPT: Final = 4
LOOK_EVERY_S: Final = 1.0
STOP_GRACE_S: Final = 2.0
VERSION_MAX_BYTES: Final = 128
"""micro-RDK refuses a longer version text."""
LINE_MAX_CHARS: Final = 200
DIRECTORY_PATTERN: Final = "*.bin"

_SERVED: Final = frozenset(
    {
        ImageFormat.ESP_APP,
        ImageFormat.ESP8266_APP,
        ImageFormat.ESP_DELTA_PATCH,
        ImageFormat.ESP_ENCRYPTED,
        ImageFormat.MCUBOOT,
        ImageFormat.RAW,
    }
)
"""What a device may be offered as an update."""

_ANY_ADDRESS: Final = "192.0.2.1"
"""From the documentation range (RFC 5737): asking for the route to it sends nothing."""


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image as it was when it was looked at: `path` is our own copy, so a build may overwrite `source` meanwhile."""

    source: Path
    path: Path
    sha256: str
    size: int
    version: str
    stamp: tuple[int, int, int]


def refuse_unfit(found: Inspection, name: str) -> None:
    """Raise `Refused` unless a device may be offered this file as an update: never a merged image, nothing damaged."""
    note = next((finding.hint for finding in found.findings if finding.hint), None)
    if found.format is ImageFormat.ESP_MERGED:
        raise Refused(
            f"{name} is a merged image: it must not be hosted for devices",
            expected="the app image of the same build",
            found=f"{found.format.value}, {found.file_size} bytes",
            hint=note,
        )
    if found.format not in _SERVED:
        raise Refused(f"{name} is no update for a device", expected="an app image", found=found.format.value, hint=note)
    for finding in found.errors:
        raise Refused(
            f"{name} is damaged: {finding.text}", offset=finding.offset, expected=finding.expected, found=finding.found
        )
    if found.file_size < MINIMUM_APP_SIZE:
        raise Refused(f"{name} is too short", expected=f"at least {MINIMUM_APP_SIZE} bytes", found=found.file_size)


class ImageSource:
    """Which file is served now. Without `watch` it is one file; with it the newest fit one of a directory or glob."""

    def __init__(
        self,
        where: str,
        copies: Path,
        *,
        watch: bool,
        on_change: Callable[[ServedImage], None],
        on_passed_over: Callable[[Path, FlotaError], None],
    ) -> None:
        self._where = where
        self._copies = copies
        self._watch = watch
        self._on_change = on_change
        self._on_passed_over = on_passed_over
        path = Path(where)
        self.name = LATEST_NAME if watch and not path.is_file() else path.name
        """The file name at the end of the URL."""
        self._kept: list[Path] = []
        self._unfit: dict[Path, tuple[int, int, int]] = {}
        self.current: ServedImage | None = None

    def refresh(self) -> None:
        """Take the newest fit file into use. Without `watch`, raises `InvalidInput` or `Refused` if it is not fit."""
        if not self._watch:
            path = Path(self._where)
            if not path.is_file():
                hint = "Serve the newest image of a directory with --watch." if path.is_dir() else None
                raise InvalidInput(f"{self._where} is no file", hint=hint)
            self._take(path)
            return
        for path in self._candidates():
            stamp = _stamp(path)
            if stamp is None or self._unfit.get(path) == stamp:
                continue
            try:
                self._take(path)
            except FlotaError as error:
                self._unfit[path] = stamp
                self._on_passed_over(path, error)
                continue
            return

    def _candidates(self) -> list[Path]:
        place = Path(self._where)
        if place.is_dir():
            found = list(place.glob(DIRECTORY_PATTERN))
        elif place.is_file():
            found = [place]
        else:
            found = [Path(name) for name in glob.glob(self._where)]  # noqa: PTH207 - any part may be a pattern
        dated = [(stamp[0], path) for path in found if path.is_file() and (stamp := _stamp(path))]
        return [path for _, path in sorted(dated, reverse=True)[:CANDIDATES_MAX]]

    def _take(self, path: Path) -> None:
        stamp = _stamp(path)
        if self.current is not None and (self.current.source, self.current.stamp) == (path, stamp):
            return
        if stamp is None:
            raise NotFound(f"{path.name} is gone")
        if stamp[1] > FILE_MAX_BYTES:
            raise InvalidInput(f"{path.name} is too large", expected=f"at most {FILE_MAX_BYTES} bytes", found=stamp[1])
        data = _read(path)
        found = inspect(data)
        refuse_unfit(found, cleaned_text(path.name))
        sha256 = digests_of(data).sha256
        copy = self._copies / sha256
        if not copy.exists():
            copy.write_bytes(data)
        self._keep(copy)
        changed = self.current is None or self.current.sha256 != sha256
        self.current = ServedImage(path, copy, sha256, len(data), _version(found, sha256), stamp)
        if changed:
            self._on_change(self.current)

    def _keep(self, copy: Path) -> None:
        """Drop all but the last few copies; a transfer that runs has its file open and goes on."""
        self._kept = [*(one for one in self._kept if one != copy), copy]
        while len(self._kept) > COPIES_KEPT:
            self._kept.pop(0).unlink(missing_ok=True)


class ImageEndpoint:
    """The ASGI application: `GET /NAME` is the image, everything else says where it is."""

    def __init__(self, source: ImageSource, *, on_delivery: Callable[[str, str], None]) -> None:
        self._source = source
        self._on_delivery = on_delivery
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Look for a newer file."""
        async with self._looking:
            await asyncio.to_thread(self._source.refresh)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors become problem documents."""
        if scope["type"] != "http":
            return
        peer = (scope.get("client") or ("?",))[0]

        try:
            if scope["method"] not in ("GET", "HEAD"):
                await problem(405, "only GET and HEAD", headers={"allow": "GET, HEAD"})(scope, receive, send)
                return
            if scope["path"] != f"/{self._source.name}":
                raise NotFound("no such file", found=cleaned_text(scope["path"]), expected=f"/{self._source.name}")
            await self.look()
            image = self._source.current
            if image is None:
                raise NotFound("no image to serve yet")
            shown = f"{image.source.name} {image.version}, HTTP/{scope['http_version']}"

            def finished(outcome: DeliveryOutcome) -> None:
                self._on_delivery(peer, f"{cleaned_text(shown, max_chars=LINE_MAX_CHARS)}: {outcome.value}")

            await send_artifact(
                scope, receive, send, image.path, sha256=image.sha256, on_finished=finished, use_pathsend=False
            )
        except FlotaError as error:
            self._on_delivery(peer, cleaned_text(str(error), max_chars=LINE_MAX_CHARS))
            await problem_response(error)(scope, receive, send)


async def serve_image(
    endpoint: ImageEndpoint, address: Address, *, stop: asyncio.Event, announce: Callable[[Address], None]
) -> None:
    """Serve until `stop` is set. `announce` is called with the real address once it listens.

    Raises `InvalidInput` if the address cannot be bound.
    """
    listener = Listener(endpoint, address)
    await listener.start()
    try:
        announce(listener.address)
        while not await wait_for_any(stop, timeout_s=LOOK_EVERY_S):
            try:
                await endpoint.look()
            except FlotaError:
                continue  # the next request says it; the build may be writing the file right now
    finally:
        await listener.stop(STOP_GRACE_S)


def url_for(address: Address, name: str) -> str:
    """Return the URL that a device uses: a wildcard becomes this machine's address in its network; the port is named.

    micro-RDK takes port 443 for a URL without one, even for `http`.
    """
    shown = Address(lan_address(), address.port) if address.is_wildcard else address
    return f"http://{shown}/{quote(name)}"


def service_config(url: str, version: str) -> dict[str, object]:
    """Return the entry for the array `services` of a Viam machine's configuration."""
    return {
        "name": "OTA",
        "namespace": "rdk",
        "type": "generic",
        "model": "ota_service",
        "attributes": {"url": url, "version": version},
    }


def check_version(version: str) -> None:
    """Raise `InvalidInput` for a version text that micro-RDK does not take."""
    if len(version.encode("utf-8", "replace")) > VERSION_MAX_BYTES:
        raise InvalidInput(
            "the version is too long", expected=f"at most {VERSION_MAX_BYTES} bytes of UTF-8", found=len(version)
        )


def lan_address() -> str:
    """Return the address by which this machine reaches other networks, loopback if it has no route. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ANY_ADDRESS, 9))
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return address


def _version(found: Inspection, sha256: str) -> str:
    """Return a version text that differs for every content: a device updates when the text differs."""
    suffix = f"+{sha256[:8]}"
    told = (found.version or found.format.value).encode()[: VERSION_MAX_BYTES - len(suffix)].decode("utf-8", "ignore")
    return told + suffix


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file does: time of change (ns), size (bytes), inode; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path.name}", found=error.strerror) from error
