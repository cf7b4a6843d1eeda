"""Who may be connected: things, devices with a claim, operators who watch events. What each may subscribe to.

A thing reaches its own reserved topics and nothing else; topics outside `$aws/` are the bridge's business.
Source: docs/reference/aws-iot.md, "Who is let in".
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from flota.fleet.devices import Device
from flota.fleet.scope import Scope
from flota.fleet.things import CertificateHolder
from flota.protocols.aws_jobs import THING_PREFIX
from flota.protocols.aws_provisioning import CERTIFICATES_PREFIX, TEMPLATES_PREFIX

EVENTS_PREFIX: Final = "$aws/events/"


@dataclass(frozen=True, slots=True)
class ThingIdentity:
    """A thing; `scope` is its own. `device` is as it was when it connected.

    It showed a token with the hex SHA-256 `token_sha256`, or a certificate with the fingerprint `certificate_sha256`;
    or another broker let it in and vouches for its name, `by_broker`.
    """

    scope: Scope
    device: Device
    token_sha256: str | None = None
    certificate_sha256: str | None = None
    by_broker: bool = False

    @property
    def name(self) -> str:
        """The thing's name."""
        return self.device.name

    @property
    def key(self) -> Hashable:
        """Its tenant and its name: names are unique within a tenant only."""
        return thing_key(self.scope.tenant_id, self.device.name)

    @property
    def prefix(self) -> str:
        """What all its reserved topics begin with."""
        return f"{THING_PREFIX}{self.device.name}/"

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether a filter covers nothing but its own reserved topics."""
        return topic_filter.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class ClaimIdentity:
    """A device that has nothing but a claim certificate: it may ask for one of its own."""

    holder: CertificateHolder

    @property
    def key(self) -> Hashable:
        """Its claim: many devices may have the same."""
        return ("claim", self.holder.tenant_id, self.holder.certificate.fingerprint)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether a filter covers nothing but answers about provisioning, which only go to who asked."""
        template = f"{TEMPLATES_PREFIX}{self.holder.certificate.template_name}/"
        return topic_filter.startswith((CERTIFICATES_PREFIX, template))


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """Somebody with a management token who watches a tenant's events; publishes nothing."""

    scope: Scope
    token_id: str

    @property
    def key(self) -> Hashable:
        """Its tenant and its token."""
        return ("operator", self.scope.tenant_id, self.token_id)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether a filter covers nothing but events."""
        return topic_filter.startswith(EVENTS_PREFIX)


Identity = ThingIdentity | ClaimIdentity | OperatorIdentity


def thing_key(tenant_id: int, name: str) -> Hashable:
    """Return the key of a thing's sessions."""
    return ("thing", tenant_id, name)


def is_operator_of(tenant_id: int, key: Hashable) -> bool:
    """Whether a key is that of an operator of the tenant."""
    return isinstance(key, tuple) and key[:2] == ("operator", tenant_id)
