from __future__ import annotations

from dataclasses import replace

import pytest

from flota.boards.model import VersionFrom
from flota.errors import Conflict, InvalidInput, NotFound, Refused
from flota.fleet.devices import DeviceState, TrustedSigner, UnknownDevices
from flota.fleet.executions import ExecutionChange, ExecutionState
from flota.fleet.releases import RELEASE_TRANSITIONS, ReleaseSbom, ReleaseSignature, ReleaseState
from flota.fleet.rollouts import RolloutPolicy, RolloutState, WaveState
from flota.fleet.scope import Role, Scope
from flota.fleet.storage import NewDeviceType, NewRelease, NewRollout
from flota.store.database import Database
from tests.store.fleets import KEY, START, a_device, a_fleet, a_release, a_tenant, a_type, an_artifact, at

SECOND = TrustedSigner("c3d4", "PEM 2")


async def test_the_same_bytes_twice_are_one_artifact_with_its_first_name(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        first, created = await tx.add_artifact(scope, an_artifact())
        again, created_again = await tx.add_artifact(scope, an_artifact(filename="other.bin"))
        assert (created, created_again) == (True, False)
        assert first == again == an_artifact()
        with pytest.raises(NotFound):
            await tx.artifact(scope, "00" * 32)


async def test_only_old_artifacts_that_no_release_names_are_removed(database: Database) -> None:
    scope, other = await a_tenant(database), await a_tenant(database, "OTHER")
    shas = {name: an_artifact(name.encode()).digests.sha256 for name in ("2.0.0", "old", "again", "new")}
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_release(tx, scope, "2.0.0")
        await tx.add_artifact(scope, an_artifact(b"old"))
        await tx.add_artifact(other, an_artifact(b"old"))
        await tx.add_artifact(scope, an_artifact(b"again"))
        await tx.add_artifact(scope, replace(an_artifact(b"again"), created_at=at(60)))
        await tx.add_artifact(scope, replace(an_artifact(b"new"), created_at=at(60)))
    async with database.transaction() as tx:
        assert await tx.unused_artifacts(scope, before=at(60), limit=10) == (shas["old"],)
        assert await tx.remove_unused_artifacts(scope, [*shas.values()], before=at(60), now=at(61)) == (shas["old"],)
        with pytest.raises(NotFound):
            await tx.artifact(scope, shas["old"])
        assert await tx.is_artifact_recorded(shas["old"])  # the other tenant's
        await tx.remove_unused_artifacts(other, [shas["old"]], before=at(60), now=at(61))
        assert not await tx.is_artifact_recorded(shas["old"])
        assert (await tx.artifact(scope, shas["again"])).created_at == START


async def test_an_sbom_is_the_tenants_own_bytes_and_only_a_draft_takes_one(database: Database) -> None:
    scope, other = await a_tenant(database), await a_tenant(database, "OTHER")
    sboms = [
        ReleaseSbom(an_artifact(data).digests.sha256, len(data), "sbom.json", "cyclonedx", "1.6", 3)
        for data in (b"mine", b"theirs")
    ]
    async with database.transaction() as tx:
        await a_type(tx, scope)
        draft = await a_release(tx, scope, "1", state=ReleaseState.DRAFT)
        published = await a_release(tx, scope, "2")
        await tx.add_artifact(scope, an_artifact(b"mine"))
        await tx.add_artifact(other, an_artifact(b"theirs"))
        assert draft.sbom is None
        assert (await tx.set_release_sbom(scope, draft.id, sboms[0], now=START)).sbom == sboms[0]
        with pytest.raises(NotFound):
            await tx.set_release_sbom(other, draft.id, sboms[1], now=START)
        with pytest.raises(Conflict, match="does not change any more"):
            await tx.set_release_sbom(scope, published.id, sboms[0], now=START)
    with pytest.raises(NotFound):
        async with database.transaction() as tx:
            await tx.set_release_sbom(scope, draft.id, sboms[1], now=START)
    async with database.reading() as tx:
        assert (await tx.release(scope, draft.id)).sbom == sboms[0]
        assert await tx.unused_artifacts(scope, before=at(3600), limit=10) == ()


async def test_a_release_has_a_file_name_of_its_own_or_its_artifacts(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        artifact, _ = await tx.add_artifact(scope, an_artifact())
        plain = NewRelease("pump", "1", 1, artifact.digests.sha256, b"{}", None)
        named = replace(plain, version="2", sequence=2, filename="update.swu")
        assert [(await tx.add_release(scope, new, now=START)).filename for new in (plain, named)] == [
            "pump.bin",
            "update.swu",
        ]


async def test_a_type_is_stored_whole(database: Database) -> None:
    scope = await a_tenant(database)
    new = NewDeviceType(
        "pump", "esp32-c3", "B2", b"\xaa\x50\0", "nvs,data,nvs,,4K", VersionFrom.APP_DESC, UnknownDevices.ACCEPT,
        (KEY, SECOND), 2, 60, "Pümpe",
    )  # fmt: skip
    async with database.transaction() as tx:
        made = await tx.add_device_type(scope, new, now=START)
        with pytest.raises(Conflict):
            await tx.add_device_type(scope, new, now=START)
        assert await tx.list_device_types(scope) == (made,)
    assert {name: getattr(made, name) for name in new.__dataclass_fields__} == {
        name: getattr(new, name) for name in new.__dataclass_fields__
    }


async def test_signers_and_the_policy_for_strangers_can_be_replaced(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        assert (await tx.set_signers(scope, "pump", [SECOND], 1, now=START)).signers == (SECOND,)
        changed = await tx.set_unknown_devices(scope, "pump", UnknownDevices.REFUSE, now=START)
        assert changed.unknown_devices is UnknownDevices.REFUSE
        for signers, threshold in (([KEY, KEY], 1), ([KEY], 0)):
            with pytest.raises(InvalidInput):
                await tx.set_signers(scope, "pump", signers, threshold, now=START)
        with pytest.raises(NotFound):
            await tx.set_signers(scope, "valve", [KEY], 1, now=START)


async def test_a_release_is_signed_by_as_many_signers_as_its_type_wants_and_then_published(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await tx.set_signers(scope, "pump", [KEY, SECOND], 2, now=START)
        draft = await a_release(tx, scope, state=ReleaseState.DRAFT)
        once = await tx.add_signature(scope, draft.id, ReleaseSignature(KEY.key_id, "p256", "QQ=="), now=START)
        again = await tx.add_signature(scope, draft.id, ReleaseSignature(KEY.key_id, "p256", "Qg=="), now=START)
        assert once == again
        assert once.state is ReleaseState.DRAFT
        foreign = await tx.add_signature(scope, draft.id, ReleaseSignature("ffff", "p256", "QQ=="), now=at(1))
        assert foreign.state is ReleaseState.DRAFT
        with pytest.raises(Refused) as caught:
            await tx.set_release_state(scope, draft.id, ReleaseState.SIGNED, now=START)
        assert (caught.value.expected, caught.value.found) == (2, 1)
        signed = await tx.add_signature(scope, draft.id, ReleaseSignature(SECOND.key_id, "ed25519", "QQ=="), now=at(2))
        assert signed.state is ReleaseState.SIGNED
        assert [s.key_id for s in signed.signatures] == [KEY.key_id, "ffff", SECOND.key_id]
        published = await tx.set_release_state(scope, draft.id, ReleaseState.PUBLISHED, now=START)
        assert published.state is ReleaseState.PUBLISHED
        with pytest.raises(Conflict, match="no more signatures"):
            await tx.add_signature(scope, draft.id, ReleaseSignature("eeee", "p256", "QQ=="), now=START)


async def test_a_release_is_not_published_after_its_signer_lost_trust(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        release = await a_release(tx, scope, state=ReleaseState.SIGNED)
        await tx.set_signers(scope, "pump", [SECOND], 1, now=START)
        with pytest.raises(Refused):
            await tx.set_release_state(scope, release.id, ReleaseState.PUBLISHED, now=START)


async def test_only_steps_of_the_release_table_are_stored(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        for before in ReleaseState:
            for to in set(ReleaseState) - {before} - RELEASE_TRANSITIONS[before]:
                state = ReleaseState.PUBLISHED if before is ReleaseState.WITHDRAWN else before
                release = await a_release(tx, scope, f"{before}-{to}", state=state)
                if before is ReleaseState.WITHDRAWN:
                    await tx.set_release_state(scope, release.id, before, now=START)
                with pytest.raises(Conflict):
                    await tx.set_release_state(scope, release.id, to, now=START)


async def test_a_version_is_taken_until_it_is_withdrawn_and_sequences_only_rise(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        first = await a_release(tx, scope)
        with pytest.raises(Conflict, match="already"):
            await a_release(tx, scope)
        await tx.set_release_state(scope, first.id, ReleaseState.WITHDRAWN, now=START)
        found = await tx.find_release(scope, "pump", "2.0.0")
        assert found is not None
        assert found.state is ReleaseState.WITHDRAWN
        second = await a_release(tx, scope)
        assert (first.sequence, second.sequence, await tx.next_sequence(scope, "pump")) == (1, 2, 3)
        assert await tx.find_release(scope, "pump", "2.0.0") == second
        third = await a_release(tx, scope, "1.9.0")
        draft = await a_release(tx, scope, "4.0.0", state=ReleaseState.DRAFT)
        assert await tx.current_release(scope, "pump") == third
        assert await tx.find_release(scope, "pump", "9") is None
        listed = await tx.list_releases(scope, type_name="pump", state=ReleaseState.DRAFT)
        assert list(listed) == [draft]
        assert len(await tx.list_releases(scope)) == 4


async def test_only_published_releases_go_to_devices_of_their_own_type(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        await a_type(tx, scope)
        await a_type(tx, scope, "valve")
        device = await a_device(tx, scope, "pump-1")
        signed = await a_release(tx, scope, state=ReleaseState.SIGNED)
        published = await a_release(tx, scope, "3")
        valve = await a_release(tx, scope, "1", type_name="valve")
        good = NewRollout("one", published.id, RolloutPolicy(), ((device.id,),), "all")
        for bad, error in (
            (replace(good, release_id=signed.id), Conflict),
            (replace(good, release_id=999), NotFound),
            (replace(good, release_id=valve.id), InvalidInput),
            (replace(good, waves=((999,),)), NotFound),
            (replace(good, waves=((device.id,), (device.id,))), InvalidInput),
            (replace(good, waves=((device.id,), ())), InvalidInput),
            (replace(good, waves=()), InvalidInput),
        ):
            with pytest.raises(error):
                await tx.add_rollout(scope, bad, now=START)
        made = await tx.add_rollout(scope, good, now=START)
        with pytest.raises(Conflict):
            await tx.add_rollout(scope, good, now=START)
        assert await tx.list_rollouts(scope) == (made,)
        assert await tx.rollout_devices(scope, made.id) == ((device.id, "pump-1", 1),)


async def test_tokens_are_known_by_their_digest_until_they_are_revoked(database: Database) -> None:
    scope = await a_tenant(database)
    async with database.transaction() as tx:
        token = await tx.add_access_token(scope, "ci", Role.OPERATOR, "aa" * 32, now=START)
        with pytest.raises(Conflict):
            await tx.add_access_token(scope, "ci", Role.VIEWER, "bb" * 32, now=START)
        assert await tx.access_token_by_digest("aa" * 32) == token
        assert await tx.access_token_by_digest("bb" * 32) is None
        await tx.revoke_access_token(scope, token.id, now=at(1))
        await tx.revoke_access_token(scope, token.id, now=at(2))
        assert await tx.access_token_by_digest("aa" * 32) is None
        await tx.add_access_token(scope, "ci", Role.VIEWER, "bb" * 32, now=START)
        assert [t.revoked_at for t in await tx.list_access_tokens(scope)] == [at(1), None]


async def test_nothing_of_another_tenant_can_be_seen_or_changed(database: Database) -> None:
    """Whatever is asked with the other tenant's names and ids answers exactly as if they did not exist."""
    mine = await a_fleet(database, tenant="MINE")
    made = await mine.opened(database)
    async with database.transaction() as tx:
        token = await tx.add_access_token(mine.scope, "ci", Role.ADMIN, "aa" * 32, now=START)
        sha = mine.release.artifact.digests.sha256
    async with database.reading() as tx:
        before = await tx.list_audit(mine.scope)
    theirs = await a_tenant(database, "THEIRS")

    async def ask_everything(scope: Scope, *, device: str, number: int, type_name: str, sha256: str) -> list[str]:
        answers = []
        signature = ReleaseSignature("k", "p256", "QQ==")
        change = ExecutionChange(ExecutionState.CANCELED)
        new_release = NewRelease(type_name, "9", 9, sha256, b"", None)
        new_rollout = NewRollout("x", number, RolloutPolicy(), ((number,),), "all")
        for ask in (
            lambda t: t.device_type(scope, type_name),
            lambda t: t.set_signers(scope, type_name, [KEY], 1, now=START),
            lambda t: t.set_unknown_devices(scope, type_name, UnknownDevices.ACCEPT, now=START),
            lambda t: t.device(scope, device),
            lambda t: t.device_by_id(scope, number),
            lambda t: t.set_device_state(scope, device, DeviceState.REFUSED, now=START),
            lambda t: t.set_device_token(scope, device, "00" * 32, now=START),
            lambda t: t.set_device_labels(scope, device, {}, now=START),
            lambda t: t.remove_device(scope, device, now=START),
            lambda t: t.set_device_attributes(scope, number, {"a": "b"}, requested=True, now=START),
            lambda t: t.artifact(scope, sha256),
            lambda t: t.next_sequence(scope, type_name),
            lambda t: t.add_release(scope, new_release, now=START),
            lambda t: t.release(scope, number),
            lambda t: t.add_signature(scope, number, signature, now=START),
            lambda t: t.set_release_state(scope, number, ReleaseState.WITHDRAWN, now=START),
            lambda t: t.add_rollout(scope, new_rollout, now=START),
            lambda t: t.rollout(scope, number),
            lambda t: t.rollout_devices(scope, number),
            lambda t: t.set_rollout_state(scope, number, RolloutState.CANCELED, now=START),
            lambda t: t.set_wave_state(scope, number, 1, WaveState.FAILED, now=START),
            lambda t: t.open_wave(scope, number, 1, now=START),
            lambda t: t.execution(scope, number),
            lambda t: t.execution_events(scope, number),
            lambda t: t.change_execution(scope, number, 1, change, now=START),
            lambda t: t.revoke_access_token(scope, number, now=START),
        ):
            with pytest.raises(NotFound) as caught:
                async with database.transaction() as tx:
                    await ask(tx)
            answers.append(caught.value.message)
        async with database.transaction() as tx:
            assert await tx.find_device(scope, device) is None
            assert await tx.device_token_sha256(scope, device) is None
            assert await tx.find_release(scope, type_name, "2.0.0") is None
            assert await tx.current_release(scope, type_name) is None
            assert await tx.find_rollout(scope, "spring") is None
            assert await tx.next_execution(scope, number) is None
            assert await tx.last_seen(scope, [number]) == {}
            for listed in (
                await tx.list_access_tokens(scope),
                await tx.list_device_types(scope),
                await tx.list_releases(scope),
                await tx.list_rollouts(scope),
                await tx.list_executions(scope, device_id=number),
                await tx.list_executions(scope, rollout_id=number),
            ):
                assert listed == ()
        return answers

    assert {token.id, mine.rollout.id, mine.release.id, made[0].id, mine.devices[0].id} == {1}
    foreign = await ask_everything(theirs, device="pump-1", number=1, type_name="pump", sha256=sha)
    unknown = await ask_everything(theirs, device="nobody", number=999, type_name="nothing", sha256="00" * 32)
    assert foreign == unknown
    async with database.reading() as tx:
        assert await tx.list_audit(mine.scope) == before
        assert len(await tx.list_audit(theirs)) == 1
