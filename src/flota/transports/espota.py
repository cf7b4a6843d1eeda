"""Push a file to an ESP board as Arduino's tools do: invite it by UDP, and let it fetch the file by TCP.

The shell around `flota.protocols.espota`. Unlike on AmebaD the device answers: its `OK` after the last byte says that
the MD5 and the image are right, and that it restarts.
Source: docs/reference/espota.md, "The sender"; espressif/arduino-esp32:tools/espota.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from flota.protocols.espota import (
    ANSWER_LIMIT_S,
    ANSWER_READ_SIZE,
    AUTHENTICATION_FAILED,
    BLOCK_SIZE,
    CONNECT_LIMIT_S,
    DATAGRAM_MAX_BYTES,
    INVITATION_TRIES,
    OK,
    RESULT_LIMIT_S,
    RESULT_TRIES,
    AuthAnswer,
    AuthProtocol,
    Invitation,
    PasswordHash,
    UpdateCommand,
    auth_protocol_of,
    auth_response,
    make_cnonce,
    pack_auth,
    pack_invitation,
    parse_answer,
    refusal_in,
    says_ok,
)
from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import clean_bytes

Progress = Callable[[int, int], None]
"""(bytes of the file handed over and answered, bytes in all)."""

Address = tuple[Any, ...]
"""What a socket of the family takes: host and port, for IPv6 flow and scope too."""

ANSWERS_KEPT_BYTES: Final = 4096
LAST_WORDS_S: Final = 0.5


class EspotaStage(enum.StrEnum):
    """How far a push came."""

    INVITED = "invited"
    ACCEPTED = "accepted"
    """The device said OK to the invitation."""
    CONNECTED = "connected"
    ALL_SENT = "all-sent"
    CONFIRMED = "confirmed"
    """The device said OK after the last byte: MD5 and image are right, it restarts."""


@dataclass(frozen=True, slots=True)
class EspotaRecord:
    """What happened; `reason` is one sentence for people. `sent` and `total` in bytes of the file."""

    stage: EspotaStage
    reason: str
    sent: int = 0
    total: int = 0
    auth: str | None = None
    """How the password was proved: `md5`, `pbkdf2 with sha256`, `pbkdf2 with md5`; None without."""

    @property
    def taken(self) -> bool:
        """Whether the device confirmed the image."""
        return self.stage is EspotaStage.CONFIRMED


@dataclass(frozen=True, slots=True)
class EspotaLimits:
    """How often to invite, and how long to wait (seconds)."""

    tries: int = INVITATION_TRIES
    answer_s: float = ANSWER_LIMIT_S
    connect_s: float = CONNECT_LIMIT_S
    block_s: float = ANSWER_LIMIT_S
    result_s: float = RESULT_LIMIT_S * RESULT_TRIES


class _Stopped(Exception):
    """The push is over; the text says why."""


class EspotaPush:
    """One push. `stage` rises as it goes; `run` returns the record and never raises for what the peer does.

    `password` None = none is known. `filename` only goes into a nonce. `force_md5` leaves out the try with SHA-256
    for devices that are known to hold the MD5 of their password.
    """

    def __init__(
        self,
        host: str,
        port: int,
        data: bytes,
        *,
        password: str | None = None,
        command: UpdateCommand = UpdateCommand.FIRMWARE,
        filename: str = "firmware.bin",
        force_md5: bool = False,
        limits: EspotaLimits | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._data = data
        self._password = password
        self._command = command
        self._filename = filename
        self._hashes = [PasswordHash.MD5] if force_md5 else [PasswordHash.SHA256, PasswordHash.MD5]
        self._limits = limits or EspotaLimits()
        self._on_progress = on_progress
        self._auth: str | None = None
        self._sent = 0
        self.stage = EspotaStage.INVITED

    async def run(self) -> EspotaRecord:
        """Invite, prove the password if asked, hand over the file, wait for the device's word."""
        try:
            reason = await self._run()
        except _Stopped as stopped:
            reason = str(stopped)
        except OSError as error:
            reason = (os.strerror(error.errno).lower() if error.errno and error.errno > 0 else None) or str(error)
        return EspotaRecord(self.stage, reason, self._sent, len(self._data), self._auth)

    async def _run(self) -> str:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        family, _, _, _, told = found[0]
        address: Address = tuple(told)
        with contextlib.ExitStack() as stack:
            own = _own_address(family, address)
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setblocking(False)
            listener.bind((own, 0))
            listener.listen(1)
            invitation = Invitation(
                self._command,
                listener.getsockname()[1],
                len(self._data),
                hashlib.md5(self._data, usedforsecurity=False).hexdigest(),
            )
            coming = asyncio.ensure_future(_connection_from(listener, address[0]))
            try:
                await self._be_accepted(family, address, invitation, own, coming)
                connection = await self._accept(coming)
            finally:
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await coming
            with connection:
                return await self._hand_over(connection)

    async def _be_accepted(
        self,
        family: int,
        address: Address,
        invitation: Invitation,
        own: str,
        coming: asyncio.Future[socket.socket],
    ) -> None:
        """Invite until the device accepts, or connects: then its OK was lost.

        A lost datagram costs one try, a refused password one kind of hash.
        """
        hashes = list(self._hashes)
        refused = False
        heard = False
        for _ in range(self._limits.tries):
            if coming.done() or not hashes:
                break
            nonce = ""
            with _datagrams(family, address) as link:
                answer = await self._ask(link, pack_invitation(invitation), coming)
                if answer is None:
                    continue
                heard = True
                demanded = _read(answer)
                if demanded is None:
                    self.stage = EspotaStage.ACCEPTED
                    return
                nonce = demanded
            if self._password is None:
                raise _Stopped("the device asks for a password: give it with --password")
            kind = hashes[0]
            cnonce = make_cnonce(nonce, self._filename, invitation, f"{self._host}{own}")
            response = auth_response(self._password, nonce, cnonce, stored_as=kind)
            with _datagrams(family, address) as link:  # the newer tool answers from another port, too
                answer = await self._ask(link, pack_auth(AuthAnswer(cnonce, response)), coming)
            if answer is None:
                continue
            if answer.strip().startswith(AUTHENTICATION_FAILED):
                refused = True
                modern = auth_protocol_of(nonce) is AuthProtocol.PBKDF2
                hashes = hashes[1:] if modern else []
                continue
            if _read(answer) is not None:
                continue  # it asks once more: our answer came too late
            modern = auth_protocol_of(nonce) is AuthProtocol.PBKDF2
            self._auth = f"pbkdf2 with {kind.value}" if modern else "md5"
            self.stage = EspotaStage.ACCEPTED
            return
        if coming.done():
            self.stage = EspotaStage.ACCEPTED
            return
        if refused:
            raise _Stopped("the device refused the password")
        if heard:
            raise _Stopped("the device answers, but never accepted the invitation")
        raise _Stopped(f"nothing answers at {self._host} UDP port {self._port} within {self._limits.tries} tries")

    async def _ask(self, link: socket.socket, datagram: bytes, coming: asyncio.Future[socket.socket]) -> bytes | None:
        """Return the device's answer, None when none comes, or the device itself."""
        loop = asyncio.get_running_loop()
        answer = asyncio.ensure_future(_answer(loop, link, datagram))
        try:
            both: list[asyncio.Future[Any]] = [answer, coming]
            await asyncio.wait(both, timeout=self._limits.answer_s, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        except OSError:  # the host says that nobody listens there: perhaps not yet
            await asyncio.sleep(min(self._limits.answer_s, 0.2))
            return None
        finally:
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await answer

    async def _accept(self, coming: asyncio.Future[socket.socket]) -> socket.socket:
        try:
            connection = await asyncio.wait_for(coming, self._limits.connect_s)
        except TimeoutError:
            raise _Stopped(
                "the device accepted, but never connected back: the image is larger than its free space, "
                "or a firewall here keeps it out"
            ) from None
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stage = EspotaStage.CONNECTED
        return connection

    async def _hand_over(self, connection: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        answers = b""
        view = memoryview(self._data)
        for start in range(0, len(view), BLOCK_SIZE):
            block = view[start : start + BLOCK_SIZE]
            try:
                async with asyncio.timeout(self._limits.block_s):
                    await loop.sock_sendall(connection, block)
                    answer = await loop.sock_recv(connection, ANSWER_READ_SIZE)
            except TimeoutError:
                raise _Stopped(f"the device did not answer for {self._limits.block_s:g} s") from None
            except OSError as error:
                raise _Stopped(f"the link broke: {_said_by(error)}") from None
            answers = (answers + answer)[-ANSWERS_KEPT_BYTES:]
            if not answer or refusal_in(answers.removesuffix(OK[:1])):  # half an OK may be at the end of a read
                answers += await _rest_of_words(connection) if answer else b""
                raise _Stopped(_refusal(answers, "the device closed in the middle of the file"))
            self._sent += len(block)
            if self._on_progress is not None:
                self._on_progress(self._sent, len(view))
        self.stage = EspotaStage.ALL_SENT
        return await self._result(connection, answers)

    async def _result(self, connection: socket.socket, answers: bytes) -> str:
        """Wait for the device's last word; its OK may be glued to a count, and counts may be repeated."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.result_s):
                while not says_ok(answers):
                    more = await loop.sock_recv(connection, DATAGRAM_MAX_BYTES)
                    if not more:
                        raise _Stopped(_refusal(answers, "the device closed without saying whether the image is good"))
                    answers = (answers + more)[-ANSWERS_KEPT_BYTES:]
        except TimeoutError:
            raise _Stopped(_refusal(answers, f"no result within {self._limits.result_s:g} s")) from None
        except OSError as error:
            raise _Stopped(_refusal(answers, f"the link broke before the result: {_said_by(error)}")) from None
        self.stage = EspotaStage.CONFIRMED
        return "the device has checked the image and restarts with it"


async def push_espota(
    host: str,
    port: int,
    data: bytes,
    *,
    password: str | None = None,
    filename: str = "firmware.bin",
    limits: EspotaLimits | None = None,
    on_progress: Progress | None = None,
) -> EspotaRecord:
    """Push `data` to the board whose update port is UDP `port`; returns what happened."""
    push = EspotaPush(host, port, data, password=password, filename=filename, limits=limits, on_progress=on_progress)
    return await push.run()


async def _rest_of_words(connection: socket.socket) -> bytes:
    """Return what else the device says of its refusal, for a moment."""
    loop, words = asyncio.get_running_loop(), b""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(LAST_WORDS_S):
            while len(words) < DATAGRAM_MAX_BYTES and (more := await loop.sock_recv(connection, DATAGRAM_MAX_BYTES)):
                words += more
    return words


async def _answer(loop: asyncio.AbstractEventLoop, link: socket.socket, datagram: bytes) -> bytes:
    await loop.sock_sendall(link, datagram)
    return await loop.sock_recv(link, DATAGRAM_MAX_BYTES)


async def _connection_from(listener: socket.socket, device: str) -> socket.socket:
    """Return the device's connection; those of others are closed."""
    loop = asyncio.get_running_loop()
    while True:
        connection, peer = await loop.sock_accept(listener)
        if peer[0] == device:
            return connection
        connection.close()


def _read(answer: bytes) -> str | None:
    try:
        return parse_answer(answer)
    except MalformedMessage:
        raise _Stopped(f"the device answered something else: {clean_bytes(answer)!r}") from None


def _refusal(answers: bytes, otherwise: str) -> str:
    said = refusal_in(answers)
    return f"the device says: {said}" if said else otherwise


def _said_by(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)


def _own_address(family: int, address: Address) -> str:
    """Return the address of this machine that reaches the device: where it is asked to connect to."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def _datagrams(family: int, address: Address) -> Iterator[socket.socket]:
    """Give a new UDP socket that hears only the device."""
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.setblocking(False)
        link.connect(address)
        yield link
