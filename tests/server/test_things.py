"""Whom a certificate lets in, and fleet provisioning: a real database, certificates made and shown as devices do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from flota.errors import Conflict, InvalidInput
from flota.fleet.devices import DeviceState, UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.things import CertificateHolder, CertificateStatus, HeldCertificate, ThingCertificate
from flota.protocols.aws_provisioning import (
    PayloadFormat,
    ProvisionRequest,
    pack_csr_request,
    pack_provision_request,
    parse_certificate_made,
    parse_provisioned,
    parse_rejection,
)
from flota.server.api.aws_iot import provisioning
from flota.server.api.aws_iot.provisioning import Provisioning
from flota.server.context import ServerContext
from flota.server.device_registry import Registration, device_type_or_builtin, register_device
from flota.server.things import CERTIFICATES_PER_DEVICE_MAX, ThingAuthority, keep_certificate
from flota.trust.certificates import pack_certificates
from flota.trust.thing_certificates import make_request, new_thing_key
from tests.server.serving import a_context, a_scope

JSON, CBOR = PayloadFormat.JSON, PayloadFormat.CBOR


class Clock:
    """A time that tests move."""

    def __init__(self, start: datetime) -> None:
        self.time = start

    def __call__(self) -> datetime:
        return self.time


class Bench:
    """A server's parts, one tenant, and short forms of what most tests do first."""

    def __init__(self, context: ServerContext, scope: Scope, clock: Clock) -> None:
        self.context = context
        self.scope = scope
        self.clock = clock
        self.things = context.things
        self.provisioning = Provisioning(context)

    async def device(self, name: str) -> None:
        async with self.context.storage.transaction() as tx:
            wanted = Registration(name=name, type_name="aws-reference")
            await register_device(tx, self.scope, wanted, now=self.clock())

    async def certificate(self, name: str, *, overlap: timedelta | None = None) -> ThingCertificate:
        new = await self.things.signed(name, make_request(new_thing_key("p256"), name))
        until = None if overlap is None else self.clock() + overlap
        async with self.context.storage.transaction() as tx:
            return await keep_certificate(tx, self.scope, new, now=self.clock(), others_until=until)

    async def shown(self, certificate: ThingCertificate) -> CertificateHolder | None:
        return await self.things.thing_of_certificate(der_of(certificate.pem))

    async def revoke(self, certificate: ThingCertificate | HeldCertificate) -> None:
        async with self.context.storage.transaction() as tx:
            revoked = CertificateStatus.REVOKED
            await tx.set_certificate_status(self.scope, certificate.fingerprint, revoked, now=self.clock())

    async def claim(
        self, *, unknown: UnknownDevices = UnknownDevices.ACCEPT, name: str = "meters"
    ) -> CertificateHolder:
        """Return who shows a new claim certificate of a new template."""
        async with self.context.storage.transaction() as tx:
            await device_type_or_builtin(tx, self.scope, "aws-reference", self.clock())
            await tx.add_template(
                self.scope,
                name,
                "aws-reference",
                thing_name="meter-{SerialNumber}",
                unknown_devices=unknown,
                now=self.clock(),
            )
        csr = make_request(new_thing_key("p256"), "claim")
        holder = await self.shown(await self.things.issue_claim(self.scope, name, csr))
        assert holder is not None
        return holder

    async def ask(self, holder: CertificateHolder, topic: str, payload: bytes) -> tuple[str, bytes]:
        answer = await self.provisioning.answer(holder, topic, payload)
        assert answer is not None
        assert answer.topic.startswith(topic)
        return answer.topic.removeprefix(topic), answer.payload

    async def own_certificate(self, holder: CertificateHolder, form: PayloadFormat = JSON) -> tuple[bytes, str]:
        """Return the DER form and the token of a certificate that a device asked for."""
        csr = pack_csr_request(make_request(new_thing_key("p256"), "me"), form)
        verdict, payload = await self.ask(holder, f"$aws/certificates/create-from-csr/{form.value}", csr)
        assert verdict == "/accepted", payload
        made = parse_certificate_made(payload, form)
        der = der_of(made.certificate)
        assert made.certificate_id == x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256()).hex()
        return der, made.ownership_token

    async def provision(
        self,
        holder: CertificateHolder,
        token: str,
        serial: str,
        *,
        template: str = "meters",
        form: PayloadFormat = JSON,
    ) -> tuple[str, bytes]:
        request = pack_provision_request(ProvisionRequest(token, {"SerialNumber": serial}), form)
        topic = f"$aws/provisioning-templates/{template}/provision/{form.value}"
        return await self.ask(holder, topic, request)


def der_of(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with a_context(tmp_path, database_url) as made:
        clock = Clock(made.now())
        settings = replace(made.settings, database_url=None)  # one process alone: what it knows is forgotten by commits
        context = ServerContext(
            settings=settings,
            storage=made.storage,
            artifacts=made.artifacts,
            journal=made.journal,
            sightings=made.sightings,
            download_tokens=made.download_tokens,
            now=clock,
            started_at=clock(),
        )
        yield Bench(context, await a_scope(context), clock)


# who is let in


async def test_a_certificate_that_was_issued_stands_for_its_device(bench: Bench) -> None:
    await bench.device("meter-1")
    holder = await bench.shown(await bench.certificate("meter-1"))
    assert holder is not None
    assert holder.device is not None
    assert (holder.device.name, holder.tenant_id) == ("meter-1", bench.scope.tenant_id)


async def test_a_certificate_of_our_authority_that_nobody_kept_lets_nobody_in(bench: Bench) -> None:
    await bench.device("meter-1")
    facts = await bench.things.sign_request(make_request(new_thing_key("p256"), "meter-1"), "meter-1")
    assert await bench.things.thing_of_certificate(der_of(facts.pem)) is None


async def test_revoking_counts_from_the_commit_on_for_those_that_are_remembered_too(bench: Bench) -> None:
    await bench.device("meter-1")
    certificate = await bench.certificate("meter-1")
    assert await bench.shown(certificate) is await bench.shown(certificate)  # the second time from memory
    await bench.revoke(certificate)
    assert await bench.shown(certificate) is None


async def test_a_device_that_is_refused_or_removed_is_seen_to_be_so_at_once(bench: Bench) -> None:
    await bench.device("meter-1")
    certificate = await bench.certificate("meter-1")
    await bench.shown(certificate)
    async with bench.context.storage.transaction() as tx:
        await tx.set_device_state(bench.scope, "meter-1", DeviceState.REFUSED, now=bench.clock())
    holder = await bench.shown(certificate)
    assert holder is not None
    assert holder.device is not None
    assert holder.device.state is DeviceState.REFUSED
    async with bench.context.storage.transaction() as tx:
        await tx.remove_device(bench.scope, "meter-1", now=bench.clock())
    assert await bench.shown(certificate) is None


async def test_a_certificate_whose_time_is_over_lets_nobody_in(bench: Bench) -> None:
    await bench.device("meter-1")
    new = await bench.things.signed("meter-1", make_request(new_thing_key("p256"), "x"), lifetime=timedelta(days=2))
    async with bench.context.storage.transaction() as tx:
        certificate = await keep_certificate(tx, bench.scope, new, now=bench.clock())
    assert await bench.shown(certificate) is not None
    bench.clock.time += timedelta(days=2)
    assert await bench.shown(certificate) is None


async def test_using_the_new_certificate_ends_the_old_one_before_its_time(bench: Bench) -> None:
    await bench.device("meter-1")
    old = await bench.certificate("meter-1")
    new = await bench.certificate("meter-1", overlap=timedelta(hours=24))
    assert await bench.shown(old) is not None
    assert await bench.shown(new) is not None
    assert await bench.shown(old) is None
    assert await bench.shown(new) is not None


async def test_an_old_certificate_ends_after_the_overlap_though_the_new_one_was_never_used(bench: Bench) -> None:
    await bench.device("meter-1")
    old = await bench.certificate("meter-1")
    new = await bench.certificate("meter-1", overlap=timedelta(hours=1))
    bench.clock.time += timedelta(hours=1)
    assert await bench.shown(old) is None
    assert await bench.shown(new) is not None


async def test_a_device_has_a_bounded_number_of_certificates(bench: Bench) -> None:
    await bench.device("meter-1")
    made = [await bench.certificate("meter-1") for _ in range(CERTIFICATES_PER_DEVICE_MAX)]
    with pytest.raises(Conflict, match="already"):
        await bench.certificate("meter-1")
    await bench.revoke(made[0])
    await bench.certificate("meter-1")


async def test_names_that_topics_cannot_carry_get_no_certificate(bench: Bench) -> None:
    await bench.device("meter.1")
    with pytest.raises(InvalidInput, match="a thing can have"):
        await bench.certificate("meter.1")


async def test_the_authority_is_made_once_and_its_key_is_the_servers_alone(bench: Bench) -> None:
    assert bench.things.client_authorities() == b""
    await bench.things.begin()
    first = bench.things.client_authorities()
    await bench.things.begin()
    assert bench.things.client_authorities() == first
    authority = ThingAuthority(bench.context.settings.data.certificates)
    assert pack_certificates((await bench.things.issuer()).certificate) == first
    assert authority.key.stat().st_mode & 0o777 == 0o600
    authority.key.write_bytes(authority.key.read_bytes().replace(b"PRIVATE KEY", b"NO KEY"))
    with pytest.raises(InvalidInput):
        await bench.things.issuer()


# fleet provisioning


@pytest.mark.parametrize("form", PayloadFormat)
async def test_a_device_with_a_claim_becomes_a_thing(bench: Bench, form: PayloadFormat) -> None:
    holder = await bench.claim()
    der, token = await bench.own_certificate(holder, form)
    assert await bench.things.thing_of_certificate(der) is None  # it waits
    verdict, payload = await bench.provision(holder, token, "0017", form=form)
    assert verdict == "/accepted"
    assert parse_provisioned(payload, form).thing_name == "meter-0017"
    own = await bench.things.thing_of_certificate(der)
    assert own is not None
    assert own.device is not None
    assert (own.device.name, own.device.state, own.device.type_name) == (
        "meter-0017", DeviceState.ACCEPTED, "aws-reference",
    )  # fmt: skip


async def test_the_server_makes_the_key_too_for_devices_that_ask_so(bench: Bench) -> None:
    holder = await bench.claim()
    verdict, payload = await bench.ask(holder, "$aws/certificates/create/json", b"")
    assert verdict == "/accepted"
    made = parse_certificate_made(payload, JSON)
    assert made.private_key is not None
    key = serialization.load_pem_private_key(made.private_key.encode(), None)
    assert key.public_key() == x509.load_pem_x509_certificate(made.certificate.encode()).public_key()
    assert (await bench.provision(holder, made.ownership_token, "1"))[0] == "/accepted"
    async with bench.context.storage.reading() as tx:
        (device,) = [one for one in await tx.list_certificates(bench.scope) if one.device_name == "meter-1"]
    assert "PRIVATE" not in device.pem


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [(UnknownDevices.ACCEPT, "/accepted"), (UnknownDevices.HOLD, "/accepted"), (UnknownDevices.REFUSE, "/rejected")],
)
async def test_the_template_says_what_happens_to_names_that_nobody_registered(
    bench: Bench, policy: UnknownDevices, verdict: str
) -> None:
    holder = await bench.claim(unknown=policy)
    der, token = await bench.own_certificate(holder)
    assert (await bench.provision(holder, token, "1"))[0] == verdict
    own = await bench.things.thing_of_certificate(der)
    states = {UnknownDevices.ACCEPT: DeviceState.ACCEPTED, UnknownDevices.HOLD: DeviceState.PENDING}
    assert (None if own is None or own.device is None else own.device.state) == states.get(policy)


async def test_a_registered_device_that_was_never_seen_gets_its_certificate(bench: Bench) -> None:
    holder = await bench.claim(unknown=UnknownDevices.REFUSE)
    await bench.device("meter-1")
    _, token = await bench.own_certificate(holder)
    assert (await bench.provision(holder, token, "1"))[0] == "/accepted"


async def test_a_claim_takes_over_no_device_that_had_a_certificate(bench: Bench) -> None:
    holder = await bench.claim()
    await bench.device("meter-1")
    theirs = await bench.certificate("meter-1")
    for _ in range(2):  # while it works, and when it was revoked
        _, token = await bench.own_certificate(holder)
        verdict, payload = await bench.provision(holder, token, "1")
        assert (verdict, parse_rejection(payload, JSON).status) == ("/rejected", 403)
        await bench.revoke(theirs)


async def test_a_token_is_good_for_an_hour_and_for_once(bench: Bench) -> None:
    holder = await bench.claim()
    _, late = await bench.own_certificate(holder)
    bench.clock.time += timedelta(hours=1)
    assert (await bench.provision(holder, late, "1"))[0] == "/rejected"
    _, once = await bench.own_certificate(holder)
    assert (await bench.provision(holder, once, "2"))[0] == "/accepted"
    assert (await bench.provision(holder, once, "3"))[0] == "/rejected"
    assert (await bench.provision(holder, "made up", "3"))[0] == "/rejected"


async def test_a_token_used_twice_at_the_same_moment_makes_one_thing(bench: Bench) -> None:
    holder = await bench.claim()
    _, token = await bench.own_certificate(holder)
    answers = await asyncio.gather(*(bench.provision(holder, token, str(serial)) for serial in range(8)))
    assert sorted(verdict for verdict, _ in answers) == ["/accepted"] + ["/rejected"] * 7
    async with bench.context.storage.reading() as tx:
        owners = [one.device_name for one in await tx.list_certificates(bench.scope) if one.device_name is not None]
    assert len(owners) == 1


async def test_a_claim_leads_to_its_own_template_only(bench: Bench) -> None:
    holder, other = await bench.claim(), await bench.claim(name="valves")
    _, token = await bench.own_certificate(holder)
    assert parse_rejection((await bench.provision(holder, token, "1", template="valves"))[1], JSON).status == 403
    assert parse_rejection((await bench.provision(other, token, "1", template="valves"))[1], JSON).status == 403
    assert (await bench.provision(holder, token, "1"))[0] == "/accepted"


async def test_a_things_own_certificate_asks_for_no_other(bench: Bench) -> None:
    await bench.device("meter-1")
    holder = await bench.shown(await bench.certificate("meter-1"))
    assert holder is not None
    csr = pack_csr_request(make_request(new_thing_key("p256"), "me"), JSON)
    verdict, payload = await bench.ask(holder, "$aws/certificates/create-from-csr/json", csr)
    assert (verdict, parse_rejection(payload, JSON).status) == ("/rejected", 403)


async def test_revoking_a_claim_stops_it_and_leaves_its_things_alone(bench: Bench) -> None:
    holder = await bench.claim()
    der, token = await bench.own_certificate(holder)
    await bench.provision(holder, token, "1")
    await bench.revoke(holder.certificate)
    assert await bench.things.thing_of_fingerprint(holder.certificate.fingerprint) is None
    assert await bench.things.thing_of_certificate(der) is not None


@pytest.mark.parametrize(
    ("serial", "why"),
    [("a b", "a thing can have"), ("a/b", "a thing can have"), ("", "SerialNumber"), ("x" * 128, "thing")],
)
async def test_a_name_that_no_thing_can_have_is_rejected_and_the_token_still_works(
    bench: Bench, serial: str, why: str
) -> None:
    holder = await bench.claim()
    _, token = await bench.own_certificate(holder)
    if serial:
        verdict, payload = await bench.provision(holder, token, serial)
    else:
        request = json.dumps({"certificateOwnershipToken": token}).encode()
        verdict, payload = await bench.ask(holder, "$aws/provisioning-templates/meters/provision/json", request)
    rejection = parse_rejection(payload, JSON)
    assert (verdict, rejection.status) == ("/rejected", 400)
    assert why in rejection.message
    assert (await bench.provision(holder, token, "1"))[0] == "/accepted"


@pytest.mark.parametrize("payload", [b"", b"{", b'{"certificateSigningRequest":"no"}', b"\xff" * 9, b"[" * 40_000])
async def test_hostile_requests_are_rejected_and_keep_nothing(bench: Bench, payload: bytes) -> None:
    holder = await bench.claim()
    for topic in ("$aws/certificates/create-from-csr/json", "$aws/certificates/create-from-csr/cbor"):
        verdict, answer = await bench.ask(holder, topic, payload)
        assert verdict == "/rejected"
        assert parse_rejection(answer, PayloadFormat(topic.rpartition("/")[2])).status == 400
    async with bench.context.storage.reading() as tx:
        assert await tx.count_waiting_certificates(bench.scope) == 0


async def test_a_stolen_claim_cannot_fill_the_database(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioning, "WAITING_MAX", 2)
    holder = await bench.claim()
    for _ in range(2):
        await bench.own_certificate(holder)
    csr = pack_csr_request(make_request(new_thing_key("p256"), "me"), CBOR)
    verdict, payload = await bench.ask(holder, "$aws/certificates/create-from-csr/cbor", csr)
    assert (verdict, parse_rejection(payload, CBOR).status) == ("/rejected", 429)
    bench.clock.time += timedelta(hours=2)
    await bench.own_certificate(holder)  # those that nobody came back for have made room
    async with bench.context.storage.reading() as tx:
        assert await tx.count_waiting_certificates(bench.scope) == 1


async def test_other_topics_are_not_ours(bench: Bench) -> None:
    holder = await bench.claim()
    assert await bench.provisioning.answer(holder, "$aws/things/meter-1/jobs/get", b"") is None
