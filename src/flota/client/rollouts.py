"""The management API's operations on rollouts and executions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flota.client.schemas import (
    Execution,
    ExecutionEvent,
    ExecutionEventPage,
    ExecutionPage,
    Rollout,
    RolloutPage,
    Shipment,
    ViamLinks,
)
from flota.client.wire import WireClient, segment


class RolloutCalls(WireClient):
    """Which devices get a release, and what became of it."""

    def create_rollout(
        self,
        release: int | str,
        *,
        devices: Sequence[str] | None = None,
        select: str | None = None,
        name: str | None = None,
        waves: str = "100%",
        abort_after: int = 1,
        silence_limit_s: int | None = None,
        attempts: int | None = None,
        count_inferred: bool | None = None,
        continuous: bool = False,
        urgency: str = "forced",
        forced_at: datetime | None = None,
        confirm: bool | None = None,
        maintenance: str | None = None,
    ) -> Rollout:
        """Offer a published release to the named devices, or to those that `select` picks now.

        `waves` lists rising totals, as counts or percentages of the whole: `2,50%,100%`.
        """
        body: dict[str, object] = {
            "release": str(release),
            "devices": list(devices) if devices is not None else None,
            "select": select,
            "name": name,
            "waves": waves,
            "abort_after_failures": abort_after,
        }
        limits = {
            "silence_limit_s": silence_limit_s,
            "attempts": attempts,
            "count_inferred": count_inferred,
            "continuous": continuous,
            "urgency": urgency if urgency != "forced" else None,
            "forced_at": forced_at.isoformat() if forced_at else None,
            "confirm": confirm,
            "maintenance": maintenance,
        }
        body.update({key: value for key, value in limits.items() if value is not None})
        return self._ask("POST", "/rollouts", Rollout, json=body)

    def viam_links(
        self,
        release: int | str | None = None,
        *,
        device: str | None = None,
        rollout: int | str | None = None,
        base_url: str | None = None,
    ) -> ViamLinks:
        """Return the service configuration of micro-RDK devices.

        With `device`, of that device; with `rollout`, of every device with an open execution in it; with neither, a
        shared one. `base_url` is the address that devices shall use, else the server chooses.
        """
        body = {
            "release": None if release is None else str(release),
            "device": device,
            "rollout": None if rollout is None else str(rollout),
            "base_url": base_url,
        }
        return self._ask("POST", "/viam/links", ViamLinks, json=body)

    def add_evidence(self, execution_id: int, *, last_online_at: datetime, source: str) -> Execution:
        """Say when another system last heard of a device; its inferred success becomes a reported one."""
        body = {"last_online_at": last_online_at.isoformat(), "source": source}
        return self._ask("POST", f"/executions/{execution_id}/evidence", Execution, json=body)

    def list_rollouts(self, *, open_only: bool = False) -> list[Rollout]:
        """Return rollouts, oldest first."""
        return self._ask("GET", "/rollouts", RolloutPage, params={"open": "true" if open_only else None}).items

    def rollout(self, reference: int | str) -> Rollout:
        """Return one rollout by its number or name; raises `NotFound`."""
        return self._ask("GET", f"/rollouts/{segment(str(reference))}", Rollout)

    def pause(self, reference: int | str, *, reason: str = "") -> Rollout:
        """Offer nothing more to devices that have not started yet."""
        return self._ask("POST", f"/rollouts/{segment(str(reference))}/pause", Rollout, json={"reason": reason})

    def resume(self, reference: int | str) -> Rollout:
        """Go on with a paused rollout."""
        return self._ask("POST", f"/rollouts/{segment(str(reference))}/resume", Rollout, json={})

    def cancel(self, reference: int | str, *, reason: str = "") -> Rollout:
        """End a rollout: queued executions are canceled, running ones are asked to stop."""
        return self._ask("POST", f"/rollouts/{segment(str(reference))}/cancel", Rollout, json={"reason": reason})

    def executions(self, rollout: int | str) -> list[Execution]:
        """Return the executions of a rollout, those of opened waves only."""
        return self._ask("GET", f"/rollouts/{segment(str(rollout))}/executions", ExecutionPage).items

    def shipment(self, rollout: int | str) -> Shipment:
        """Return a rollout as Blynk's console shows it; raises `NotFound`."""
        return self._ask("GET", f"/rollouts/{segment(str(rollout))}/shipment", Shipment)

    def device_executions(self, device: str) -> list[Execution]:
        """Return a device's executions, oldest first."""
        return self._ask("GET", f"/devices/{segment(device)}/executions", ExecutionPage).items

    def execution(self, execution_id: int) -> Execution:
        """Return one execution; raises `NotFound`."""
        return self._ask("GET", f"/executions/{execution_id}", Execution)

    def execution_events(self, execution_id: int) -> list[ExecutionEvent]:
        """Return the history of an execution, oldest first."""
        return self._ask("GET", f"/executions/{execution_id}/events", ExecutionEventPage).items
