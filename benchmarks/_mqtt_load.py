"""Devices that fetch a file in blocks over MQTT, as one process: plain sockets and one epoll, packets cut by hand.

Run by `mqtt_blocks.py`, which gives a JSON object as the only argument (`Plan`) and reads one (`Figures`) from the
standard output, after the line `BEGIN`. Every block's number and content are checked.
"""

from __future__ import annotations

import hashlib
import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from flota.protocols.aws_streams import BlockRequest, StreamFormat, pack_block_request, parse_block
from flota.protocols.mqtt.packets import Connect, PacketReader, Publish, Suback, Subscribe, pack_packet

CLIENT_TOKEN = "rdy"
BEGIN = "begin"
"""Printed when everybody is connected and warm: what serves reads its CPU time then."""


@dataclass(frozen=True)
class Plan:
    """Things `prefix`0 … fetch for `seconds`, each with one request for `per_request` blocks under way.

    `stream` is the stream's id; without one each thing asks for its job first, as the agent does, and takes it from
    there. `file_hex` names the file that the blocks have to come from.
    """

    host: str
    port: int
    seconds: float
    qos: int
    file: str
    devices: int = 50
    block_size: int = 4096
    per_request: int = 4
    prefix: str = "thing-"
    stream: str = ""


@dataclass(frozen=True)
class Figures:
    """What came. `cpu_s` is the generator's own."""

    blocks: int
    seconds: float
    wrong: int
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.blocks / self.seconds


class Device:
    """One thing: its socket, what has come of the packet under way, and what it waits for."""

    def __init__(self, plan: Plan, number: int, content: bytes) -> None:
        self.plan, self.content = plan, content
        self.name = thing_name(plan, number)
        self.blocks_in_file = len(content) // plan.block_size
        self.offset = number * plan.per_request % self.blocks_in_file
        self.left = 0
        self.next_block = 0
        self.partial = b""
        self.wrong = 0
        self.socket = socket.create_connection((plan.host, plan.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open()

    def _open(self) -> None:
        plan = self.plan
        self._send(Connect(self.name, username=self.name, password=secret_of(self.name).encode(), keep_alive=60))
        stream = plan.stream or self._stream_of_job()
        base = f"$aws/things/{self.name}/streams/{stream}"
        self._send(Subscribe(2, ((f"{base}/data/cbor", plan.qos),)))
        while not isinstance(self._receive(), Suback):
            pass
        requests = []
        for offset in range(0, self.blocks_in_file, plan.per_request):
            request = BlockRequest(0, plan.block_size, offset, plan.per_request, token=CLIENT_TOKEN)
            payload = pack_block_request(request, StreamFormat.CBOR)
            packet_id = 1000 + offset if plan.qos else None
            requests.append(pack_packet(Publish(f"{base}/get/cbor", payload, plan.qos, packet_id=packet_id)))
        self.requests = requests
        self.data_topic = f"{base}/data/cbor".encode()

    def _stream_of_job(self) -> str:
        jobs = f"$aws/things/{self.name}/jobs"
        self._send(Publish(f"{jobs}/$next/get", b'{"clientToken":"0:bench"}', 1, packet_id=1))
        while True:
            packet = self._receive()
            if isinstance(packet, Publish):
                document = json.loads(packet.payload)["execution"]["jobDocument"]
                stream: str = document["afr_ota"]["streamname"]
                return stream

    def _send(self, packet: Connect | Publish | Subscribe) -> None:
        self.socket.sendall(pack_packet(packet))

    def _receive(self) -> object:
        """Return one packet; used before the measurement only."""
        reader = PacketReader(1 << 20)
        data = self.socket.recv(1)
        while data:
            for packet in reader.feed(data):
                return packet
            data = self.socket.recv(1)
        raise SystemExit(f"{self.name}: the server closed the connection")

    def ask(self) -> bytes:
        """Return the next request."""
        self.next_block, self.left = self.offset, self.plan.per_request
        request = self.requests[self.offset // self.plan.per_request]
        self.offset = (self.offset + self.plan.per_request) % self.blocks_in_file
        return request

    def take(self, data: bytes) -> tuple[int, bytes]:
        """Return how many blocks this brought, and what to send: acknowledgements, and the next request when done."""
        if self.partial:
            data = self.partial + data
        plan, at, end, found, answer = self.plan, 0, len(data), 0, b""
        size = plan.block_size
        while end - at >= 2:
            if data[at] >> 4 == 4:  # the PUBACK of our request
                if end - at < 4:
                    break
                at += 4
                continue
            head, length = at + 1, 0
            for count in range(4):
                if head + count >= end:
                    break
                length |= (data[head + count] & 0x7F) << 7 * count
                if data[head + count] < 0x80:
                    head += count + 1
                    break
            else:
                raise SystemExit("not MQTT")
            if head == at + 1 or head + length > end:
                break
            stop = head + length
            expected = self.next_block * size
            if data[stop - size : stop] != self.content[expected : expected + size]:
                self.wrong += 1
            if plan.qos:
                topic_end = head + 2 + len(self.data_topic)
                answer += b"\x40\x02" + data[topic_end : topic_end + 2]
            if found == 0 and self.left == plan.per_request:
                self._check(data[head:stop])
            self.next_block += 1
            self.left -= 1
            found += 1
            at = stop
        self.partial = data[at:]
        if self.left == 0:
            answer += self.ask()
        return found, answer

    def _check(self, body: bytes) -> None:
        """Read the first block of an answer as a client does."""
        start = 2 + len(self.data_topic) + (2 if self.plan.qos else 0)
        if body[2 : 2 + len(self.data_topic)] != self.data_topic:
            self.wrong += 1
            return
        block = parse_block(body[start:], StreamFormat.CBOR)
        if (block.number, block.token) != (self.next_block, CLIENT_TOKEN):
            self.wrong += 1


def thing_name(plan: Plan, number: int) -> str:
    return f"{plan.prefix}{number:05}"


def secret_of(name: str) -> str:
    """Return the token of a thing."""
    return hashlib.sha256(f"secret of {name}".encode()).hexdigest()[:32]


def fetch(plan: Plan) -> Figures:
    content = Path(plan.file).read_bytes()
    devices = {}
    poller = select.epoll()
    for number in range(plan.devices):
        device = Device(plan, number, content)
        devices[device.socket.fileno()] = device
        poller.register(device.socket.fileno(), select.EPOLLIN)
    for device in devices.values():
        device.socket.sendall(device.ask())
    _run(poller, devices, min(1.0, plan.seconds / 4))  # warm
    print(BEGIN, flush=True)
    cpu = time.process_time()
    blocks, seconds = _run(poller, devices, plan.seconds)
    return Figures(blocks, seconds, sum(device.wrong for device in devices.values()), time.process_time() - cpu)


def _run(poller: select.epoll, devices: dict[int, Device], seconds: float) -> tuple[int, float]:
    clock, blocks = time.perf_counter, 0
    began = clock()
    until = began + seconds
    while clock() < until:
        for descriptor, _ in poller.poll(5):
            device = devices[descriptor]
            data = device.socket.recv(1 << 17)
            if not data:
                raise SystemExit(f"{device.name}: the server closed the connection")
            found, answer = device.take(data)
            blocks += found
            if answer:
                device.socket.sendall(answer)
    return blocks, clock() - began


if __name__ == "__main__":
    print(json.dumps(asdict(fetch(Plan(**json.loads(sys.argv[1]))))))
