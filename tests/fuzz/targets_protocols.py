"""The fuzz targets of `flota.protocols`, `flota.fleet` and the small readers beside them. One line each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

from flota.digests import parse_sha256_hex
from flota.fleet.maintenance_windows import parse_schedule
from flota.fleet.rollouts import check_waves, split_waves
from flota.fleet.selectors import parse_selector
from flota.images.nuvoton import Descriptor, ImageFlag
from flota.protocols import (
    ameba_http,
    ameba_pull,
    arduino_mdns,
    aws_jobs,
    aws_ota,
    aws_streams,
    cbor,
    espota,
    http_range,
    http_update,
    json_text,
    peer_text,
    viam,
)
from flota.protocols.ameba_push.anchorota import AnchorotaReceiver
from flota.protocols.ameba_push.receiver import PushReceiver, parse_file_info
from flota.protocols.ddi import addresses, attributes, confirmation, deployment, feedback, poll, problem
from flota.protocols.ddi.reading import MESSAGE_MAX_BYTES
from flota.protocols.mqtt import (
    bridge_rules,
    broker_url,
    client_connection,
    packets,
    server_connection,
    session,
    topics,
)
from flota.trust.canonical_json import parse_strict
from flota.versions import parse_version, version_order
from flota.virtual.agents.aws_ota import job_document
from flota.virtual.boot import ab_record, nuvoton_journal
from flota.virtual.boot.two_files import BootRecord, SlotFile
from flota.virtual.slots import SlotState
from tests.fuzz.model import Target, as_text, target
from tests.fuzz.targets_images import ameba_files

ARTIFACT = {
    "filename": "app.bin", "size": 9, "hashes": {"sha1": "0a" * 20, "md5": "0b" * 16, "sha256": "0c" * 32},
    "_links": {"download": {"href": "https://h/a"}, "md5sum-http": {"href": "http://h/a.MD5SUM"}},
}  # fmt: skip
CHUNK = {"part": "os", "version": "1", "name": "n", "artifacts": [ARTIFACT], "metadata": [{"key": "k", "value": "v"}]}
BODY = {"download": "forced", "update": "attempt", "maintenanceWindow": "available", "chunks": [CHUNK]}
HISTORY = {"status": "RUNNING", "messages": ["m"]}
DEPLOYMENT = json.dumps({"id": "8", "deployment": BODY, "actionHistory": HISTORY})
CONFIRMATION = json.dumps({"id": "8", "confirmation": BODY, "actionHistory": HISTORY})
FEEDBACK: dict[str, object] = {
    "id": "8", "time": "20260101T000000", "timestamp": 1767225600000,
    "status": {
        "execution": "closed", "code": 200, "details": ["one", "two"],
        "result": {"finished": "success", "progress": {"cnt": 2, "of": 5}},
    },
}  # fmt: skip
CONFIG = {"mode": "merge", "data": {"hw": "B", "gone": None}}
CONFIRMED = {"confirmation": "confirmed", "code": 1, "details": ["yes"]}
AUTO = {"initiator": "me", "remark": "why"}
INSTALLED = {"name": "pump", "version": "1"}
POLL = {
    "config": {"polling": {"sleep": "00:05:00"}},
    "_links": {"deploymentBase": {"href": "https://h/deploymentBase/8"}},
}
SERVICE = {
    "name": "OTA", "namespace": "rdk", "type": "generic", "model": "rdk:builtin:ota_service",
    "attributes": {"url": "https://h:443/a.bin?t=1", "version": "v1"},
}  # fmt: skip
SERVICES = (json.dumps(viam.pack_service_config(viam.ServiceConfig("https://h:443/a.bin", "v1"))), json.dumps(SERVICE))
ESP_HEADERS = "".join(
    f"{name}: {value}\n"
    for name, value in http_update.request_headers(
        http_update.UpdateRequest(
            http_update.ChipFamily.ESP32, "AA:BB:CC:DD:EE:01", "AA:BB:CC:DD:EE:02", 1310720, 900000, "0f" * 32,
            "0f" * 16, 4194304, "v5.1", version="1.2.0",
        )
    )
)  # fmt: skip
PULL_HEAD = ameba_http.pack_pull_answer(8224)
URLS = ("https://host:8443/a/b.bin?x=1", "http://[::1]:80/", "//h", "https://u:p@h/")


def header_lines(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The input as header lines; what has no colon is a header without value."""
    for line in data.split(b"\n"):
        name, _, value = line.partition(b":")
        yield name, value


def text_headers(data: bytes) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in header_lines(data)]


def request_headers(data: bytes) -> object:
    return http_update.parse_request_headers(header_lines(data))


def answer_head(data: bytes) -> object:
    answer = http_update.parse_answer_head(200, text_headers(data))
    return http_update.judge_answer(answer, free_space=1 << 20)


def viam_answer(data: bytes) -> object:
    return viam.judge_response(200 + len(data) % 3 * 101, text_headers(data), slot_size=1 << 20)


def anything_from_json(data: bytes) -> object:
    return parse_strict(data, max_bytes=65536, max_depth=16, what="the configuration")


def service(data: bytes) -> object:
    entry = anything_from_json(data)
    viam.find_service_config([entry, entry])
    return viam.parse_service_config(entry)


def services(data: bytes) -> object:
    found = anything_from_json(data)
    if isinstance(found, dict):
        viam.with_service_config(found, json.loads(SERVICES[0]))
    return viam.find_service_config(found)


def offered_url(data: bytes) -> object:
    return viam.check_offered_url(as_text(data))


def push_received(data: bytes) -> object:
    """A push cut at places that the data itself names; memory stays bounded whatever the headers announce."""
    receiver = PushReceiver()
    cuts = sorted({0, len(data), *(byte * 7 % (len(data) + 1) for byte in data[:6])})
    events = [event for start, end in pairwise(cuts) for event in receiver.feed(data[start:end])]
    events += list(receiver.timed_out() if data[:1] > b"\x7f" else receiver.end_of_stream())
    assert receiver.is_done
    return events


def anchorota_received(data: bytes) -> object:
    """A push of the bare image; memory stays bounded whatever the 12 bytes announce."""
    receiver = AnchorotaReceiver()
    events = list(receiver.feed(data[:20])) + list(receiver.feed(data[20:])) + list(receiver.end_of_stream())
    assert receiver.is_done
    return events


def pull_received(data: bytes) -> object:
    """An answer over HTTP, cut as a push is."""
    receiver = ameba_pull.PullReceiver()
    cuts = sorted({0, len(data), *(byte * 7 % (len(data) + 1) for byte in data[:6])})
    events = [
        event for start, end in pairwise(cuts) if not receiver.is_done for event in receiver.feed(data[start:end])
    ]
    events += list(receiver.end_of_stream())
    assert receiver.is_done
    return events


def push_answered(data: bytes) -> object:
    """What a device answers to an invitation and during the transfer."""
    espota.refusal_in(data)
    espota.says_ok(data)
    nonce = espota.parse_answer(data)
    return nonce and espota.auth_response("password", nonce, nonce)


def mqtt_stream(data: bytes) -> object:
    """A stream cut at places that the data itself names."""
    reader = packets.PacketReader(64 * 1024)
    cuts = sorted({0, len(data), *(byte * 7 % (len(data) + 1) for byte in data[:6])})
    return [packet for start, end in pairwise(cuts) for packet in reader.feed(data[start:end])]


def mqtt_both_sides(data: bytes) -> object:
    """What a connected client and a connected server hear of the same bytes, each in two pieces."""
    server, client = server_connection.ServerConnection(), client_connection.ClientConnection(packets.Connect("c"))
    list(server.receive(packets.pack_packet(packets.Connect("c")), now=0))
    server.accept(session.MqttSession("c"), present=False, now=0)
    middle = len(data) // 2
    if data[:1] > b"\x7f":
        client.feed(packets.pack_packet(packets.Connack(0)))
        client.feed(data)
        while client.next_event() is not None:
            pass
        return client.take_output(now=0)
    heard = [event for part in (data[:middle], data[middle:]) for event in server.receive(part, now=0)]
    return heard, server.take_output()


def mqtt_packet(data: bytes) -> object:
    return packets.parse_packet(data[0] if data else 0, data[1:])


def topic_filters(data: bytes) -> object:
    topic_filter, _, topic = as_text(data).partition(" ")
    return topics.is_valid_filter(topic_filter) and topics.is_valid_topic(topic) and topics.matches(topic_filter, topic)


def jobs_request(data: bytes) -> object:
    for operation in aws_jobs.JobsOperation:
        found = aws_jobs.parse_jobs_request(data, operation)
    return found


def ota_document(data: bytes) -> object:
    return aws_ota.parse_ota_document(json_text.parse_json(data))


def selected(data: bytes) -> object:
    return parse_selector(as_text(data)).device_filter()


def waves(data: bytes) -> object:
    return split_waves(range(100), as_text(data))


def ranges(data: bytes) -> object:
    text = as_text(data)
    http_range.none_match(text, '"a"')
    http_range.if_match(text, '"a"')
    http_range.if_range(text, '"a"')
    return http_range.parse_range(text, 1000)


def several_ranges(data: bytes) -> object:
    return http_range.parse_several_ranges(as_text(data), 1000)


def version(data: bytes) -> object:
    return version_order(parse_version(as_text(data)))


def both(value: object) -> tuple[str, bytes]:
    return json.dumps(value), cbor.pack_cbor(value)


READ_SIZE = 64 * 1024
"""Bytes that a listener takes off a connection at once, and that all headers of a request may have."""

JSON_FORM, CBOR_FORM = aws_streams.StreamFormat.JSON, aws_streams.StreamFormat.CBOR
BLOCK_REQUEST = aws_streams.BlockRequest(1, 1024, 0, 4, b"\x0f", 1, "token")
BLOCK = aws_streams.Block(1, 2, b"payload")
OTA_DOCUMENT = (
    '{"afr_ota":{"protocols":["MQTT","HTTP"],"streamname":"AFR_OTA-1","files":[{"filepath":"f","filesize":"0x100",'
    '"fileid":0,"certfile":"c","fileType":0,"update_data_url":"u","sig-sha256-ecdsa":"MEUCIQDV"}]}}'
)
JOBS_UPDATE = (
    '{"status":"IN_PROGRESS","statusDetails":{"a":"b"},"expectedVersion":"1","clientToken":"t",'
    '"stepTimeoutInMinutes":5}'
)
OTA_JOB = json.dumps(
    {
        "execution": {
            "jobId": "AFR_OTA-1",
            "statusDetails": {"self_test": "ready", "updatedBy": "0x01000000"},
            "jobDocument": json.loads(OTA_DOCUMENT),
        }
    }
)
NUVOTON_RECORD = nuvoton_journal.Record(Descriptor(ImageFlag.NEW, 4095), 7).pack()
AB_RECORD = ab_record.NumberedRecord(7, BootRecord("b", {"b": SlotFile(SlotState.NEW, 4096, "0c" * 32)}))
MQTT_PACKETS = [
    bytes.fromhex("101400044d5154540402003c0008") + b"deviceid",
    packets.publish_head(b"a/b", 4, qos=1, flags=2, packet_id=7) + b"load",
    b"\x82\x08\x00\x01\x00\x03a/+\x01",
    b"\xa2\x07\x00\x01\x00\x03a/#",
    b"\x40\x02\x00\x01\xc0\x00\xe0\x00\x20\x02\x00\x00\x90\x03\x00\x01\x01",
]

TARGETS: tuple[Target, ...] = (
    target(deployment.parse_deployment, [DEPLOYMENT]),
    target(deployment.parse_deployment_like, [CONFIRMATION], member="confirmation"),
    target(deployment.parse_cancel_action, ['{"id":"11","cancelAction":{"stopId":"8"}}']),
    target(feedback.parse_feedback, both(FEEDBACK)),
    target(feedback.parse_feedback, both(FEEDBACK), cbor=True, variant="cbor"),
    target(attributes.parse_config_data, both(CONFIG)),
    target(attributes.parse_config_data, both(CONFIG), cbor=True, variant="cbor"),
    target(confirmation.parse_confirmation, [CONFIRMATION]),
    target(confirmation.parse_confirmation_feedback, both(CONFIRMED)),
    target(confirmation.parse_confirmation_feedback, both(CONFIRMED), cbor=True, variant="cbor"),
    target(confirmation.parse_auto_confirm_request, both(AUTO)),
    target(confirmation.parse_auto_confirm_request, both(AUTO), cbor=True, variant="cbor"),
    target(confirmation.parse_auto_confirm, ['{"autoConfirm":{"active":true,"initiator":"me","activatedAt":1}}']),
    target(confirmation.parse_installed_version, both(INSTALLED)),
    target(confirmation.parse_installed_version, both(INSTALLED), cbor=True, variant="cbor"),
    target(poll.parse_poll_answer, [json.dumps(POLL)]),
    target(poll.parse_sleep, ["00:05:00"]),
    target(problem.parse_problem, ['{"errorCode":"e","message":"m","info":{"a":[1,{"b":2.5}]}}']),
    target(addresses.parse_action_id, ["2147483647"]),
    target(addresses.action_id_of, ["https://h/T/controller/v1/d/deploymentBase/8?c=-5"]),
    target(addresses.parse_authorization, ["TargetToken abc", "GatewayToken abc"]),
    target(
        cbor.parse_cbor,
        [cbor.pack_cbor(FEEDBACK), b"\x9f\x01\xff", b"\xbf\x61a\x7f\x61b\xff\xff", b"\xfb" + bytes(8)],
        longest=MESSAGE_MAX_BYTES,
    ),
    target(http_range.parse_range, ["bytes=0-99", "bytes=-5", 'W/"a", "b"'], read=ranges),
    target(http_range.parse_several_ranges, ["bytes=0-9,20-", "bytes=-5,0-1"], read=several_ranges),
    target(http_range.parse_content_range, ["bytes 0-99/1000", "bytes 5-9/*"]),
    target(http_range.parse_unsatisfied_content_range, ["bytes */1000"]),
    target(http_update.parse_mac, ["AA:bb:CC:dd:EE:01"]),
    target(
        http_update.parse_request_headers,
        [ESP_HEADERS, ESP_HEADERS.replace("ESP32", "esp8266")],
        read=request_headers,
        longest=READ_SIZE,
    ),
    target(http_update.parse_answer_head, ["Content-Length: 900000\nx-MD5: " + "0f" * 16], read=answer_head),
    target(peer_text.clean_text, ["one line\r\nof\u202e text"]),
    target(peer_text.clean_bytes, ["one line\r\nof\u202e text", b"\xff\xfe"]),
    target(viam.parse_service_config, SERVICES, read=service),
    target(viam.find_service_config, [f"[{SERVICES[0]}]", f'{{"services":[{SERVICES[0]}]}}'], read=services),
    target(viam.parse_download_url, URLS),
    target(viam.check_offered_url, URLS, read=offered_url),
    target(viam.judge_response, ["content-length: 900000", "location: https://h:1/a"], read=viam_answer),
    target(arduino_mdns.parse_txt, [arduino_mdns.pack_txt(arduino_mdns.esp_txt("esp32dev", password=True))]),
    target(arduino_mdns.mac_in, ["esp32-a1b2c3d4e5f6.local."]),
    target(parse_file_info, [bytes(range(12))]),
    target(PushReceiver.feed, lambda: [bytes(12) + file for file in ameba_files()], read=push_received),
    target(AnchorotaReceiver.feed, lambda: [bytes(12) + file for file in ameba_files()], read=anchorota_received),
    target(ameba_http.parse_pull_request, [ameba_http.pack_pull_request("host", "ota.bin").removesuffix(b"\r\n\r\n")]),
    target(ameba_http.parse_pull_answer, [ameba_http.pack_pull_answer(8224), b"HTTP/1.1 302 Found\r\n\r\n"]),
    target(ameba_http.parse_state_post, [b'{"OTA_state":"OTA_STATE_IDLE","version":"2.0"}{"OTA']),
    target(ameba_pull.PullReceiver.feed, lambda: [PULL_HEAD + file for file in ameba_files()], read=pull_received),
    target(ameba_pull.parse_update_order, ["ATWO=10.0.0.1[8082]", "ATSO=10.0.0.1,8082", "wifi_update 10.0.0.1 8082"]),
    target(espota.parse_invitation, [espota.pack_invitation(espota.Invitation(0, 4711, 900, "0f" * 16))]),
    target(espota.parse_answer, ["OK", "AUTH " + "0f" * 16, "1460OK"], read=push_answered),
    target(espota.parse_auth, [espota.pack_auth(espota.AuthAnswer("0f" * 16, "0e" * 16))], nonce="0a" * 16),
    target(packets.parse_packet, [bytes([item[0]]) + item[2:] for item in MQTT_PACKETS[:4]], read=mqtt_packet),
    target(packets.PacketReader.feed, MQTT_PACKETS, read=mqtt_stream, longest=READ_SIZE),
    target(server_connection.ServerConnection.receive, MQTT_PACKETS, read=mqtt_both_sides, longest=READ_SIZE),
    target(bridge_rules.parse_rule, ["out:t/{thing}/=plant/{thing}/t/", "in:news/"]),
    target(broker_url.parse_broker_url, ["mqtts://flota:p%40ss@broker.example:8883?ca=/etc/ca.pem", "mqtt://[::1]"]),
    target(topics.matches, ["a/+/# a/b/c", "$aws/things/+/jobs/# $aws/things/t/jobs/get"], read=topic_filters),
    target(aws_jobs.parse_jobs_request, [JOBS_UPDATE, "{}"], read=jobs_request),
    target(aws_jobs.parse_jobs_topic, ["$aws/things/pump-1/jobs/$next/get"]),
    target(json_text.parse_json, [JOBS_UPDATE, '{"a":[1.5,null,true,{"b":"\\u00e9"}]}']),
    target(aws_ota.parse_ota_document, [OTA_DOCUMENT], read=ota_document),
    target(aws_jobs.parse_answer, ['{"execution":{"jobId":"j"}}']),
    target(job_document.parse_job, [OTA_JOB]),
    target(ab_record.parse_record, [ab_record.pack_record(AB_RECORD)]),
    target(nuvoton_journal.parse_record, [NUVOTON_RECORD]),
    target(aws_streams.parse_describe, ['{"c":"t"}'], form=JSON_FORM),
    target(aws_streams.parse_block_request, [aws_streams.pack_block_request(BLOCK_REQUEST, JSON_FORM)], form=JSON_FORM),
    target(
        aws_streams.parse_block_request,
        [aws_streams.pack_block_request(BLOCK_REQUEST, CBOR_FORM)],
        form=CBOR_FORM,
        variant="cbor",
    ),
    target(aws_streams.parse_block, [aws_streams.pack_block(BLOCK, JSON_FORM)], form=JSON_FORM),
    target(aws_streams.parse_block, [aws_streams.pack_block(BLOCK, CBOR_FORM)], form=CBOR_FORM, variant="cbor"),
    target(parse_selector, ["type=pump label.site=berlin name=a,b", "all", "text='a b'"], read=selected),
    target(parse_schedule, ["sat,sun 02:00 3h Europe/Berlin", "daily 22:30 1h30m"]),
    target(check_waves, ["10%,50%,100%", "5,100%"]),
    target(split_waves, ["10%,50%,100%", "5,100%"], read=waves),
    target(parse_version, ["v1.2.3-rc4+5", "2026.11"], read=version),
    target(parse_sha256_hex, ["0F" * 32]),
)
