"""Viam's cloud as far as updates need it: a machine part's configuration, and when the part was last online.

`MachineCloud` is the port; `open_viam_cloud` gives one over `viam-sdk`, which comes with the extra `viam`.
Source: docs/reference/viam.md, "Setting the configuration through Viam's cloud".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from flota.errors import InvalidInput, NotFound, PeerError, Unauthenticated
from flota.protocols.viam import find_service_config, parse_service_config, with_service_config

DEFAULT_CLOUD: Final = "https://app.viam.com"
PLAIN_PREFIX: Final = "http://"
CONNECT_TIMEOUT_S: Final = 20.0

_NOT_FOUND: Final = 5
_DENIED: Final = frozenset({7, 16})
_STALE: Final = frozenset({9, 10})
"""gRPC status codes: NOT_FOUND; PERMISSION_DENIED, UNAUTHENTICATED; FAILED_PRECONDITION, ABORTED."""


class MissingExtra(InvalidInput):
    """The package that a command needs is not installed."""

    code = "missing-extra"


@dataclass(frozen=True, slots=True)
class CloudCredentials:
    """An API key and its id; never shown."""

    key_id: str
    key: str

    def __repr__(self) -> str:
        return f"CloudCredentials({self.key_id!r}, <key>)"


@dataclass(frozen=True, slots=True)
class MachinePart:
    """What the cloud knows of one part. `changed_at` is when its configuration last changed."""

    id: str
    name: str
    config: Mapping[str, object]
    last_online_at: datetime | None
    changed_at: datetime | None


class MachineCloud(Protocol):
    """What is asked of the cloud. Both raise `PeerError`, `NotFound` or `Unauthenticated`."""

    async def part(self, part_id: str) -> MachinePart:
        """Return the part."""
        ...

    async def set_config(self, part: MachinePart, config: Mapping[str, object]) -> None:
        """Replace the part's configuration, unless it changed since `part` was read."""
        ...


async def apply_service(cloud: MachineCloud, part_id: str, service: Mapping[str, object]) -> bool:
    """Make `service` the part's update service; returns False if it was already.

    Nothing else of the configuration changes. It is read back afterwards; raises `PeerError` if the cloud has another.
    """
    wanted = parse_service_config(service)
    part = await cloud.part(part_id)
    changed = with_service_config(part.config, service)
    if changed == dict(part.config):
        return False
    await cloud.set_config(part, changed)
    stored = find_service_config((await cloud.part(part_id)).config.get("services"))
    if stored is None or (stored.url, stored.version) != (wanted.url, wanted.version):
        raise PeerError(
            f"the cloud did not keep the configuration of part {part.name}",
            expected=f"version {wanted.version}",
            found="none" if stored is None else f"version {stored.version}",
            hint="Somebody else may have changed it at the same time: look at it, then try again.",
        )
    return True


@contextlib.asynccontextmanager
async def open_viam_cloud(credentials: CloudCredentials, *, url: str = DEFAULT_CLOUD) -> AsyncIterator[MachineCloud]:
    """Connect to Viam's cloud; `http://HOST:PORT` connects without TLS, for tests.

    Raises `MissingExtra` without `viam-sdk`, `Unauthenticated` for a key that the cloud does not take, `PeerError`.
    """
    try:
        from viam.app.viam_client import ViamClient
        from viam.rpc.dial import DialOptions
    except ImportError as error:
        raise MissingExtra(
            "Viam's SDK is not installed", expected="the extra viam", hint="Install it: pip install 'flota[viam]'"
        ) from error
    try:
        options = DialOptions.with_api_key(credentials.key, credentials.key_id)
    except ValueError as error:
        raise InvalidInput("the API key's id is no UUID", found=ascii(credentials.key_id[:64])) from error
    options.insecure = url.startswith(PLAIN_PREFIX)
    options.timeout = CONNECT_TIMEOUT_S
    with _peer_errors():
        client = await ViamClient.create_from_dial_options(options, url)
    try:
        yield _ViamSdkCloud(client.app_client)
    finally:
        client.close()


class _ViamSdkCloud:
    """`MachineCloud` over the SDK's `AppClient`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def part(self, part_id: str) -> MachinePart:
        with _peer_errors(part_id):
            found = await self._app.get_robot_part(part_id)
        return MachinePart(
            id=found.id or part_id,
            name=found.name,
            config=_config_of(found),
            last_online_at=_aware(found.last_access),
            changed_at=_aware(found.last_updated),
        )

    async def set_config(self, part: MachinePart, config: Mapping[str, object]) -> None:
        # The text keeps the order of keys, and whole numbers whole, which the message's own map does not.
        with _peer_errors(part.id):
            await self._app.update_robot_part(
                part.id,
                part.name,
                config,
                last_known_update=part.changed_at,
                robot_config_json=json.dumps(config, ensure_ascii=False),
            )


def _config_of(part: Any) -> Mapping[str, object]:
    if not part.robot_config_json:
        return part.robot_config or {}
    try:
        config = json.loads(part.robot_config_json)
    except ValueError as error:
        raise PeerError(f"the configuration of part {part.name} is not JSON", found=str(error)) from error
    if not isinstance(config, dict):
        raise PeerError(f"the configuration of part {part.name} is no object", found=type(config).__name__)
    return config


def _aware(moment: datetime | None) -> datetime | None:
    """Return a time of the SDK, which gives naive ones in UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


@contextlib.contextmanager
def _peer_errors(part_id: str | None = None) -> Iterator[None]:
    """Turn what the SDK and its gRPC library raise into our errors."""
    from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
    from viam.errors import ViamError

    try:
        yield
    except GRPCError as error:
        status, text = error.status.value, error.message or error.status.name
        if status in _DENIED:
            hint = "Check VIAM_API_KEY_ID and VIAM_API_KEY, and that the key may change this machine."
            raise Unauthenticated("Viam's cloud refused the API key", found=text, hint=hint) from error
        if status == _NOT_FOUND:
            raise NotFound(f"Viam's cloud knows no part {part_id}", found=text) from error
        advice = "Read it again and try again." if status in _STALE else None
        found = f"{error.status.name}: {text}"
        raise PeerError("Viam's cloud answered with an error", found=found, hint=advice) from error
    except (ViamError, ProtocolError, StreamTerminatedError, OSError, TimeoutError, ValueError) as error:
        raise PeerError("no connection to Viam's cloud", found=str(error) or type(error).__name__) from error
