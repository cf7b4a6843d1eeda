"""The client's side of the wire: errors come back as they were raised, and following survives a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import msgspec
import pytest

from flota import errors
from flota.client.following import SERVER_AWAY_MAX_S, Look, describe_change, follow_rollout
from flota.client.management import ManagementClient
from flota.client.problems import error_from_answer
from flota.client.schemas import AuditEntry, AuditPage, Rollout, RolloutPolicy, Wave

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _client(answer: Callable[[httpx.Request], httpx.Response]) -> ManagementClient:
    return ManagementClient("http://flota.test/", "secret", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidInput),
        (401, errors.Unauthenticated),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (422, errors.Refused),
        (429, errors.TooManyRequests),
        (500, errors.PeerError),
        (507, errors.StorageFull),
    ],
)
def test_every_status_has_its_error(status: int, kind: type[errors.FlotaError]) -> None:
    problem = {"status": status, "detail": "what is wrong", "code": "some-newer-code", "hint": "do this"}
    error = error_from_answer(status, msgspec.json.encode(problem), retry_after="7")
    assert type(error) is kind
    assert (error.message, error.hint) == ("what is wrong", "do this")
    if isinstance(error, errors.TooManyRequests):
        assert error.retry_after_s == 7


def test_a_problems_facts_and_code_come_back() -> None:
    problem = {"detail": "lost", "code": "version-mismatch", "offset": 16, "expected": "version 2", "found": 3}
    error = error_from_answer(409, msgspec.json.encode(problem))
    assert isinstance(error, errors.VersionMismatch)
    assert (error.offset, error.expected, error.found) == (16, "version 2", 3)


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"[]", b"\xff", b'{"detail": 5}'])
def test_a_proxys_error_page_names_the_status(body: bytes) -> None:
    assert "502" in str(error_from_answer(502, body))


def test_an_answer_of_something_else_is_no_traceback() -> None:
    client = _client(lambda _: httpx.Response(200, text="<html>hello</html>"))
    with client, pytest.raises(errors.PeerError, match="not what this client knows"):
        client.whoami()


def test_the_token_goes_with_every_request_and_names_are_quoted() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204)

    with _client(answer) as client:
        client.remove_device("a/b?c#d %")
        for name in ("", ".", ".."):
            with pytest.raises(errors.NotFound):
                client.remove_device(name)
    (request,) = seen
    assert request.headers["authorization"] == "Bearer secret"
    assert request.url.raw_path == b"/api/v1/devices/a%2Fb%3Fc%23d%20%25"


def _rollout(state: str, done: int = 0) -> Rollout:
    policy = RolloutPolicy(abort_after_failures=1, silence_limit_s=60, attempts=1, count_inferred=False)
    wave = Wave(number=1, state="open", size=2, counts={"SUCCEEDED": done} if done else {})
    return Rollout(
        id=7, name="r", release=1, type="t", version="2", state=state, policy=policy, waves=[wave], selector="all",
        created_at=NOW, changed_at=NOW, reason="",
    )  # fmt: skip


def _entry(sequence: int, rollout: int) -> AuditEntry:
    details = {"rollout": rollout, "device": f"dev-{sequence}", "state": "SUCCEEDED", "message": "runs it"}
    return AuditEntry(
        sequence=sequence, at=NOW, actor="a", action="execution.changed", subject="execution:1", details=details,
        digest="",
    )  # fmt: skip


class _Server:
    """Answers audit and rollout from a script of moments; None is a moment without a server."""

    def __init__(self, moments: list[tuple[list[AuditEntry], Rollout] | None]) -> None:
        self._moments: Iterator[tuple[list[AuditEntry], Rollout] | None] = iter(moments)
        self._now: tuple[list[AuditEntry], Rollout] | None = None
        self.asked_after: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/audit"):
            self._now = next(self._moments)
            if self._now is None:
                raise httpx.ConnectError("refused")
            self.asked_after.append(int(request.url.params["after"]))
            return httpx.Response(200, content=msgspec.json.encode(AuditPage(items=self._now[0], last=0)))
        assert self._now is not None
        return httpx.Response(200, content=msgspec.json.encode(self._now[1]))


def _follow(server: _Server, clock: Callable[[], float] = lambda: 0.0) -> list[Look]:
    with _client(server) as client:
        return list(follow_rollout(client, _rollout("active"), after=3, pause=lambda _: None, clock=clock))


def test_following_tells_each_change_once_and_ends_with_the_rollout() -> None:
    server = _Server(
        [
            ([_entry(4, 7), _entry(5, 8)], _rollout("active", 1)),
            ([], _rollout("active", 1)),
            ([_entry(6, 7)], _rollout("succeeded", 2)),
        ]
    )
    looks = _follow(server)
    assert [[entry.sequence for entry in look.changes] for look in looks] == [[4], [6]]
    assert looks[-1].rollout.is_final
    assert server.asked_after == [3, 5, 5]
    assert describe_change(looks[0].changes[0]) == "dev-4  SUCCEEDED: runs it"


def test_following_outlasts_a_restart_of_the_server() -> None:
    looks = _follow(_Server([([], _rollout("active")), None, None, ([_entry(4, 7)], _rollout("succeeded", 2))]))
    assert [look.server_away for look in looks] == [False, True, False]
    assert looks[-1].rollout.state == "succeeded"


def test_a_server_that_stays_away_ends_the_following_with_its_error() -> None:
    times = iter([0.0, SERVER_AWAY_MAX_S + 1])
    with pytest.raises(errors.PeerError, match="no answer"):
        _follow(_Server([None, None]), clock=lambda: next(times))
