"""Things over the management API: certificates, claims, signatures over whole files; OpenSSL is the other side."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from flota.fleet.scope import Role
from flota.fleet.things import job_id_of
from flota.server.settings import Address
from flota.trust.certificates import pack_certificates
from flota.trust.code_signing import make_code_signing_certificate
from flota.trust.file_signatures import FilePrivateKey
from flota.trust.keys import PrivateKey
from flota.trust.thing_certificates import make_request, new_thing_key
from tests.server.management_api import Api, an_api, assert_problem
from tests.server.programs import find_program

FIRMWARE = b"meter 1.0.1"
TYPE = "aws-reference"


@pytest.fixture
async def api(tmp_path: Path, database_url: str) -> AsyncIterator[Api]:
    async with an_api(tmp_path, database_url) as one:
        await one.post(f"/types/{TYPE}/trust", {"public_keys": [one.key.public_pem]})
        yield one


def a_csr(name: str = "meter-1") -> str:
    return make_request(new_thing_key("p256"), name)


def certificate_of(key: PrivateKey, *, days: int = 365, now: datetime | None = None) -> str:
    """Return a code-signing certificate of this key."""
    made = make_code_signing_certificate(
        key, subject="ecdsasigner", serial=7, now=now or datetime.now(UTC), lifetime=timedelta(days=days)
    )
    return pack_certificates(made).decode()


def signature_of(key: PrivateKey, data: bytes = FIRMWARE) -> str:
    raw = FilePrivateKey.from_pem(key.to_pem()).sign(hashlib.sha256(data).digest())
    return base64.b64encode(raw).decode()


async def a_draft(api: Api, version: str = "1.0.1", **fields: str) -> Any:
    artifact = await api.upload(FIRMWARE, "meter_V1.0.1.bin")
    made = await api.post("/releases", {"type": TYPE, "version": version, "artifact": artifact["sha256"], **fields})
    assert (await api.sign(made["id"])).is_success
    return made


async def trust(api: Api, certificate: str, **more: object) -> Any:
    return await api.post(f"/types/{TYPE}/code-certificates", {"certificates": [certificate], **more})


# things and their certificates


async def test_a_thing_is_registered_with_a_certificate_and_no_token(api: Api) -> None:
    made = await api.post("/things", {"name": "meter-1", "type": TYPE, "csr": a_csr(), "labels": {"site": "lyon"}})
    assert made["device"]["token"] is None
    assert made["device"]["labels"] == {"site": "lyon"}
    certificate = made["certificate"]
    assert (certificate["status"], certificate["device"], certificate["issued_here"]) == ("ACTIVE", "meter-1", True)
    assert certificate["not_after"] == "2049-12-31T23:59:59Z"
    assert (await api.get("/devices/meter-1/certificates"))["items"] == [certificate]
    assert (await api.get("/certificates"))["items"] == [certificate]


async def test_a_bad_request_for_a_certificate_registers_nothing(api: Api) -> None:
    answer = await api.ask("POST", "/things", json={"name": "meter-1", "type": TYPE, "csr": "no"})
    assert_problem(answer, 400, "bad-certificate-request")
    answer = await api.ask("POST", "/things", json={"name": "meter.1", "type": TYPE, "csr": a_csr()})
    assert_problem(answer, 400, "invalid-input")
    assert (await api.get("/devices"))["items"] == []


async def test_the_same_key_can_have_another_certificate_but_no_certificate_is_known_twice(api: Api) -> None:
    csr = a_csr()
    made = await api.post("/things", {"name": "meter-1", "type": TYPE, "csr": csr})
    again = await api.post("/devices/meter-1/certificates", {"csr": csr})
    assert again["fingerprint"] != made["certificate"]["fingerprint"]
    await api.post("/things", {"name": "meter-2", "type": TYPE, "csr": a_csr()})
    stolen = {"certificate": made["certificate"]["certificate"]}
    assert_problem(await api.ask("POST", "/devices/meter-2/certificates", json=stolen), 409, "conflict")


async def test_a_rotation_gives_the_old_certificate_a_time_to_end(api: Api) -> None:
    await api.post("/things", {"name": "meter-1", "type": TYPE, "csr": a_csr()})
    await api.post("/devices/meter-1/certificates", {"csr": a_csr(), "overlap_s": 3600})
    old, new = (await api.get("/devices/meter-1/certificates"))["items"]
    assert datetime.fromisoformat(old["ends_at"]) > datetime.now(UTC)
    assert new["ends_at"] is None


@pytest.mark.parametrize(
    "body",
    [{}, {"csr": "x", "certificate": "y"}, {"certificate": "y", "days": 3}, {"csr": "x", "days": 0}, {"csr": ""}],
)
async def test_a_certificate_is_asked_for_in_one_way(api: Api, body: dict[str, Any]) -> None:
    await api.add_devices("meter-1", type_name=TYPE)
    assert_problem(await api.ask("POST", "/devices/meter-1/certificates", json=body), 400, "invalid-input")


async def test_a_certificate_is_revoked_by_the_beginning_of_its_fingerprint(api: Api) -> None:
    made = (await api.post("/things", {"name": "meter-1", "type": TYPE, "csr": a_csr()}))["certificate"]
    revoked = await api.post(f"/certificates/{made['fingerprint'][:12]}/revoke", {"reason": "stolen"})
    assert revoked["status"] == "REVOKED"
    assert_problem(await api.ask("POST", "/certificates/0000000000/revoke", json={}), 404, "not-found")
    entries = (await api.get("/audit"))["items"]
    assert [one["details"]["reason"] for one in entries if one["action"] == "certificate.revoked"] == ["stolen"]


async def test_the_endpoint_is_where_things_listen_and_not_there_without_a_listener(api: Api) -> None:
    assert_problem(await api.ask("GET", "/thing-endpoint"), 404, "not-found")
    names = ("updates.example.com",)
    api.context.settings = replace(api.context.settings, mqtts=Address("0.0.0.0", 8883), names=names)
    assert await api.get("/thing-endpoint") == {"host": "updates.example.com", "port": 8883, "root_ca": None}


async def test_templates_and_claims_are_an_administrators(api: Api) -> None:
    body = {"name": "meters", "type": TYPE, "thing_name": "meter-{SerialNumber}", "unknown_devices": "accept"}
    assert_problem(await api.ask("POST", "/provisioning-templates", json=body, role=Role.OPERATOR), 403, "forbidden")
    made = await api.post("/provisioning-templates", body)
    assert (made["type"], made["unknown_devices"]) == (TYPE, "accept")
    claim = await api.post("/provisioning-templates/meters/claims", {"csr": a_csr("claim"), "days": 30})
    assert (claim["purpose"], claim["template"], claim["device"]) == ("claim", "meters", None)
    assert (await api.get("/certificates?purpose=claim"))["items"] == [claim]
    assert (await api.ask("DELETE", "/provisioning-templates/meters")).status_code == 204
    assert (await api.get("/certificates?purpose=claim"))["items"][0]["status"] == "REVOKED"


@pytest.mark.parametrize(
    "changes", [{"name": "a b"}, {"thing_name": "pump"}, {"thing_name": "a b {X}"}, {"unknown_devices": "yes"}]
)
async def test_a_template_that_could_name_nothing_is_refused(api: Api, changes: dict[str, str]) -> None:
    body = {"name": "meters", "type": TYPE, **changes}
    assert_problem(await api.ask("POST", "/provisioning-templates", json=body), 400, "invalid-input")


# signatures over whole files


async def openssl(*arguments: object) -> str:
    """Return what OpenSSL prints; fails the test unless it succeeds."""
    process = await asyncio.create_subprocess_exec(
        find_program("openssl"), *map(str, arguments), stdout=PIPE, stderr=PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_a_release_for_devices_that_check_files_needs_a_signature_that_they_can_check(api: Api) -> None:
    key = PrivateKey.generate("p256")
    await trust(api, certificate_of(key))
    draft = await a_draft(api, certfile="Code_Verify_Key", filepath="/fw/app.bin")
    assert draft["file_signature_needed"] == ["sig-sha256-ecdsa", "sig-sha256-rsa"]
    problem = assert_problem(await api.ask("POST", f"/releases/{draft['id']}/publish", json={}), 422, "refused")
    assert "--code-key" in problem["hint"]
    signed = await api.post(f"/releases/{draft['id']}/file-signatures", {"signature": signature_of(key)})
    (code,) = signed["file_signatures"]
    assert (code["name"], code["signature"]) == ("sig-sha256-ecdsa", signature_of_is(code, key))
    published = await api.post(f"/releases/{draft['id']}/publish")
    assert (published["state"], published["certfile"], published["filepath"]) == (
        "published", "Code_Verify_Key", "/fw/app.bin",
    )  # fmt: skip


def signature_of_is(code: dict[str, str], key: PrivateKey) -> str:
    """Return the signature as it stands there, after checking it with the key: ECDSA draws a new one each time."""
    digest = hashlib.sha256(FIRMWARE).digest()
    FilePrivateKey.from_pem(key.to_pem()).public.check(digest, base64.b64decode(code["signature"]))
    return code["signature"]


async def test_a_raw_signature_is_refused_with_the_form_that_is_wanted(api: Api) -> None:
    key = PrivateKey.generate("p256")
    await trust(api, certificate_of(key))
    draft = await a_draft(api)
    r, s = utils.decode_dss_signature(base64.b64decode(signature_of(key)))
    raw = base64.b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).decode()
    answer = await api.ask("POST", f"/releases/{draft['id']}/file-signatures", json={"signature": raw})
    problem = assert_problem(answer, 422, "file-signature-raw")
    assert "DER" in problem["expected"]


@pytest.mark.parametrize("signature", ["", "!!", base64.b64encode(bytes(513)).decode(), "AA=A"])
async def test_what_is_no_signature_at_all_is_bad_input(api: Api, signature: str) -> None:
    await trust(api, certificate_of(PrivateKey.generate("p256")))
    draft = await a_draft(api)
    answer = await api.ask("POST", f"/releases/{draft['id']}/file-signatures", json={"signature": signature})
    assert_problem(answer, 400, "invalid-input")


async def test_a_signature_of_another_file_or_by_a_strangers_certificate_is_refused(api: Api) -> None:
    key, stranger = PrivateKey.generate("p256"), PrivateKey.generate("p256")
    await trust(api, certificate_of(key))
    draft = await a_draft(api)
    path = f"/releases/{draft['id']}/file-signatures"
    other = {"signature": signature_of(key, b"another file")}
    assert_problem(await api.ask("POST", path, json=other), 422, "file-signature-wrong")
    theirs = {"signature": signature_of(stranger), "certificate": certificate_of(stranger)}
    problem = assert_problem(await api.ask("POST", path, json=theirs), 422, "refused")
    assert "type trust" in problem["hint"]
    assert (await api.get(f"/releases/{draft['id']}"))["file_signatures"] == []


async def test_an_expired_certificate_is_taken_only_on_purpose_and_then_still_signs(api: Api) -> None:
    """Devices in the field have a certificate of the guide's 365 days for ever."""
    key = PrivateKey.generate("p256")
    old = certificate_of(key, now=datetime.now(UTC) - timedelta(days=800))
    answer = await api.ask("POST", f"/types/{TYPE}/code-certificates", json={"certificates": [old]})
    assert_problem(answer, 422, "certificate-expired")
    await trust(api, old, allow_expired=True)
    draft = await a_draft(api)
    await api.post(f"/releases/{draft['id']}/file-signatures", {"signature": signature_of(key), "certificate": old})
    assert (await api.post(f"/releases/{draft['id']}/publish"))["state"] == "published"


async def test_what_was_signed_for_devices_that_lost_the_certificate_is_not_published(api: Api) -> None:
    key = PrivateKey.generate("p256")
    its_type = await trust(api, certificate_of(key))
    (known,) = its_type["code_certificates"]
    assert (known["name"], known["subject"]) == ("sig-sha256-ecdsa", "CN=ecdsasigner")
    draft = await a_draft(api)
    await api.post(f"/releases/{draft['id']}/file-signatures", {"signature": signature_of(key)})
    path = f"/types/{TYPE}/code-certificates/{known['fingerprint']}"
    assert (await api.ask("DELETE", path)).json()["code_certificates"] == []
    assert_problem(await api.ask("DELETE", path), 404, "not-found")
    assert_problem(await api.ask("POST", f"/releases/{draft['id']}/publish", json={}), 422, "refused")


async def test_a_published_release_takes_no_other_signature(api: Api) -> None:
    key = PrivateKey.generate("p256")
    await trust(api, certificate_of(key))
    draft = await a_draft(api)
    path = f"/releases/{draft['id']}/file-signatures"
    await api.post(path, {"signature": signature_of(key)})
    await api.post(path, {"signature": signature_of(key)})  # another one in its place: still one
    assert len((await api.get(f"/releases/{draft['id']}"))["file_signatures"]) == 1
    await api.post(f"/releases/{draft['id']}/publish")
    assert_problem(await api.ask("POST", path, json={"signature": signature_of(key)}), 409, "conflict")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "sig-sha256-ecdsa"),
        (("rsa:2048",), "sig-sha256-rsa"),
    ],
    ids=["P-256", "RSA-2048"],
)
async def test_certificate_and_signature_that_openssl_made_as_the_guide_says_are_taken(
    api: Api, tmp_path: Path, options: tuple[str, ...], name: str
) -> None:
    (tmp_path / "fw.bin").write_bytes(FIRMWARE)
    (tmp_path / "signer.cnf").write_text(
        "[req]\nprompt = no\ndistinguished_name = dn\n[dn]\ncommonName = signer@example.com\n"
        "[code]\nkeyUsage = digitalSignature\nextendedKeyUsage = codeSigning\n"
    )
    key, crt, sig = (tmp_path / file for file in ("ecdsasigner.key", "ecdsasigner.crt", "fw.sig"))
    await openssl(
        "req", "-new", "-x509", "-config", tmp_path / "signer.cnf", "-extensions", "code", "-nodes", "-days", "365",
        "-newkey", *options, "-keyout", key, "-out", crt,
    )  # fmt: skip
    await openssl("dgst", "-sha256", "-sign", key, "-out", sig, tmp_path / "fw.bin")
    its_type = await trust(api, crt.read_text())
    printed = await openssl("x509", "-in", crt, "-noout", "-fingerprint", "-sha256")
    assert its_type["code_certificates"][0]["fingerprint"].upper() == printed.strip()[-95:].replace(":", "")
    draft = await a_draft(api)
    body = {"signature": base64.b64encode(sig.read_bytes()).decode(), "certificate": crt.read_text()}
    signed = await api.post(f"/releases/{draft['id']}/file-signatures", body)
    assert [one["name"] for one in signed["file_signatures"]] == [name]
    assert (await api.post(f"/releases/{draft['id']}/publish"))["state"] == "published"


async def test_our_signature_and_certificate_satisfy_openssl(api: Api, tmp_path: Path) -> None:
    key = PrivateKey.generate("p256")
    await trust(api, certificate_of(key))
    draft = await a_draft(api)
    signed = await api.post(f"/releases/{draft['id']}/file-signatures", {"signature": signature_of(key)})
    (code,) = signed["file_signatures"]
    (tmp_path / "fw.bin").write_bytes(FIRMWARE)
    (tmp_path / "fw.sig").write_bytes(base64.b64decode(code["signature"]))
    (tmp_path / "signer.crt").write_text(code["certificate"])
    public = await openssl("x509", "-in", tmp_path / "signer.crt", "-noout", "-pubkey")
    (tmp_path / "signer.pub").write_text(public)
    verify = ("dgst", "-sha256", "-verify", tmp_path / "signer.pub", "-signature", tmp_path / "fw.sig")
    assert "Verified OK" in await openssl(*verify, tmp_path / "fw.bin")


@pytest.mark.parametrize("field", ["certfile", "filepath"])
@pytest.mark.parametrize("text", ["", "a\nb", "x" * 300])
async def test_names_on_the_device_are_bounded_text(api: Api, field: str, text: str) -> None:
    artifact = await api.upload(FIRMWARE)
    body = {"type": TYPE, "version": "9", "artifact": artifact["sha256"], field: text}
    assert (await api.ask("POST", "/releases", json=body)).status_code == 400


# jobs


async def test_a_rollouts_name_is_its_jobs_id_with_the_mark_of_ota_updates(api: Api) -> None:
    key = PrivateKey.generate("p256")
    await trust(api, certificate_of(key))
    draft = await a_draft(api)
    await api.post(f"/releases/{draft['id']}/file-signatures", {"signature": signature_of(key)})
    await api.post(f"/releases/{draft['id']}/publish")
    await api.add_devices("meter-1", "meter-2", "meter-3", type_name=TYPE)
    body = {"release": str(draft["id"]), "devices": ["meter-1"]}
    assert (await api.post("/rollouts", body | {"name": "My-OTA-Job"}))["job_id"] == "AFR_OTA-My-OTA-Job"
    assert_problem(
        await api.ask("POST", "/rollouts", json=body | {"devices": ["meter-2"], "name": "my job"}), 400, "invalid-input"
    )
    assert_problem(
        await api.ask("POST", "/rollouts", json=body | {"devices": ["meter-2"], "name": "AFR_OTA-My-OTA-Job"}),
        409,
        "conflict",
    )
    unnamed = await api.post("/rollouts", body | {"devices": ["meter-3"]})
    assert unnamed["name"] == "aws-reference-1.0.1"
    assert unnamed["job_id"] == job_id_of("aws-reference-1.0.1")


@pytest.mark.parametrize("name", ["My-OTA-Job", "AFR_OTA-x", "pump 2.0", "é" * 100, "x" * 128, "-", "2.0"])
def test_every_rollout_has_a_job_id_that_aws_allows(name: str) -> None:
    job_id = job_id_of(name)
    assert job_id.startswith("AFR_OTA-")
    assert 1 <= len(job_id) <= 64
    assert all(one.isascii() and (one.isalnum() or one in "_-") for one in job_id)
    assert job_id_of(name + "?") != job_id
