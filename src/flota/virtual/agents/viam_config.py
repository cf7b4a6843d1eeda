"""Where a virtual micro-RDK gets its machine's configuration: a file or an address, in place of Viam's cloud.

The cloud gives every configuration a revision; a file without one gets the digest of its bytes, so that it changes
whenever the configuration does.
Source: docs/reference/viam.md; docs/reference/virtual-devices.md, "micro-RDK agent".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx

from flota.errors import PeerError
from flota.protocols.viam import CONFIG_TIMEOUT_S, ConfigError

CONFIG_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What the device needs of a machine's configuration: the array `services`, unchecked, and the revision."""

    services: object
    revision: str


class ConfigSource(Protocol):
    """Whoever answers the device's request for its configuration."""

    async def read(self) -> MachineConfig:
        """Return the configuration as it is now. Raises `FlotaError`."""


class ConfigFile:
    """A configuration in a file; it is read anew each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> MachineConfig:
        """Return the configuration. Raises `PeerError` if the file cannot be read, `ConfigError` for its content."""
        return parse_machine_config(_content(self._path))


class ConfigAddress:
    """A configuration behind an http or https address; `client` is closed by its owner."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self._url = url
        self._client = client

    async def read(self) -> MachineConfig:
        """Return the configuration. Raises `PeerError` if it cannot be had, `ConfigError` for its content."""
        try:
            async with self._client.stream("GET", self._url, timeout=CONFIG_TIMEOUT_S) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise PeerError("no configuration to be had", expected="HTTP 200", found=answer.status_code)
                content = bytearray()
                async for data in answer.aiter_bytes():
                    content += data
                    if len(content) > CONFIG_MAX_BYTES:
                        raise ConfigError("the configuration is too large", expected=f"at most {CONFIG_MAX_BYTES}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            raise PeerError("no configuration to be had", found=text) from error
        return parse_machine_config(bytes(content))


def parse_machine_config(content: bytes) -> MachineConfig:
    """Return a machine's configuration from its JSON. Raises `ConfigError`.

    A single service, as the guide prints it, is taken for a configuration with that service alone.
    """
    if len(content) > CONFIG_MAX_BYTES:
        raise ConfigError("the configuration is too large", expected=f"at most {CONFIG_MAX_BYTES}", found=len(content))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the configuration is no JSON", found=str(error)[:120]) from error
    if not isinstance(value, dict):
        raise ConfigError("the configuration is no JSON object", found=type(value).__name__)
    services = [value] if "model" in value and "services" not in value else value.get("services")
    revision = value.get("revision")
    return MachineConfig(services, revision if isinstance(revision, str) else hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(CONFIG_MAX_BYTES + 1)
    except OSError as error:
        raise PeerError(f"no configuration in {path}", found=error.strerror or type(error).__name__) from error
