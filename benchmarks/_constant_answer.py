"""The ceiling of `poll.py`: our listener with a handler that looks at nothing and always gives the same answer.

Run by the benchmark: python -m benchmarks._constant_answer; prints its URL.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

BODY = b'{"config":{"polling":{"sleep":"00:05:00"}}}'
HEADERS = [
    (b"etag", b'"00123456789abcdef0123456789abcdef"'),
    (b"content-length", b"%d" % len(BODY)),
    (b"content-type", b"application/hal+json"),
    (b"server", b"flota"),
    (b"x-content-type-options", b"nosniff"),
]
START: Message = {"type": "http.response.start", "status": 200, "headers": HEADERS}
WHOLE: Message = {"type": "http.response.body", "body": BODY, "more_body": False}


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send(START)
    await send(WHOLE)


async def serve() -> None:
    from flota.server.listeners import Listener
    from flota.server.settings import Address

    listener = Listener(app, Address("127.0.0.1", 0))
    await listener.start()
    print(f"http://{listener.address}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve())
