"""espota: both roles agree, with the published vectors of both authentications."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.espota import (
    AuthAnswer,
    AuthProtocol,
    Invitation,
    PasswordHash,
    UpdateCommand,
    auth_holds,
    auth_protocol_of,
    auth_response,
    make_cnonce,
    pack_auth,
    pack_invitation,
    pack_nonce,
    parse_answer,
    parse_auth,
    parse_invitation,
    refusal_in,
    says_ok,
)
from flota.protocols.malformed import MalformedMessage

NONCE, CNONCE = "0123456789abcdef" * 4, "fedcba9876543210" * 4


@pytest.mark.parametrize(
    ("stored_as", "response"),
    [
        (PasswordHash.SHA256, "f2c591596d5b9942c3f15cb8290866f4676fc5eec1bba3b040a91f92474fa114"),
        (PasswordHash.MD5, "506e9a94cc2374adf7c4f8480beb70ff1a7921bc09681d36b6280b41c004f4d7"),
    ],
)
def test_the_new_authentication_has_the_vectors(stored_as: PasswordHash, response: str) -> None:
    assert auth_response("admin", NONCE, CNONCE, stored_as=stored_as) == response
    assert auth_holds("admin", NONCE, AuthAnswer(CNONCE, response), stored_as=stored_as)
    assert not auth_holds("Admin", NONCE, AuthAnswer(CNONCE, response), stored_as=stored_as)


def test_the_old_authentication_has_the_vector() -> None:
    response = auth_response("admin", NONCE[:32], CNONCE[:32])
    assert response == "199cd366606a4c7b55e82b1277ecd8ec"
    assert auth_protocol_of(NONCE[:32]) is AuthProtocol.MD5
    assert auth_protocol_of(NONCE) is AuthProtocol.PBKDF2
    with pytest.raises(MalformedMessage):
        auth_protocol_of("abc")


invitations = st.builds(
    Invitation,
    st.sampled_from([0, 100]),
    st.integers(1, 65535),
    st.integers(0, 2**32 - 1),
    st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
)


@given(invitations)
def test_an_invitation_is_read_as_it_was_written(invitation: Invitation) -> None:
    datagram = pack_invitation(invitation)
    assert datagram.endswith(b"\n")
    assert parse_invitation(datagram) == invitation


def test_the_invitations_exact_bytes() -> None:
    invitation = Invitation(UpdateCommand.FIRMWARE, 40000, 1048576, "d" * 32)
    assert pack_invitation(invitation) == b"0 40000 1048576 " + b"d" * 32 + b"\n"


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"7 1 1 " + b"d" * 32,
        b"0 0 1 " + b"d" * 32,
        b"0 70000 1 " + b"d" * 32,
        b"0 1 -1 " + b"d" * 32,
        b"0 1 1 dd",
        b"0 1 1",
        b"\xff" * 90,
        b"0 99999999999 1 " + b"d" * 32,
    ],
)
def test_a_bad_invitation_meets_silence(datagram: bytes) -> None:
    assert parse_invitation(datagram) is None


@given(st.binary(max_size=400))
def test_any_datagram_is_an_answer_or_our_error(datagram: bytes) -> None:
    parse_invitation(datagram)
    parse_auth(datagram, NONCE)
    refusal_in(datagram)
    with contextlib.suppress(MalformedMessage):
        parse_answer(datagram)


def test_the_devices_answers() -> None:
    assert parse_answer(b"OK") is None
    assert parse_answer(pack_nonce(NONCE)) == NONCE
    assert len(pack_nonce(NONCE)) == 69
    for refused in (b"Authentication Failed", b"AUTH 12", b"no"):
        with pytest.raises(MalformedMessage):
            parse_answer(refused)


@pytest.mark.parametrize("digits", [32, 64])
def test_the_senders_answer_is_read_as_it_was_written(digits: int) -> None:
    nonce = NONCE[:digits]
    cnonce = make_cnonce(nonce, "fw.bin", Invitation(0, 1, 2, "d" * 32), "10.0.0.2")
    answer = AuthAnswer(cnonce, auth_response("pw", nonce, cnonce))
    assert parse_auth(pack_auth(answer), nonce) == answer
    assert parse_auth(pack_auth(answer), NONCE[: 96 - digits]) is None
    assert parse_auth(pack_auth(answer).replace(b"200", b"201"), nonce) is None


@pytest.mark.parametrize(
    ("answers", "ok", "refusal"),
    [
        (b"1024102410241024OK", True, None),
        (b"10241024", False, None),
        (b"1024ERR: Not Enough Space\r\n", False, "ERR: Not Enough Space"),
        (b"", False, None),
    ],
)
def test_counts_and_ok_may_run_together(answers: bytes, ok: bool, refusal: str | None) -> None:
    assert says_ok(answers) is ok
    assert refusal_in(answers) == refusal
