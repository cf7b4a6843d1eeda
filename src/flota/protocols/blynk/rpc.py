"""One end of the line, as caller and as callee: numbers, answers, time-outs, calls inside calls. No IO, no clock.

While a side waits for an answer it still serves what the other side calls: the vendor's MCU asks for digests inside its
handler of otaUpdateFinish. A side never has two calls of its own open: the vendor's driver has one receive buffer.
Source: docs/reference/blynk.md, "Calls".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol

from flota.errors import Conflict, FlotaError
from flota.protocols.blynk.catalogue import MCU_HAS_UID, MCU_PING, NCP_HAS_UID, NCP_PING, PROCEDURES, Procedure, Side
from flota.protocols.blynk.frames import FrameReader, ReaderCounts, pack_frame
from flota.protocols.blynk.messages import (
    MESSAGE_ID_MASK,
    Invoke,
    Message,
    Oneway,
    Result,
    Status,
    pack_message,
    parse_message,
)
from flota.protocols.blynk.values import Value, pack_values, parse_values
from flota.protocols.malformed import MalformedMessage

REMEMBERED_CALLS: Final = 16
"""Calls whose time is over but whose answers may still come."""

WAITING_NOTICES_MAX: Final = 32
"""Notices kept while a call is open; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class Called:
    """The peer calls and waits: `RpcEndpoint.answer` has to follow."""

    procedure: Procedure
    msgid: int
    args: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Notified:
    """The peer calls and does not wait."""

    procedure: Procedure
    args: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A call of ours was answered. `is_late`: after its time-out."""

    procedure: Procedure
    msgid: int
    values: tuple[Value, ...]
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call of ours failed: the peer's status, `TIMEOUT` for silence, `RESULT_NOT_READ` for a wrong answer."""

    procedure: Procedure
    msgid: int
    status: int
    is_late: bool = False


RpcEvent = Called | Notified | Answered | CallFailed


class PayloadReader(Protocol):
    """What makes payloads of bytes; see `FrameReader`."""

    counts: ReaderCounts

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that the bytes complete."""

    def reset(self) -> None:
        """Forget a frame that has begun."""


@dataclass(slots=True)
class RpcCounts:
    """What was ignored: messages of an unknown kind or too short, answers that nobody waits for, strange notices."""

    unreadable: int = 0
    unexpected_results: int = 0
    ignored_notices: int = 0
    calls: int = 0
    timeouts: int = 0


@dataclass(slots=True)
class _OpenCall:
    procedure: Procedure
    msgid: int
    deadline: float


class RpcEndpoint:
    """One side of the line.

    `serves`: the uids of its handlers; ping and hasUID are answered here. With `answers_unknown` False a call of
    another uid meets silence, as with the vendor's driver, instead of a status. `now`: seconds of any steady clock.
    """

    def __init__(
        self,
        side: Side,
        *,
        serves: Collection[int],
        answers_unknown: bool = True,
        reader: PayloadReader | None = None,
    ) -> None:
        self._ping, self._has_uid = (NCP_PING, NCP_HAS_UID) if side is Side.NCP else (MCU_PING, MCU_HAS_UID)
        self._serves = frozenset(serves) | {self._ping.uid, self._has_uid.uid}
        self._answers_unknown = answers_unknown
        self.reader: PayloadReader = FrameReader() if reader is None else reader
        self.counts = RpcCounts()
        self.heard_at: float | None = None
        """When the last whole frame came, or None."""
        self.spoke_at: float | None = None
        """When the last frame was made, or None."""
        self._last_msgid = 0
        self._open: _OpenCall | None = None
        self._expired: OrderedDict[int, Procedure] = OrderedDict()
        self._notices: deque[bytes] = deque(maxlen=WAITING_NOTICES_MAX)
        self._out: list[bytes] = []

    @property
    def counts_of_frames(self) -> int:
        """How many whole frames have come."""
        return self.reader.counts.frames

    # --- what goes out ------------------------------------------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Whether a call may be made: none of ours is open."""
        return self._open is None

    def is_calling(self, procedure: Procedure) -> bool:
        """Whether a call of this procedure is open."""
        return self._open is not None and self._open.procedure is procedure

    def hurry(self, until: float) -> None:
        """Wait for the answer to the open call no longer than `until`."""
        if self._open is not None:
            self._open.deadline = min(self._open.deadline, until)

    def call(self, procedure: Procedure, *args: Value, now: float) -> int:
        """Send a call; returns its number. Raises `Conflict` while another is open, `InvalidInput` for wrong values."""
        if self._open is not None:
            raise Conflict(f"{self._open.procedure.name} is not answered yet", hint="Wait for its answer or time-out.")
        assert procedure.timeout_s is not None, f"{procedure.name} is not answered: notify"
        body = pack_values(procedure.args, args)
        self._last_msgid = (self._last_msgid + 1) & MESSAGE_ID_MASK
        self._send(Invoke(procedure.uid, self._last_msgid, body), now)
        self._open = _OpenCall(procedure, self._last_msgid, now + procedure.timeout_s)
        self._expired.pop(self._last_msgid, None)
        self.counts.calls += 1
        return self._last_msgid

    def notify(self, procedure: Procedure, *args: Value, now: float) -> None:
        """Send a call that nobody answers; it waits until no call of ours is open."""
        assert procedure.is_oneway, f"{procedure.name} is answered: call"
        frame = pack_frame(pack_message(Oneway(procedure.uid, pack_values(procedure.args, args))))
        if self._open is None:
            self._put(frame, now)
        else:
            self._notices.append(frame)

    def answer(self, called: Called, *values: Value, now: float) -> None:
        """Answer a call. Raises `InvalidInput` for values that the procedure does not return."""
        self._send(Result(called.msgid, Status.OK, pack_values(called.procedure.results, values)), now)

    def refuse(self, called: Called, status: Status, *, now: float) -> None:
        """Answer a call with a failure."""
        self._send(Result(called.msgid, status), now)

    def abandon(self, now: float) -> None:
        """Forget the open call: the peer has restarted and will not answer it. A late answer is still told."""
        if self._open is not None:
            self._expire(self._open)
            self._open = None
            self._send_notices(now)

    def bytes_to_send(self) -> bytes:
        """Return the frames made since the last time, in order."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    # --- what comes in ------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, *, now: float) -> list[RpcEvent]:
        """Take bytes off the line; returns what they mean. Never raises for what the peer sends."""
        events: list[RpcEvent] = []
        for payload in self.reader.feed(data):
            self.heard_at = now
            try:
                message = parse_message(payload)
            except MalformedMessage:
                self.counts.unreadable += 1
                continue
            events += self._take(message, now)
        return events

    def next_deadline(self) -> float | None:
        """Return when the open call times out, None without one."""
        return None if self._open is None else self._open.deadline

    def deadline_passed(self, *, now: float) -> list[RpcEvent]:
        """Return the time-out of the open call if its time is over."""
        call = self._open
        if call is None or now < call.deadline:
            return []
        self._open = None
        self._expire(call)
        self.counts.timeouts += 1
        self._send_notices(now)
        return [CallFailed(call.procedure, call.msgid, Status.TIMEOUT)]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _take(self, message: Message, now: float) -> list[RpcEvent]:
        if isinstance(message, Invoke):
            return self._called(message, now)
        if isinstance(message, Result):
            return self._answered(message, now)
        procedure = PROCEDURES.get(message.uid)
        if procedure is not None and procedure.is_oneway and procedure.uid in self._serves:
            try:
                return [Notified(procedure, parse_values(procedure.args, message.body))]
            except MalformedMessage:
                pass
        self.counts.ignored_notices += 1
        return []

    def _called(self, message: Invoke, now: float) -> list[RpcEvent]:
        procedure = PROCEDURES.get(message.uid) if message.uid in self._serves else None
        if procedure is None or procedure.is_oneway:
            if self._answers_unknown:
                self._send(Result(message.msgid, Status.UNKNOWN_UID), now)
            return []
        try:
            args = parse_values(procedure.args, message.body, exactly=procedure.checks_arguments)
        except MalformedMessage:
            self._send(Result(message.msgid, Status.ARGUMENTS_NOT_READ), now)
            return []
        called = Called(procedure, message.msgid, args)
        if procedure is self._ping:
            self.answer(called, now=now)
            return [called]
        if procedure is self._has_uid:
            self.answer(called, int(args[0]) in self._serves, now=now)
            return [called]
        return [called]

    def _answered(self, message: Result, now: float) -> list[RpcEvent]:
        call = self._open
        if call is not None and call.msgid == message.msgid:
            self._open = None
            procedure, is_late = call.procedure, False
            self._send_notices(now)
        elif message.msgid in self._expired:
            procedure, is_late = self._expired.pop(message.msgid), True
        else:
            self.counts.unexpected_results += 1
            return []
        if message.status != Status.OK:
            return [CallFailed(procedure, message.msgid, message.status, is_late)]
        try:
            values = parse_values(procedure.results, message.body, exactly=bool(procedure.results))
        except FlotaError:
            return [CallFailed(procedure, message.msgid, Status.RESULT_NOT_READ, is_late)]
        return [Answered(procedure, message.msgid, values, is_late)]

    def _expire(self, call: _OpenCall) -> None:
        self._expired[call.msgid] = call.procedure
        while len(self._expired) > REMEMBERED_CALLS:
            self._expired.popitem(last=False)

    def _send(self, message: Message, now: float) -> None:
        self._put(pack_frame(pack_message(message)), now)

    def _send_notices(self, now: float) -> None:
        while self._notices:
            self._put(self._notices.popleft(), now)

    def _put(self, frame: bytes, now: float) -> None:
        self._out.append(frame)
        self.spoke_at = now
