"""The fields of an MQTT packet's body, read one after the other; the body comes from the other side."""

from __future__ import annotations

from flota.protocols.mqtt.errors import MalformedPacket
from flota.protocols.mqtt.packet_values import PacketType


class Fields:
    """Reads the fields of a packet's body; every one of them may be cut short."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    @property
    def at_end(self) -> bool:
        """Whether all was read."""
        return self._position == len(self._body)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises `MalformedPacket`, as all that read do."""
        end = self._position + count
        if end > len(self._body):
            raise MalformedPacket(
                "an MQTT packet ends inside a field",
                offset=self._position,
                expected=f"{count} bytes",
                found=f"{len(self._body) - self._position} bytes",
            )
        taken = self._body[self._position : end]
        self._position = end
        return taken

    def rest(self) -> bytes:
        """Return what is left."""
        return self.take(len(self._body) - self._position)

    def u16(self) -> int:
        """Return two bytes as a number (1.5.2)."""
        return int.from_bytes(self.take(2), "big")

    def packet_id(self) -> int:
        """Return a packet id, which is never 0 (2.3.1)."""
        value = self.u16()
        if value == 0:
            raise MalformedPacket("a packet id is 0")
        return value

    def binary(self) -> bytes:
        """Return bytes with their length before them."""
        return self.take(self.u16())

    def text(self, what: str) -> str:
        """Return text with its length before it; `what` names it in errors."""
        return text_of(self.binary(), what)

    def require_end(self, packet_type: PacketType) -> None:
        """Raise `MalformedPacket` if the packet goes on."""
        if not self.at_end:
            raise MalformedPacket(
                f"{packet_type.name} goes on after its last field",
                offset=self._position,
                found=f"{len(self._body) - self._position} bytes more",
            )


def text_of(raw: bytes, what: str) -> str:
    """Return UTF-8 text without NUL (1.5.3). Raises `MalformedPacket`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedPacket(f"the {what} is not UTF-8", offset=error.start) from None
    if "\0" in text:
        raise MalformedPacket(f"the {what} holds a NUL")
    return text
