"""The wire of the management API's client: one connection pool, one token, errors as the server meant them."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from flota.client.problems import error_from_answer
from flota.client.schemas import Answer
from flota.errors import InvalidInput, NotFound, PeerError

API_PREFIX: Final = "/api/v1"
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 130.0
"""A server that inspects a large file may take a while; nothing of ours waits longer than 120 s."""

_A = TypeVar("_A", bound=Answer)


class WireClient:
    """One server, one token. Use as a context manager, or call `close()`.

    `base_url` is the server's address without a path, e.g. `http://127.0.0.1:8080`. `verify` is True for the system's
    certificate authorities, a path to a PEM file of others (`flota up` prints its own), or False for tests only.
    Every method raises the `FlotaError` that the server answered with, and `PeerError` when there is no server.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        verify: bool | str | Path = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.base_url + API_PREFIX,
            headers={"authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            verify=_tls(verify, self.base_url),
            transport=transport,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, kind: type[_A], **request: Any) -> _A:
        answer = self._send(method, path, **request)
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.DecodeError as error:
            raise PeerError(
                f"the answer to {method} {path} is not what this client knows",
                found=str(error),
                hint="Is there a Flota server of the same version at this address?",
            ) from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        json: object = None,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        sent_headers = dict(headers or {})
        if json is not None:
            content = _json(json)
            sent_headers["content-type"] = "application/json"
        given = {key: str(value) for key, value in (params or {}).items() if value is not None}
        try:
            answer = self._http.request(method, path, params=given or None, content=content, headers=sent_headers)
        except httpx.LocalProtocolError as error:
            raise InvalidInput("the request could not be sent as it is", found=str(error)) from error
        except httpx.HTTPError as error:
            raise no_server(self.base_url, error) from error
        except httpx.InvalidURL as error:
            raise InvalidInput("the server's address is not a URL", found=self.base_url) from error
        if answer.status_code >= 400:
            raise error_from_answer(answer.status_code, answer.content, retry_after=answer.headers.get("retry-after"))
        return answer


def _json(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidInput("text that is not valid UTF-8", found=repr(error.object[:80])) from error


def segment(text: str) -> str:
    """Return `text` as one path segment; names that would vanish from a path have no such thing behind them."""
    found = percent_encoded(text, what="a name")
    if found in ("", ".", ".."):
        raise NotFound("there is nothing of this name", found=repr(text))
    return found


def percent_encoded(text: str, *, what: str, hint: str | None = None) -> str:
    """Return `text` percent-encoded as UTF-8; raises `InvalidInput` if it cannot be."""
    try:
        return quote(text, safe="@:")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} that is not valid UTF-8", found=repr(text), hint=hint) from error


def _tls(verify: bool | str | Path, base_url: str) -> bool | ssl.SSLContext:
    if verify is True and base_url.startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used: it spares reading the system's certificates
    if isinstance(verify, bool):
        return verify
    try:
        return ssl.create_default_context(cafile=str(verify))
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"cannot read the certificate file {verify}", found=str(error)) from error


def no_server(base_url: str, error: Exception) -> PeerError:
    """Return the error for a server that does not answer."""
    return PeerError(
        f"no answer from {base_url}",
        found=str(error) or type(error).__name__,
        hint="Is the server running, and is the address right? (--server, FLOTA_SERVER)",
    )
