"""Clients that others wrote, unmodified, against a real server: rauc-hawkbit's DDIClient and SWUpdate's suricatta."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flota.client.management import ManagementClient
from flota.client.schemas import Execution
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from tests.scenarios.conftest import wait_until
from tests.scenarios.releases import publish
from tests.server.programs import find_program

pytestmark = pytest.mark.scenario

TYPE = "gateway-box"
IMAGE = bytes(range(256)) * 400


def a_device(client: ManagementClient, key: PrivateKey, name: str) -> str:
    client.add_type(TYPE, "generic-linux", signers=[key.public_pem], poll_interval_s=5)
    token = client.add_device(name, TYPE).token
    assert token is not None
    return token


def the_execution(client: ManagementClient, rollout: int) -> Execution:
    wait_until(lambda: client.executions(rollout), within_s=10, what="the wave to open")
    (execution,) = client.executions(rollout)
    return execution


def rauc_hawkbit() -> Any:
    """Return rauc-hawkbit's client module, or skip and say that it is not installed (FLOTA_TEST_ALL: fail)."""
    if importlib.util.find_spec("rauc_hawkbit") is None or importlib.util.find_spec("aiohttp") is None:
        if os.environ.get("FLOTA_TEST_ALL"):
            pytest.fail("rauc-hawkbit is not installed, and FLOTA_TEST_ALL forbids leaving it out")
        pytest.skip("not run: rauc-hawkbit is not installed (make test-deps)")
    from rauc_hawkbit.ddi import client

    return client


def test_rauc_hawkbit_updates_and_cancels(
    server: LocalServer, client: ManagementClient, key: PrivateKey, tmp_path: Path
) -> None:
    ddi = rauc_hawkbit()
    token = a_device(client, key, "box-1")
    first = client.create_rollout(publish(client, key, TYPE, "1.0", IMAGE).id, devices=["box-1"])
    second = client.create_rollout(publish(client, key, TYPE, "2.0", IMAGE + b"2").id, devices=["box-1"])
    action, later = the_execution(client, first.id).id, the_execution(client, second.id).id
    host = server.address.http.removeprefix("http://")

    async def conversation() -> None:
        import aiohttp
        from rauc_hawkbit.ddi import cancel_action, deployment_base

        doing, done = deployment_base.DeploymentStatusExecution, deployment_base.DeploymentStatusResult
        stopping, stopped = cancel_action.CancelStatusExecution, cancel_action.CancelStatusResult
        async with aiohttp.ClientSession() as session:
            box = ddi.DDIClient(session, host, False, token, "DEFAULT", "box-1")
            base = await box()
            assert base["config"]["polling"]["sleep"] == "00:00:05"
            assert set(base["_links"]) == {"configData", "deploymentBase"}
            await box.configData(
                ddi.ConfigStatusExecution.closed, ddi.ConfigStatusResult.success, hw="2", serial="box-1-0001"
            )
            link = (await box())["_links"]
            assert set(link) == {"deploymentBase"}
            number, _, change = link["deploymentBase"]["href"].rpartition("/")[2].partition("?c=")
            assert number == str(action)
            offered = await box.deploymentBase[number](change)
            assert offered["deployment"]["update"] == "forced"
            (chunk,) = offered["deployment"]["chunks"]
            (artifact,) = chunk["artifacts"]
            await box.deploymentBase[number].feedback(doing.proceeding, done.none, ("Downloading",), cnt="1", of="3")
            path = tmp_path / "bundle"
            url = artifact["_links"]["download-http"]["href"]
            assert await box.get_binary(url, path) == artifact["hashes"]["md5"]
            assert path.read_bytes() == IMAGE
            module, name = url.split("/softwaremodules/")[1].split("/artifacts/")
            assert module
            assert await box.get_binary(artifact["_links"]["md5sum-http"]["href"], path, "text/plain")
            assert path.read_text() == f"{artifact['hashes']['md5']}  {name}"
            await box.deploymentBase[number].feedback(doing.proceeding, done.none, ("Installing",), cnt="2", of="3")
            await box.deploymentBase[number].feedback(doing.closed, done.success, ("Installed",))
            link = (await box())["_links"]
            assert set(link) == {"deploymentBase", "installedBase", "configData"}
            number = link["deploymentBase"]["href"].rpartition("/")[2].partition("?c=")[0]
            assert number == str(later)
            await box.deploymentBase[number]("0")
            client.cancel(second.id, reason="wrong file")
            link = (await box())["_links"]
            assert "deploymentBase" not in link
            assert f"/cancelAction/{later}" in link["cancelAction"]["href"]
            assert (await box.cancelAction[number]())["cancelAction"]["stopId"] == number
            await box.cancelAction[number].feedback(stopping.closed, stopped.success, ("stopped",))
            assert set((await box())["_links"]) == {"installedBase", "configData"}
            with pytest.raises(ddi.APIError, match="410"):
                await box.deploymentBase[number].feedback(doing.proceeding, done.none, ("still here",))
            stranger = ddi.DDIClient(session, host, False, "x" * 20, "DEFAULT", "box-1")
            with pytest.raises(ddi.APIError, match="401"):
                await stranger()

    asyncio.run(conversation())
    assert [one.state for one in client.device_executions("box-1")] == ["SUCCEEDED", "CANCELED"]
    assert client.device("box-1").running_version == "1.0"
    assert client.device("box-1").attributes == {"hw": "2", "serial": "box-1-0001"}


# SWUpdate


def signer_for(directory: Path) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    """Return a self-signed certificate whose purpose SWUpdate accepts, and its key; `signer.pem` is the former."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swupdate test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "signer.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def cpio_member(name: str, data: bytes) -> bytes:
    """Return one member of a cpio archive in the `crc` form that SWUpdate reads."""
    encoded = name.encode() + b"\0"
    fields = (1, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), sum(data) & 0xFFFFFFFF)
    head = b"070702" + b"".join(b"%08X" % field for field in fields) + encoded
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def an_swu(directory: Path, payload: bytes, target: Path) -> bytes:
    """Return a signed update that copies `payload` to `target`."""
    certificate, key = signer_for(directory)
    digest = hashlib.sha256(payload).hexdigest()
    description = (
        'software = { version = "1.0"; hardware-compatibility: [ "1.0" ];\n'
        f'  files: ( {{ filename = "payload.txt"; path = "{target}"; sha256 = "{digest}"; }} );\n}};\n'
    ).encode()
    builder = pkcs7.PKCS7SignatureBuilder().set_data(description).add_signer(certificate, key, hashes.SHA256())
    options = [
        pkcs7.PKCS7Options.DetachedSignature,
        pkcs7.PKCS7Options.Binary,
        pkcs7.PKCS7Options.NoCapabilities,
    ]
    signature = builder.sign(serialization.Encoding.DER, options)
    return b"".join(
        (
            cpio_member("sw-description", description),
            cpio_member("sw-description.sig", signature),
            cpio_member("payload.txt", payload),
            cpio_member("TRAILER!!!", b""),
        )
    )


@contextmanager
def swupdate(directory: Path, server: LocalServer, token: str, *more: str) -> Iterator[Path]:
    """Run SWUpdate as a daemon that polls the server as `swu-1`; gives the path of its log."""
    log = directory / "swupdate.log"
    suricatta = ["-t", "DEFAULT", "-u", server.address.http, "-i", "swu-1", "-k", token, "-p", "1", *more]
    command = [
        *(find_program("swupdate"), "-v", "-M", "-m", "-H", "box:1.0"),
        *("-k", str(directory / "signer.pem"), "-u", " ".join(suricatta)),
    ]
    environment = {**os.environ, "TMPDIR": str(directory), "LC_ALL": "C"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.program
def test_swupdate_installs_and_reports(
    server: LocalServer, client: ManagementClient, key: PrivateKey, tmp_path: Path
) -> None:
    find_program("swupdate")
    token = a_device(client, key, "swu-1")
    target = tmp_path / "installed.txt"
    payload = b"the new text " * 5000
    archive = an_swu(tmp_path, payload, target)
    artifact = client.upload_bytes(archive, "box-1.0.swu")
    release = client.create_release(TYPE, "1.0", artifact.sha256)
    signature = key.sign(client.manifest(release.id))
    encoded = base64.b64encode(signature.signature).decode()
    client.add_signature(release.id, signature.key_id, signature.algorithm, encoded)
    client.publish(release.id)
    rollout = client.create_rollout(release.id, devices=["swu-1"])

    def said() -> list[str]:
        found = client.executions(rollout.id)
        return [event.message for event in client.execution_events(found[0].id)] if found else []

    with swupdate(tmp_path, server, token) as log:
        try:
            wait_until(lambda: any("All Chunks Installed" in line for line in said()), within_s=40, what="installation")
        except AssertionError:
            pytest.fail(log.read_text(errors="replace")[-4000:])
    assert target.read_bytes() == payload
    assert client.executions(rollout.id)[0].state == "IN_PROGRESS"
    with swupdate(tmp_path, server, token, "-c", "2"):  # as after the reboot into the new system
        wait_until(lambda: client.executions(rollout.id)[0].state == "SUCCEEDED", within_s=20, what="the report")
    # what it runs is written with other sightings, up to 50 ms after the execution's end
    wait_until(lambda: client.device("swu-1").running_version == "1.0", within_s=5, what="its version is known")
    assert client.device("swu-1").last_route == "ddi"
