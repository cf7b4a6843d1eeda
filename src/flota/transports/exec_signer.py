"""`--signer exec:COMMAND`: a program of the user's own signs, for keys that live in an HSM, a YubiKey or a cloud's KMS.

The program gets on stdin, then end of file:

- for a P-256 key the 32 bytes of the manifest's SHA-256. It answers with the DER ECDSA signature over that digest;
- for an Ed25519 key the manifest itself (at most 16 KiB): pure Ed25519 (RFC 8032) hashes twice and cannot start from a
  digest. It answers with the 64 bytes of the signature.

It answers on stdout with the raw signature and nothing else, and exits with 0. Its environment also says which it is:
`FLOTA_SIGN_ALGORITHM` (`ecdsa-p256-sha256`, `ed25519`), `FLOTA_SIGN_INPUT` (`sha256`, `message`), `FLOTA_SIGN_KEY_ID`.
stderr and the terminal stay the program's, so that it can ask for a PIN or a touch.
Source: docs/how-to/sign-releases.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import Final

from flota.errors import FlotaError, InvalidInput, WrongUse
from flota.trust.public_keys import Algorithm, PublicKey
from flota.trust.signatures import SIGNATURE_MAX_BYTES, Signature

EXEC_PREFIX: Final = "exec:"
SIGNER_TIMEOUT_S: Final = 120.0
"""Long enough for a person to find the token, type the PIN and touch it."""
MESSAGE_MAX_BYTES: Final = 16 * 1024
"""What a pipe takes without a reader on every system that we know; a manifest is never longer."""
EXIT_GRACE_S: Final = 2.0


class SignerError(FlotaError):
    """The signing program did not give a usable signature."""

    code = "signer-failed"


class SignerTimeoutError(SignerError):
    """The signing program gave no answer in time and was ended."""

    code = "signer-timed-out"


def parse_signer(text: str) -> tuple[str, ...]:
    """Return program and arguments of `exec:COMMAND`, split as a shell would; no shell runs. Raises `WrongUse`."""
    if not text.startswith(EXEC_PREFIX):
        raise WrongUse("unknown kind of signer", expected="exec:COMMAND", found=repr(text[:64]))
    try:
        command = tuple(shlex.split(text.removeprefix(EXEC_PREFIX)))
    except ValueError as error:
        raise WrongUse(f"the signer's command cannot be split: {error}", found=repr(text[:128])) from error
    if not command:
        raise WrongUse("the signer's command is empty", expected="exec:COMMAND")
    return command


def sign_with_program(
    command: tuple[str, ...], message: bytes, public_pem: str, *, timeout_s: float = SIGNER_TIMEOUT_S
) -> Signature:
    """Return the program's signature of `message`, already checked against the public key.

    Raises `SignerError` (not started, exit status, no or too much output, a signature of another key),
    `SignerTimeoutError` after `timeout_s`, or `BadKey`.
    """
    key = PublicKey.from_pem(public_pem)
    if len(message) > MESSAGE_MAX_BYTES:
        raise InvalidInput(
            "too long to sign", expected=f"at most {MESSAGE_MAX_BYTES} bytes", found=f"{len(message)} bytes"
        )
    digest_in = key.algorithm is Algorithm.ECDSA_P256_SHA256
    environment = os.environ | {
        "FLOTA_SIGN_ALGORITHM": key.algorithm.value,
        "FLOTA_SIGN_INPUT": "sha256" if digest_in else "message",
        "FLOTA_SIGN_KEY_ID": key.key_id,
    }
    given = hashlib.sha256(message).digest() if digest_in else message
    output = _run(command, given, environment, timeout_s)
    if not key.is_signature_of(message, output):
        raise SignerError(
            "the signer's answer is not a signature by the public key",
            expected="a DER ECDSA signature over the 32 bytes on stdin" if digest_in else "64 bytes of Ed25519",
            found=_describe(output),
            hint="The program has to write the raw signature to stdout and nothing else; check --public-key as well.",
        )
    return Signature(key_id=key.key_id, algorithm=key.algorithm.value, signature=output)


def sign_digest_with_program(
    command: tuple[str, ...],
    digest: bytes,
    *,
    algorithm: str,
    takes: str,
    key_id: str,
    is_signature: Callable[[bytes], bool],
    timeout_s: float = SIGNER_TIMEOUT_S,
) -> bytes:
    """Return the program's signature of the MCUboot image with the SHA-256 `digest`, already checked by `is_signature`.

    The program gets the 32 bytes of the digest for every kind of key; `algorithm`, `takes` (`sha256`, or `message` when
    the digest is the whole message) and `key_id` go into its environment. Raises `SignerError` or `SignerTimeoutError`.
    Source: docs/reference/mcuboot.md.
    """
    environment = os.environ | {
        "FLOTA_SIGN_ALGORITHM": algorithm,
        "FLOTA_SIGN_INPUT": takes,
        "FLOTA_SIGN_KEY_ID": key_id,
    }
    output = _run(command, digest, environment, timeout_s)
    if not is_signature(output):
        raise SignerError(
            "the signer's answer is not a signature by the public key",
            expected=f"{algorithm} over the 32 bytes on stdin",
            found=_describe(output),
            hint="The program has to write the raw signature to stdout and nothing else; check --public-key as well.",
        )
    return output


def _run(command: tuple[str, ...], given: bytes, environment: dict[str, str], timeout_s: float) -> bytes:
    """Feed the program, read its whole output within the time, and see it end well."""
    deadline = time.monotonic() + timeout_s
    try:
        program = subprocess.Popen(  # noqa: S603 - the command is the user's own, on their machine
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in an argument
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SignerError(f"the signer could not be started: {reason}", found=repr(command[0])) from error
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it may not care for its input; its exit status tells more
            program.stdin.write(given)
        program.stdin.close()
        output = _read_until_end(program.stdout.fileno(), deadline, timeout_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(timeout=max(deadline - time.monotonic(), EXIT_GRACE_S))
        if program.returncode is None:
            raise SignerTimeoutError("the signer closed its output but did not end", expected=f"within {timeout_s:g} s")
    finally:
        program.stdout.close()
        if program.poll() is None:
            program.kill()
            program.wait()
    if program.returncode != 0:
        raise SignerError("the signer failed", expected="exit status 0", found=_exit_status(program.returncode))
    return output


def _read_until_end(descriptor: int, deadline: float, timeout_s: float) -> bytes:
    output = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise SignerTimeoutError("the signer gave no answer in time", expected=f"within {timeout_s:g} s")
        piece = os.read(descriptor, SIGNATURE_MAX_BYTES + 1)
        if not piece:
            return output
        output += piece
        if len(output) > SIGNATURE_MAX_BYTES:
            raise SignerError(
                "the signer wrote too much",
                expected=f"a signature of at most {SIGNATURE_MAX_BYTES} bytes",
                found=_describe(output),
            )


def _exit_status(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"


def _describe(output: bytes) -> str:
    if not output:
        return "nothing"
    if output.isascii() and output.strip().decode("ascii").isprintable():
        return f"{len(output)} bytes of text (base64 or hex has to be decoded first)"
    return f"{len(output)} bytes"
