"""`flota release`: draft, sign, publish, withdraw."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flota.cli.code_signers import CodeCertificateOption, CodeKey, CodeSignerOption
from flota.cli.connection import AsJson, CaCert, Server, Token, check_option, connect
from flota.cli.output import echo, echo_json, print_table, warn
from flota.errors import Refused, WrongUse

if TYPE_CHECKING:
    from flota.client.schemas import Release

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Releases: create, sign, publish, withdraw.")

Certfile = Annotated[
    str | None,
    typer.Option("--certfile", metavar="NAME", help="What the device calls the certificate that it checks files with."),
]
Filepath = Annotated[
    str | None, typer.Option("--filepath", metavar="PATH", help="Where the device keeps the file; else its name.")
]
ReleaseVersion = Annotated[
    str | None,
    typer.Option("--version", metavar="V", help="The release's version; else the _V1.2.3 that FILE's name ends with."),
]
Reference = Annotated[str, typer.Argument(metavar="RELEASE", help="Its number, or TYPE@VERSION.")]


def version_or_name(version: str | None, file: Path, *, say: Callable[[str], None]) -> str:
    """Return the version that was given, else the one in the file's name, and say so. Raises `WrongUse` without."""
    from flota.images.nuvoton import version_in_name
    from flota.versions import parse_version

    if version is not None:
        check_option("--version", parse_version, version)
        return version
    said = version_in_name(file.name)
    if said is None:
        raise WrongUse(
            "--version is missing, and the file's name does not end with one",
            expected="--version V, or a name such as app_V1.0.1.bin",
            found=file.name,
        )
    say(f"version    {said}, from the file's name")
    return said


@app.command("create")
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The firmware file.")],
    type_name: Annotated[str, typer.Option("--type", metavar="T", help="The device type, or a board's name.")],
    version: ReleaseVersion = None,
    notes: Annotated[str, typer.Option("--notes", metavar="TEXT")] = "",
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="ISO 8601, e.g. 2030-01-31: devices refuse it from then on."),
    ] = None,
    sbom: Annotated[
        Path | None, typer.Option("--sbom", metavar="FILE", help="The software in it: CycloneDX or SPDX, as JSON.")
    ] = None,
    certfile: Certfile = None,
    filepath: Filepath = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Upload a file, check that it fits the type's board, and draft a release of it.

    flota release create pump-2.0.bin --type pump --version 2.0

    flota release create pump-2.0.bin --type pump --version 2.0 --sbom pump-2.0.cdx.json

    flota release create app_V1.0.1.bin --type aws-reference --version 1.0.1 --certfile Code_Verify_Key
    """
    from flota.cli.uploading import upload
    from flota.client.shipping import describe_sbom, describe_upload, read_sbom_file

    version = version_or_name(version, file, say=warn if as_json else echo)
    expires_at = _time(expires)
    listed = read_sbom_file(sbom) if sbom is not None else None
    with connect(server, token, cacert) as client:
        artifact = upload(client, file)
        if not as_json:
            echo(describe_upload(artifact))
        stored = client.upload_bytes(listed, sbom.name) if listed is not None and sbom is not None else None
        made = client.create_release(
            type_name,
            version,
            artifact.sha256,
            notes=notes,
            expires_at=expires_at,
            filename=file.name,
            sbom_sha256=stored.sha256 if stored else None,
            sbom_filename=sbom.name if sbom else None,
            certfile=certfile,
            filepath=filepath,
        )
    for warning in made.warnings:
        warn(f"warning: {warning}")
    if as_json:
        echo_json({**made.as_dict(), "artifact": artifact.as_dict()})
        return
    echo(f"release    {made.id}, {made.type} {made.version}, sequence {made.sequence}, {made.state}")
    if made.sbom is not None:
        echo(describe_sbom(made.sbom))
    code = f" --code-key KEY --file {file}" if made.file_signature_needed else ""
    echo(f"next       flota release sign {made.id} --key KEY{code}")


@app.command("sign")
def sign(
    release: Reference,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="A private key: file or name.")] = None,
    signer: Annotated[
        str | None, typer.Option("--signer", metavar="exec:COMMAND", help="A program that signs: HSM, YubiKey, KMS.")
    ] = None,
    public_key: Annotated[
        str | None, typer.Option("--public-key", metavar="PUB", help="The program's public key.")
    ] = None,
    password_prompt: Annotated[bool, typer.Option("--password-prompt", help="Ask for the key's password.")] = False,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="FILE", help="The key's password: its first line.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Sign only if the release is of exactly this file."),
    ] = None,
    trust_key: Annotated[
        bool, typer.Option("--trust-key", help="Let this key, or certificate, count for the type from now on.")
    ] = False,
    code_key: CodeKey = None,
    code_signer: CodeSignerOption = None,
    code_certificate: CodeCertificateOption = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            "--signature", metavar="SIG", help="Or hand in a signature over the file that was made elsewhere."
        ),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Sign a release's manifest here, and hand the signature in. The key never leaves this machine.

    With --code-key, --code-signer or --signature the whole file is signed too, or instead, for devices that check it
    with a certificate built into them (AWS IoT's OTA agent).

    flota release sign 3 --key release.pem --file pump-2.0.bin

    flota release sign pump@2.0 --signer exec:./sign-with-hsm --public-key release.pub

    flota release sign 3 --key release --code-key ecdsasigner --file app_V1.0.1.bin
    """
    from flota.cli.code_signers import code_signer_from_options
    from flota.cli.signers import signer_from_options
    from flota.client.shipping import digests_of_file, ensure_trusted, sign_file, sign_release

    code = code_signer_from_options(
        code_key=code_key,
        code_signer=code_signer,
        code_certificate=code_certificate,
        signature=signature,
        password_prompt=password_prompt and key is None,
        password_file=password_file if key is None else None,
    )
    if code is not None and signature is None and file is None:
        raise WrongUse(
            "which file is to be signed?",
            hint="Give --file FILE: what a server says that its file is should not be signed unseen.",
        )
    who = None
    if code is None or key is not None or signer is not None:
        who = signer_from_options(
            key=key,
            signer=signer,
            public_key=public_key,
            password_prompt=password_prompt,
            password_file=password_file,
        )
    say = warn if as_json else echo
    with connect(server, token, cacert) as client:
        found = client.release(release)
        if who is not None:
            ensure_trusted(client, client.device_type(found.type), who, add=trust_key, say=say)
        digests = digests_of_file(file) if file is not None else None
        if digests is not None and digests.sha256 != found.artifact.sha256:
            raise Refused(
                f"{file} is not the file that release {found.id} was made of: it was not signed",
                expected=f"{found.artifact.sha256} ({found.artifact.filename}, {found.artifact.size} bytes)",
                found=f"{digests.sha256} ({digests.size} bytes)",
                hint="Is --file the file that was uploaded? If it is, do not sign: the server holds other bytes. "
                "Look at its audit trail: flota audit list.",
            )
        signed = found
        if code is not None:
            signed = sign_file(client, found, code, digests=digests, trust=trust_key, say=say)
        if who is not None:
            signed = sign_release(client, found, who, digests=digests, say=say)
    if as_json:
        echo_json(signed.as_dict())
    elif signed.state == "signed":
        echo(f"next       flota release publish {signed.id}")


@app.command("publish")
def publish(
    release: Reference, as_json: AsJson = False, server: Server = None, token: Token = None, cacert: CaCert = None
) -> None:
    """Publish a release that has its signatures; only then can it be rolled out.

    flota release publish 3
    """
    with connect(server, token, cacert) as client:
        _show(client.publish(release), as_json)


@app.command("withdraw")
def withdraw(
    release: Reference,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the audit trail.")] = "",
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Withdraw a release for ever: no device is offered it any more, its rollouts are canceled.

    flota release withdraw pump@2.0 --reason "pump stalls below 5 degrees"
    """
    with connect(server, token, cacert) as client:
        _show(client.withdraw(release, reason=reason), as_json)


@app.command("list")
def list_releases(
    type_name: Annotated[str | None, typer.Option("--type", metavar="T", help="Of this type only.")] = None,
    state: Annotated[
        Literal["draft", "signed", "published", "withdrawn"] | None,
        typer.Option(
            "--state",
        ),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """List releases, oldest first.

    flota release list --type pump --state published
    """
    with connect(server, token, cacert) as client:
        found = client.list_releases(type_name=type_name, state=state)
    if as_json:
        echo_json([one.as_dict() for one in found])
        return
    print_table(
        ["id", "type", "version", "sequence", "state", "signatures", "size", "file"],
        [
            (
                one.id,
                one.type,
                one.version,
                one.sequence,
                one.state,
                f"{len(one.signatures)}/{one.signatures_needed}",
                one.artifact.size,
                one.filename,
            )
            for one in found
        ],
    )


@app.command("show")
def show(
    release: Reference,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", metavar="FILE", help="Write the exact bytes that are signed to FILE.")
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Show a release: what it ships, who signed it, what to know about it.

    flota release show pump@2.0 --manifest manifest.json
    """
    with connect(server, token, cacert) as client:
        found = client.release(release)
        if manifest is not None:
            from flota.durable_files import write_durably

            write_durably(manifest, client.manifest(found.id))
    _show(found, as_json)


@app.command("sbom")
def sbom(
    release: Reference,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it here; else to standard output.")
    ] = None,
    attach: Annotated[
        Path | None,
        typer.Option("--attach", metavar="FILE", help="Give the draft this SBOM instead: CycloneDX or SPDX, as JSON."),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Fetch a release's SBOM, byte for byte as it was uploaded; or give one to a draft.

    flota release sbom pump@2.0 -o pump-2.0.cdx.json

    flota release sbom 3 --attach pump-2.0.cdx.json
    """
    from flota.client.shipping import read_sbom_file

    if attach is not None:
        if output is not None:
            raise WrongUse("an SBOM is either fetched or attached", hint="Give -o or --attach, not both.")
        listed = read_sbom_file(attach)
        with connect(server, token, cacert) as client:
            stored = client.upload_bytes(listed, attach.name)
            _show(client.set_sbom(release, stored.sha256, filename=attach.name), as_json)
        return
    with connect(server, token, cacert) as client:
        found = client.release(release)
        data = client.sbom(found.id)
    shown = found.sbom
    digest = hashlib.sha256(data).hexdigest()
    if shown is None or digest != shown.sha256:
        raise Refused(
            "the SBOM that came is not the one of the release",
            expected=shown.sha256 if shown else "none",
            found=digest,
            hint="Fetch it again; if it stays so, the server's store is damaged.",
        )
    if output is None and not as_json:
        sys.stdout.buffer.write(data)
        return
    if output is not None:
        from flota.cli.image_files import write_file

        write_file(output, data)
    if as_json:
        echo_json({**shown.as_dict(), "path": str(output) if output else None})
    else:
        echo(f"{output}  {shown.summary}, {shown.size} bytes")


def _show(one: Release, as_json: bool) -> None:
    if as_json:
        echo_json(one.as_dict())
        return
    rows = [
        ("release", f"{one.id}, {one.type} {one.version}"),
        ("state", one.state),
        ("sequence", str(one.sequence)),
        ("file", f"{one.filename}, {one.artifact.size} bytes, {one.artifact.format}"),
        ("sha256", one.artifact.sha256),
        ("manifest sha256", one.manifest_sha256),
        ("expires", one.expires_at.isoformat() if one.expires_at else "never"),
    ]
    if one.sbom is not None:
        rows += [
            ("sbom", f"{one.sbom.filename}, {one.sbom.summary}"),
            ("sbom sha256", one.sbom.sha256),
        ]
    rows += [("signed by", f"{signature.key_id} ({signature.algorithm})") for signature in one.signatures]
    rows.append(("signatures", f"{len(one.signatures)} of {one.signatures_needed} needed"))
    rows += [("code signature", f"{code.name}, certificate {code.certificate_sha256}") for code in one.file_signatures]
    if one.file_signature_needed and not one.file_signatures:
        rows.append(("code signature", f"none yet, needed: {' or '.join(one.file_signature_needed)}"))
    rows += [("certfile", one.certfile)] if one.certfile is not None else []
    rows += [("filepath", one.filepath)] if one.filepath is not None else []
    rows += [("warning", warning) for warning in one.warnings]
    for name, value in rows:
        echo(f"{name:<16} {value}")


def _time(text: str | None):  # type: ignore[no-untyped-def]
    from datetime import UTC, datetime

    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"--expires: not a time: {text!r}") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
