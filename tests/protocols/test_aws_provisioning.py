"""Fleet provisioning messages: both forms, both roles, and what is refused."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.protocols.aws_provisioning import (
    REQUEST_MAX_BYTES,
    CertificateMade,
    PayloadFormat,
    Provisioned,
    ProvisioningOperation,
    ProvisioningRejected,
    ProvisioningRejection,
    ProvisioningTopic,
    ProvisionRequest,
    pack_certificate_made,
    pack_csr_request,
    pack_provision_request,
    pack_provisioned,
    pack_rejection,
    parse_certificate_made,
    parse_csr_request,
    parse_keys_request,
    parse_provision_request,
    parse_provisioned,
    parse_provisioning_topic,
    parse_rejection,
)
from flota.protocols.cbor import pack_cbor

JSON, CBOR = PayloadFormat.JSON, PayloadFormat.CBOR
FORMS = st.sampled_from(PayloadFormat)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)
PRINTABLE = TEXTS.filter(str.isprintable)
NAMES = st.from_regex(r"[A-Za-z0-9:_.-]{1,20}", fullmatch=True)


def test_the_topics_are_those_of_the_guide() -> None:
    expected = {
        "$aws/certificates/create/json": (ProvisioningOperation.CREATE_KEYS, JSON, None),
        "$aws/certificates/create-from-csr/cbor": (ProvisioningOperation.CREATE_FROM_CSR, CBOR, None),
        "$aws/provisioning-templates/meters/provision/json": (ProvisioningOperation.PROVISION, JSON, "meters"),
    }
    for text, (operation, form, template) in expected.items():
        topic = parse_provisioning_topic(text)
        assert topic == ProvisioningTopic(operation, form, template)
        assert topic is not None
        assert (topic.text, topic.accepted, topic.rejected) == (text, f"{text}/accepted", f"{text}/rejected")


@pytest.mark.parametrize(
    "topic",
    [
        "$aws/certificates/create",
        "$aws/certificates/create/xml",
        "$aws/certificates/create/json/accepted",
        "$aws/certificates/delete/json",
        "$aws/provisioning-templates/a b/provision/json",
        "$aws/provisioning-templates//provision/json",
        "$aws/provisioning-templates/" + "t" * 37 + "/provision/json",
        "$aws/provisioning-templates/t/provision/json/rejected",
        "$aws/things/t/jobs/get",
        "",
    ],
)
def test_other_topics_are_no_requests(topic: str) -> None:
    assert parse_provisioning_topic(topic) is None


def test_a_csr_request_in_json_is_what_a_device_writes() -> None:
    assert json.loads(pack_csr_request("-----BEGIN…", JSON)) == {"certificateSigningRequest": "-----BEGIN…"}
    assert parse_csr_request(b'{"certificateSigningRequest":"abc\\n"}', JSON) == "abc\n"
    # text-string keys and values, as the C library for fleet provisioning writes them
    assert pack_csr_request("abc", CBOR).hex() == "a1781963657274696669636174655369676e696e675265717565737463616263"


def test_a_rejection_has_the_three_members_of_the_guide() -> None:
    rejected = ProvisioningRejected(ProvisioningRejection.INVALID_CSR, "no CSR")
    assert json.loads(pack_rejection(rejected, JSON)) == {
        "statusCode": 400,
        "errorCode": "InvalidCSR",
        "errorMessage": "no CSR",
    }


@given(FORMS, TEXTS)
def test_csr_requests_are_read_back(form: PayloadFormat, csr: str) -> None:
    assert parse_csr_request(pack_csr_request(csr, form), form) == csr


@given(FORMS, PRINTABLE, st.dictionaries(NAMES, PRINTABLE, max_size=5))
def test_provision_requests_are_read_back(form: PayloadFormat, token: str, parameters: dict[str, str]) -> None:
    request = ProvisionRequest(token, parameters)
    assert parse_provision_request(pack_provision_request(request, form), form) == request


@given(FORMS, TEXTS, TEXTS, TEXTS, st.none() | TEXTS)
def test_answers_are_read_back(form: PayloadFormat, identity: str, pem: str, token: str, key: str | None) -> None:
    made = CertificateMade(identity, pem, token, key)
    assert parse_certificate_made(pack_certificate_made(made, form), form) == made
    provisioned = Provisioned(identity, {"a": pem})
    assert parse_provisioned(pack_provisioned(provisioned, form), form) == provisioned


@given(FORMS, st.sampled_from(ProvisioningRejection), TEXTS)
def test_rejections_are_read_back(form: PayloadFormat, why: ProvisioningRejection, text: str) -> None:
    found = parse_rejection(pack_rejection(ProvisioningRejected(why, text), form), form)
    assert (found.status, found.error, found.message) == (*why.value, text)


@given(FORMS, st.binary(max_size=200))
def test_any_bytes_give_a_value_or_our_error(form: PayloadFormat, payload: bytes) -> None:
    readers = (
        parse_csr_request, parse_keys_request, parse_provision_request,
        parse_certificate_made, parse_provisioned, parse_rejection,
    )  # fmt: skip
    for reader in readers:
        with contextlib.suppress(FlotaError):
            reader(payload, form)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"certificateOwnershipToken": 7},
        {"certificateOwnershipToken": ""},
        {"certificateOwnershipToken": "t" * 2000},
        {"certificateOwnershipToken": "t", "parameters": []},
        {"certificateOwnershipToken": "t", "parameters": {"SerialNumber": 7}},
        {"certificateOwnershipToken": "t", "parameters": {"Serial Number": "7"}},
        {"certificateOwnershipToken": "t", "parameters": {"SerialNumber": "7\n"}},
        {"certificateOwnershipToken": "t", "parameters": {str(n): "7" for n in range(33)}},
    ],
)
@pytest.mark.parametrize("form", PayloadFormat)
def test_a_request_to_become_a_thing_has_bounds(form: PayloadFormat, members: dict[str, object]) -> None:
    payload = json.dumps(members).encode() if form is JSON else pack_cbor(members)
    with pytest.raises(ProvisioningRejected) as rejected:
        parse_provision_request(payload, form)
    assert rejected.value.rejection is ProvisioningRejection.INVALID_PARAMETERS


def test_an_oversized_request_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProvisioningRejected, match="at most"):
        parse_csr_request(b"[" * (REQUEST_MAX_BYTES + 1), JSON)


def test_secrets_are_not_in_reprs() -> None:
    assert "secret" not in repr(ProvisionRequest("secret"))
    assert "secret" not in repr(CertificateMade("id", "pem", "secret", "secret"))
