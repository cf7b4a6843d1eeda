"""The management API's operations on the audit trail, and on the tokens of people and gateways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import httpx
import msgspec

from flota.client.problems import error_from_answer
from flota.client.schemas import AccessToken, AccessTokenPage, AuditEntry, AuditPage, GatewayToken, GatewayTokenPage
from flota.client.wire import WireClient, no_server
from flota.errors import PeerError


class AuditAndTokenCalls(WireClient):
    """What happened, and who may ask."""

    def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Return up to `limit` audit entries with a sequence number above `after`, in order."""
        return self._ask("GET", "/audit", AuditPage, params={"after": after, "limit": limit}).items

    def last_audit_sequence(self) -> int:
        """Return the sequence number of the newest audit entry; 0 if there is none."""
        return self._ask("GET", "/audit", AuditPage, params={"after": 0, "limit": 1}).last

    def follow_events(self, after: int = 0) -> Iterator[AuditEntry]:
        """Yield audit entries above `after` as they come, without end; raises `PeerError` when the stream breaks."""
        decoder = msgspec.json.Decoder(AuditEntry)
        headers = {"accept": "text/event-stream", "last-event-id": str(after)}
        try:
            with self._http.stream("GET", "/events", headers=headers, timeout=httpx.Timeout(60.0)) as answer:
                if answer.status_code >= 400:
                    raise error_from_answer(answer.status_code, answer.read())
                data: list[str] = []
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        data.append(line[5:].removeprefix(" "))
                    elif not line and data:
                        yield decoder.decode("\n".join(data))
                        data = []
        except httpx.HTTPError as error:
            raise no_server(self.base_url, error) from error
        except msgspec.DecodeError as error:
            raise PeerError("the server's event is not what this client knows", found=str(error)) from error

    def list_tokens(self) -> list[AccessToken]:
        """Return the tenant's tokens, revoked ones included."""
        return self._ask("GET", "/tokens", AccessTokenPage).items

    def create_token(self, name: str, role: str, *, expires_at: datetime | None = None) -> AccessToken:
        """Make a token; its `secret` is shown this once."""
        body = {"name": name, "role": role, "expires_at": expires_at.isoformat() if expires_at else None}
        return self._ask("POST", "/tokens", AccessToken, json=body)

    def list_gateway_tokens(self) -> list[GatewayToken]:
        """Return the tenant's gateway tokens, revoked ones included."""
        return self._ask("GET", "/gateway-tokens", GatewayTokenPage).items

    def create_gateway_token(
        self,
        name: str,
        *,
        devices: Sequence[str] | None = None,
        select: str | None = None,
        all_devices: bool = False,
        type_name: str | None = None,
        expires_at: datetime | None = None,
    ) -> GatewayToken:
        """Make a gateway's token for named devices, those that `select` picks at any moment, or all of them.

        `type_name` is what devices become that nobody has registered. The `secret` is shown this once.
        """
        body = {
            "name": name,
            "devices": list(devices) if devices is not None else None,
            "select": select,
            "all_devices": all_devices,
            "type": type_name,
            "expires_at": expires_at.isoformat() if expires_at else None,
        }
        return self._ask("POST", "/gateway-tokens", GatewayToken, json=body)

    def revoke_gateway_token(self, token_id: int) -> None:
        """Make a gateway's token useless from now on."""
        self._send("DELETE", f"/gateway-tokens/{token_id}")

    def revoke_token(self, token_id: int) -> None:
        """Make a token useless from now on."""
        self._send("DELETE", f"/tokens/{token_id}")
