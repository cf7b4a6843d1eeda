"""What goes over the line between an NCP and its MCU: frames, values, messages, as the vendor's driver makes them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flota.errors import InvalidInput, TooLarge
from flota.protocols.blynk.catalogue import BY_NAME, PROCEDURES, Procedure, Side
from flota.protocols.blynk.driver_frames import DriverFrameReader
from flota.protocols.blynk.frames import (
    PAYLOAD_MAX_BYTES,
    RECEIVED_PAYLOAD_MAX_BYTES,
    FrameReader,
    crc8,
    pack_frame,
)
from flota.protocols.blynk.messages import RESERVED_OPCODES, Invoke, Oneway, Result, pack_message, parse_message
from flota.protocols.blynk.values import Kind, UnreadableValues, pack_values, parse_values
from flota.protocols.malformed import MalformedMessage
from tests.protocols.blynk.vectors import frames

PING = bytes.fromhex("aabc67010102 0070bb")

SINGLE = [
    ("ncp.ping", 1, ()),
    ("ncp.reboot", 2, ()),
    ("ncp.hasUID", 3, (0x0345,)),
    ("hw.setUartBaudRate", 4, (115_200,)),
    ("hw.setUartBaudRate", 5, (460_800,)),
    ("blynk.getNcpVersion", 6, ()),
    ("blynk.getState", 11, ()),
    ("blynk.otaUpdatePrefetch", 12, ()),
    ("blynk.otaUpdateStart", 13, (1024,)),
    ("blynk.otaUpdateStart", 14, (0x11BB,)),
    ("blynk.otaUpdateGetCRC32", 15, ()),
    ("blynk.otaUpdateGetMD5", 16, ()),
    ("blynk.otaUpdateGetSHA256", 17, ()),
    ("blynk.otaUpdateSuspend", 18, (300,)),
    ("blynk.otaUpdateSuspend", 19, (0,)),
    ("blynk.virtualWrite", None, (1, b"hello")),
    ("blynk.setTime", 20, (1_700_000_000_000,)),
    ("blynk.setFirmwareInfo", 9, ("TMPLabcd1234", "1.2.3", "Nov 16 2023 20:35:55", "0.6.4")),
    ("mcu.ping", 1, ()),
    (Result(1, 0),),
    ("mcu.ping", 0xAA11, ()),
    (Result(0xAA11, 0),),
    ("mcu.hasUID", 2, (0x0442,)),
    (Result(2, 0, b"\1"),),
    ("mcu.hasUID", 3, (0x0999,)),
    (Result(3, 0, b"\0"),),
    (Invoke(0x0183, 14, b"\x42\x04\0"),),
    (Result(14, 0x15),),
    (Invoke(0x0442, 13, b"\0\0"),),
    (Result(13, 0x15),),
    (Invoke(0x0499, 11),),
    ("client.blynkStateChange", None, (5,)),
    ("client.blynkStateChange", None, (11,)),
    ("client.processEvent", None, (1,)),
    ("client.otaUpdateWrite", 6, (0, bytes.fromhex("1113aabbcc00ff55"), 0xE82B6AB5)),
    ("client.otaUpdateWrite", 7, (1024, b"123456789", 0xCBF43926)),
    ("client.otaUpdateAvailable", 5, ("firmware.bin", 20_082, "", "", "")),
    ("client.otaUpdateFinish", 8, ()),
    ("client.otaUpdateCancel", 9, ()),
]


def message_of(row: tuple[object, ...]) -> Invoke | Result | Oneway:
    if isinstance(row[0], Invoke | Result | Oneway):
        return row[0]
    name, msgid, values = row
    procedure = BY_NAME[str(name)]
    body = pack_values(procedure.args, values)  # type: ignore[arg-type]
    return Oneway(procedure.uid, body) if msgid is None else Invoke(procedure.uid, int(str(msgid)), body)


def test_the_crc_is_that_of_the_published_check_value() -> None:
    assert crc8(b"123456789") == 0xF4


@given(st.binary(max_size=200))
def test_the_crc_is_the_one_that_division_bit_by_bit_gives(data: bytes) -> None:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = ((crc << 1) ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    assert crc8(data) == crc


def test_all_78_captured_frames_are_read_and_made_again_byte_for_byte() -> None:
    captured = frames()
    assert len(captured) == 78
    for _, raw in captured:
        (payload,) = FrameReader().feed(raw)
        assert DriverFrameReader().feed(raw) == [payload]
        assert pack_message(parse_message(payload)) == payload
        assert pack_frame(payload) == raw


def test_every_single_captured_frame_says_what_was_observed() -> None:
    captured = [raw for _, raw in frames("single")]
    made = [pack_frame(pack_message(message_of(row))) for row in SINGLE]
    assert [raw.hex() for raw in made] == [raw.hex() for raw in captured]


@given(st.binary(min_size=1, max_size=PAYLOAD_MAX_BYTES))
def test_what_is_packed_is_read_again_whatever_surrounds_it(payload: bytes) -> None:
    frame = pack_frame(payload)
    assert not set(frame[1:-1]) & {0xAA, 0xBB, 0x11, 0x13}
    assert len(frame) <= 2 * (len(payload) + 1) + 2
    assert FrameReader().feed(b"noise" + frame + b"\xbb") == [payload]
    assert DriverFrameReader().feed(frame) == [payload]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0, 300), max_size=8))
def test_it_does_not_matter_in_which_pieces_the_bytes_come(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(pack_frame, payloads))
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reader = FrameReader()
    found = [one for begin, end in pairwise(places) for one in reader.feed(stream[begin:end])]
    assert found == payloads


def test_an_empty_payload_and_one_that_overruns_the_peer_are_refused() -> None:
    with pytest.raises(InvalidInput):
        pack_frame(b"")
    pack_frame(bytes(1536))
    with pytest.raises(TooLarge):
        pack_frame(bytes(1537))


def test_a_frame_that_was_cut_off_costs_only_itself() -> None:
    reader = FrameReader()
    assert reader.feed(PING[:5] + PING) == [PING[1:7]]
    assert (reader.counts.cut_short, reader.counts.frames) == (1, 1)


def test_a_wrong_crc_is_counted_and_the_next_frame_read() -> None:
    reader = FrameReader()
    assert len(reader.feed(PING[:4] + b"\x02" + PING[5:] + PING)) == 1
    assert reader.counts.wrong_crc == 1


def test_flow_control_bytes_inside_a_frame_are_dropped() -> None:
    assert FrameReader().feed(PING[:3] + b"\x11\x13" + PING[3:]) == [PING[1:7]]


def test_an_escape_may_stand_before_any_byte() -> None:
    assert FrameReader().feed(PING[:2] + bytes([0xCC, PING[2] ^ 0xFF]) + PING[3:]) == [PING[1:7]]


@pytest.mark.parametrize(
    "junk", [b"\xaa\xbb", b"\xaa\xcc\xbb", b"\xaa\x00\xbb", b"\xbb\xbb", b"\xaa\xaa", b"\xaa\xcc\xcc\xbb"]
)
def test_odd_bits_of_frames_are_passed_over(junk: bytes) -> None:
    assert FrameReader().feed(junk + PING) == [PING[1:7]]


def test_a_frame_without_an_end_is_given_up_at_the_bound() -> None:
    reader = FrameReader()
    assert reader.feed(b"\xaa" + bytes(range(0x20, 0x80)) * 200) == []
    assert reader.counts.too_long == 1
    assert reader.feed(PING) == [PING[1:7]]


def test_a_payload_may_be_as_long_as_the_largest_driver_buffer() -> None:
    body = b"z" * RECEIVED_PAYLOAD_MAX_BYTES
    frame = b"\xaa" + body + bytes([crc8(body)]) + b"\xbb"
    assert FrameReader().feed(frame) == [body]


class TestTheDriversReader:
    """Weaknesses of the vendor's driver that a virtual MCU shows too."""

    def test_after_a_truncated_frame_the_next_is_lost_too(self) -> None:
        reader = DriverFrameReader()
        assert reader.feed(PING[:5] + PING + PING) == [PING[1:7]]

    def test_two_begins_lose_the_frame(self) -> None:
        reader = DriverFrameReader()
        assert reader.feed(b"\xaa" + PING) == []
        assert reader.feed(PING) == [PING[1:7]]

    def test_flow_control_bytes_are_data(self) -> None:
        assert DriverFrameReader().feed(PING[:3] + b"\x11" + PING[3:]) == []

    def test_an_empty_frame_swallows_the_rest_of_the_burst(self) -> None:
        reader = DriverFrameReader()
        assert reader.feed(b"\xaa\xbb" + PING) == []
        assert reader.feed(PING) == [PING[1:7]]

    def test_a_frame_longer_than_its_buffer_corrupts_it(self) -> None:
        reader = DriverFrameReader(256)
        reader.feed(pack_frame(bytes(256)))
        assert not reader.is_corrupted
        reader.feed(pack_frame(bytes(257)))
        assert reader.is_corrupted


KINDS = st.sampled_from(list(Kind))
RANGES = {"<B": (0, 255), "<H": (0, 65_535), "<I": (0, 2**32 - 1), "<Q": (0, 2**64 - 1), "<b": (-128, 127)}
RANGES |= {"<h": (-(2**15), 2**15 - 1), "<i": (-(2**31), 2**31 - 1), "<q": (-(2**63), 2**63 - 1)}


def values_of(kind: Kind) -> st.SearchStrategy[object]:
    if kind is Kind.STRING:
        return st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
    if kind is Kind.BINARY:
        return st.binary(max_size=20)
    if kind is Kind.BOOL:
        return st.booleans()
    if kind is Kind.FLOAT:
        return st.floats(width=32, allow_nan=False)
    return st.integers(*RANGES[kind.value])


@given(st.lists(KINDS.flatmap(lambda kind: st.tuples(st.just(kind), values_of(kind))), max_size=6))
def test_values_come_back_as_they_went(pairs: list[tuple[Kind, object]]) -> None:
    kinds, values = [kind for kind, _ in pairs], tuple(value for _, value in pairs)
    packed = pack_values(kinds, values)  # type: ignore[arg-type]
    assert parse_values(kinds, packed) == values
    with pytest.raises(UnreadableValues):
        parse_values(kinds, packed + b"\0")


def test_any_number_but_zero_is_true() -> None:
    assert parse_values([Kind.BOOL], b"\x02") == (True,)


def test_a_text_without_its_nul_and_a_length_behind_the_end_are_refused() -> None:
    with pytest.raises(UnreadableValues):
        parse_values([Kind.STRING], b"abc")
    with pytest.raises(UnreadableValues):
        parse_values([Kind.BINARY], b"\x05\0abc")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Kind.U8, 256), (Kind.U16, -1), (Kind.STRING, "a\0b"), (Kind.BINARY, "text"), (Kind.STRING, b"x")],
)
def test_what_a_type_cannot_carry_is_refused(kind: Kind, value: object) -> None:
    with pytest.raises(InvalidInput):
        pack_values([kind], [value])  # type: ignore[list-item]


@given(st.binary(max_size=60))
def test_any_payload_is_a_message_or_a_malformed_one(payload: bytes) -> None:
    try:
        message = parse_message(payload)
    except MalformedMessage:
        return
    assert pack_message(message) == payload


@pytest.mark.parametrize("opcode", sorted(RESERVED_OPCODES))
def test_reserved_opcodes_are_no_messages(opcode: int) -> None:
    with pytest.raises(MalformedMessage):
        parse_message(opcode.to_bytes(2, "little") + bytes(10))


def test_each_procedure_belongs_to_the_side_that_its_number_says() -> None:
    for uid, procedure in PROCEDURES.items():
        of_mcu = uid >> 8 == 4 or 0x0181 <= uid <= 0x0183
        assert procedure.side is (Side.MCU if of_mcu else Side.NCP), procedure.name


def test_which_handlers_check_their_arguments() -> None:
    def checks(name: str) -> bool:
        found: Procedure = BY_NAME[name]
        return found.checks_arguments

    assert checks("blynk.getNcpVersion")
    assert checks("blynk.otaUpdateGetCRC32")
    assert not checks("ncp.ping")
    assert not checks("blynk.getState")
    assert not checks("client.otaUpdateFinish")


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_random_bursts_never_stop_a_reader(start: int) -> None:
    rng = random.Random(start)
    reader, driver = FrameReader(), DriverFrameReader()
    for _ in range(40):
        burst = bytes(rng.choices([0xAA, 0xBB, 0xCC, 0x11, rng.randrange(256)], k=200))
        reader.feed(burst)
        driver.feed(burst)
    reader.feed(b"\xbb")
    assert reader.feed(PING) == [PING[1:7]]
