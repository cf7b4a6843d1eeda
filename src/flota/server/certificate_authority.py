"""The certificate files of a data directory: made at the first start, renewed when near their end.

ca/root.crt           what devices and people trust (`--cacert`)
ca/root.key           0600; needed only to make a new intermediate: may be moved away (offline) for years
ca/intermediate.crt   signs the server's certificate; ca/intermediate.key, 0600
ca/server.crt         the server's certificate followed by the intermediate; ca/server.key, 0600, PKCS#8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from cryptography import x509

from flota.durable_files import PRIVATE_FILE_MODE, write_durably
from flota.errors import FlotaError, InvalidInput
from flota.server.listeners import TlsFiles
from flota.trust.certificates import (
    Issuer,
    has_expired,
    make_intermediate,
    make_root,
    make_server_certificate,
    new_key,
    pack_certificates,
    pack_key,
    parse_certificates,
    parse_key,
    reason_to_renew_intermediate,
    reason_to_renew_server,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The files of one directory."""

    directory: Path

    @property
    def root_certificate(self) -> Path:
        """The file to give to devices and to `curl --cacert`."""
        return self.directory / "root.crt"

    @property
    def root_key(self) -> Path:
        """The key that may be kept elsewhere."""
        return self.directory / "root.key"

    @property
    def server_files(self) -> TlsFiles:
        """What the TLS listener reads."""
        return TlsFiles(self.directory / "server.crt", self.directory / "server.key")

    def ensure_server_certificate(self, names: Sequence[str], *, now: datetime) -> TlsFiles:
        """Make or renew whatever is missing, wrong or near its end, and return the server's files.

        Raises `InvalidInput` if the intermediate is over or missing and the root's key is not there to make a new one.
        """
        issuer = self._ensure_intermediate(now)
        files = self.server_files
        reason = self._reason_to_renew_server(issuer, names, now)
        if reason is not None:
            key = new_key()
            serial = x509.random_serial_number()
            certificate = make_server_certificate(issuer, key, names, serial=serial, now=now)
            write_durably(files.key, pack_key(key), mode=PRIVATE_FILE_MODE)
            write_durably(files.certificate, pack_certificates(certificate, issuer.certificate))
            _log.info("tls.certificate_made", reason=reason, until=certificate.not_valid_after_utc.isoformat())
        return files

    def _reason_to_renew_server(self, issuer: Issuer, names: Sequence[str], now: datetime) -> str | None:
        files = self.server_files
        try:
            certificates = parse_certificates(files.certificate.read_bytes())
            key = parse_key(files.key.read_bytes())
        except FileNotFoundError:
            return "there was none"
        except FlotaError as error:
            return f"the files are damaged: {error}"
        return reason_to_renew_server(certificates[0], key, issuer.certificate, names, now=now)

    def _ensure_intermediate(self, now: datetime) -> Issuer:
        certificate_path, key_path = self.directory / "intermediate.crt", self.directory / "intermediate.key"
        if not self.root_certificate.exists() and not certificate_path.exists():
            self._make_root(now)
        root = _certificate(self.root_certificate)
        present: Issuer | None = None
        reason: str | None = "there was none"
        if certificate_path.exists() and key_path.exists():
            present = Issuer(_certificate(certificate_path), parse_key(key_path.read_bytes()))
            reason = reason_to_renew_intermediate(present.certificate, present.key, root, now=now)
        if reason is None and present is not None:
            return present
        if self.root_key.exists():
            made = self._make_intermediate(root, now)
            _log.info("tls.intermediate_made", reason=reason)
            return made
        if present is None or has_expired(present.certificate, now=now) or not _belong_together(present, root):
            raise InvalidInput(
                f"a new intermediate certificate is needed ({reason}), but the root's key is not there",
                expected=str(self.root_key),
                hint="Put root.key back for one start, or serve with --tls-cert and --tls-key.",
            )
        _log.warning("tls.intermediate_ends", reason=reason, hint=f"put {self.root_key} back for one start")
        return present

    def _make_root(self, now: datetime) -> None:
        """Make the root: the key first, so that no root certificate exists that nobody can use."""
        key = new_key()
        write_durably(self.root_key, pack_key(key), mode=PRIVATE_FILE_MODE)
        root = make_root(key, serial=x509.random_serial_number(), now=now)
        write_durably(self.root_certificate, pack_certificates(root))

    def _make_intermediate(self, root: x509.Certificate, now: datetime) -> Issuer:
        root_key = parse_key(self.root_key.read_bytes())
        if root_key.public_key() != root.public_key():
            raise InvalidInput(f"{self.root_key} is not the key of {self.root_certificate}")
        key = new_key()
        certificate = make_intermediate(Issuer(root, root_key), key, serial=x509.random_serial_number(), now=now)
        write_durably(self.directory / "intermediate.key", pack_key(key), mode=PRIVATE_FILE_MODE)
        write_durably(self.directory / "intermediate.crt", pack_certificates(certificate))
        return Issuer(certificate, key)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return parse_certificates(path.read_bytes())[0]
    except FileNotFoundError:
        raise InvalidInput(
            f"{path} is missing",
            hint="Restore it from a backup, or remove the whole directory: devices must then trust a new root.",
        ) from None


def _belong_together(issuer: Issuer, root: x509.Certificate) -> bool:
    return issuer.certificate.public_key() == issuer.key.public_key() and issuer.certificate.issuer == root.subject
