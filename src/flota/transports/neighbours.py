"""The MAC address behind an IP address of the local network, as the system's ARP table has it.

Nobody is connected to: a datagram to the discard port is enough to make the system ask for the address.
Source: proc(5), /proc/net/arp; RFC 863 (discard); linux/if_arp.h (ATF_COM).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from pathlib import Path
from typing import Final

ARP_TABLE: Final = Path("/proc/net/arp")
ARP_MAX_BYTES: Final = 1024 * 1024
DISCARD_PORT: Final = 9
FLAG_COMPLETE: Final = 0x2
TRIES: Final = 3
WAIT_S: Final = 0.3


async def mac_of_neighbour(address: str) -> str | None:
    """Return the MAC of an IPv4 neighbour as AA:BB:CC:DD:EE:FF; None where the system does not tell."""
    try:
        if ipaddress.ip_address(address).version != 4:
            return None
    except ValueError:
        return None
    for _ in range(TRIES):
        found = mac_in_table(_table(), address)
        if found is not None:
            return found
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.sendto(b"", (address, DISCARD_PORT))
        await asyncio.sleep(WAIT_S)
    return mac_in_table(_table(), address)


def mac_in_table(table: str, address: str) -> str | None:
    """Return the MAC that a table in the form of /proc/net/arp has for an address; incomplete lines do not count."""
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 4 or columns[0] != address:
            continue
        with contextlib.suppress(ValueError):
            if int(columns[2], 16) & FLAG_COMPLETE and len(bytes.fromhex(columns[3].replace(":", ""))) == 6:
                return columns[3].upper()
    return None


def _table() -> str:
    try:
        with ARP_TABLE.open("rb") as file:
            return file.read(ARP_MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
