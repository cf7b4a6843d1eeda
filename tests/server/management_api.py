"""The management API in this process, over a real database and artifact store, and files to feed it with."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Mount

from flota.fleet.scope import Role, Scope
from flota.images.esp_app import EspAppImage, EspImageHeader, EspSegment, pack_app
from flota.images.esp_desc import EspAppDesc, pack_app_desc
from flota.server.api.management import build_management_api
from flota.server.auth import digest_of_secret, new_secret
from flota.server.context import ServerContext
from flota.trust.keys import PrivateKey
from tests.server.serving import a_context, a_scope, app_of

ESP32_C3 = 5
"""Chip id in the image header."""


def an_esp_app(version: str, *, chip_id: int = ESP32_C3, size: int = 4096) -> bytes:
    """Return a well-formed app image with this version in its descriptor, of at least `size` bytes."""
    body = pack_app_desc(EspAppDesc(version=version, project="tests")) + bytes(size)
    header = EspImageHeader(chip_id=chip_id, entry=0x40380000)
    return pack_app(EspAppImage(header, (EspSegment(0x3C000020, body), EspSegment(0x40380000, bytes(16)))))


@dataclass
class Api:
    """A client per role over one server, and short forms of what many tests do first."""

    context: ServerContext
    http: httpx.AsyncClient
    secrets: dict[Role, str]
    key: PrivateKey

    async def ask(self, method: str, path: str, *, role: Role = Role.ADMIN, **request: Any) -> httpx.Response:
        """Return the answer to a request with the token of `role`."""
        headers = {"authorization": f"Bearer {self.secrets[role]}", **request.pop("headers", {})}
        return await self.http.request(method, "/api/v1" + path, headers=headers, **request)

    async def post(self, path: str, body: object = None, **request: Any) -> Any:
        """Return the JSON that a POST answers; fails the test unless it is done."""
        answer = await self.ask("POST", path, json={} if body is None else body, **request)
        assert answer.is_success, answer.text
        return answer.json()

    async def get(self, path: str, **request: Any) -> Any:
        """Return the JSON at a path; fails the test unless there is some."""
        answer = await self.ask("GET", path, **request)
        assert answer.is_success, answer.text
        return answer.json()

    async def upload(self, data: bytes, filename: str = "app.bin") -> Any:
        """Return the stored artifact."""
        answer = await self.ask("POST", "/artifacts", content=data, headers={"x-filename": filename})
        assert answer.is_success, answer.text
        return answer.json()

    async def draft(self, version: str, *, type_name: str = "generic-linux", data: bytes | None = None) -> Any:
        """Return a new draft of a file that no other test uses."""
        artifact = await self.upload(data if data is not None else f"{type_name} {version}".encode())
        return await self.post("/releases", {"type": type_name, "version": version, "artifact": artifact["sha256"]})

    async def sign(self, release_id: int, key: PrivateKey | None = None) -> httpx.Response:
        """Return the answer to a signature by `key` over the manifest as the server serves it."""
        manifest = (await self.ask("GET", f"/releases/{release_id}/manifest")).content
        signature = (key or self.key).sign(manifest)
        body = {
            "key_id": signature.key_id,
            "algorithm": signature.algorithm,
            "signature": base64.b64encode(signature.signature).decode(),
        }
        return await self.ask("POST", f"/releases/{release_id}/signatures", json=body)

    async def publish(self, version: str, *, type_name: str = "generic-linux", data: bytes | None = None) -> Any:
        """Return a release, drafted, signed and published."""
        await self.post(f"/types/{type_name}/trust", {"public_keys": [self.key.public_pem]})
        draft = await self.draft(version, type_name=type_name, data=data)
        assert (await self.sign(draft["id"])).is_success
        return await self.post(f"/releases/{draft['id']}/publish")

    async def add_devices(self, *names: str, type_name: str = "generic-linux") -> None:
        """Register accepted devices."""
        for name in names:
            await self.post("/devices", {"name": name, "type": type_name})

    async def scope(self) -> Scope:
        """Return the tenant's scope."""
        return await a_scope(self.context)


@contextlib.asynccontextmanager
async def an_api(directory: Path, database_url: str | None = None) -> AsyncIterator[Api]:
    """Give the API of one tenant with a token of each role, over SQLite unless another database is named."""
    async with a_context(directory, database_url) as context:
        secrets = {role: new_secret() for role in Role}
        scope = await a_scope(context)
        async with context.storage.transaction() as transaction:
            for role, secret in secrets.items():
                await transaction.add_access_token(scope, str(role), role, digest_of_secret(secret), now=context.now())
        app = app_of(context, [Mount("/api/v1", build_management_api(context))])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://flota.test") as http:
            yield Api(context, http, secrets, PrivateKey.generate("ed25519"))


def assert_problem(answer: httpx.Response, status: int, code: str) -> Any:
    """Return the problem document of an answer after checking its status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code
    return problem
