"""Who signs whole files for devices that check them with a certificate: a key, a program, or somebody elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flota.cli.output import warn
from flota.cli.signers import find_key, named_key_path, read_key_file, read_password
from flota.errors import InvalidInput, NotFound, Refused, WrongUse

if TYPE_CHECKING:
    from flota.trust.file_signatures import FileAlgorithm, FilePublicKey

CERTIFICATE_SUFFIX: Final = ".crt"
SIGNATURE_FILE_MAX_BYTES: Final = 4096

CodeKey = Annotated[
    str | None,
    typer.Option("--code-key", metavar="KEY", help="Sign the file for devices that check it: a key with certificate."),
]
CodeSignerOption = Annotated[
    str | None,
    typer.Option("--code-signer", metavar="exec:COMMAND", help="The same by a program; needs --code-certificate."),
]
CodeCertificateOption = Annotated[
    str | None,
    typer.Option("--code-certificate", metavar="CERT", help="The signer's certificate; else KEY.crt beside the key."),
]


@dataclass(frozen=True, slots=True)
class CodeSigner:
    """Somebody who signs a file by its SHA-256. `certificate` (PEM) None: the server finds the one it was made with."""

    certificate: str | None
    sign: Callable[[bytes], bytes]


def code_signer_from_options(
    *,
    code_key: str | None,
    code_signer: str | None,
    code_certificate: str | None,
    signature: Path | None = None,
    password_prompt: bool = False,
    password_file: Path | None = None,
) -> CodeSigner | None:
    """Return who signs the file, None if no option asks for it.

    One of `code_key` (path or name of a private key), `code_signer` (`exec:COMMAND`) and `signature` (a file that
    somebody else made). Raises `WrongUse` for other combinations, and what reading the files raises.
    """
    given = [one for one in (code_key, code_signer, signature) if one is not None]
    if not given:
        if code_certificate is not None:
            raise WrongUse(
                "--code-certificate without a signature", hint="Give --code-key, --code-signer or --signature."
            )
        return None
    if len(given) > 1:
        raise WrongUse("who signs the file?", hint="Give one of --code-key, --code-signer and --signature.")
    if signature is not None:
        made = read_signature_file(signature)
        return CodeSigner(_read_certificate(code_certificate) if code_certificate else None, lambda _: made)
    if code_key is not None:
        return _with_key(code_key, code_certificate, read_password(prompt=password_prompt, password_file=password_file))
    if code_certificate is None:
        raise WrongUse(
            "--code-signer needs the certificate",
            hint="Give --code-certificate FILE: what the program answers is checked with it.",
        )
    return _with_program(code_signer or "", _read_certificate(code_certificate))


def find_certificate(reference: str) -> Path:
    """Return the file that `reference` means: a path, else NAME.crt in the key directory. Raises `NotFound`."""
    path = Path(reference)
    if path.is_file():
        return path
    try:
        named = named_key_path(reference.removesuffix(CERTIFICATE_SUFFIX)).with_suffix(CERTIFICATE_SUFFIX)
    except InvalidInput:
        named = path
    if named.is_file():
        return named
    raise NotFound(
        "no such certificate",
        found=repr(reference),
        hint="`flota key create NAME --code-signing` makes a key and its certificate.",
    )


def read_certificate_file(path: Path) -> str:
    """Return a certificate file's text. Raises `NotFound`, `BadCertificate`."""
    from flota.trust.code_signing import CERTIFICATE_FILE_MAX_BYTES, parse_chain

    try:
        with path.open("rb") as file:
            data = file.read(CERTIFICATE_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"the certificate cannot be read: {error.strerror}", found=str(path)) from error
    parse_chain(data)
    return data.decode("ascii", "replace")


def read_signature_file(path: Path) -> bytes:
    """Return a signature that somebody else made: raw bytes, or base64 in one or more lines. Raises `InvalidInput`."""
    import base64
    import binascii

    try:
        with path.open("rb") as file:
            data = file.read(SIGNATURE_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"the signature cannot be read: {error.strerror}", found=str(path)) from error
    if not 0 < len(data) <= SIGNATURE_FILE_MAX_BYTES:
        raise InvalidInput(
            "not a signature's length", expected=f"1 to {SIGNATURE_FILE_MAX_BYTES} bytes", found=len(data)
        )
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        return data


def _with_key(code_key: str, code_certificate: str | None, password: str | None) -> CodeSigner:
    from flota.trust.file_signatures import FilePrivateKey

    path = find_key(code_key)
    if path.stat().st_mode & 0o077:
        warn(f"warning: others on this machine can read {path}; `chmod 600 {path}`")
    key = FilePrivateKey.from_pem(read_key_file(path), password)
    beside = path.with_suffix(CERTIFICATE_SUFFIX)
    if code_certificate is None and not beside.is_file():
        raise WrongUse(
            f"there is no certificate beside {path}",
            expected=str(beside),
            hint="Give --code-certificate FILE; `flota key create NAME --code-signing` makes both.",
        )
    certificate = _read_certificate(code_certificate) if code_certificate else read_certificate_file(beside)
    public, algorithm = _key_of(certificate)

    def sign(digest: bytes) -> bytes:
        made = key.sign(digest)
        if public.pem != key.public.pem:
            raise Refused(
                "the certificate is for another key than the one that signs",
                hint="Give the certificate that was made for this key (--code-certificate).",
            )
        public.check(digest, made, algorithm)
        return made

    return CodeSigner(certificate, sign)


def _with_program(code_signer: str, certificate: str) -> CodeSigner:
    from flota.transports.exec_signer import parse_signer, sign_digest_with_program
    from flota.trust.file_signatures import FileSignatureRaw, FileSignatureWrong

    command = parse_signer(code_signer)
    public, algorithm = _key_of(certificate)

    def sign(digest: bytes) -> bytes:
        def is_signature(answer: bytes) -> bool:
            try:
                public.check(digest, answer, algorithm)
            except FileSignatureRaw:
                raise
            except FileSignatureWrong:
                return False
            return True

        return sign_digest_with_program(
            command,
            digest,
            algorithm=str(algorithm),
            takes="sha256",
            key_id=_key_id(public),
            is_signature=is_signature,
        )

    return CodeSigner(certificate, sign)


def _key_id(public: FilePublicKey) -> str:
    from flota.trust.image_keys import ImagePublicKey
    from flota.trust.public_keys import BadKey

    try:
        return ImagePublicKey.from_pem(public.pem).key_id
    except BadKey:  # RSA-2048 has no id of ours
        return ""


def _read_certificate(reference: str) -> str:
    return read_certificate_file(find_certificate(reference))


def _key_of(certificate: str) -> tuple[FilePublicKey, FileAlgorithm]:
    """Return the key in the signer's certificate, and how devices expect its signatures: DER, or PKCS#1 v1.5."""
    from flota.trust.code_signing import parse_chain, public_pem_of
    from flota.trust.file_signatures import FilePublicKey

    signer = parse_chain(certificate.encode("ascii"))[0]
    if signer.not_valid_after_utc < datetime.now(UTC):
        ended = signer.not_valid_after_utc.isoformat(" ", "seconds")
        warn(f"warning: the signer's certificate ended on {ended}; devices that judge its time refuse the file")
    public = FilePublicKey.from_pem(public_pem_of(signer))
    return public, public.algorithms[0]
