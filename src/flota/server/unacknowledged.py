"""What the peer of a TCP connection has not acknowledged yet, asked of Linux by the connection's two addresses.

granian takes a whole image of 1 MiB from us although its reader has stopped after a tenth, because the kernel buffers
the rest. Only the kernel knows; where it does not tell (other systems, no netlink in a sandbox) nobody does.
Source: man 7 sock_diag; torvalds/linux:include/uapi/linux/inet_diag.h; docs/reference/http-update.md, "Verdicts".
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NLM_F_DUMP: Final = 0x300
_ALL: Final = 0xFFFFFFFF
"""Every state; every cookie."""

_NLMSGHDR: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI")
"""sdiag_family, sdiag_protocol, idiag_ext, pad, idiag_states."""
_PORTS: Final = struct.Struct("!HH")
_REST_OF_ID: Final = struct.Struct("=III")
"""idiag_if, idiag_cookie[2]."""
_ID_BYTES: Final = _PORTS.size + 2 * 16 + _REST_OF_ID.size
_ANSWER_START: Final = struct.Struct("=BBBB")
"""idiag_family, idiag_state, idiag_timer, idiag_retrans."""
_ANSWER_END: Final = struct.Struct("=IIIII")
"""idiag_expires, idiag_rqueue, idiag_wqueue, idiag_uid, idiag_inode."""
assert (_NLMSGHDR.size, _REQUEST.size, _ID_BYTES) == (16, 8, 48)
_ANSWER_BYTES: Final = _NLMSGHDR.size + _ANSWER_START.size + _ID_BYTES + _ANSWER_END.size
_ANSWER_MAX_BYTES: Final = 32 * 1024
"""The largest part of a list that the kernel sends at once."""

_LOOPBACK: Final = "127.0.0.1"

_OPEN_STATES: Final = frozenset({1, 4, 5, 8, 9, 11})
"""ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING. A connection that is not there is answered with
the socket that listens (10)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection of this machine; addresses without zone, IPv4 ones never mapped into IPv6."""

    local: tuple[str, int]
    peer: tuple[str, int]

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Self | None:
        """Return the connection of an ASGI request; None if the system does not tell about it."""
        try:
            (peer_host, peer_port), (local_host, local_port) = scope["client"], scope["server"]
            peer, local = (_plain(peer_host), int(peer_port)), (_plain(local_host), int(local_port))
            if not ipaddress.ip_address(local[0]).is_unspecified:
                return cls(local, peer)._if_open()
            routed = cls((_source_address(*peer), local[1]), peer)._if_open()
            return routed or cls((_found_address(local[1], peer), local[1]), peer)._if_open()
        except (AttributeError, KeyError, TypeError, ValueError, OSError, struct.error):  # a UNIX socket, no route
            return None

    def _if_open(self) -> Self | None:
        return None if self.unacknowledged() is None else self

    def unacknowledged(self) -> int | None:
        """Return the bytes that the peer has not acknowledged; None if there is no such connection (any more)."""
        try:
            answer = _ask(self.local, self.peer)
        except (OSError, AttributeError, struct.error):  # no netlink in this Python; a port that is none
            return None
        if len(answer) < _ANSWER_BYTES or _NLMSGHDR.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
            return None
        _family, state, _timer, _retrans = _ANSWER_START.unpack_from(answer, _NLMSGHDR.size)
        _expires, _rqueue, wqueue, _uid, _inode = _ANSWER_END.unpack_from(answer, _ANSWER_BYTES - _ANSWER_END.size)
        return int(wqueue) if state in _OPEN_STATES else None


@functools.cache
def kernel_tells() -> bool:
    """Return whether this system tells what a peer has acknowledged: asked of a connection to ourselves."""
    try:
        with (
            socket.create_server((_LOOPBACK, 0)) as listening,
            socket.create_connection(listening.getsockname()) as own,
        ):
            accepted, peer = listening.accept()
            with accepted:
                return Connection(listening.getsockname(), peer).unacknowledged() is not None and own is not None
    except OSError:
        return False


def _plain(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


def _source_address(peer: str, port: int) -> str:
    """Return the address that this machine speaks to `peer` from; nothing is sent for that."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((peer, port))
        return str(asking.getsockname()[0])


def _found_address(port: int, peer: tuple[str, int]) -> str:
    """Return the address at which the peer has reached our `port`, from a list of all connections of the two ports.

    The routed way misses it where the machine has several addresses and the peer came to another than it is answered
    from by default. Raises `OSError` if there is none.
    """
    families = [socket.AF_INET6] if ":" in peer[0] else [socket.AF_INET, socket.AF_INET6]
    for family in families:
        with _asking(family, (port, peer[1]), b"\0" * 32, _NLM_F_REQUEST | _NLM_F_DUMP) as asking:
            while True:
                answer, at = asking.recv(_ANSWER_MAX_BYTES), 0
                while at + _ANSWER_BYTES <= len(answer):
                    length, kind = _NLMSGHDR.unpack_from(answer, at)[:2]
                    if kind != _SOCK_DIAG_BY_FAMILY or length < _ANSWER_BYTES:
                        break
                    hosts_at = at + _NLMSGHDR.size + _ANSWER_START.size + _PORTS.size
                    ours, theirs = (_host_at(family, answer, hosts_at + place) for place in (0, 16))
                    if theirs == peer[0]:
                        return ours
                    at += length + -length % 4
                if at == 0 or at < len(answer):
                    break
    raise OSError(errno.ENOENT, "no connection with this peer")


def _host_at(family: int, answer: bytes, at: int) -> str:
    return _plain(socket.inet_ntop(family, answer[at : at + (16 if family == socket.AF_INET6 else 4)]))


def _ask(local: tuple[str, int], peer: tuple[str, int]) -> bytes:
    family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
    hosts = b"".join(socket.inet_pton(family, host).ljust(16, b"\0") for host in (local[0], peer[0]))
    with _asking(family, (local[1], peer[1]), hosts, _NLM_F_REQUEST) as asking:
        return asking.recv(_ANSWER_MAX_BYTES)


def _asking(family: int, ports: tuple[int, int], hosts: bytes, flags: int) -> socket.socket:
    """Return a netlink socket on which the answer to a request comes; it is the caller's to close."""
    request = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL)
        + _PORTS.pack(*ports)
        + hosts
        + _REST_OF_ID.pack(0, _ALL, _ALL)
    )
    header = _NLMSGHDR.pack(_NLMSGHDR.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
    asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        asking.setblocking(False)
        asking.send(header + request)
    except BaseException:
        asking.close()
        raise
    return asking
