"""What boards announce as `_arduino._tcp`, how it is read, and what Arduino's tools expect of it. Both roles, no IO.

A board says little: which kind it is, and a port that on AmebaD is *not* the one that takes the update. Whoever reads
it therefore says how each fact is known.
Source: docs/reference/arduino-discovery.md; arduino/mdns-discovery; arduino/Arduino: NetworkDiscovery.java;
Ameba-AIoT/ameba-arduino-d: OTA_Basic.ino; espressif/arduino-esp32: ESPmDNS.cpp.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flota.errors import InvalidInput
from flota.protocols.ameba_push import ARDUINO as AMEBA_ARDUINO
from flota.protocols.peer_text import FREE_TEXT_MAX_LEN, clean_bytes

SERVICE_TYPE: Final = "_arduino._tcp.local."
AMEBA_BOARD_PREFIX: Final = "ameba_"
AMEBA_STOCK_BOARD: Final = "ameba_rtl8721d"
AMEBA_STOCK_SRV_PORT: Final = 5000
"""What the stock sketch announces; nothing takes an update there."""

ESP_UDP_PORTS: Final = {"esp32": 3232, "esp8266": 8266}
VERSION_TXT_KEY: Final = "version"
"""Key with which an app of one's own says what it runs; no stock sketch has it."""

TXT_MAX_BYTES: Final = 1300
"""A TXT record that fits an Ethernet frame; longer ones are cut."""

TXT_STRING_MAX_BYTES: Final = 255
TXT_KEYS_MAX: Final = 64

MAC_BYTES: Final = 6


class PushKind(enum.StrEnum):
    """Which protocol pushes to the board."""

    AMEBA = "ameba"
    ESPOTA = "espota"
    SSH = "ssh"
    UNKNOWN = "unknown"


class PortBasis(enum.StrEnum):
    """How the upload port is known."""

    ANNOUNCED = "announced"
    PROFILE = "profile"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Announcement:
    """One resolved service. `txt` in the order of the record; text is cleaned, values that are not UTF-8 too.

    `instance` is the first label of the service's name, `host` the SRV target without its final dot.
    """

    instance: str
    host: str
    port: int
    addresses: tuple[str, ...]
    txt: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiscoveredBoard:
    """A board on the network as Flota shows it. `upload_port` None = nobody knows it.

    `needs_password` as the board announces it. `mac` is read out of a host name that ends with it, such as
    `esp32-a1b2c3d4e5f6`; None where the name does not tell.
    """

    instance: str
    address: str
    host: str
    board: str | None
    kind: PushKind
    upload_port: int | None
    port_basis: PortBasis
    needs_password: bool
    announced_port: int
    addresses: tuple[str, ...] = ()
    mac: str | None = None


def parse_txt(record: bytes) -> dict[str, str]:
    """Return the keys and values of a TXT record's bytes, in order; the first of equal keys counts (RFC 6763, 6.4).

    A string without `=` is a key with an empty value. Text that is not UTF-8 is cleaned. Never raises:
    a length that reaches beyond the record ends it.
    """
    found: dict[str, str] = {}
    position = 0
    record = record[:TXT_MAX_BYTES]
    while position < len(record) and len(found) < TXT_KEYS_MAX:
        length = record[position]
        string = record[position + 1 : position + 1 + length]
        position += 1 + length
        name, _, value = string.partition(b"=")
        key = clean_bytes(name, max_len=FREE_TEXT_MAX_LEN).lower()
        if key:
            found.setdefault(key, clean_bytes(value, max_len=FREE_TEXT_MAX_LEN))
    return found


def pack_txt(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Return the TXT record of `pairs`, each `key=value` behind its length. Raises `InvalidInput` above 255 bytes."""
    record = bytearray()
    for key, value in pairs:
        string = f"{key}={value}".encode()
        if not key or "=" in key or len(string) > TXT_STRING_MAX_BYTES:
            raise InvalidInput("not a TXT string", expected="key=value of at most 255 bytes", found=repr(key[:40]))
        record.append(len(string))
        record += string
    return bytes(record)


def ameba_txt(board: str = AMEBA_STOCK_BOARD) -> tuple[tuple[str, str], ...]:
    """Return the four keys of the vendor's sketch, in its order."""
    return (("board", board), ("auth_upload", "no"), ("tcp_check", "no"), ("ssh_upload", "no"))


def esp_txt(board: str, *, password: bool) -> tuple[tuple[str, str], ...]:
    """Return the keys of ArduinoOTA, in its order."""
    return (("board", board), ("tcp_check", "no"), ("ssh_upload", "no"), ("auth_upload", "yes" if password else "no"))


def board_of(announcement: Announcement, *, ameba_port: int = AMEBA_ARDUINO.port) -> DiscoveredBoard | None:
    """Return the board that announces itself so; None without any address.

    `ameba_port` is what is taken for AmebaD boards that announce 5000, which no release takes an update on.
    """
    address = preferred_address(announcement.addresses)
    if address is None:
        return None
    board = announcement.txt.get("board") or None
    kind = _kind(board, announcement)
    port, basis = _upload_port(kind, announcement.port, ameba_port)
    return DiscoveredBoard(
        instance=announcement.instance,
        address=address,
        host=announcement.host,
        board=board,
        kind=kind,
        upload_port=port,
        port_basis=basis,
        needs_password=announcement.txt.get("auth_upload", "no") == "yes",
        announced_port=announcement.port,
        addresses=announcement.addresses,
        mac=mac_in(announcement.host) or mac_in(announcement.instance),
    )


def preferred_address(addresses: Sequence[str]) -> str | None:
    """Return the address to connect to: IPv4 before IPv6, link-local last; None when none is one."""
    parsed = []
    for text in addresses:
        try:
            parsed.append((ipaddress.ip_address(text.partition("%")[0]), text))
        except ValueError:
            continue
    parsed.sort(key=lambda pair: (pair[0].is_link_local, pair[0].version))
    return parsed[0][1] if parsed else None


def mac_in(name: str) -> str | None:
    """Return the MAC address that a host name ends with, as AA:BB:CC:DD:EE:FF: the default of ESP boards' names."""
    first = name.split(".", 1)[0]
    tail = first.rsplit("-", 1)[-1]
    if "-" not in first or len(tail) != 2 * MAC_BYTES:
        return None
    try:
        raw = bytes.fromhex(tail)
    except ValueError:
        return None
    return ":".join(f"{octet:02X}" for octet in raw)


def pluggable_port(board: DiscoveredBoard, txt: Mapping[str, str]) -> dict[str, object]:
    """Return the port as a pluggable discovery of Arduino tells it (`arduino/mdns-discovery`).

    The upload port in `properties.port` is ours where it is known: the recipe for AmebaD never uses it otherwise.
    """
    label = f"{board.host.split('.', 1)[0] or board.instance} at {board.address}"
    properties = {
        "hostname": f"{board.host.removesuffix('.')}.",
        "port": str(board.upload_port or board.announced_port),
    }
    properties |= dict(txt)
    if board.board:
        properties["."] = board.board
    return {
        "address": board.address,
        "label": label,
        "protocol": "network",
        "protocolLabel": "Network Port",
        "properties": properties,
    }


def _kind(board: str | None, announcement: Announcement) -> PushKind:
    if announcement.txt.get("ssh_upload", "yes") != "no":
        return PushKind.SSH if board else PushKind.UNKNOWN
    if board and board.lower().startswith(AMEBA_BOARD_PREFIX):
        return PushKind.AMEBA
    host = announcement.host.lower()
    if announcement.port in ESP_UDP_PORTS.values() or any(host.startswith(f"{family}-") for family in ESP_UDP_PORTS):
        return PushKind.ESPOTA
    return PushKind.UNKNOWN


def _upload_port(kind: PushKind, announced: int, ameba_port: int) -> tuple[int | None, PortBasis]:
    if kind is PushKind.AMEBA and announced == AMEBA_STOCK_SRV_PORT:
        return ameba_port, PortBasis.PROFILE
    if kind in {PushKind.AMEBA, PushKind.ESPOTA} and 0 < announced <= 0xFFFF:
        return announced, PortBasis.ANNOUNCED
    return None, PortBasis.UNKNOWN
