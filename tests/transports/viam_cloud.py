# ruff: noqa: N802 - the names of a service are those of its definition
"""A stand-in for Viam's cloud: a real gRPC server in this process, over the message types that the SDK ships."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from viam.gen.app.v1.app_grpc import UnimplementedAppServiceBase
from viam.proto.app import GetRobotPartResponse, RobotPart, UpdateRobotPartResponse
from viam.proto.rpc.auth import AuthenticateResponse, AuthServiceBase
from viam.utils import dict_to_struct

KEY_ID = "6f1c1f5e-3a54-4f4e-9a3e-0d6c1b1d2a11"
KEY = "a-secret-key"
TOKEN = "an-access-token"


@dataclass
class Part:
    """One machine part as the cloud keeps it."""

    config: dict[str, Any]
    last_access: datetime | None = None
    changed_at: datetime = datetime(2026, 3, 1, tzinfo=UTC)
    keeps_text: bool = True
    updates: list[dict[str, Any]] = field(default_factory=list)
    loses_updates: bool = False


class Auth(AuthServiceBase):
    async def Authenticate(self, stream: Any) -> None:
        request = await stream.recv_message()
        given = (request.entity, request.credentials.type, request.credentials.payload)
        if given != (KEY_ID, "api-key", KEY):
            raise GRPCError(Status.UNAUTHENTICATED, "invalid credentials")
        await stream.send_message(AuthenticateResponse(access_token=TOKEN))

    async def AuthenticateTo(self, stream: Any) -> None:
        raise GRPCError(Status.UNIMPLEMENTED)


class App(UnimplementedAppServiceBase):
    def __init__(self, parts: dict[str, Part]) -> None:
        self.parts = parts

    async def GetRobotPart(self, stream: Any) -> None:
        request = await self._request(stream)
        await stream.send_message(GetRobotPartResponse(part=self._message(request.id), config_json="{}"))

    async def UpdateRobotPart(self, stream: Any) -> None:
        request = await self._request(stream)
        part = self.parts[request.id]
        if request.HasField("last_known_update") and request.last_known_update.ToDatetime(UTC) != part.changed_at:
            raise GRPCError(Status.FAILED_PRECONDITION, "the configuration has changed")
        config = json.loads(request.robot_config_json)
        part.updates.append(config)
        if not part.loses_updates:
            part.config = config
        await stream.send_message(UpdateRobotPartResponse(part=self._message(request.id)))

    async def _request(self, stream: Any) -> Any:
        request = await stream.recv_message()
        if stream.metadata.get("authorization") != f"Bearer {TOKEN}":
            raise GRPCError(Status.UNAUTHENTICATED, "no token")
        if request.id not in self.parts:
            raise GRPCError(Status.NOT_FOUND, "no such part")
        return request

    def _message(self, part_id: str) -> RobotPart:
        part = self.parts[part_id]
        message = RobotPart(id=part_id, name=f"part {part_id}", robot_config=dict_to_struct(part.config))
        message.last_updated.FromDatetime(part.changed_at)
        if part.last_access is not None:
            message.last_access.FromDatetime(part.last_access)
        if part.keeps_text:
            message.robot_config_json = json.dumps(part.config)
        return message


@contextlib.asynccontextmanager
async def a_cloud(parts: dict[str, Part]) -> AsyncIterator[str]:
    """Serve the parts; gives the URL."""
    server = Server([Auth(), App(parts)])
    await server.start("127.0.0.1", 0)
    try:
        port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        await server.wait_closed()
