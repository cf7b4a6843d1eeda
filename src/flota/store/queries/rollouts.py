"""Rollouts: the snapshot of devices, the waves, and what a change of state does to the executions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.devices import DeviceState
from flota.fleet.executions import ExecutionState
from flota.fleet.releases import ReleaseState
from flota.fleet.rollouts import (
    OPEN_ROLLOUT_STATES,
    ROLLOUT_TRANSITIONS,
    STOPPED_ROLLOUT_STATES,
    WAVE_TRANSITIONS,
    Rollout,
    RolloutPolicy,
    RolloutState,
    Wave,
    WaveState,
)
from flota.fleet.scope import Scope
from flota.fleet.storage import NewRollout
from flota.fleet.things import job_id_of
from flota.fleet.update_rules import Urgency
from flota.store.change_notes import concerning
from flota.store.queries.base import in_batches
from flota.store.queries.executions import ExecutionQueries
from flota.store.tables import (
    artifacts,
    device_types,
    devices,
    executions,
    releases,
    rollout_devices,
    rollout_waves,
    rollouts,
)

_SELECT_ROLLOUT: Final = (
    sa.select(
        rollouts, releases.c.version, releases.c.state.label("release_state"), device_types.c.name.label("type_name")
    )
    .join(releases, releases.c.id == rollouts.c.release_id)
    .join(device_types, device_types.c.id == releases.c.type_id)
)

_UNENDED_WAVES: Final = sorted((WaveState.WAITING, WaveState.OPEN))


def _wave_end(wave: str, rollout: RolloutState) -> WaveState:
    """Return what becomes of a wave that has not ended when its rollout ends."""
    if wave == WaveState.WAITING:
        return WaveState.NOT_OPENED
    return WaveState.CANCELED if rollout is RolloutState.CANCELED else WaveState.FAILED


class RolloutQueries(ExecutionQueries):
    """A release offered to a snapshot of devices."""

    async def add_rollout(self, scope: Scope, new: NewRollout, *, now: datetime) -> Rollout:
        """Return the new rollout, active, all its waves waiting.

        Raises `NotFound` for the release or a device, `Conflict` if the release is not published or the name is taken,
        `InvalidInput` if a device is of another type or listed twice, or a wave is empty.
        """
        release = await self._row(
            sa.select(releases.c.id, releases.c.type_id, releases.c.state, releases.c.version, artifacts.c.sha256)
            .join(artifacts, artifacts.c.id == releases.c.artifact_id)
            .where(releases.c.id == new.release_id, releases.c.tenant_id == scope.tenant_id)
            .with_for_update(read=True, of=releases)
        )
        if release is None:
            raise NotFound("no such release", found=new.release_id)
        if release.state != ReleaseState.PUBLISHED.value:
            raise Conflict(
                "only a published release can be rolled out", expected=ReleaseState.PUBLISHED, found=release.state
            )
        await self._check_snapshot(scope, new.waves, release.type_id)
        policy = new.policy
        rollout_id = await self._insert_unique(
            rollouts,
            {
                "tenant_id": scope.tenant_id,
                "name": new.name,
                "release_id": new.release_id,
                "state": RolloutState.ACTIVE.value,
                "abort_after_failures": policy.abort_after_failures,
                "silence_limit_s": policy.silence_limit_s,
                "attempts": policy.attempts,
                "count_inferred": policy.count_inferred,
                "continuous": policy.continuous,
                "urgency": policy.urgency.value,
                "forced_at": policy.forced_at,
                "confirm": policy.confirm,
                "maintenance": policy.maintenance,
                "selector": new.selector,
                "reason": "",
                "created_at": now,
                "changed_at": now,
                "job_id": job_id_of(new.name),
            },
            Conflict("there is a rollout of this name or job id", found=new.name),
        )
        await self._insert_waves(rollout_id, new.waves)
        self._audit(
            scope,
            "rollout.created",
            f"rollout:{rollout_id}",
            {
                "name": new.name,
                "release": new.release_id,
                "version": release.version,
                "sha256": release.sha256,
                "selector": new.selector,
                "waves": [len(wave) for wave in new.waves],
                "abort_after_failures": policy.abort_after_failures,
                "silence_limit_s": policy.silence_limit_s,
                "attempts": policy.attempts,
                "count_inferred": policy.count_inferred,
                **_special_rules(policy),
            },
            now=now,
        )
        return await self.rollout(scope, rollout_id)

    async def rollout(self, scope: Scope, rollout_id: int) -> Rollout:
        """Return the rollout with its waves and their counts; raises `NotFound`."""
        return (await self._rollouts([await self._rollout_row(scope, rollout_id)]))[0]

    async def rollout_policy(self, scope: Scope, rollout_id: int) -> RolloutPolicy:
        """Return the rollout's limits alone, without counting anything: for device polls. Raises `NotFound`."""
        return policy_of(await self._rollout_row(scope, rollout_id))

    async def find_rollout(self, scope: Scope, name: str) -> Rollout | None:
        """Return the rollout called exactly `name`, or None."""
        row = await self._row(_SELECT_ROLLOUT.where(rollouts.c.tenant_id == scope.tenant_id, rollouts.c.name == name))
        return None if row is None else (await self._rollouts([row]))[0]

    async def list_rollouts(self, scope: Scope, *, open_only: bool = False) -> Sequence[Rollout]:
        """Return the tenant's rollouts, oldest first; `open_only` leaves out those that have ended."""
        statement = _SELECT_ROLLOUT.where(rollouts.c.tenant_id == scope.tenant_id)
        if open_only:
            statement = statement.where(rollouts.c.state.in_(sorted(OPEN_ROLLOUT_STATES)))
        return await self._rollouts(await self._rows(statement.order_by(rollouts.c.id)))

    async def rollout_devices(self, scope: Scope, rollout_id: int) -> Sequence[tuple[int, str, int]]:
        """Return (device id, name, wave) of the snapshot in its order, removed devices too; raises `NotFound`."""
        await self._rollout_row(scope, rollout_id)
        rows = await self._rows(
            sa.select(rollout_devices.c.device_id, devices.c.name, rollout_devices.c.wave)
            .join(devices, devices.c.id == rollout_devices.c.device_id)
            .where(rollout_devices.c.rollout_id == rollout_id)
            .order_by(rollout_devices.c.wave, rollout_devices.c.position)
        )
        return tuple((row.device_id, row.name, row.wave) for row in rows)

    async def set_rollout_state(
        self, scope: Scope, rollout_id: int, state: RolloutState, *, now: datetime, reason: str = ""
    ) -> Rollout:
        """Return the rollout in its new state; setting the state it has changes nothing.

        Ending it leaves waiting waves NOT_OPENED, and open ones FAILED, or CANCELED if the rollout is. ABORTED and
        CANCELED also cancel what is queued and ask devices at work to stop.
        Raises `NotFound`, or `Conflict` if `ROLLOUT_TRANSITIONS` has no such step.
        """
        row = await self._rollout_row(scope, rollout_id, for_update=True)
        before = RolloutState(row.state)
        if before is state:
            return await self.rollout(scope, rollout_id)
        if state not in ROLLOUT_TRANSITIONS[before]:
            raise Conflict(
                f"rollout {row.name} is {before} and cannot become {state}",
                expected=" or ".join(sorted(ROLLOUT_TRANSITIONS[before])) or "no further change",
                found=state,
            )
        await self._connection.execute(
            sa.update(rollouts)
            .where(rollouts.c.id == rollout_id)
            .values(state=state.value, reason=reason, changed_at=now),
            execution_options=concerning(await self.waiting_for(executions.c.rollout_id == rollout_id)),
        )
        details = {"name": row.name, "from": before.value, "state": state.value, "reason": reason}
        self._audit(scope, f"rollout.{state.value}", f"rollout:{rollout_id}", details, now=now)
        if state not in OPEN_ROLLOUT_STATES:
            await self._end_waves(scope, rollout_id, state, now=now)
        if state in STOPPED_ROLLOUT_STATES:
            await self.stop_executions(
                scope,
                executions.c.rollout_id == rollout_id,
                reason=f"the rollout was {state}" + (f": {reason}" if reason else ""),
                now=now,
            )
        return await self.rollout(scope, rollout_id)

    async def set_wave_state(
        self, scope: Scope, rollout_id: int, number: int, state: WaveState, *, now: datetime
    ) -> None:
        """Put a wave into `state`; the state it has changes nothing.

        Raises `NotFound`, or `Conflict` if `WAVE_TRANSITIONS` has no such step.
        """
        await self._rollout_row(scope, rollout_id, for_update=True)
        await self._set_wave_state(scope, rollout_id, number, state, {}, now=now)

    async def open_wave(self, scope: Scope, rollout_id: int, number: int, *, now: datetime) -> Sequence[int]:
        """Make a QUEUED execution for each device of the wave that is still accepted; return their ids, in its order.

        A device that has one in this rollout gets no second. Raises `NotFound`, or `Conflict` if the rollout is not
        active, the release is not published, or the wave has ended.
        """
        rollout = await self._rollout_row(scope, rollout_id, for_update=True)
        for name, found, expected in (
            ("rollout", rollout.state, RolloutState.ACTIVE),
            ("release", rollout.release_state, ReleaseState.PUBLISHED),
        ):
            if found != expected.value:
                raise Conflict(
                    f"wave {number} cannot open: the {name} is {found}", expected=expected.value, found=found
                )
        has_execution = sa.exists().where(
            executions.c.rollout_id == rollout_id, executions.c.device_id == rollout_devices.c.device_id
        )
        in_wave = (
            rollout_devices.c.rollout_id == rollout_id,
            rollout_devices.c.wave == number,
            devices.c.state == DeviceState.ACCEPTED.value,
            devices.c.removed_at.is_(None),
            ~has_execution,
        )
        of_wave = sa.join(devices, rollout_devices, rollout_devices.c.device_id == devices.c.id)
        rows = await self._rows(
            sa.select(devices.c.id).select_from(of_wave).where(*in_wave).with_for_update(read=True, of=devices)
        )
        made: tuple[int, ...] = ()
        if rows:
            chosen = (
                sa.select(devices.c.id).select_from(of_wave).where(*in_wave).order_by(rollout_devices.c.position)
            ).subquery()
            fixed = {"rollout_id": rollout_id, "release_id": rollout.release_id, "wave": number}
            made = await self.insert_executions(scope, chosen, [row.id for row in rows], fixed, now=now)
        details: dict[str, object] = {"executions": len(made)}
        if made:
            details |= {"first_execution": made[0], "last_execution": made[-1]}
        await self._set_wave_state(scope, rollout_id, number, WaveState.OPEN, details, now=now)
        return made

    async def join_rollout(
        self, scope: Scope, rollout_id: int, device_ids: Sequence[int], *, now: datetime
    ) -> Sequence[int]:
        """Put more devices into the last wave; returns the ids of their executions if it is open already.

        Raises `NotFound`, `Conflict` if the rollout is not active, `InvalidInput` for a device of another type.
        """
        rollout = await self._rollout_row(scope, rollout_id, for_update=True)
        if rollout.state != RolloutState.ACTIVE.value:
            raise Conflict("devices can only join an active rollout", found=rollout.state)
        release = await self._row(sa.select(releases.c.type_id).where(releases.c.id == rollout.release_id))
        assert release is not None
        await self._check_snapshot(scope, [device_ids], release.type_id)
        last = await self._row(
            sa.select(rollout_waves)
            .where(rollout_waves.c.rollout_id == rollout_id)
            .order_by(rollout_waves.c.number.desc())
            .limit(1)
        )
        assert last is not None
        await self._connection.execute(
            sa.insert(rollout_devices),
            [
                {"rollout_id": rollout_id, "device_id": device_id, "wave": last.number, "position": position}
                for position, device_id in enumerate(device_ids, last.size + 1)
            ],
        )
        await self._connection.execute(
            sa.update(rollout_waves)
            .where(rollout_waves.c.rollout_id == rollout_id, rollout_waves.c.number == last.number)
            .values(size=last.size + len(device_ids))
        )
        facts = {"wave": last.number, "devices": len(device_ids)}
        self._audit(scope, "rollout.joined", f"rollout:{rollout_id}", facts, now=now)
        if last.state != WaveState.OPEN.value:
            return ()
        return await self.open_wave(scope, rollout_id, last.number, now=now)

    async def _check_snapshot(self, scope: Scope, waves: Sequence[Sequence[int]], type_id: int) -> None:
        device_ids = [device_id for wave in waves for device_id in wave]
        if not waves or not all(waves):
            raise InvalidInput("a wave has no device", hint="Select at least one device for each wave.")
        if len(set(device_ids)) != len(device_ids):
            raise InvalidInput("a device is listed twice")
        known: dict[int, sa.Row[Any]] = {}
        for batch in in_batches(device_ids):
            rows = await self._rows(
                sa.select(devices.c.id, devices.c.name, devices.c.type_id).where(
                    devices.c.tenant_id == scope.tenant_id, devices.c.removed_at.is_(None), devices.c.id.in_(batch)
                )
            )
            known.update((row.id, row) for row in rows)
        for device_id in device_ids:
            if device_id not in known:
                raise NotFound("no such device", found=device_id)
            if known[device_id].type_id != type_id:
                raise InvalidInput(
                    "a device is of another type than the release",
                    found=known[device_id].name,
                    hint="Add type=NAME to the selector.",
                )

    async def _insert_waves(self, rollout_id: int, waves: Sequence[Sequence[int]]) -> None:
        await self._connection.execute(
            sa.insert(rollout_waves),
            [
                {"rollout_id": rollout_id, "number": number, "state": WaveState.WAITING.value, "size": len(wave)}
                for number, wave in enumerate(waves, 1)
            ],
        )
        await self._connection.execute(
            sa.insert(rollout_devices),
            [
                {"rollout_id": rollout_id, "device_id": device_id, "wave": number, "position": position}
                for number, wave in enumerate(waves, 1)
                for position, device_id in enumerate(wave, 1)
            ],
        )

    async def _end_waves(self, scope: Scope, rollout_id: int, ended: RolloutState, *, now: datetime) -> None:
        """Leave no wave waiting or open: the rollout has ended."""
        rows = await self._rows(
            sa.select(rollout_waves.c.number, rollout_waves.c.state)
            .where(rollout_waves.c.rollout_id == rollout_id, rollout_waves.c.state.in_(_UNENDED_WAVES))
            .order_by(rollout_waves.c.number)
        )
        for row in rows:
            await self._set_wave_state(scope, rollout_id, row.number, _wave_end(row.state, ended), {}, now=now)

    async def _set_wave_state(
        self,
        scope: Scope,
        rollout_id: int,
        number: int,
        state: WaveState,
        details: Mapping[str, object],
        *,
        now: datetime,
    ) -> None:
        """Write the wave's state; the caller holds the rollout's row, so no other writer is at its waves."""
        this_wave = (rollout_waves.c.rollout_id == rollout_id, rollout_waves.c.number == number)
        row = await self._row(sa.select(rollout_waves).where(*this_wave))
        if row is None:
            raise NotFound(f"rollout {rollout_id} has no such wave", found=number)
        before = WaveState(row.state)
        if before is state and not details.get("executions"):
            return
        if before is not state and state not in WAVE_TRANSITIONS[before]:
            raise Conflict(f"wave {number} is {before} and cannot become {state}")
        await self._connection.execute(sa.update(rollout_waves).where(*this_wave).values(state=state.value))
        facts = {"wave": number, "size": row.size, "state": state.value, **details}
        self._audit(scope, f"wave.{state.value}", f"rollout:{rollout_id}", facts, now=now)

    async def _rollout_row(self, scope: Scope, rollout_id: int, *, for_update: bool = False) -> sa.Row[Any]:
        statement = _SELECT_ROLLOUT.where(rollouts.c.id == rollout_id, rollouts.c.tenant_id == scope.tenant_id)
        row = await self._row(statement.with_for_update(of=rollouts) if for_update else statement)
        if row is None:
            raise NotFound("no such rollout", found=rollout_id)
        return row

    async def _rollouts(self, rows: Sequence[sa.Row[Any]]) -> Sequence[Rollout]:
        """Return the rollouts of `rows`, waves and counts fetched for all of them at once."""
        counts: defaultdict[tuple[int, int], dict[ExecutionState, int]] = defaultdict(dict)
        waves: defaultdict[int, list[Wave]] = defaultdict(list)
        for batch in in_batches([row.id for row in rows]):
            for count in await self._rows(
                sa.select(
                    executions.c.rollout_id, executions.c.wave, executions.c.state, sa.func.count().label("number")
                )
                .where(executions.c.rollout_id.in_(batch))
                .group_by(executions.c.rollout_id, executions.c.wave, executions.c.state)
            ):
                counts[count.rollout_id, count.wave][ExecutionState(count.state)] = count.number
            for wave in await self._rows(
                sa.select(rollout_waves)
                .where(rollout_waves.c.rollout_id.in_(batch))
                .order_by(rollout_waves.c.rollout_id, rollout_waves.c.number)
            ):
                waves[wave.rollout_id].append(
                    Wave(wave.number, WaveState(wave.state), wave.size, counts[wave.rollout_id, wave.number])
                )
        return tuple(_rollout(row, tuple(waves[row.id])) for row in rows)


def _rollout(row: sa.Row[Any], waves: tuple[Wave, ...]) -> Rollout:
    return Rollout(
        id=row.id,
        name=row.name,
        release_id=row.release_id,
        type_name=row.type_name,
        version=row.version,
        state=RolloutState(row.state),
        policy=policy_of(row),
        waves=waves,
        selector=row.selector,
        created_at=row.created_at,
        changed_at=row.changed_at,
        reason=row.reason,
        job_id=row.job_id,
    )


def policy_of(row: sa.Row[Any]) -> RolloutPolicy:
    """Return the limits in a row that has the columns of a rollout."""
    return RolloutPolicy(
        abort_after_failures=row.abort_after_failures,
        silence_limit_s=row.silence_limit_s,
        attempts=row.attempts,
        count_inferred=row.count_inferred,
        continuous=row.continuous,
        urgency=Urgency(row.urgency),
        forced_at=row.forced_at,
        confirm=row.confirm,
        maintenance=row.maintenance,
    )


def _special_rules(policy: RolloutPolicy) -> dict[str, object]:
    """Return what of a rollout's rules is not the usual, for the audit trail."""
    told: dict[str, object] = {} if policy.urgency is Urgency.FORCED else {"urgency": policy.urgency.value}
    if policy.continuous:
        told["continuous"] = True
    if policy.forced_at is not None:
        told["forced_at"] = policy.forced_at.isoformat()
    if policy.confirm is not None:
        told["confirm"] = policy.confirm
    if policy.maintenance is not None:
        told["maintenance"] = policy.maintenance
    return told
