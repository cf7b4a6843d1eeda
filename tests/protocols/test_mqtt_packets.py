"""MQTT 3.1.1 packets: what is packed parses to itself, in any pieces, and any bytes give a packet or our error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.protocols.mqtt.errors import MalformedPacket, PacketTooLarge
from flota.protocols.mqtt.packets import (
    Acknowledgement,
    Connack,
    Connect,
    Packet,
    PacketReader,
    PacketType,
    Publish,
    Signal,
    Suback,
    Subscribe,
    Unsubscribe,
    Will,
    pack_length,
    pack_packet,
    parse_packet,
)
from flota.protocols.mqtt.topics import is_valid_filter, is_valid_topic, matches

LIMIT = 1 << 20
ids = st.integers(1, 0xFFFF)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
names = texts.map(lambda text: text.replace("+", "p").replace("#", "h")).filter(bool)
payloads = st.binary(max_size=300)

wills = st.builds(Will, names, payloads, st.integers(0, 2), st.booleans())
connects = st.builds(
    Connect, texts, st.booleans(), st.integers(0, 0xFFFF), st.none() | texts, st.none(), st.none() | wills
) | st.builds(Connect, texts, st.booleans(), st.integers(0, 0xFFFF), texts, payloads, st.none() | wills)
publishes = st.builds(Publish, names, payloads, st.just(0), st.booleans()) | st.builds(
    Publish, names, payloads, st.integers(1, 2), st.booleans(), st.booleans(), ids
)
packets = st.one_of(
    connects,
    publishes,
    st.builds(Connack, st.integers(0, 7), st.booleans()),
    st.builds(
        Acknowledgement,
        st.sampled_from(
            [PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP, PacketType.UNSUBACK]
        ),
        ids,
    ),
    st.builds(Signal, st.sampled_from([PacketType.PINGREQ, PacketType.PINGRESP, PacketType.DISCONNECT])),
    st.builds(Subscribe, ids, st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=5).map(tuple)),
    st.builds(Suback, ids, st.lists(st.sampled_from([0, 1, 2, 0x80]), max_size=5).map(tuple)),
    st.builds(Unsubscribe, ids, st.lists(texts, min_size=1, max_size=5).map(tuple)),
)


def read(data: bytes, *, pieces: int = 1 << 20, limit: int = LIMIT) -> list[Packet]:
    reader = PacketReader(limit)
    found: list[Packet] = []
    for start in range(0, len(data), pieces):
        found += reader.feed(data[start : start + pieces])
    return found


@given(st.lists(packets, max_size=5), st.integers(1, 50))
def test_what_is_packed_is_read_again_in_any_pieces(sent: list[Packet], pieces: int) -> None:
    assert read(b"".join(map(pack_packet, sent)), pieces=pieces) == sent


@given(st.binary(max_size=300))
def test_any_bytes_are_packets_or_our_error(data: bytes) -> None:
    with contextlib.suppress(FlotaError):
        read(data, limit=200)


@given(st.integers(0, 255), st.binary(max_size=100))
def test_any_body_is_a_packet_or_our_error(first: int, body: bytes) -> None:
    try:
        packet = parse_packet(first, body)
    except MalformedPacket:
        return
    if not (isinstance(packet, Connect) and packet.level != 4):
        assert read(pack_packet(packet)) == [packet]


def test_known_bytes() -> None:
    connect = Connect("c", clean_session=True, keep_alive=60)
    assert pack_packet(connect).hex() == "100d00044d51545404" + "02" + "003c" + "000163"
    assert pack_packet(Publish("a/b", b"hi")).hex() == "30070003612f626869"
    assert pack_packet(Publish("a/b", b"hi", 1, packet_id=10)).hex() == "32090003612f62000a6869"
    assert pack_packet(Subscribe(10, (("a/b", 1), ("c/d", 2)))).hex() == "820e000a0003612f62010003632f6402"
    assert pack_packet(Connack(0, session_present=True)).hex() == "20020100"
    assert pack_packet(Signal(PacketType.PINGRESP)).hex() == "d000"


@pytest.mark.parametrize(
    ("length", "packed"),
    [(0, "00"), (127, "7f"), (128, "8001"), (16383, "ff7f"), (16384, "808001"), (268435455, "ffffff7f")],
)
def test_remaining_lengths(length: int, packed: str) -> None:
    assert pack_length(length).hex() == packed


def test_a_length_above_the_limit_is_refused_before_it_comes() -> None:
    reader = PacketReader(1000)
    with pytest.raises(PacketTooLarge):
        list(reader.feed(b"\x30" + pack_length(1000)))
    assert list(PacketReader(1003).feed(b"\x30" + pack_length(1000))) == []
    with pytest.raises(PacketTooLarge):
        pack_length(268435456)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("00 00", id="type 0"),
        pytest.param("f0 00", id="type 15"),
        pytest.param("30 ff ff ff ff 01", id="a length of five bytes"),
        pytest.param("36 05 0001 61 0001", id="PUBLISH with QoS 3"),
        pytest.param("38 03 0001 61", id="QoS 0 sent again"),
        pytest.param("30 02 0000", id="PUBLISH to nothing"),
        pytest.param("30 03 0001 23", id="PUBLISH to #"),
        pytest.param("30 03 0001 00", id="PUBLISH to NUL"),
        pytest.param("30 03 0001 ff", id="a topic that is not UTF-8"),
        pytest.param("30 05 0003 edaf80", id="a surrogate in a topic"),
        pytest.param("32 05 0001 61 0000", id="packet id 0"),
        pytest.param("32 04 0001 61 00", id="half a packet id"),
        pytest.param("80 08 0001 0003 612f62 00", id="SUBSCRIBE with wrong flags"),
        pytest.param("82 02 0001", id="SUBSCRIBE to nothing"),
        pytest.param("82 08 0001 0003 612f62 03", id="SUBSCRIBE with QoS 3"),
        pytest.param("a2 02 0001", id="UNSUBSCRIBE of nothing"),
        pytest.param("c0 01 00", id="PINGREQ with a body"),
        pytest.param("10 0d 0004 4d515454 04 03 003c 0001 63", id="CONNECT with the reserved flag"),
        pytest.param("10 0d 0004 4d515454 04 42 003c 0001 63", id="a password without a user name"),
        pytest.param("10 0d 0004 4d515454 04 0a 003c 0001 63", id="QoS of a will that is not there"),
        pytest.param("10 0d 0004 4d515455 04 02 003c 0001 63", id="another protocol"),
        pytest.param("10 0e 0004 4d515454 04 02 003c 0001 63 00", id="CONNECT that goes on"),
        pytest.param("10 00", id="an empty CONNECT"),
    ],
)
def test_what_the_standard_forbids_is_refused(data: str) -> None:
    with pytest.raises(MalformedPacket):
        read(bytes.fromhex(data.replace(" ", "")))


def test_another_protocol_level_is_told_not_refused_here() -> None:
    five = read(pack_packet(Connect("c", level=5)))[0]
    assert isinstance(five, Connect)
    assert five.level == 5
    old = bytes.fromhex("100f00064d514973647003" + "02003c000163")
    parsed = read(old)[0]
    assert isinstance(parsed, Connect)
    assert parsed.level == 3


@pytest.mark.parametrize(
    ("topic_filter", "topic", "covered"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("+", "a", True),
        ("+", "/a", False),
        ("+/+", "/a", True),
        ("/+", "/a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("#", "$aws/x", False),
        ("+/x", "$aws/x", False),
        ("$aws/#", "$aws/x", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_which_filter_covers_which_name(topic_filter: str, topic: str, covered: bool) -> None:
    assert matches(topic_filter, topic) is covered


def test_awss_hash_does_not_cover_the_level_above() -> None:
    assert not matches("sensor/#", "sensor", parent_too=False)
    assert matches("sensor/#", "sensor/1", parent_too=False)
    assert matches("#", "sensor", parent_too=False)


@pytest.mark.parametrize("topic_filter", ["", "a/b#", "a/#/b", "a+/b", "x" * 513, "/".join("a" * 40)])
def test_a_bad_filter_is_told(topic_filter: str) -> None:
    assert not is_valid_filter(topic_filter)


def test_names_and_filters() -> None:
    assert is_valid_filter("a/+/#")
    assert is_valid_topic("a/b")
    assert not is_valid_topic("a/+")
    assert not is_valid_topic("")
