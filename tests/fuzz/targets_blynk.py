"""The fuzz targets of Blynk.NCP: the firmware tag, the frames, and both ends of the line in the middle of an update."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence

from flota.errors import FlotaError
from flota.images.blynk_tag import (
    append_tag,
    find_tags,
    pack_tag,
    parse_build_time,
    parse_tag,
    read_as_cloud,
    tag_findings,
    written_pairs,
)
from flota.images.packed_files import unpacked_members
from flota.protocols.blynk.catalogue import BY_NAME
from flota.protocols.blynk.cloud import parse_announcement, parse_build_moment, parse_info
from flota.protocols.blynk.driver_frames import DriverFrameReader
from flota.protocols.blynk.frames import PAYLOAD_MAX_BYTES, FrameReader, pack_frame, unescape
from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import ApplyNow, ChunkArrived, McuState, OfferMade, VerifyImage
from flota.protocols.blynk.messages import Invoke, Result, pack_message, parse_message
from flota.protocols.blynk.ncp import Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import FileDigests, FirmwareInfo, NeedBytes, UpdateJob
from flota.protocols.blynk.shipments import parse_shipment_order
from flota.protocols.blynk.values import Kind, Value, pack_values, parse_values
from flota.protocols.multipart import parse_boundary, parse_form
from flota.virtual.boot import dual_bank, ncp_assisted
from tests.fuzz.model import BrokenPromise, Target, target

TAG = pack_tag(written_pairs(mcu="1.2.3", fw_type="TMPLabcd1234", build="Nov 16 2023 20:35:55", library="0.6.4"))
OLD = FirmwareInfo("TMPLabcd1234", "1.2.3", "", "")
IMAGE = bytes(range(250)) * 8
JOB = UpdateJob("f.bin", len(IMAGE), OLD.fw_type, "1.2.4", "", FileDigests(zlib.crc32(IMAGE), bytes(16), bytes(32)))
BANKS = dual_bank.DualBankRecord().trying("b", 4096, "0c" * 32, boots=3)
FETCH = ncp_assisted.FetchRecord(wanted=ncp_assisted.WantedImage(4096, 7, bytes(32)), fw_type="TMPL1", version="2.0")
OFFER = (JOB.filename, JOB.size, JOB.fw_type, JOB.version, JOB.build)


def call(name: str, msgid: int, *values: Value) -> bytes:
    procedure = BY_NAME[name]
    return pack_message(Invoke(procedure.uid, msgid, pack_values(procedure.args, values)))


def conversation(*payloads: bytes) -> bytes:
    """Payloads, each behind its length in 16 bits."""
    return b"".join(len(payload).to_bytes(2, "big") + payload for payload in payloads)


def payloads_in(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + 2 < len(data):
        size = int.from_bytes(data[place : place + 2], "big") % (PAYLOAD_MAX_BYTES + 1)
        payload = data[place + 2 : place + 2 + size]
        place += 2 + size
        if payload:
            yield payload


def tags(data: bytes) -> None:
    found = find_tags(data)
    list(tag_findings(data, found))
    read_as_cloud(data)
    try:
        tagged = append_tag(data, TAG, replace=bool(data[:1] > b"\x80"))
    except FlotaError:
        return
    if find_tags(tagged)[0].tag != parse_tag(TAG).tag:
        raise BrokenPromise("a tag was written that is not the one that is read")


def members(data: bytes) -> None:
    if sum(len(content) for _, content in unpacked_members(data, limit=100_000)) > 100_000:
        raise BrokenPromise("more was unpacked than allowed")


def values(data: bytes) -> None:
    kinds = list(Kind)
    parse_values([kinds[byte % len(kinds)] for byte in data[:4]], data[4:])


def to_ncp(data: bytes) -> None:
    """An NCP with a job, and an MCU that says anything."""
    ncp, now = Ncp(NcpSettings(), now=0.0), 0.0
    drain_ncp(ncp, ncp.offer(JOB, now=now), now)
    for payload in payloads_in(data):
        now += 0.05 + 7.0 * (payload[-1] & 1)
        drain_ncp(ncp, ncp.receive(pack_frame(payload), now=now), now)
        deadline = ncp.next_deadline()
        if deadline is not None and deadline <= now:
            drain_ncp(ncp, ncp.deadline_passed(now=now), now)
    settle(ncp, now)


def drain_ncp(ncp: Ncp, events: Sequence[object], now: float) -> None:
    for event in events:
        if isinstance(event, NeedBytes):
            piece = IMAGE[event.offset : event.offset + event.length]
            drain_ncp(ncp, ncp.supply(event.offset, piece, now=now), now)
    ncp.link_commands()


def to_mcu(data: bytes) -> None:
    """An MCU that has found its NCP, which says anything."""
    mcu, now = Mcu(McuSettings(OLD), now=0.0), 0.0
    flash: list[bytes] = []
    for payload in payloads_in(data):
        now += 0.05 + 7.0 * (payload[-1] & 1)
        drain_mcu(mcu, mcu.receive(pack_frame(payload), now=now), now, flash)
        deadline = mcu.next_deadline()
        if deadline is not None and deadline <= now:
            drain_mcu(mcu, mcu.deadline_passed(now=now), now, flash)
    settle(mcu, now)


def drain_mcu(mcu: Mcu, events: Sequence[object], now: float, flash: list[bytes]) -> None:
    for event in events:
        following: Sequence[object] = ()
        if isinstance(event, OfferMade):
            flash.clear()
            following = [*mcu.accept(now=now), *mcu.begin(now=now)]
        elif isinstance(event, ChunkArrived):
            if event.offset == 0:
                flash.clear()
            if event.offset != sum(map(len, flash)):
                raise BrokenPromise("a chunk at another place than the next")
            flash.append(event.data)
            following = mcu.chunk_stored(True, now=now)
        elif isinstance(event, VerifyImage):
            if event.size != sum(map(len, flash)):
                raise BrokenPromise("an image of another length is to be verified")
            right = event.digests.crc32 in (None, zlib.crc32(b"".join(flash)))
            following = mcu.verified(right, now=now)
        elif isinstance(event, ApplyNow) and mcu.update.state is not McuState.APPLY:
            raise BrokenPromise("an image is applied that was not verified")
        drain_mcu(mcu, following, now, flash)
    mcu.link_commands()


def settle(end: Ncp | Mcu, now: float) -> None:
    """Let time pass: deadlines have to move on, or there is a loop that never ends."""
    for _ in range(60):
        deadline = end.next_deadline()
        if deadline is None:
            return
        now = max(now, deadline)
        events = end.deadline_passed(now=now)
        if isinstance(end, Ncp):
            drain_ncp(end, events, now)
        else:
            drain_mcu(end, events, now, [b"\0" * end.update.received])
        following = end.next_deadline()
        if following is not None and following <= deadline and following <= now - 1.0:
            raise BrokenPromise("a deadline that never moves")


SESSION_OF_MCU = conversation(
    call("ncp.ping", 1),
    call("blynk.setFirmwareInfo", 2, OLD.fw_type, OLD.version, "", ""),
    call("blynk.initialize", 3, "TMPLabcd1234", "Demo"),
    call("blynk.otaUpdateStart", 4, 1024),
    pack_message(Result(1, 0, b"\1")),
    pack_message(Result(2, 0, b"\1")),
    pack_message(Result(3, 0, b"\1")),
    call("blynk.otaUpdateGetSHA256", 5),
    call("blynk.setFirmwareInfo", 6, OLD.fw_type, JOB.version, "", ""),
)
SESSION_OF_NCP = conversation(
    pack_message(Result(1, 0)),
    call("client.otaUpdateAvailable", 1, *OFFER),
    pack_message(Result(2, 0, b"\1")),
    call("client.otaUpdateWrite", 2, 0, IMAGE[:1000], zlib.crc32(IMAGE[:1000])),
    call("client.otaUpdateWrite", 3, 1000, IMAGE[1000:], zlib.crc32(IMAGE[1000:])),
    call("client.otaUpdateFinish", 4),
    pack_message(Result(3, 0, b"\0\0\0")),
    pack_message(Result(4, 0, b"\0\0\0")),
    pack_message(Result(5, 0, zlib.crc32(IMAGE).to_bytes(4, "little") + b"\1")),
)
FRAME = pack_frame(call("client.otaUpdateWrite", 6, 0, bytes.fromhex("1113aabbcc00ff55"), 0xE82B6AB5))

ORDER = json.dumps(
    {"title": "spring", "productId": 1, "pathToFirmware": f"/blynk/files/{'0' * 64}/mill.bin", "deviceIds": [1, 2]}
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="type"\r\n\r\nFIRMWARE\r\n'
    b'--b\r\nContent-Disposition: form-data; name="upfile"; filename="mill.bin"\r\n\r\n\0\1\r\n--b--\r\n'
)

TARGETS: tuple[Target, ...] = (
    target(parse_info, [b'{"tmpl":"TMPL1","ver":"1.2.3","build":"Nov 16 2023 20:35:55","type":"T","rxbuff":1024}']),
    target(parse_announcement, [b'{"url":"http://a/b?token=c","size":2000,"ver":"1.2.4"}']),
    target(parse_build_moment, ["Nov 16 2023 20:35:55", "Jan  5 2024 10:00:00"]),
    target(parse_shipment_order, [ORDER]),
    target(parse_boundary, ["multipart/form-data; boundary=b", 'multipart/form-data; boundary="a b"']),
    target(parse_form, [FORM], read=lambda data: parse_form(data, "b")),
    target(dual_bank.parse_record, [dual_bank.pack_record(BANKS)]),
    target(ncp_assisted.parse_record, [ncp_assisted.pack_record(FETCH)]),
    target(parse_tag, [TAG]),
    target(find_tags, [b"firmware" + TAG, TAG + TAG], read=tags, also=[append_tag, read_as_cloud, tag_findings]),
    target(parse_build_time, ["Nov 16 2023 20:35:55"]),
    target(unpacked_members, lambda: [gzip.compress(TAG, mtime=0)], read=members),
    target(FrameReader.feed, [FRAME, b"\xaa\xbb" + FRAME], read=lambda data: FrameReader().feed(data), also=[unescape]),
    target(DriverFrameReader.feed, [FRAME, b"\xaa\xbb" + FRAME], read=lambda data: DriverFrameReader().feed(data)),
    target(parse_message, [call("ncp.ping", 1), pack_message(Result(1, 0, b"\1"))]),
    target(parse_values, [b"\x0a\x0a\x0a\x0aabc\0\0\0x\0", b"\1\1\1\1\1\1\1\1"], read=values),
    target(Ncp.receive, [SESSION_OF_MCU], read=to_ncp, longest=20_000),
    target(Mcu.receive, [SESSION_OF_NCP], read=to_mcu, longest=20_000),
)
