"""The vendor's guide from start to finish, as docs/how-to/nuvoton.md has it: commands, processes, both boards."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from flota.cli.app import main
from flota.lab.local_server import LocalServer
from flota.lab.sample_firmware import sample_m487, sample_m2354
from flota.trust.image_keys import ImagePrivateKey

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

THING = "MY-IOT-OTA-Device"
SD_THING = "MY-SD-OTA-Device-".ljust(64, "0")
"""As long as the firmware has room for: its blocks fit the packets of the agent only on a stream with a short name."""

SPEED = 40
SIZE = 24 * 1024


class Desk:
    """What stands on the desk of a reader of the guide: a directory, the key directory, the server's address."""

    def __init__(self, directory: Path, server: LocalServer) -> None:
        self.directory = directory
        self.thing = THING
        self._server = server

    def flota(self, *arguments: object, ends_with: int = 0, asks_server: bool = True) -> str:
        """Run a command in this process; returns what it prints on both streams."""
        address = ["--server", self._server.address.http, "--token", self._server.address.token] if asks_server else []
        screen = io.StringIO()
        with redirect_stdout(screen), redirect_stderr(screen), pytest.raises(SystemExit) as left:
            main([*map(str, arguments), *address])
        assert int(left.value.code or 0) == ends_with, screen.getvalue()
        return screen.getvalue()

    @contextmanager
    def board(self, name: str, *options: object) -> Iterator[None]:
        """Run the virtual board that was flashed into `board/`."""
        command = [sys.executable, "-m", "flota", "lab", "run", name, "--name", self.thing, "--state", "board"]
        command += [
            "--credentials",
            self.thing,
            "--code-certificate",
            f"{self.thing}/code-signing.pem",
            "--speed",
            str(SPEED),
        ]
        with (self.directory / "board.jsonl").open("w") as log:
            process = subprocess.Popen([*command, *map(str, options), "--json"], stdout=log, cwd=self.directory)
            try:
                yield
            finally:
                process.terminate()
                process.wait(20)

    @property
    def said(self) -> list[str]:
        """What the board has said."""
        lines = (self.directory / "board.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]

    def prepare(self, board: str) -> None:
        """Make the keys and the thing: steps 2 and 3."""
        self.flota("key", "create", "release", asks_server=False)
        self.flota("key", "create", "ecdsasigner", "--code-signing", "--subject", "My firmware", asks_server=False)
        certificate = self.directory / "keys" / "ecdsasigner.crt"
        self.flota(
            "device",
            "add",
            self.thing,
            "--type",
            board,
            "--certificate",
            "-o",
            self.thing,
            "--code-certificate",
            certificate,
        )

    def ship(self, file: str, board: str, version: str | None = None, *, ends_with: int = 0) -> str:
        """Release a file and wait for the end of its rollout: step 6. `version` None: the one in its name."""
        arguments = ["ship", file, "--type", board, "--to", self.thing, "--key", "release"]
        arguments += [] if version is None else ["--version", version]
        arguments += ["--code-key", "ecdsasigner", "--certfile", "Code_Verify_Key", "--trust-key"]
        return self.flota(*arguments, ends_with=ends_with)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """One for all: each test brings a board of its own."""
    with LocalServer(tmp_path_factory.mktemp("site") / "server") as server:
        yield server


@pytest.fixture
def desk(tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> Desk:
    directory = tmp_path / "desk"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("FLOTA_KEYS", str(directory / "keys"))
    return Desk(directory, server)


def test_an_m487_goes_to_the_next_version_and_back_from_one_that_crashes(desk: Desk) -> None:
    desk.prepare("m487")
    credentials = (desk.directory / THING / "aws_credentials.c").read_text()
    assert all(array in credentials for array in ("aws_rootCACrt[]", "aws_deviceCrt[]", "aws_codeVerCrt[]"))
    for version in ("1.0.0", "1.0.1", "1.0.2"):
        (desk.directory / "built.bin").write_bytes(sample_m487(version, size=SIZE))
        desk.flota("image", "pack", "m487", "built.bin", "-o", f"example_V{version}.bin", asks_server=False)
    desk.flota("lab", "flash", "m487", "example_V1.0.0.bin", "--state", "board", asks_server=False)
    with desk.board("m487"):
        shipped = desk.ship("example_V1.0.1.bin", "m487", "1.0.1")
        assert "does not survive a power cut" in shipped
        assert "reason accepted v1.0.1, updatedBy v1.0.0" in shipped
        said = desk.said
        for line in ("Boot from LDROM successful", "Jump to APROM Cloner", "Check OTA image success", "Clone done."):
            assert line in said
        assert "does not survive a power cut" in desk.flota("release", "show", "m487@1.0.1")
        failed = desk.ship("example_V1.0.2.bin", "m487", "1.0.2", ends_with=1)
        assert "reason rejected: 0x00000010" in failed
        assert "Restore the backup" in desk.said
    desk.flota("lab", "read-slot", "--state", "board", "--slot", "running", "-o", "running.bin", asks_server=False)
    assert (desk.directory / "running.bin").read_bytes().startswith(sample_m487("1.0.1", size=SIZE))


def test_an_m2354_goes_to_the_next_version_and_the_release_says_that_there_is_no_way_back(desk: Desk) -> None:
    desk.thing = SD_THING
    desk.prepare("m2354")
    desk.flota("key", "create", "mcuboot", "--kind", "rsa-3072", asks_server=False)
    boot_key = desk.directory / "keys" / "mcuboot.pub"
    key = ImagePrivateKey.from_pem((desk.directory / "keys" / "mcuboot.pem").read_bytes())
    for version in ("1.0.0", "1.0.1"):
        image = sample_m2354(version, key.signer, size=SIZE)
        (desk.directory / f"example_update_V{version}.bin").write_bytes(image)
    file = "example_update_V1.0.1.bin"
    assert "m2354: fits" in desk.flota("image", "inspect", file, "--board", "m2354", asks_server=False)
    flash = ["lab", "flash", "m2354", "example_update_V1.0.0.bin", "--state", "board", "--boot-key", boot_key]
    desk.flota(*flash, asks_server=False)
    with desk.board("m2354", "--boot-key", boot_key):
        shipped = desk.ship(file, "m2354")
        assert "version    1.0.1, from the file's name" in shipped
        assert "there is no rollback on this board" in shipped
        assert "reason accepted v1.0.1, updatedBy v1.0.0" in shipped
        said = desk.said
        assert any("Image upgrade secondary slot -> primary slot" in line for line in said)
    assert "there is no rollback on this board" in desk.flota("release", "show", "m2354@1.0.1")


def test_files_of_the_other_board_and_lengths_that_do_harm_are_refused_before_any_device_sees_them(desk: Desk) -> None:
    for size, said in ((0x6_8000 + 4096, "key and certificates"), (4097, "flota image pack m487")):
        (desk.directory / "app.bin").write_bytes(sample_m487("1.0.0", size=0x6_8000)[:4096].ljust(size, b"\x42"))
        answer = desk.flota("release", "create", "app.bin", "--type", "m487", "--version", "1.0.0", ends_with=1)
        assert said in " ".join(answer.split())
    answer = desk.flota("release", "create", "app.bin", "--type", "m2354", "--version", "1.0.0", ends_with=1)
    assert "_update.bin" in answer
