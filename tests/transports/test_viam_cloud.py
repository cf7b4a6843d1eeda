"""Setting a machine's configuration through Viam's cloud: the real SDK against a real gRPC server."""

from __future__ import annotations

import gc
import importlib.util
import os
import socket
import sys
from datetime import UTC, datetime

import pytest

from flota.errors import InvalidInput, NotFound, PeerError, Unauthenticated
from flota.protocols.viam import ConfigError, ServiceConfig, pack_service_config
from flota.transports.viam_cloud import CloudCredentials, MissingExtra, apply_service, open_viam_cloud

SERVICE = pack_service_config(ServiceConfig("http://10.0.0.5:8080/viam/image.bin?token=t", "2.0.0"))
KEY_ID = "6f1c1f5e-3a54-4f4e-9a3e-0d6c1b1d2a11"
CREDENTIALS = CloudCredentials(KEY_ID, "a-secret-key")

needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("viam") is None and os.environ.get("FLOTA_TEST_ALL") != "1",
    reason="viam-sdk is not installed: pip install 'flota[viam]'",
)
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


async def test_without_the_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viam.app.viam_client", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flota\[viam\]'"):
        async with open_viam_cloud(CREDENTIALS):
            pass


def test_a_key_is_never_shown() -> None:
    assert "secret" not in repr(CREDENTIALS)


@needs_sdk
@pytest.mark.parametrize("keeps_text", [True, False])
async def test_the_update_service_is_set_and_everything_else_stays(keeps_text: bool) -> None:
    from tests.transports.viam_cloud import Part, a_cloud

    others = {"components": [{"name": "arm", "model": "x:y:z", "count": 3}], "services": [{"model": "other"}]}
    part = Part(others, keeps_text=keeps_text)
    async with a_cloud({"p1": part}) as url, open_viam_cloud(CREDENTIALS, url=url) as cloud:
        assert await apply_service(cloud, "p1", SERVICE) is True
        assert part.config["components"] == others["components"]
        assert part.config["services"] == [{"model": "other"}, SERVICE]
        assert await apply_service(cloud, "p1", SERVICE) is False
    assert len(part.updates) == 1


@needs_sdk
async def test_last_online_comes_as_an_aware_time() -> None:
    from tests.transports.viam_cloud import Part, a_cloud

    seen = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    async with a_cloud({"p1": Part({}, seen), "p2": Part({})}) as url, open_viam_cloud(CREDENTIALS, url=url) as cloud:
        assert (await cloud.part("p1")).last_online_at == seen
        assert (await cloud.part("p2")).last_online_at is None


@needs_sdk
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_key_that_the_cloud_does_not_take_is_not_repeated_in_the_error() -> None:
    """The SDK drops its connection unclosed in this case."""
    from tests.transports.viam_cloud import a_cloud

    async with a_cloud({}) as url:
        with pytest.raises(Unauthenticated, match="refused the API key") as caught:
            async with open_viam_cloud(CloudCredentials(KEY_ID, "a-wrong-secret"), url=url):
                pass
        assert "a-wrong-secret" not in str(caught.value)
    del caught
    gc.collect()


@needs_sdk
async def test_what_the_cloud_refuses_or_loses_is_said() -> None:
    from tests.transports.viam_cloud import Part, a_cloud

    parts = {"lossy": Part({}, loses_updates=True), "odd": Part({"services": {"not": "an array"}}), "busy": Part({})}
    async with a_cloud(parts) as url, open_viam_cloud(CREDENTIALS, url=url) as cloud:
        with pytest.raises(NotFound, match="no part"):
            await apply_service(cloud, "none", SERVICE)
        with pytest.raises(PeerError, match="did not keep"):
            await apply_service(cloud, "lossy", SERVICE)
        with pytest.raises(ConfigError):
            await apply_service(cloud, "odd", SERVICE)
        assert parts["odd"].updates == []
        before = await cloud.part("busy")
        parts["busy"].changed_at = datetime(2026, 3, 2, tzinfo=UTC)
        with pytest.raises(PeerError, match="FAILED_PRECONDITION") as stale:
            await cloud.set_config(before, {"services": []})
        assert stale.value.hint is not None
        assert parts["busy"].updates == []


@needs_sdk
async def test_a_key_id_that_cannot_be_one_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(InvalidInput, match="no UUID"):
        async with open_viam_cloud(CloudCredentials("key-1", "k"), url="http://127.0.0.1:1"):
            pass


@needs_sdk
async def test_a_cloud_that_is_not_there_is_an_error_of_ours() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(PeerError, match="no connection"):
            async with open_viam_cloud(CREDENTIALS, url=f"http://127.0.0.1:{port}"):
                pass
