"""Where things are in DDI: paths, links, action ids, and the Authorization header.

Rules that real clients force (docs/reference/hawkbit-ddi.md): action ids are signed 32-bit and positive; links
inside the base keep the tenant as the device wrote it, download links have it upper-case because old Zephyr searches
for `/DEFAULT/controller/v1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from flota.protocols.malformed import MalformedMessage

ACTION_ID_MAX: Final = (1 << 31) - 1
"""SWUpdate and Zephyr keep the id in an int32."""

DEFAULT_TENANT: Final = "DEFAULT"
MD5SUM_SUFFIX: Final = ".MD5SUM"
TARGET_TOKEN: Final = "TargetToken"  # noqa: S105 - the name of a scheme
GATEWAY_TOKEN: Final = "GatewayToken"  # noqa: S105 - the name of a scheme

_ACTION_LINK = re.compile(r"/(?:deploymentBase|cancelAction|installedBase|confirmationBase)/([0-9]{1,10})(?:[?#].*)?\Z")
_ACTION_ID = re.compile(r"[0-9]{1,10}\Z")


@dataclass(frozen=True, slots=True)
class DdiAddresses:
    """All addresses of one device. `server` is the URL without a final slash; `tenant` as the device wrote it."""

    server: str
    tenant: str
    controller_id: str

    @property
    def base(self) -> str:
        """The controller base, which is what a device polls."""
        return self._base(self.tenant)

    @property
    def config_data(self) -> str:
        """Where attributes are PUT."""
        return f"{self.base}/configData"

    def deployment_base(self, action_id: int, change: int | None = None) -> str:
        """Return where an action's deployment is; `change` is a signed 32-bit number that changes with the action."""
        return self._action("deploymentBase", action_id, change)

    def deployment_feedback(self, action_id: int) -> str:
        """Where feedback about a deployment is POSTed."""
        return f"{self._action('deploymentBase', action_id, None)}/feedback"

    def cancel_action(self, action_id: int, change: int | None = None) -> str:
        """Return where an action's cancellation is."""
        return self._action("cancelAction", action_id, change)

    def cancel_feedback(self, action_id: int) -> str:
        """Where feedback about a cancellation is POSTed."""
        return f"{self._action('cancelAction', action_id, None)}/feedback"

    @property
    def confirmations(self) -> str:
        """Where a device sees whether it confirms by itself."""
        return f"{self.base}/confirmationBase"

    @property
    def activate_auto_confirm(self) -> str:
        """Where a device says that it agrees to whatever comes."""
        return f"{self.confirmations}/activateAutoConfirm"

    @property
    def deactivate_auto_confirm(self) -> str:
        """Where a device says that it wants to be asked again."""
        return f"{self.confirmations}/deactivateAutoConfirm"

    def confirmation_base(self, action_id: int, change: int | None = None) -> str:
        """Return where an action is that waits for the device's agreement."""
        return self._action("confirmationBase", action_id, change)

    def confirmation_feedback(self, action_id: int) -> str:
        """Where a device agrees or not."""
        return f"{self._action('confirmationBase', action_id, None)}/feedback"

    def installed_base(self, action_id: int) -> str:
        """Return where the last finished action is, in the form of a deployment."""
        return self._action("installedBase", action_id, None)

    def artifacts(self, module_id: int) -> str:
        """Return where the list of a software module's artifacts is."""
        return f"{self._base(self.tenant.upper())}/softwaremodules/{module_id}/artifacts"

    def artifact(self, module_id: int, filename: str) -> str:
        """Return where the bytes of an artifact are. Percent-encoded: a blank is `%20`."""
        return f"{self.artifacts(module_id)}/{quote(filename, safe='')}"

    def artifact_md5sum(self, module_id: int, filename: str) -> str:
        """Return where the MD5SUM file of an artifact is."""
        return self.artifact(module_id, filename) + MD5SUM_SUFFIX

    def _base(self, tenant: str) -> str:
        return f"{self.server}/{quote(tenant, safe='')}/controller/v1/{quote(self.controller_id, safe='')}"

    def _action(self, resource: str, action_id: int, change: int | None) -> str:
        link = f"{self.base}/{resource}/{action_id}"
        return link if change is None else f"{link}?c={change}"


def parse_action_id(text: str) -> int:
    """Return an action id from a path. Raises `MalformedMessage` unless it is 1 to 2147483647."""
    if not _ACTION_ID.match(text) or not 1 <= int(text) <= ACTION_ID_MAX:
        raise MalformedMessage("not an action id", expected=f"1 to {ACTION_ID_MAX}", found=repr(text[:40]))
    return int(text)


def action_id_of(href: str) -> int:
    """Return the action id in a link of a poll answer. Raises `MalformedMessage`."""
    match = _ACTION_LINK.search(href)
    if match is None:
        raise MalformedMessage("not a link to an action", found=repr(href[:200]))
    return parse_action_id(match.group(1))


@dataclass(frozen=True, slots=True)
class Credentials:
    """Scheme (`TargetToken`, `GatewayToken`) and token of an Authorization header."""

    scheme: str
    token: str

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"Credentials(scheme={self.scheme!r}, token=…)"


def parse_authorization(header: str | None) -> Credentials | None:
    """Return the credentials; None when there are none of DDI. The scheme is case-sensitive, one blank follows it."""
    for scheme in (TARGET_TOKEN, GATEWAY_TOKEN):
        if header is not None and header.startswith(f"{scheme} "):
            token = header.removeprefix(f"{scheme} ")
            return Credentials(scheme, token) if token and token == token.strip() else None
    return None


def pack_authorization(token: str, *, scheme: str = TARGET_TOKEN) -> str:
    """Return the value of the Authorization header that a device sends with every request."""
    return f"{scheme} {token}"
