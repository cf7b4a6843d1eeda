"""The HTTP client of the HTTP data path: one connection, one range a request.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; aws/ota-for-aws-iot-embedded-sdk:source/ota_http.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httpx

from flota.virtual.agents.aws_ota.ports import RangeAnswer

SCHEMES: Final = ("http", "https")


class HttpxRanges:
    """Ranges over httpx. `client` makes a client that follows no redirect, for https or (False) for http alone.

    Of an answer that is longer than asked for one byte more is kept, so that the agent sees it.
    """

    def __init__(self, client: Callable[[bool], httpx.AsyncClient]) -> None:
        self._make = client
        self._client: httpx.AsyncClient | None = None
        self._url = ""

    async def open(self, url: str) -> bool:
        """Begin with a URL."""
        await self.close()
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        if parts.scheme not in SCHEMES or not parts.hostname:
            return False
        self._url = url
        self._client = self._make(parts.scheme == "https")
        return True

    async def get(self, first: int, last: int) -> RangeAnswer | None:
        """Return the answer for a range; None without one, or if the body broke off."""
        if self._client is None:
            return None
        limit = last - first + 2
        body = bytearray()
        try:
            async with self._client.stream("GET", self._url, headers={"Range": f"bytes={first}-{last}"}) as answer:
                async for data in answer.aiter_raw():
                    body += data
                    if len(body) >= limit:
                        break
                return RangeAnswer(answer.status_code, bytes(body[:limit]))
        except (httpx.HTTPError, httpx.InvalidURL):
            return None

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
