"""Certificates of things and provisioning templates in the database: one tenant's only, and gone with the device."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.changes import Changes
from flota.fleet.devices import UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction
from flota.fleet.things import CertificatePurpose, CertificateStatus, NewCertificate
from flota.store.database import Database
from tests.store.fleets import START, a_device, a_tenant, a_type, at

YEAR = timedelta(days=365)


def a_certificate(mark: str, device: str | None = "pump-1", **changes: object) -> NewCertificate:
    new = NewCertificate(
        fingerprint=mark.ljust(64, "0"),
        purpose=CertificatePurpose.THING,
        status=CertificateStatus.ACTIVE,
        issued_here=True,
        subject="CN=pump-1",
        pem=f"PEM {mark}",
        not_before=START,
        not_after=START + YEAR,
        device_name=device,
    )
    return replace(new, **changes)  # type: ignore[arg-type]


async def a_template(tx: Transaction, scope: Scope, name: str = "meters") -> None:
    await tx.add_template(
        scope, name, "pump", thing_name="{SerialNumber}", unknown_devices=UnknownDevices.ACCEPT, now=START
    )


async def test_a_certificate_is_found_by_the_beginning_of_its_fingerprint_within_its_tenant(database: Database) -> None:
    scope, other = await a_tenant(database), await a_tenant(database, "OTHER")
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_device(tx, scope, "pump-1")
        made = await tx.add_certificate(scope, a_certificate("aaaaaaaa11"), now=START)
        await tx.add_certificate(scope, a_certificate("aaaaaaaa22"), now=START)
        assert await tx.certificate(scope, "AAAAAAAA1") == made
        with pytest.raises(InvalidInput, match="several"):
            await tx.certificate(scope, "aaaaaaaa")
        for wanted in ("aaaaaaa", "bbbbbbbb", "%%%%%%%%", "________"):
            with pytest.raises(NotFound):
                await tx.certificate(scope, wanted)
        with pytest.raises(NotFound):
            await tx.certificate(other, "aaaaaaaa11")
        assert await tx.list_certificates(other) == ()


async def test_one_fingerprint_is_known_once_in_all_tenants(database: Database) -> None:
    scope, other = await a_tenant(database), await a_tenant(database, "OTHER")
    async with database.transaction() as tx:
        for one in (scope, other):
            await a_type(tx, one)
            await a_device(tx, one, "pump-1")
        await tx.add_certificate(scope, a_certificate("aaaaaaaa"), now=START)
    with pytest.raises(Conflict, match="known already"):
        async with database.transaction() as tx:
            await tx.add_certificate(other, a_certificate("aaaaaaaa"), now=START)
    async with database.reading() as tx:
        holders = await tx.certificate_holders(["aaaaaaaa".ljust(64, "0"), "bb".ljust(64, "0")])
    (holder,) = holders.values()
    assert holder.tenant_id == scope.tenant_id
    assert holder.device is not None
    assert holder.device.name == "pump-1"


async def test_a_revoked_certificate_stays_so_and_lets_nobody_in(database: Database) -> None:
    scope = await a_tenant(database)
    fingerprint = "aaaaaaaa".ljust(64, "0")
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_device(tx, scope, "pump-1")
        await tx.add_certificate(scope, a_certificate("aaaaaaaa"), now=START)
        revoked = CertificateStatus.REVOKED
        assert (await tx.set_certificate_status(scope, fingerprint, revoked, now=at(1))).status is revoked
        assert (await tx.set_certificate_status(scope, fingerprint, revoked, now=at(2))).changed_at == at(1)
        with pytest.raises(Conflict):
            await tx.set_certificate_status(scope, fingerprint, CertificateStatus.ACTIVE, now=at(3))
        assert await tx.certificate_holders([fingerprint]) == {}
        actions = [entry.action for entry in await tx.list_audit(scope)]
    assert "certificate.added" in actions


async def test_removing_a_device_revokes_its_certificates(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_device(tx, scope, "pump-1")
        await a_device(tx, scope, "pump-2")
        await tx.add_certificate(scope, a_certificate("aaaaaaaa"), now=START)
        await tx.add_certificate(scope, a_certificate("bbbbbbbb", "pump-2"), now=START)
        await tx.remove_device(scope, "pump-1", now=at(1))
        statuses = [one.status for one in await tx.list_certificates(scope)]
    assert statuses == [CertificateStatus.REVOKED, CertificateStatus.ACTIVE]


async def test_rotating_ends_the_others_then_or_when_the_successor_is_used(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        device = await a_device(tx, scope, "pump-1")
        await tx.add_certificate(scope, a_certificate("aaaaaaaa"), now=START)
        await tx.add_certificate(scope, a_certificate("bbbbbbbb"), now=at(1), others_until=at(100))
        old, new = await tx.list_certificates(scope, device_name="pump-1")
        assert (old.ends_at, new.ends_at) == (at(100), None)
        assert old.is_good(now=at(99))
        assert not old.is_good(now=at(100))
        holders = await tx.certificate_holders([old.fingerprint, new.fingerprint])
        assert [holders[one.fingerprint].ends_others for one in (old, new)] == [False, True]
        await tx.revoke_replaced_certificates(scope, device.id, now=at(2))
        statuses = [one.status for one in await tx.list_certificates(scope)]
        assert statuses == [CertificateStatus.REVOKED, CertificateStatus.ACTIVE]
        assert not (await tx.certificate_holders([new.fingerprint]))[new.fingerprint].ends_others


async def test_a_second_rotation_never_gives_an_old_certificate_more_time(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_device(tx, scope, "pump-1")
        await tx.add_certificate(scope, a_certificate("aaaaaaaa"), now=START)
        await tx.add_certificate(scope, a_certificate("bbbbbbbb"), now=at(1), others_until=at(100))
        await tx.add_certificate(scope, a_certificate("cccccccc"), now=at(2), others_until=at(1000))
        ends = [one.ends_at for one in await tx.list_certificates(scope)]
    assert ends == [at(100), at(1000), None]


async def test_a_waiting_certificate_is_given_to_one_thing_once(database: Database) -> None:
    scope, other = await a_tenant(database), await a_tenant(database, "OTHER")
    waiting = a_certificate(
        "aaaaaaaa",
        None,
        status=CertificateStatus.PENDING_ACTIVATION,
        ownership_token_sha256="11" * 32,
        ownership_until=at(3600),
    )
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_device(tx, scope, "pump-1")
        await tx.add_certificate(scope, waiting, now=START)
        assert await tx.count_waiting_certificates(scope) == 1
        assert await tx.certificate_waiting(other, "11" * 32) is None
        found = await tx.certificate_waiting(scope, "11" * 32)
        assert found is not None
        assert await tx.certificate_holders([found.fingerprint]) == {}
        given = await tx.give_certificate(scope, found.fingerprint, "pump-1", now=at(1))
        assert (given.status, given.device_name) == (CertificateStatus.ACTIVE, "pump-1")
        assert await tx.certificate_waiting(scope, "11" * 32) is None
        with pytest.raises(Conflict):
            await tx.give_certificate(scope, found.fingerprint, "pump-1", now=at(2))


async def test_certificates_that_waited_too_long_are_forgotten(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        for number, mark in enumerate(("aaaaaaaa", "bbbbbbbb")):
            waiting = a_certificate(
                mark,
                None,
                status=CertificateStatus.PENDING_ACTIVATION,
                ownership_token_sha256=f"{number}".zfill(64),
                ownership_until=at(10 + number),
            )
            await tx.add_certificate(scope, waiting, now=START)
        assert await tx.remove_waiting_certificates(scope, before=at(11)) == 1
        assert [one.pem for one in await tx.list_certificates(scope)] == ["PEM bbbbbbbb"]


async def test_removing_a_template_revokes_its_claims_and_frees_its_name(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_template(tx, scope)
        with pytest.raises(Conflict):
            await a_template(tx, scope)
        claim = a_certificate("aaaaaaaa", None, purpose=CertificatePurpose.CLAIM, template_name="meters")
        await tx.add_certificate(scope, claim, now=START)
        (holder,) = (await tx.certificate_holders([claim.fingerprint])).values()
        assert (holder.device, holder.certificate.template_name) == (None, "meters")
        await tx.remove_template(scope, "meters", now=at(1))
        assert await tx.list_templates(scope) == ()
        assert await tx.certificate_holders([claim.fingerprint]) == {}
        await a_template(tx, scope)
        (made,) = await tx.list_templates(scope)
        assert (made.type_name, made.unknown_devices) == ("pump", UnknownDevices.ACCEPT)


async def test_who_knows_certificates_hears_of_those_that_change_and_of_no_others(database: Database) -> None:
    scope = await a_tenant(database)
    heard: list[Changes] = []
    async with database.transaction() as tx:
        await a_type(tx, scope)
        device = await a_device(tx, scope, "pump-1")
    database.on_change(heard.append)
    async with database.transaction() as tx:
        await tx.add_certificate(scope, a_certificate("aaaaaaaa"), now=START)
    assert heard == []  # nobody had it before, and our authority's certificates need no look
    async with database.transaction() as tx:
        await tx.add_certificate(scope, a_certificate("bbbbbbbb", issued_here=False), now=START)
    async with database.transaction() as tx:
        await tx.set_certificate_status(scope, "aaaaaaaa".ljust(64, "0"), CertificateStatus.REVOKED, now=at(1))
    assert heard == [Changes(identity=frozenset({device.id}))] * 2
    async with database.reading() as tx:
        assert await tx.foreign_certificates() == ("PEM bbbbbbbb",)
