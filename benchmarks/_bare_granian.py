"""The floor of `download.py`: our listeners with a handler that checks nothing and always gives the same answer.

Run by the benchmark: python -m benchmarks._bare_granian FILE CERTIFICATE KEY; prints its two URLs as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

PART_BYTES = 4096


class OneAnswer:
    """The whole file by `pathsend`; to whoever asks for a range, the same 4 KiB from memory."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self._part = content[:PART_BYTES]
        self._whole: Message = {"type": "http.response.pathsend", "path": str(path)}
        self._whole_length = str(len(content)).encode()

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        if any(name == b"range" for name, _ in scope["headers"]):
            await send(_start(206, b"%d" % PART_BYTES))
            await send({"type": "http.response.body", "body": self._part, "more_body": False})
        else:
            await send(_start(200, self._whole_length))
            await send(self._whole)


def _start(status: int, length: bytes) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]}


async def serve(path: Path, certificate: Path, key: Path) -> None:
    from flota.server.listeners import Listener, TlsFiles
    from flota.server.settings import Address

    app, anywhere = OneAnswer(path), Address("127.0.0.1", 0)
    plain, secure = Listener(app, anywhere), Listener(app, anywhere, TlsFiles(certificate, key))
    await plain.start()
    await secure.start()
    print(json.dumps({"h2c": f"http://{plain.address}/", "tls": f"https://{secure.address}/"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve(*map(Path, sys.argv[1:])))
