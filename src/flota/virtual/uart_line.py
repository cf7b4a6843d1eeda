"""A simulated UART: bytes take the time that their rate asks for, and can be lost, flipped, doubled or delayed.

Pure: seconds of any clock and a random generator come in. `Wire` is one direction; `simulate` runs two parties at its
two ends on a simulated clock, as fast as the machine can. Source: docs/reference/blynk.md, "Line".
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from flota.protocols.blynk.frames import END
from flota.protocols.blynk.ncp import LinkCommand, SwitchRate

BITS_A_BYTE: Final = 10
"""8N1: a start bit, eight of data, a stop bit."""

RATE_TOLERANCE: Final = 0.02
"""By how much the rates of the two ends may differ."""

DEADLINE_STEP_S: Final = 1e-6
"""A deadline that is due is never taken up twice at the same time."""


@dataclass(frozen=True, slots=True)
class LineFaults:
    """How often something goes wrong, as probabilities; `delay_s` is the most that a frame is late.

    `lose_byte` and `flip_bit` are of each byte, `lose_frame`, `double_frame` and `delay_frame` of each frame.
    `loses`: frames that are lost whatever the probabilities say.
    """

    lose_byte: float = 0.0
    flip_bit: float = 0.0
    lose_frame: float = 0.0
    double_frame: float = 0.0
    delay_frame: float = 0.0
    delay_s: float = 0.0
    loses: Callable[[bytes], bool] | None = None


NO_FAULTS: Final = LineFaults()


@dataclass(slots=True)
class _Flight:
    """Bytes under way: the first arrives after `start` and one byte's time."""

    start: float
    byte_s: float
    data: bytes
    taken: int = 0

    @property
    def end(self) -> float:
        return self.start + len(self.data) * self.byte_s


@dataclass(slots=True)
class Wire:
    """One direction of the line. `baud` is the sender's rate; a receiver at another gets garbage."""

    baud: int
    rng: random.Random
    faults: LineFaults = NO_FAULTS
    sent_bytes: int = 0
    _flights: deque[_Flight] = field(default_factory=deque)
    _busy_until: float = 0.0

    def send(self, data: bytes, *, now: float) -> None:
        """Put bytes on the wire behind those that are under way."""
        for frame in frames_of(data):
            for piece, late_s in self._after_faults(frame):
                start = max(now, self._busy_until) + late_s
                flight = _Flight(start, BITS_A_BYTE / self.baud, piece)
                self._busy_until = flight.end
                self.sent_bytes += len(piece)
                self._flights.append(flight)

    def idle_at(self) -> float:
        """Return when the last bit has left."""
        return self._busy_until

    def next_arrival(self) -> float | None:
        """Return when the frame under way is complete, None when nothing is."""
        return self._flights[0].end if self._flights else None

    def take(self, *, now: float, receiver_baud: int) -> bytes:
        """Return the bytes that have arrived until now; at another rate than the sender's, as many of noise."""
        arrived = bytearray()
        while self._flights:
            flight = self._flights[0]
            count = len(flight.data) if now >= flight.end else max(0, int((now - flight.start) / flight.byte_s))
            if count <= flight.taken:
                break
            piece = flight.data[flight.taken : count]
            heard = abs(receiver_baud * flight.byte_s - BITS_A_BYTE) < RATE_TOLERANCE * BITS_A_BYTE
            arrived += piece if heard else self.rng.randbytes(len(piece))
            flight.taken = count
            if count < len(flight.data):
                break
            self._flights.popleft()
        return bytes(arrived)

    def cut(self) -> None:
        """Lose what is under way: the sender lost its power."""
        self._flights.clear()
        self._busy_until = 0.0

    def _after_faults(self, frame: bytes) -> Iterable[tuple[bytes, float]]:
        """Return what becomes of a frame: pieces with the seconds that they are late."""
        faults, rng = self.faults, self.rng
        if faults is NO_FAULTS:
            return [(frame, 0.0)]
        if (faults.loses is not None and faults.loses(frame)) or rng.random() < faults.lose_frame:
            return []
        late_s = rng.random() * faults.delay_s if rng.random() < faults.delay_frame else 0.0
        found = frame
        if faults.lose_byte or faults.flip_bit:
            changed = bytearray()
            for byte in frame:
                if rng.random() < faults.lose_byte:
                    continue
                changed.append(byte ^ (1 << rng.randrange(8)) if rng.random() < faults.flip_bit else byte)
            found = bytes(changed)
        pieces = [(found, late_s)]
        if rng.random() < faults.double_frame:
            pieces.append((found, 0.0))
        return pieces


def frames_of(data: bytes) -> list[bytes]:
    """Return `data` cut behind every end of a frame."""
    pieces, begin = [], 0
    while begin < len(data):
        end = data.find(END, begin)
        end = len(data) if end < 0 else end + 1
        pieces.append(data[begin:end])
        begin = end
    return pieces


class Party(Protocol):
    """What sits at an end of the line: `Ncp`, `Mcu`, or somebody who wraps one of them."""

    def receive(self, data: bytes, *, now: float) -> Sequence[Any]:
        """Take bytes off the line."""

    def deadline_passed(self, *, now: float) -> Sequence[Any]:
        """Do what is due."""

    def next_deadline(self) -> float | None:
        """Say when something is due."""

    def link_commands(self) -> list[LinkCommand]:
        """Say what is to be done with the line."""


@dataclass(slots=True)
class LineEnd:
    """A party, the wire that it sends on, its own rate; `turnaround_s` passes until it acts on what came."""

    party: Party
    wire: Wire
    baud: int
    turnaround_s: float = 0.0
    handles: Callable[[Any, float], None] | None = None
    """Called with every event of the party and the time."""
    bauds: frozenset[int] | None = None
    """Rates that the UART of this end can do, None = all; told to go on at another, it stays where it is."""
    _switch_at: tuple[float, int] | None = None
    _held: deque[tuple[float, bytes]] = field(default_factory=deque)
    _later: deque[LinkCommand] = field(default_factory=deque)

    def forget(self) -> None:
        """Lose what the party had not done yet: it has restarted."""
        self._switch_at = None
        self._held.clear()
        self._later.clear()


def simulate(
    ends: tuple[LineEnd, LineEnd], *, now: float, until: float, done: Callable[[], bool] | None = None
) -> float:
    """Run both parties until `until` (seconds) or `done`; returns the simulated time when it stopped."""
    for end in ends:
        _carry_out(end, now)
    while now < until and not (done is not None and done()):
        moments = [moment for end, other in (ends, ends[::-1]) for moment in _moments(end, other)]
        following = min(moments, default=until)
        now = min(until, max(following, now))
        progress = False
        for end, other in (ends, ends[::-1]):
            progress |= _turn(end, other, now)
        if not progress:
            now += DEADLINE_STEP_S
    return now


def _moments(end: LineEnd, other: LineEnd) -> Iterable[float]:
    arrival, deadline = other.wire.next_arrival(), end.party.next_deadline()
    if arrival is not None:
        yield arrival
    if deadline is not None:
        yield deadline
    if end._switch_at is not None:
        yield end._switch_at[0]
    if end._held:
        yield end._held[0][0]


def _turn(end: LineEnd, other: LineEnd, now: float) -> bool:
    """Let one end do what is due now; returns whether anything was."""
    progress = False
    if end._switch_at is not None and now >= end._switch_at[0]:
        wanted, end._switch_at = end._switch_at[1], None
        if end.bauds is None or wanted in end.bauds:
            end.baud = end.wire.baud = wanted
        _carry_out(end, now)
        progress = True
    data = other.wire.take(now=now, receiver_baud=end.baud)
    if data:
        end._held.append((now + end.turnaround_s, data))
    while end._held and now >= end._held[0][0]:
        _tell(end, end.party.receive(end._held.popleft()[1], now=now), now)
        progress = True
    deadline = end.party.next_deadline()
    if deadline is not None and now >= deadline:
        _tell(end, end.party.deadline_passed(now=now), now)
        progress = True
    return progress


def _tell(end: LineEnd, events: Sequence[Any], now: float) -> None:
    if end.handles is not None:
        for event in events:
            end.handles(event, now)
    _carry_out(end, now)


def _carry_out(end: LineEnd, now: float) -> None:
    """Send, and switch the rate once all before it has left; what comes behind waits for that."""
    end._later.extend(end.party.link_commands())
    while end._later and end._switch_at is None:
        command = end._later.popleft()
        if isinstance(command, SwitchRate):
            end._switch_at = (max(now, end.wire.idle_at()), command.baud)
        else:
            end.wire.send(command, now=now)
