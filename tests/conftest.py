"""What holds for every test: properties have no deadline, nothing is left behind, what waits long begins early."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.conftest_postgres import database, database_url, empty_database_url, postgres_server

__all__ = ["database", "database_url", "empty_database_url", "postgres_server"]
"""Fixtures for all, from here alone: a second import of the server's would start a second one."""

settings.register_profile("flota", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("flota")

SWEEPS = ("tests/faults/", "tests/fuzz/", "tests/mutants/")
SCENARIOS = ("tests/scenarios/", "tests/lab/test_lab_commands.py", "tests/server/test_up.py")

SCENARIO_LIMIT_S = 180
"""What starts several processes takes 20 s, and several times as long where other work takes the processor."""

FIRST = (
    "tests/server/test_viam_over_http2.py",
    "tests/scenarios/test_gateway_killed.py",
    "tests/scenarios/test_viam_micro_rdk.py",
    "tests/scenarios/test_apis_against_their_documents.py",
    "tests/scenarios/test_server_killed_in_mid_download.py",
    "tests/scenarios/test_up_runs_a_gateway.py",
    "tests/scenarios/test_ncp_three_processes.py",
    *SCENARIOS,
)
"""Tests that wait, the longest first: for silences, for reboots, for processes. One worker of `make test` takes them
one after the other, and the others have the processor for the rest, until they steal what is left (worksteal)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, and put what waits to the front; each worker has the same order."""
    for item in items:
        if item.nodeid.startswith(SWEEPS):
            item.add_marker("sweep")
        if item.nodeid.startswith(SCENARIOS):
            item.add_marker("scenario")
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SCENARIO_LIMIT_S))
    items.sort(key=lambda item: next((at for at, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what imports and the collection made out of the collector's sight: what tests leave is found in no time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let pytest's own last look find what became garbage later than its test."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail who leaves something: collected or written to later, it would fail whichever test runs then."""
    root = logging.getLogger()
    before = list(root.handlers)
    watched = request.node.get_closest_marker("asyncio") or request.node.get_closest_marker("scenario")
    if watched:
        gc.collect()  # what the fixtures of the test before held
        gc.freeze()  # and what outlives it is looked through once, not after each test that follows
    yield
    if watched:
        for _ in range(2):  # after the loop is closed; what is found open is told as this test's error
            gc.collect()  # again, for what an error that nobody fetched held
    left = [handler for handler in root.handlers if handler not in before]
    root.handlers[:] = [handler for handler in root.handlers if handler not in left]
    assert not left, f"log handlers, whose stream was captured and is closed when others log: {left}"
