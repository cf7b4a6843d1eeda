"""The short way for polls: a device that asks again gets the same answer from memory, until something has changed.

An answer was made by the ordinary way (limits, routing, authentication, database) and is given again only to a request
that is the same in everything the ordinary way could look at: path, headers, scheme, address. It is dropped when a
commit concerns the device, or when its time has come. If only what the device is to do may have changed, who asks is
known still: then no more than that is read again. Whatever is not plain, None sends the ordinary way.
Source: docs/adr/0014-polls-from-memory.md.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

from flota.errors import TooManyRequests
from flota.fleet.scope import Scope
from flota.fleet.storage import DeviceSighting
from flota.protocols.http_range import none_match
from flota.server.device_rates import DeviceRates

if TYPE_CHECKING:
    from starlette.types import Message
    from starlette.types import Scope as RequestScope

    from flota.fleet.changes import Changes
    from flota.fleet.devices import Device
    from flota.server.sightings import SightingsWriter

ROUTE: Final = "ddi"
POLL_MARK: Final = "/controller/v1/"

KNOWN_MAX: Final = 200_000
"""Devices whose answers are kept; one is about 0.6 KiB."""

DROPPED_AT_ONCE: Final = KNOWN_MAX // 20
"""When there are too many, this many of the oldest go: one by one would cost a walk through a dictionary each."""

CHANGES_REMEMBERED: Final = 20_000
"""Devices whose latest change is remembered for the answers that were being made at the time."""

SHARED_MAX_AGE_S: Final = 5.0
"""How long an answer lives when other processes can write the database without this one hearing of it."""

SEEN_EVERY_S: Final = 60.0
"""How often an idle device that polls is noted as seen. One with something to do is noted each time: its silence is
what a rollout judges."""

CONDITION_MAX_LEN: Final = 256
"""Characters of an If-None-Match header that are looked at here; the one that fits has 35."""

_SEEN_EVERY: Final = timedelta(seconds=SEEN_EVERY_S)

REQUESTS_BURST: Final = 2000
REQUESTS_PER_S: Final = 20.0
"""Per device, downloads apart. A busy client polls every 5 s and posts its log line by line."""

ADMITTED: Final = "flota.poll-admitted"
"""Set in a request that was let in, but to which no answer is kept."""

_DIGEST_LEN: Final = hashlib.sha256().digest_size
_TICKET: Final = "flota.poll-ticket"
_VOLATILE: Final = frozenset((b"if-none-match", b"x-request-id", b"traceparent", b"tracestate", b"date"))
"""Request headers that may differ from poll to poll: one is handled here, nothing looks at the others."""


@dataclass(frozen=True, slots=True)
class ReadyAnswer:
    """A 200 that may be given again until `until` (None: until something changes); `is_busy`: it gives work to do.

    From `admitted_until` on the request is not to be let in as it was.
    """

    body: bytes
    etag: bytes
    media_type: bytes
    until: datetime | None
    admitted_until: datetime | None
    is_busy: bool

    def messages(self, condition: bytes) -> tuple[Message, Message]:
        """Return the messages that answer a request with this If-None-Match header."""
        return _messages(self.body, self.etag, self.media_type, condition)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who asks, as was found out about the same request before: the device's id and address, a scope of its tenant.

    `condition` is the If-None-Match header of this request.
    """

    scope: Scope
    device_id: int
    address: str | None
    until: datetime | None
    condition: bytes


AskAgain = Callable[["RequestScope", Admitted], Awaitable["tuple[Message, Message] | None"]]


class _Known:
    """A device's latest request that was let in, and the answer to it.

    `kept` is the request's digest, then the answer's ETag and body, which are missing when that may have changed. It is
    one object, and those that many devices can share are shared: with a hundred thousand devices a poll finds next to
    nothing of its own in the processor's caches, and waits for each object that it looks at.
    """

    __slots__ = (
        "address",
        "admitted_until",
        "device_id",
        "etag_end",
        "kept",
        "media_type",
        "rate_key",
        "scope",
        "seen_due",
        "valid_until",
    )

    kept: bytes
    etag_end: int
    device_id: int
    scope: Scope
    rate_key: str
    address: str | None
    admitted_until: datetime | None
    media_type: bytes
    valid_until: datetime | None
    seen_due: datetime | None


class PollAnswers:
    """Answers kept for devices that ask again. Everything here runs in the loop's thread and waits for nothing.

    `max_age_s` bounds an answer's life where changes can be made that `forget` is not told of.
    """

    def __init__(
        self, sightings: SightingsWriter, *, now: Callable[[], datetime], max_age_s: float | None = None
    ) -> None:
        self.rates = DeviceRates(burst=REQUESTS_BURST, refill_per_s=REQUESTS_PER_S)
        self.hits = 0
        self.ask_again: AskAgain | None = None
        """Answers a request marked as `ADMITTED`, without asking again who it is."""
        self._sightings = sightings
        self._now = now
        self._max_age = None if max_age_s is None else timedelta(seconds=max_age_s)
        self._known: dict[str, _Known] = {}
        self._paths: dict[int, dict[int, str]] = {}
        """By tenant: the path under which each device's answer is kept."""
        self._scopes: dict[int, Scope] = {}
        """By tenant: one for all its devices, each of which would else keep 120 bytes for its own."""
        self._sequence = 0
        self._floor = 0
        self._changed: dict[int, int] = {}
        self._latest_due = datetime.min.replace(tzinfo=UTC)

    def __len__(self) -> int:
        """How many devices' answers are kept."""
        return len(self._known)

    def answer(self, request: RequestScope) -> tuple[Message, Message] | None:
        """Return the two messages of the answer to a poll that was seen before, else None. Raises nothing.

        A request that may become an answer to keep is marked on the way.
        """
        known = self._known.get(request["path"])
        if known is None:
            if POLL_MARK in request["path"]:
                request[_TICKET] = self._sequence
            return None
        if request["method"] != "GET" or request["query_string"]:
            return None
        fingerprint, condition = _read_request(request)
        now = self._now()
        request[_TICKET] = self._sequence
        kept = known.kept
        if (
            not hmac.compare_digest(fingerprint, kept[:_DIGEST_LEN])
            or (known.admitted_until is not None and now >= known.admitted_until)
            or len(condition) > CONDITION_MAX_LEN
        ):
            return None
        try:
            self.rates.take(known.rate_key, now=now)
        except TooManyRequests:
            return None
        if len(kept) == _DIGEST_LEN or (known.valid_until is not None and now >= known.valid_until):
            request[ADMITTED] = Admitted(known.scope, known.device_id, known.address, known.admitted_until, condition)
            return None
        if known.seen_due is None or now >= known.seen_due:
            self._note_seen(known, now)
        self.hits += 1
        end = known.etag_end
        return _messages(kept[end:], kept[_DIGEST_LEN:end], known.media_type, condition)

    def remember(
        self, request: RequestScope, scope: Scope, device: Device, answer: ReadyAnswer, *, address: str | None
    ) -> None:
        """Keep what was answered to this request of the device, unless something has changed since it came in.

        `scope` is the device's; `address` is where it asks from.
        """
        ticket: int | None = request.get(_TICKET)
        now = self._now()
        until = answer.until
        admitted_until = answer.admitted_until
        if self._max_age is not None:
            admitted_until = now + self._max_age if admitted_until is None else min(admitted_until, now + self._max_age)
        is_plain = request["method"] == "GET" and not request["query_string"]
        if ticket is None or not is_plain or self._changed_since(ticket, device):
            return
        paths = self._paths.setdefault(scope.tenant_id, {})
        path: str = request["path"]
        earlier = paths.get(device.id)
        if earlier is not None and earlier != path:
            del self._known[earlier]
        elif earlier is None and len(self._known) >= KNOWN_MAX:
            self._drop_oldest()
        paths[device.id] = path
        known = self._known[path] = _Known()
        known.kept = _read_request(request)[0]
        known.etag_end = _DIGEST_LEN + len(answer.etag)
        if until is None or now < until:
            known.kept += answer.etag + answer.body
        known.device_id = device.id
        known.scope = self._scopes.setdefault(scope.tenant_id, Scope(scope.tenant_id, ROUTE))
        key = rate_key(request)
        known.rate_key = path if key == path else key  # one text for both, nearly always
        known.address = address if address is None else sys.intern(address)
        known.admitted_until = admitted_until
        known.media_type = _MEDIA_TYPES.setdefault(answer.media_type, answer.media_type)
        known.valid_until = until
        known.seen_due = None if answer.is_busy else self._due_after(now)

    def forget(self, changes: Changes) -> None:
        """Drop the answers of whom these changes concern; and who they are, if that may have changed."""
        self._sequence += 1
        concerned = changes.work | changes.identity
        if changes.everything or changes.tenants or len(self._changed) + len(concerned) > CHANGES_REMEMBERED:
            self._floor = self._sequence
            self._changed.clear()
        else:
            for device_id in concerned:
                self._changed[device_id] = self._sequence
        if changes.everything:
            self._known.clear()
            self._paths.clear()
            return
        for tenant_id in changes.tenants:
            for path in self._paths.pop(tenant_id, {}).values():
                del self._known[path]
        for paths in self._paths.values():
            for device_id in changes.identity:
                gone = paths.pop(device_id, None)
                if gone is not None:
                    del self._known[gone]
            for device_id in changes.work:
                stale = paths.get(device_id)
                if stale is not None:
                    known = self._known[stale]
                    known.kept = known.kept[:_DIGEST_LEN]

    def _changed_since(self, ticket: int, device: Device) -> bool:
        return ticket < self._floor or self._changed.get(device.id, 0) > ticket

    def _note_seen(self, known: _Known, now: datetime) -> None:
        if known.seen_due is None:
            self._sightings.record(known.scope, DeviceSighting(known.device_id, now, ROUTE, known.address))
        else:  # to the second, and without the address, which its first poll told: one statement for many devices
            known.seen_due = self._due_after(now)
            self._sightings.record_seen(known.scope, known.device_id, ROUTE, at=now.replace(microsecond=0))

    def _due_after(self, now: datetime) -> datetime:
        """Return when a device that was seen now is due again: one object for all that were seen in this second."""
        due = now.replace(microsecond=0) + _SEEN_EVERY
        if due != self._latest_due:
            self._latest_due = due
        return self._latest_due

    def _drop_oldest(self) -> None:
        for path, known in list(islice(self._known.items(), DROPPED_AT_ONCE)):
            del self._known[path]
            del self._paths[known.scope.tenant_id][known.device_id]


def _messages(body: bytes, etag: bytes, media_type: bytes, condition: bytes) -> tuple[Message, Message]:
    if condition and (condition == etag or none_match(condition.decode("latin-1"), etag.decode("latin-1"))):
        start: Message = {"type": "http.response.start", "status": 304, "headers": [(b"etag", etag)]}
        return start, {"type": "http.response.body", "body": b"", "more_body": False}
    headers = [(b"etag", etag), (b"content-length", b"%d" % len(body)), (b"content-type", media_type)]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return start, {"type": "http.response.body", "body": body, "more_body": False}


_MEDIA_TYPES: Final[dict[bytes, bytes]] = {}
"""One object each, however many answers have it."""


def rate_key(request: RequestScope) -> str:
    """Return what one device's requests are counted under, as the path has it."""
    tenant, _, rest = request["path"].removeprefix("/").partition("/")
    return device_key(tenant, rest.removeprefix(POLL_MARK[1:]).partition("/")[0])


def device_key(tenant: str, name: str) -> str:
    """Return the path of a device's polls: what it is counted under, whatever it asks for."""
    return f"/{tenant.upper()}{POLL_MARK}{name}"


def _read_request(request: RequestScope) -> tuple[bytes, bytes]:
    """Return a digest of all that the ordinary way could look at, the path apart, and the If-None-Match header."""
    condition = b""
    client = request.get("client")
    parts = [request["scheme"].encode(), b"" if client is None else client[0].encode()]
    for name, value in request["headers"]:
        if name not in _VOLATILE:
            parts += (name, value)
        elif name == b"if-none-match":
            condition = value if not condition else condition + b"," + value
    return hashlib.sha256(b"\n".join(parts)).digest(), condition
