"""The receiving role of the third party's sketch for BW16: the bare image, and the sum in front of it counts.

Only what its source and its uploader show is here: the order of fields, that the sum is compared, what is written when.
Source: docs/reference/ameba-push.md, "The anchorota sketch"; MXV3A/BW16-OTA-Updates.
"""

from __future__ import annotations

from collections.abc import Iterator

from flota.images.ameba.ota_file import FILE_INFO_SIZE
from flota.protocols.ameba_push.receiver import (
    SIGNATURE_SIZE,
    BodyBytes,
    EraseTarget,
    FileInfo,
    ImageComplete,
    ReceiverEvent,
    ReceiverFailed,
    parse_file_info,
)


class AnchorotaReceiver:
    """One update as that sketch reads it: 12 bytes, then as many as these announce, the signature among them.

    `ImageComplete.checksum` is the one of the 12 bytes. After it, or a failure, nothing more comes.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._info: FileInfo | None = None
        self._signature = b""
        self._written = 0
        self._done = False

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be read."""
        return self._done

    def feed(self, data: bytes) -> Iterator[ReceiverEvent]:
        """Yield what the device does with the next bytes; what comes after the image is ignored."""
        self._buffer += data
        if self._info is None:
            if len(self._buffer) < FILE_INFO_SIZE:
                return
            self._info = parse_file_info(bytes(self._buffer))
            del self._buffer[:FILE_INFO_SIZE]
            yield EraseTarget(self._info.size)
        if self._done:
            return
        piece = bytes(self._buffer[: self._info.size - self._written])
        self._buffer.clear()
        if piece:
            yield BodyBytes(self._written, piece)
            self._signature += piece[: SIGNATURE_SIZE - len(self._signature)]
            self._written += len(piece)
        if self._written == self._info.size:
            self._done = True
            yield ImageComplete(self._signature, self._info.size, self._info.checksum, self._written)

    def end_of_stream(self) -> Iterator[ReceiverEvent]:
        """Yield what the device does when the peer has closed, or nothing came for too long."""
        if not self._done:
            self._done = True
            yield ReceiverFailed("the stream ended before the image did")
