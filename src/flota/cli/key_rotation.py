"""`flota key rotate`: change whom devices and gateways believe, offline, by a document that old and new keys sign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flota.cli.output import echo, echo_json
from flota.cli.signers import read_public_key, signer_from_options
from flota.errors import Conflict, FlotaError, InvalidInput, NotFound

if TYPE_CHECKING:
    from flota.trust.rotation import Rotation
    from flota.trust.trust_file import TrustedSigners

app = typer.Typer(no_args_is_help=True, help="Change the trusted keys: propose, sign, apply.")

_TRUST = typer.Option(..., "--trust", metavar="FILE", help="The trust file that devices or gateways have now.")
_ROTATION = typer.Argument(..., metavar="ROTATION", help="The file that `propose` wrote.")


@app.command()
def propose(
    trust: Path = _TRUST,
    output: Path = typer.Option(..., "-o", "--output", metavar="ROTATION", help="Write the unsigned document here."),
    add: list[str] = typer.Option([], "--add", metavar="PUB", help="Name or file of a key to trust from now on."),
    remove: list[str] = typer.Option([], "--remove", metavar="KEY", help="Key id, name or file: no longer trusted."),
    revoke: list[str] = typer.Option([], "--revoke", metavar="KEY", help="The same, and never to be trusted again."),
    threshold: int | None = typer.Option(None, "--threshold", metavar="N", help="So many keys must sign a release."),
) -> None:
    """Write the document that changes the trusted keys; nobody has signed it yet.

    flota key rotate propose --trust trust.json --add new.pub --revoke old.pub -o rotation.json
    """
    from flota.trust.rotation import Rotation, missing_signatures, next_signers, pack_rotation, pack_signers

    if output.exists():
        raise Conflict("there is a file of that name already", found=str(output), hint="Nothing was changed.")
    present = _read_trust(trust)
    if not (add or remove or revoke or threshold is not None):
        raise InvalidInput("what should change?", hint="Give --add, --remove, --revoke or --threshold.")
    signers = next_signers(
        present,
        add=[read_public_key(item) for item in add],
        remove=[_key_id(item) for item in remove],
        revoke=[_key_id(item) for item in revoke],
        threshold=threshold,
    )
    rotation = Rotation(pack_signers(signers))
    _write(output, pack_rotation(rotation))
    _print_signers(signers)
    old, new = missing_signatures(present, rotation)
    echo(f"to be signed by {old} of the old and {new} of the new keys: flota key rotate sign {output} --key KEY")


@app.command()
def sign(
    rotation: Path = _ROTATION,
    key: str | None = typer.Option(None, "--key", metavar="KEY", help="Name or file of an old or a new private key."),
    signer: str | None = typer.Option(None, "--signer", metavar="exec:COMMAND", help="A program that signs."),
    public_key: str | None = typer.Option(None, "--public-key", metavar="PUB", help="The program's public key."),
    password_prompt: bool = typer.Option(False, "--password-prompt", help="Ask for a password on the terminal."),
    password_file: Path | None = typer.Option(None, "--password-file", metavar="FILE", help="Its first line."),
) -> None:
    """Show what the document says and add a key's signature to it.

    flota key rotate sign rotation.json --key old
    """
    from flota.trust.rotation import pack_rotation, parse_signers

    carried = _read_rotation(rotation)
    _print_signers(parse_signers(carried.document))
    who = signer_from_options(
        key=key,
        signer=signer,
        public_key=public_key,
        password_prompt=password_prompt,
        password_file=password_file,
    )
    _write(rotation, pack_rotation(carried.signed(who.sign(carried.document))))
    echo(f"signed by {who.key_id}")


@app.command()
def apply(
    rotations: list[Path] = typer.Argument(..., metavar="ROTATION…", help="One or more, oldest first."),
    trust: Path = _TRUST,
    output: Path | None = typer.Option(None, "-o", "--output", metavar="FILE", help="Write here, else over --trust."),
    check: bool = typer.Option(False, "--check", help="Only verify; write nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print the new trust as JSON."),
) -> None:
    """Verify rotations against a trust file and write the new trust file: all of them or nothing.

    flota key rotate apply rotation.json --trust trust.json
    """
    from flota.trust.rotation import accept_rotations
    from flota.trust.trust_file import pack_trust_file

    signers = accept_rotations(_read_trust(trust), [_read_rotation(path) for path in rotations])
    if not check:
        _write(output if output is not None else trust, pack_trust_file(signers))
    if as_json:
        echo_json(_facts(signers))
        return
    _print_signers(signers)
    echo("verified, nothing written" if check else f"written to {output if output is not None else trust}")


def _print_signers(signers: TrustedSigners) -> None:
    echo(f"version    {signers.version}, for {signers.device_type or 'every device type'}")
    echo(f"threshold  {signers.threshold} of {len(signers.keys)}")
    for key_id in sorted(signers.keys):
        echo(f"trusted    {key_id}")
    for key_id in sorted(signers.revoked):
        echo(f"revoked    {key_id}")


def _facts(signers: TrustedSigners) -> dict[str, object]:
    return {
        "device_type": signers.device_type,
        "version": signers.version,
        "threshold": signers.threshold,
        "keys": sorted(signers.keys),
        "revoked": sorted(signers.revoked),
    }


def _key_id(reference: str) -> str:
    """Return the key id that a key id, a name or a file of a public key means."""
    from flota.trust.public_keys import key_id_of

    if len(reference) == 64 and all(digit in "0123456789abcdef" for digit in reference):
        return reference
    return key_id_of(read_public_key(reference))


def _read_trust(path: Path) -> TrustedSigners:
    from flota.trust.trust_file import TRUST_FILE_MAX_BYTES, parse_trust_file

    return parse_trust_file(_read(path, TRUST_FILE_MAX_BYTES))


def _read_rotation(path: Path) -> Rotation:
    from flota.trust.rotation import ROTATION_MAX_BYTES, parse_rotation

    try:
        return parse_rotation(_read(path, ROTATION_MAX_BYTES))
    except FlotaError as error:
        error.hint = error.hint or f"The file is {path}."
        raise


def _read(path: Path, max_bytes: int) -> bytes:
    """Return the file's bytes, one more than `max_bytes` at most, so that parsers see that it is too long."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", found=str(path)) from error


def _write(path: Path, data: bytes) -> None:
    from flota.durable_files import write_durably

    try:
        write_durably(path, data)
    except OSError as error:
        raise InvalidInput(f"the file cannot be written: {error.strerror}", found=str(path)) from error
