"""Job documents: made from a release once, handed out with fresh addresses.

Source: docs/reference/aws-iot.md, "The OTA job document".
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flota.fleet.executions import Execution
from flota.fleet.releases import Release
from flota.protocols.aws_ota import (
    DataProtocol,
    OtaFile,
    OtaUpdate,
    pack_ota_document,
    presigned_placeholder,
    substitute_presigned,
)
from flota.server.api.aws_iot.agent_limits import limits_of, stream_id_of
from flota.server.api.aws_iot.files import file_url

if TYPE_CHECKING:
    from flota.server.context import ServerContext

BUCKET: Final = "flota"
"""What stands for our own artifacts in a placeholder's address; the key is the artifact's SHA-256."""

DEFAULT_CERTFILE: Final = "Code_Verify_Key"
"""What devices built by the board vendor's guide call the certificate that they check a file with."""

TEMPLATES_REMEMBERED: Final = 256


class JobDocuments:
    """Makes documents for one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._template = functools.lru_cache(maxsize=TEMPLATES_REMEMBERED)(_template)

    def document(self, execution: Execution, release: Release) -> dict[str, Any]:
        """Return the document of an execution, to be handed out now: its addresses work for a limited time."""
        base = self._context.device_base_url()
        protocols = self._context.settings.aws_iot_data
        if limits_of(release) is not None:  # agents that fetch over MQTT alone, and have no room for an address
            protocols = (DataProtocol.MQTT,)
        elif base is None:  # there is no address to give
            protocols = tuple(one for one in protocols if one is not DataProtocol.HTTP) or (DataProtocol.MQTT,)
        signatures = tuple((one.name, one.signature) for one in release.file_signatures)
        template = self._template(
            stream_id_of(execution, release),
            release.filepath or release.filename,
            release.certfile or DEFAULT_CERTFILE,
            release.artifact.digests.size,
            release.artifact.digests.sha256,
            signatures,
            protocols,
        )
        if base is None or DataProtocol.HTTP not in protocols:
            return dict(template)

        def address_of(bucket: str, key: str) -> str | None:
            return file_url(self._context, base, key, execution) if bucket == BUCKET else None

        document: dict[str, Any] = substitute_presigned(template, address_of)
        return document


def _template(
    stream_id: str,
    path: str,
    certfile: str,
    size: int,
    sha256: str,
    signatures: tuple[tuple[str, str], ...],
    protocols: tuple[DataProtocol, ...],
) -> Mapping[str, object]:
    url = presigned_placeholder(BUCKET, sha256) if DataProtocol.HTTP in protocols else None
    file = OtaFile(path, size, certfile=certfile, signatures=dict(signatures), url=url)
    return pack_ota_document(OtaUpdate(protocols, file, stream_id if DataProtocol.MQTT in protocols else None))
