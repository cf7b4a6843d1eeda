"""What a device says about itself: its attributes, and what was installed on it without this server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from flota.errors import NotFound
from flota.fleet.releases import ReleaseState
from flota.fleet.storage import DeviceSighting
from flota.protocols.ddi import merged_attributes, parse_config_data, parse_installed_version
from flota.server.api.ddi.answers import done, is_cbor
from flota.server.api.ddi.authentication import ROUTE
from flota.server.api.ddi.caller import Caller, read_body
from flota.server.identity_watch import ATTRIBUTES_WITHIN
from flota.server.updates import note_identity_conflict

if TYPE_CHECKING:
    from flota.server.context import ServerContext

SHOWN_MAX_LEN: Final = 200
"""Characters of an attribute set that an identity conflict shows."""


class SelfDescription:
    """Takes what devices say about themselves."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def put_config_data(self, caller: Caller) -> Response:
        """PUT attributes: what the device says about itself."""
        config = parse_config_data(await read_body(caller.request), cbor=is_cbor(caller.request))
        async with self._context.storage.transaction() as transaction:
            device = await transaction.device_by_id(caller.scope, caller.device.id)
            attributes = merged_attributes(device.attributes, config)
            await transaction.set_device_attributes(
                caller.scope, device.id, attributes, requested=False, now=self._context.now()
            )
        changed = {key for key in attributes if device.attributes.get(key) not in (None, attributes[key])}
        if changed:
            await self._notice(caller, device.attributes, attributes, changed)
        return done()

    async def _notice(
        self, caller: Caller, before: Mapping[str, str], after: Mapping[str, str], changed: set[str]
    ) -> None:
        """See whether an attribute goes back and forth, as it does when two devices tell it in turn."""
        first = min(changed)
        await note_identity_conflict(
            self._context,
            caller.scope,
            caller.device,
            trait=f"attribute {first}",
            before=before[first][:SHOWN_MAX_LEN],
            after=after[first][:SHOWN_MAX_LEN],
            within=ATTRIBUTES_WITHIN,
        )

    async def put_installed(self, caller: Caller) -> Response:
        """PUT what is installed: 201 when that is news, 200 when it was known, 404 when there is no such release.

        hawkBit calls this experimental; it is the one success that is not always 200.
        """
        told = parse_installed_version(await read_body(caller.request), cbor=is_cbor(caller.request))
        now = self._context.now()
        async with self._context.storage.transaction() as transaction:
            device = await transaction.device_by_id(caller.scope, caller.device.id)
            release = None
            if told.name == device.type_name:
                release = await transaction.find_release(caller.scope, device.type_name, told.version)
            if release is None or release.state not in (ReleaseState.PUBLISHED, ReleaseState.WITHDRAWN):
                raise NotFound("there is no such release", found=f"{told.name} {told.version}")
            running = release.as_running()
            if (device.running_version, device.running_hash) == (running["version"], running["hash"]):
                return done()
            sighting = DeviceSighting(
                device_id=device.id,
                at=now,
                route=ROUTE,
                running_version=running["version"],
                running_hash=running["hash"],
                running_md5=running["md5"],
            )
            await transaction.record_sightings(caller.scope, [sighting])
            await transaction.append_audit(
                caller.scope,
                "device.installed-told",
                f"device:{device.name}",
                {"version": release.version, "release": release.id},
                now=now,
            )
        return Response(status_code=201)
