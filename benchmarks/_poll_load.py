"""A fleet that polls, as one process: plain sockets and one epoll, so that the generator leaves the CPU to the server.

Every device has its own path and token, which h2load and wrk cannot do without a script. Run by `poll.py`, which gives
a JSON object as the only argument (`Plan`) and reads one (`Figures`) from the standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

from pyreqwest.client import ClientBuilder

SCHEME_TARGET = "TargetToken"


@dataclass(frozen=True)
class Plan:
    """Devices `first` to `first + devices - 1` poll in turn until `polls` were answered; `prefix` names them."""

    host: str
    port: int
    polls: int
    devices: int
    first: int = 0
    connections: int = 64
    scheme: str = SCHEME_TARGET
    prefix: str = "dev"
    must_contain: str = '"sleep"'
    tls_each: bool = False


@dataclass(frozen=True)
class Figures:
    """What was seen; times in ms. `wrong` counts answers other than 200 with the text that they must contain."""

    seconds: float
    per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    wrong: int
    statuses: dict[str, int]


def device_name(plan: Plan, number: int) -> str:
    return f"{plan.prefix}-{plan.first + number % plan.devices:06}"


def secret_of(name: str, scheme: str) -> str:
    """Return the token of a device, or of the gateway."""
    return f"token-of-{name}" if scheme == SCHEME_TARGET else "token-of-the-gateway"


def request_template(plan: Plan) -> bytes:
    """Return the request of every device, with `@` for its name.

    Requests are made as they are sent: a hundred thousand that are kept ready would take the place of the server's own
    memory in the cache that both share.
    """
    lines = [
        "GET /DEFAULT/controller/v1/@ HTTP/1.1",
        f"Host: {plan.host}:{plan.port}",
        f"Authorization: {plan.scheme} {secret_of('@', plan.scheme)}",
        "Accept: application/hal+json",
        "User-Agent: benchmark/1.0",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def keep_alive(plan: Plan) -> Figures:
    """Poll over connections that stay open, each with one request at a time."""
    must = plan.must_contain.encode()
    template = request_template(plan)

    def request_of(number: int) -> bytes:
        return template.replace(b"@", device_name(plan, number).encode())

    poller, sockets = select.epoll(), {}
    for _ in range(plan.connections):
        one = socket.create_connection((plan.host, plan.port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[one.fileno()] = one
        poller.register(one.fileno(), select.EPOLLIN)
    sent_at, partial, times = {}, {}, []
    statuses: Counter[bytes] = Counter()
    wrong = asked = 0
    clock = time.perf_counter
    began = clock()
    for number, (descriptor, one) in enumerate(sockets.items()):
        one.send(request_of(number))
        sent_at[descriptor] = clock()
        asked += 1
    left = plan.polls
    while left > 0:
        for descriptor, _ in poller.poll():
            one = sockets[descriptor]
            answer = one.recv(65536)
            if descriptor in partial:
                answer = partial.pop(descriptor) + answer
            if not is_whole(answer):
                if not answer:
                    raise SystemExit("the server closed a connection")
                partial[descriptor] = answer
                continue
            now = clock()
            times.append(now - sent_at[descriptor])
            statuses[answer[9:12]] += 1
            if must not in answer or answer[9:12] != b"200":
                wrong += 1
            left -= 1
            if asked < plan.polls:
                one.send(request_of(asked))
                sent_at[descriptor] = now
                asked += 1
    seconds = clock() - began
    return figures(seconds, times, wrong, statuses)


def is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    at = head.lower().find(b"content-length: ")
    return at < 0 or len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])


async def fresh_tls(plan: Plan) -> Figures:
    """Poll with a full TLS 1.3 handshake for each: every poll has a client of its own, which no session can resume.

    pyreqwest's rustls, because OpenSSL 3.0 takes twice the server's CPU for a client's handshake: on shared CPUs the
    figure would be the generator's. Certificates are not judged: that is a device's work.
    """
    must = plan.must_contain.encode()
    numbers = iter(range(plan.polls))
    clients = [ClientBuilder().danger_accept_invalid_certs(True).http1_only().build() for _ in range(plan.polls)]
    times: list[float] = []
    statuses: Counter[bytes] = Counter()
    wrong = 0

    async def poll() -> None:
        nonlocal wrong
        for number in numbers:
            name = device_name(plan, number)
            began = time.perf_counter()
            request = clients[number].get(f"https://{plan.host}:{plan.port}/DEFAULT/controller/v1/{name}")
            token = f"{plan.scheme} {secret_of(name, plan.scheme)}"
            headers = {"Authorization": token, "Accept": "application/hal+json", "Connection": "close"}
            answer = await request.headers(headers).build().send()
            body = bytes(await answer.bytes())
            times.append(time.perf_counter() - began)
            statuses[str(answer.status).encode()] += 1
            wrong += must not in body or answer.status != 200

    began = time.perf_counter()
    await asyncio.gather(*(poll() for _ in range(plan.connections)))
    return figures(time.perf_counter() - began, times, wrong, statuses)


def figures(seconds: float, times: list[float], wrong: int, statuses: Counter[bytes]) -> Figures:
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    seen = {status.decode("latin-1"): count for status, count in statuses.items()}
    return Figures(seconds, len(times) / seconds, p50, p99, times[-1] * 1000, wrong, seen)


if __name__ == "__main__":
    given = Plan(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(asyncio.run(fresh_tls(given)) if given.tls_each else keep_alive(given))), flush=True)
    os._exit(0)  # the interpreter's end and pyreqwest's threads have been seen to collide
