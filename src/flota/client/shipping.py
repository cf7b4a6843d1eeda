"""From a file to a rollout in one go: upload, draft, sign, publish, roll out; every step said, none done twice.

What is signed is checked first, here, against the file on this machine: a server that was broken into can only offer
manifests that nobody signs.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from flota.client.management import ManagementClient, Progress
from flota.client.schemas import Artifact, DeviceType, Release, Rollout, Sbom
from flota.client.shipped_before import Selection, rollout_to_reuse
from flota.digests import DigestAccumulator, FileDigests
from flota.errors import Conflict, InvalidInput, Refused
from flota.images.sbom import SBOM_MAX_BYTES, parse_sbom
from flota.trust.manifest import Manifest, parse_manifest
from flota.trust.signatures import Signature

READ_BYTES: Final = 1024 * 1024

Say = Callable[[str], None]
"""Called with one line of text for each step."""


class Signer(Protocol):
    """Somebody who can sign: a private key in a file, or a program."""

    @property
    def key_id(self) -> str:
        """Hex SHA-256 of the public key."""
        ...

    @property
    def public_pem(self) -> str:
        """The public key in PEM."""
        ...

    @property
    def sign(self) -> Callable[[bytes], Signature]:
        """Return the signature of a message."""
        ...


class CodeSigner(Protocol):
    """Somebody who signs a whole file by its SHA-256, for devices that check it themselves."""

    @property
    def certificate(self) -> str | None:
        """The signer's certificate (PEM); None: the server finds the one that the signature was made with."""
        ...

    @property
    def sign(self) -> Callable[[bytes], bytes]:
        """Return the signature over the file with this SHA-256 (32 bytes)."""
        ...


@dataclass(frozen=True, slots=True)
class Shipment:
    """What goes where. Exactly one of `devices` and `select`; the rest as in `ManagementClient.create_rollout`.

    `trust_key`: make the signer one of the type's signers if it is not yet (needs an administrator's token).
    """

    path: Path
    type_name: str
    version: str
    devices: Sequence[str] | None = None
    select: str | None = None
    name: str | None = None
    waves: str = "100%"
    abort_after: int = 1
    notes: str = ""
    trust_key: bool = False
    sbom: Path | None = None
    certfile: str | None = None
    filepath: str | None = None
    code_signer: CodeSigner | None = None


def read_sbom_file(path: Path) -> bytes:
    """Return an SBOM's bytes, seen to be one before anything goes to a server.

    Raises `InvalidInput` if it cannot be read, and as `images.sbom.parse_sbom`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SBOM_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    parse_sbom(data)
    return data


def describe_sbom(sbom: Sbom) -> str:
    """Return the line that tells which SBOM a release has."""
    return f"sbom       {sbom.summary}, {sbom.sha256[:16]}…"


def digests_of_file(path: Path) -> FileDigests:
    """Return the digests of a local file. Raises `InvalidInput` if it cannot be read or is empty."""
    accumulator = DigestAccumulator()
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                accumulator.update(piece)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    if accumulator.size == 0:
        raise InvalidInput(f"{path} is empty", expected="at least one byte", found="0 bytes")
    return accumulator.finish()


def ship(
    client: ManagementClient, shipment: Shipment, signer: Signer, *, say: Say, progress: Progress | None = None
) -> Rollout:
    """Do all steps and return the rollout, which has then begun. What an earlier try has done already is used.

    An open rollout of the release with the same selection is returned as it is, and one that succeeded if every
    selected device runs the release already.

    Raises `Refused` (the image does not fit, the key is not trusted, signatures are missing) and what the server says.
    """
    digests = digests_of_file(shipment.path)
    sbom = read_sbom_file(shipment.sbom) if shipment.sbom is not None else None
    ensure_trusted(client, client.device_type(shipment.type_name), signer, add=shipment.trust_key, say=say)
    artifact = client.upload_artifact(shipment.path, progress=progress)
    say(describe_upload(artifact))
    if artifact.sha256 != digests.sha256:
        raise Conflict(
            "what the server stored is not what this machine read",
            expected=digests.sha256,
            found=artifact.sha256,
            hint="Did the file change while it was sent? Run the command again.",
        )
    release = _draft(client, shipment, artifact, say)
    if sbom is not None and shipment.sbom is not None:
        release = _attach_sbom(client, release, sbom, shipment.sbom.name, say)
    if release.state == "draft":
        release = sign_release(client, release, signer, digests=digests, say=say)
    if release.state == "draft":
        missing = release.signatures_needed - len(release.signatures)
        raise Refused(
            f"release {release.id} needs {missing} more signature{'s' if missing > 1 else ''}",
            expected=f"{release.signatures_needed} signatures",
            found=f"{len(release.signatures)}",
            hint=f"Let others sign it: flota release sign {release.id} --key KEY; then run this command again.",
        )
    if shipment.code_signer is not None and release.state != "published":
        release = sign_file(client, release, shipment.code_signer, digests=digests, trust=shipment.trust_key, say=say)
    if release.state != "published":
        release = client.publish(release.id)
        say(f"published  release {release.id}, {release.type} {release.version}")
    begun = rollout_to_reuse(client, release, Selection(shipment.devices, shipment.select), name=shipment.name, say=say)
    if begun is not None:
        if not begun.is_final:
            say(_describe_begun(begun))
        return begun
    rollout = client.create_rollout(
        release.id,
        devices=shipment.devices,
        select=shipment.select,
        name=shipment.name,
        waves=shipment.waves,
        abort_after=shipment.abort_after,
    )
    sizes = ", ".join(str(wave.size) for wave in rollout.waves)
    say(f"rollout    {rollout.name} ({rollout.id}): {rollout.devices} devices in waves of {sizes}")
    return rollout


def _describe_begun(rollout: Rollout) -> str:
    sizes = ", ".join(str(wave.size) for wave in rollout.waves)
    text = f"rollout    {rollout.name} ({rollout.id}) is there already ({rollout.state}): "
    text += f"{rollout.devices} devices in waves of {sizes}; another one needs another --name"
    return text + (f"; go on with `flota rollout resume {rollout.id}`" if rollout.state == "paused" else "")


def _draft(client: ManagementClient, shipment: Shipment, artifact: Artifact, say: Say) -> Release:
    """Return a new release, or the one that an earlier try made of the same bytes."""
    try:
        release = client.create_release(
            shipment.type_name,
            shipment.version,
            artifact.sha256,
            notes=shipment.notes,
            filename=shipment.path.name,
            certfile=shipment.certfile,
            filepath=shipment.filepath,
        )
    except Conflict as conflict:
        release = client.release(f"{shipment.type_name}@{shipment.version}")
        if release.artifact.sha256 != artifact.sha256 or release.state == "withdrawn":
            raise conflict from None
        say(f"release    {release.id} is there already ({release.state})")
    else:
        say(f"release    {release.id}, {release.type} {release.version}, sequence {release.sequence}, draft")
    for warning in release.warnings:
        say(f"warning    {warning}")
    return release


def _attach_sbom(client: ManagementClient, release: Release, sbom: bytes, filename: str, say: Say) -> Release:
    """Return the release with this SBOM; an earlier try may have given it the same one already."""
    stored = client.upload_bytes(sbom, filename)
    if release.sbom is None or release.sbom.sha256 != stored.sha256:
        release = client.set_sbom(release.id, stored.sha256, filename=filename)
    if release.sbom is not None:
        say(describe_sbom(release.sbom))
    return release


def ensure_trusted(client: ManagementClient, device_type: DeviceType, signer: Signer, *, add: bool, say: Say) -> None:
    """Return if the key's signatures count for the type; with `add`, make them count. Raises `Refused` otherwise."""
    if any(one.key_id == signer.key_id for one in device_type.signers):
        return
    if not add:
        raise Refused(
            f"key {signer.key_id[:16]}… is not trusted for type {device_type.name}",
            expected=", ".join(f"{one.key_id[:16]}…" for one in device_type.signers) or "a key; the type has none yet",
            found=signer.key_id,
            hint=f"If it should be, say so: flota type trust {device_type.name} --key PUBLIC_KEY, or add --trust-key.",
        )
    client.trust(device_type.name, [signer.public_pem])
    say(f"trusted    key {signer.key_id[:16]}… signs for type {device_type.name} from now on")


def sign_release(
    client: ManagementClient, release: Release, signer: Signer, *, digests: FileDigests | None = None, say: Say
) -> Release:
    """Fetch the manifest, check that it says what is meant, sign it here, hand the signature in; returns the release.

    With `digests`, those of the file as it is on this machine, the manifest has to name these bytes.
    """
    manifest = client.manifest(release.id)
    check_manifest(parse_manifest(manifest), type_name=release.type, version=release.version, digests=digests)
    signature = signer.sign(manifest)
    signed = client.add_signature(
        release.id, signature.key_id, signature.algorithm, base64.b64encode(signature.signature).decode("ascii")
    )
    have, need = len(signed.signatures), signed.signatures_needed
    say(f"signed     release {signed.id} with key {signature.key_id[:16]}… ({have} of {need} signatures)")
    return signed


def sign_file(
    client: ManagementClient,
    release: Release,
    signer: CodeSigner,
    *,
    digests: FileDigests | None,
    trust: bool = False,
    say: Say,
) -> Release:
    """Sign the release's whole file here and hand the signature in; returns the release.

    With `digests`, those of the file as it is on this machine, just these bytes are signed, and the release has to be
    of them; without, a signature that was made elsewhere is handed in. `trust`: let the certificate count for the type.
    """
    if digests is not None and digests.sha256 != release.artifact.sha256:
        raise Refused(
            f"release {release.id} is of another file: it was not signed",
            expected=release.artifact.sha256,
            found=digests.sha256,
            hint="Is it the file that was uploaded? If it is, do not sign: the server holds other bytes.",
        )
    made = signer.sign(bytes.fromhex(digests.sha256 if digests is not None else release.artifact.sha256))
    if trust and signer.certificate is not None:
        trusted = client.trust_code_certificates(release.type, [signer.certificate])
        say(f"trusted    {len(trusted.code_certificates)} code-signing certificates of type {release.type}")
    signed = client.add_file_signature(
        release.id, base64.b64encode(made).decode("ascii"), certificate=signer.certificate
    )
    for one in signed.file_signatures:
        say(f"code       {one.name}, certificate {one.certificate_sha256[:16]}…")
    return signed


def check_manifest(manifest: Manifest, *, type_name: str, version: str, digests: FileDigests | None) -> None:
    """Return if a manifest names this type, this version and these bytes; raises `Refused`: nobody should sign it."""
    facts = [("device type", type_name, manifest.device_type), ("version", version.strip(), manifest.version)]
    if digests is not None:
        component = manifest.components[0]
        facts += [
            ("number of components", "1", str(len(manifest.components))),
            ("SHA-256", digests.sha256, component.sha256),
            ("size", str(digests.size), str(component.size)),
        ]
    for name, expected, found in facts:
        if expected != found:
            raise Refused(
                f"the server's manifest names another {name}: it was not signed",
                expected=expected,
                found=found,
                hint="Do not sign it. Look at the server's audit trail: flota audit list.",
            )


def describe_upload(artifact: Artifact) -> str:
    """Return the line that tells what an upload brought."""
    seen = "stored already" if artifact.already_stored else "stored"
    version = f", version {artifact.image_version}" if artifact.image_version else ""
    return f"artifact   {artifact.sha256[:16]}… {seen}: {artifact.size} bytes, {artifact.format}{version}"
