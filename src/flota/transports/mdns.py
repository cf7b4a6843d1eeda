"""mDNS around the library zeroconf: hear boards announce themselves as `_arduino._tcp`, and announce one.

The browser tells of every record that it hears of a board, not only of changes: a board that announces itself again
after an update has been restarted. Names and text are whatever was on the air, and are cleaned before anyone sees them.
Source: docs/reference/arduino-discovery.md; RFC 6762, RFC 6763; python-zeroconf/python-zeroconf.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import ifaddr
from zeroconf import (
    BadTypeInNameException,
    IPVersion,
    NonUniqueNameException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf._dns import DNSService, DNSText
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from flota.errors import Conflict, InvalidInput
from flota.protocols.arduino_mdns import SERVICE_TYPE, Announcement, pack_txt, parse_txt
from flota.protocols.peer_text import FREE_TEXT_MAX_LEN, clean_text

RESOLVE_LIMIT_MS: Final = 3000
BOARDS_MAX: Final = 1000
"""Boards that are remembered; a network that announces more is not believed."""

INSTANCE_MAX_BYTES: Final = 63
TOGETHER_S: Final = 0.5
"""Records of one announcement come in one packet, or close to one another."""


def _without_trace(record: logging.LogRecord) -> bool:
    """Leave of zeroconf's warnings (an interface that takes no multicast) the line, which has the reason."""
    record.exc_info = record.exc_text = None
    return True


logging.getLogger("zeroconf").addFilter(_without_trace)


@dataclass(frozen=True, slots=True)
class BoardHeard:
    """A board was heard. `name` is the service's full name, `heard_at` seconds of `time.monotonic`.

    `announcement` is None when the board took its service back or its records ran out. `text_at`: when its text was
    last heard; other records may come without it, and what is known of it is then old.
    """

    name: str
    heard_at: float
    announcement: Announcement | None
    text_at: float | None = None

    @property
    def text_is_fresh(self) -> bool:
        """Whether the text came with this sighting."""
        return self.text_at is not None and self.text_at >= self.heard_at - TOGETHER_S


class BoardBrowser:
    """Listens from `async with` to its end; `boards` are those known now. `listener` hears of every sighting.

    `interfaces` are addresses of this machine to listen on; None = all. Raises `InvalidInput` for anything else.
    """

    def __init__(
        self,
        listener: Callable[[BoardHeard], None] | None = None,
        *,
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._listener = listener
        self._interfaces = checked_interfaces(interfaces)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._records: _Records | None = None
        self._resolving: set[asyncio.Task[None]] = set()
        self._names: set[str] = set()
        self._heard_at: dict[str, float] = {}
        self.boards: dict[str, BoardHeard] = {}

    async def __aenter__(self) -> Self:
        self._zeroconf = _open(self._interfaces)
        self._records = _Records(self._heard_again)
        self._zeroconf.zeroconf.async_add_listener(self._records, None)
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._changed])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in list(self._resolving):
            task.cancel()
        if self._zeroconf is not None:
            if self._records is not None:
                self._zeroconf.zeroconf.async_remove_listener(self._records)
            if self._browser is not None:
                await self._browser.async_cancel()
            await self._zeroconf.async_close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self._names.discard(name)
            self._heard_at.pop(name, None)
            if self.boards.pop(name, None) is not None and self._listener is not None:
                self._listener(BoardHeard(name, time.monotonic(), None))
        elif len(self._names) < BOARDS_MAX:
            self._names.add(name)
            self._resolve(name)

    def _heard_again(self, name: str) -> None:
        if name in self._names:
            self._resolve(name)

    def _resolve(self, name: str) -> None:
        self._heard_at[name] = time.monotonic()
        if any(task.get_name() == name for task in self._resolving):
            return
        task = asyncio.ensure_future(self._resolved(name))
        task.set_name(name)
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolved(self, name: str) -> None:
        assert self._zeroconf is not None
        assert self._records is not None
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if not await info.async_request(self._zeroconf.zeroconf, RESOLVE_LIMIT_MS):
                return
        except (BadTypeInNameException, ValueError, OSError):
            return
        heard_at = self._heard_at.get(name)
        if heard_at is None:
            return  # taken back meanwhile
        text = self._records.texts.get(name.lower())
        announcement = announcement_of(name, info, None if text is None else text[1])
        heard = BoardHeard(name, heard_at, announcement, None if text is None else text[0])
        self.boards[name] = heard
        if self._listener is not None:
            self._listener(heard)


class _Records(RecordUpdateListener):
    """Hears of every SRV record that arrives, known content or not; `texts` are the latest TXT records, and when."""

    def __init__(self, heard: Callable[[str], None]) -> None:
        super().__init__()
        self._heard = heard
        self.texts: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Tell of SRV records of boards; a record that is taken back (time to live 0) is no sign of life."""
        alive = [one.new for one in records if one.new.ttl and one.new.name.lower().endswith(SERVICE_TYPE)]
        for record in alive:
            if isinstance(record, DNSText):
                self._note_text(record.name.lower(), record.text)
        for record in alive:
            if isinstance(record, DNSService):
                self._heard(record.name)

    def _note_text(self, name: str, text: bytes) -> None:
        self.texts[name] = (time.monotonic(), text)
        self.texts.move_to_end(name)
        if len(self.texts) > BOARDS_MAX:
            self.texts.popitem(last=False)

    def async_update_records_complete(self) -> None:
        """Nothing more is to do."""


def announcement_of(name: str, info: Any, text: bytes | None = None) -> Announcement:
    """Return what a resolved service says, cleaned; `text` is a TXT record that is newer than the one in `info`."""
    instance = name[: -len(SERVICE_TYPE) - 1] if name.lower().endswith(SERVICE_TYPE) else name
    return Announcement(
        instance=clean_text(instance, max_len=FREE_TEXT_MAX_LEN),
        host=clean_text((info.server or "").rstrip("."), max_len=FREE_TEXT_MAX_LEN),
        port=info.port or 0,
        addresses=tuple(info.parsed_scoped_addresses()),
        txt=parse_txt(text if text is not None else info.text or b""),
    )


@contextlib.asynccontextmanager
async def announced(
    instance: str,
    port: int,
    txt: Sequence[tuple[str, str]],
    *,
    host: str,
    addresses: Sequence[str],
    interfaces: Sequence[str] | None = None,
) -> AsyncIterator[str]:
    """Announce a board as long as the context is open; gives the service's full name.

    `host` without `.local`. A name that is taken gets a number, as responders do it. Raises `InvalidInput` for a name
    or text that no record can hold, `Conflict` when the name stays taken.
    """
    if not instance or len(instance.encode()) > INSTANCE_MAX_BYTES or "." in host:
        raise InvalidInput("not a name to announce", expected="1 to 63 bytes", found=repr(instance[:80]))
    zeroconf = _open(checked_interfaces(interfaces))
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"{instance}.{SERVICE_TYPE}",
        port=port,
        properties=pack_txt(txt),
        server=f"{host}.local.",
        addresses=[ipaddress.ip_address(address).packed for address in addresses],
    )
    try:
        registered = await zeroconf.async_register_service(info, allow_name_change=True)
        await registered
        yield info.name
    except NonUniqueNameException as error:
        raise Conflict(f"another board announces itself as {instance}") from error
    finally:
        with contextlib.suppress(OSError):
            await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()


def own_addresses() -> tuple[str, ...]:
    """Return this machine's IPv4 addresses on all interfaces, loopback last."""
    found = {str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4}
    return tuple(sorted(found, key=lambda text: (ipaddress.ip_address(text).is_loopback, text)))


def checked_interfaces(interfaces: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the addresses of interfaces. Raises `InvalidInput` for what is none."""
    if interfaces is None:
        return None
    for text in interfaces:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise InvalidInput(
                "not an interface's address", expected="such as 192.168.1.10", found=repr(text[:60])
            ) from None
    return tuple(interfaces)


def _open(interfaces: tuple[str, ...] | None) -> AsyncZeroconf:
    if interfaces is None:
        return AsyncZeroconf(ip_version=IPVersion.All)
    versions = {ipaddress.ip_address(text).version for text in interfaces}
    chosen = {frozenset({4}): IPVersion.V4Only, frozenset({6}): IPVersion.V6Only}
    return AsyncZeroconf(interfaces=list(interfaces), ip_version=chosen.get(frozenset(versions), IPVersion.All))
