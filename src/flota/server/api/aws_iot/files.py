"""The HTTP data path: `GET /aws-iot/files/SHA256?token=…`, what `update_data_url` of a job document points to.

Bare ASGI, before the router. An address works for a limited time, for one artifact; one that is over gets 403, as from
S3: agents then ask for the job document again, which has a fresh one.
Source: docs/reference/aws-iot.md, "The HTTP data path".
"""

from __future__ import annotations

import hmac
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from flota.digests import is_sha256_hex
from flota.errors import FlotaError
from flota.server.api.artifacts import send_artifact

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from flota.fleet.executions import Execution
    from flota.server.context import ServerContext

FILES_PREFIX: Final = "/aws-iot/files/"
TOKEN_MAX_LEN: Final = 96
QUERY_FIELDS_MAX: Final = 16
_PURPOSE: Final = b"flota aws-iot file v1"


def file_url(context: ServerContext, base: str, sha256: str, execution: Execution) -> str:
    """Return the address of an artifact (hex SHA-256) for one execution's device, from now on for its lifetime."""
    expires = int((context.now() + timedelta(seconds=context.settings.aws_iot_url_lifetime_s)).timestamp())
    mac = _mac(context, sha256, str(expires), str(execution.id))
    return f"{base}{FILES_PREFIX}{sha256}?token={expires}.{execution.id}.{mac}"


class AwsIotFiles:
    """The one route of this data path."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a request for this path is for this API."""
        return path.startswith(FILES_PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: 200, 206, 304, 403, 404, 405 or 416."""
        if scope["method"] not in ("GET", "HEAD"):
            await _send_short(send, 405, "only GET and HEAD", (b"allow", b"GET, HEAD"))
            return
        sha256 = scope["path"].removeprefix(FILES_PREFIX)
        if not is_sha256_hex(sha256) or not self._is_good(scope["query_string"], sha256):
            await _send_short(send, 403, "this address is not valid, or no more; ask for the job again")
            return
        try:
            path = self._context.artifacts.path(sha256)
            await send_artifact(scope, receive, send, path, sha256=sha256)
        except FlotaError as error:  # before anything was sent: the file is gone
            await _send_short(send, 404, error.message)

    def _is_good(self, query: bytes, sha256: str) -> bool:
        try:
            fields = parse_qs(query.decode("latin-1"), max_num_fields=QUERY_FIELDS_MAX)
        except ValueError:  # more fields than that
            return False
        token = next(iter(fields.get("token", ())), "")
        expires, _, rest = token.partition(".")
        execution_id, _, mac = rest.partition(".")
        is_plain = len(token) <= TOKEN_MAX_LEN and token.isascii() and expires.isdecimal() and execution_id.isdecimal()
        if not is_plain or not hmac.compare_digest(mac, _mac(self._context, sha256, expires, execution_id)):
            return False
        return self._context.now().timestamp() < int(expires)


def _mac(context: ServerContext, sha256: str, expires: str, execution_id: str) -> str:
    return context.download_tokens.mac(_PURPOSE, sha256, expires, execution_id)


async def _send_short(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode() + b"\n"
    named = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": body, "more_body": False})
