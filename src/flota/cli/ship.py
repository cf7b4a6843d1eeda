"""`flota ship`: a file on its way to devices in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flota.cli.code_signers import CodeCertificateOption, CodeKey, CodeSignerOption
from flota.cli.connection import AsJson, CaCert, Server, Token, check_option, comma_list, connect
from flota.cli.output import echo, echo_json, warn
from flota.cli.release import Certfile, Filepath, ReleaseVersion, version_or_name

app = typer.Typer(add_completion=False)


@app.command()
def ship(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The firmware file.")],
    type_name: Annotated[str, typer.Option("--type", metavar="T", help="The device type, or a board's name.")],
    to: Annotated[
        str, typer.Option("--to", metavar="SELECTION", help="A selector (type=pump label.site=berlin), or names: A,B.")
    ],
    version: ReleaseVersion = None,
    key: Annotated[str | None, typer.Option("--key", metavar="K", help="A private key: file or name.")] = None,
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
    trust_key: Annotated[
        bool, typer.Option("--trust-key", help="Let this key's signatures count for the type from now on.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="The rollout's name.")] = None,
    waves: Annotated[
        str, typer.Option("--waves", metavar="SIZES", help="Rising totals, counts or shares: 2,50%,100%.")
    ] = "100%",
    abort_after: Annotated[
        int, typer.Option("--abort-after", min=1, metavar="N", help="Stop when this many devices have failed.")
    ] = 1,
    notes: Annotated[str, typer.Option("--notes", metavar="TEXT")] = "",
    sbom: Annotated[
        Path | None, typer.Option("--sbom", metavar="FILE", help="The release's SBOM: CycloneDX or SPDX, as JSON.")
    ] = None,
    code_key: CodeKey = None,
    code_signer: CodeSignerOption = None,
    code_certificate: CodeCertificateOption = None,
    certfile: Certfile = None,
    filepath: Filepath = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the rollout to its end.")] = True,
    as_json: AsJson = False,
    server: Server = None,
    token: Token = None,
    cacert: CaCert = None,
) -> None:
    """Create, sign, publish and roll out a file in one go, then follow it; exit status 1 if the rollout fails.

    The key signs on this machine, and only a manifest of exactly this file. Run it again after a mishap: what is
    done already is not done twice.

    flota ship pump-2.0.bin --type pump --version 2.0 --to type=pump --key release.pem --waves 2,100%

    flota ship app.bin --type esp32-c3 --version 1.4 --to dev-1,dev-2 --key release.pem --trust-key --no-wait

    flota ship app_V1.0.1.bin --type aws-reference --version 1.0.1 --to thing-1 --key release --code-key ecdsasigner
    """
    from flota.cli.code_signers import code_signer_from_options
    from flota.cli.signers import signer_from_options
    from flota.cli.uploading import upload_progress
    from flota.cli.watching import watch
    from flota.client.shipping import Shipment
    from flota.client.shipping import ship as ship_file
    from flota.fleet.rollouts import check_waves

    version = version_or_name(version, file, say=warn if as_json else echo)
    check_option("--waves", check_waves, waves)
    who = signer_from_options(
        key=key,
        signer=signer,
        public_key=public_key,
        password_prompt=password_prompt,
        password_file=password_file,
    )
    code = code_signer_from_options(code_key=code_key, code_signer=code_signer, code_certificate=code_certificate)
    is_selector = "=" in to or to.strip() == "all"
    shipment = Shipment(
        path=file,
        type_name=type_name,
        version=version,
        devices=None if is_selector else comma_list(to),
        select=to if is_selector else None,
        name=name,
        waves=waves,
        abort_after=abort_after,
        notes=notes,
        trust_key=trust_key,
        sbom=sbom,
        certfile=certfile,
        filepath=filepath,
        code_signer=code,
    )
    with connect(server, token, cacert) as client:
        after = client.last_audit_sequence()
        with upload_progress(file.name) as progress:
            rollout = ship_file(client, shipment, who, say=warn if as_json else echo, progress=progress)
        if as_json:
            echo_json(rollout.as_dict())
        if wait:
            raise typer.Exit(watch(client, rollout, after=after))
    if not as_json and not rollout.is_final:
        echo(f"next       flota rollout watch {rollout.id}")
