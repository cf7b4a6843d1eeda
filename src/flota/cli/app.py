"""`flota`: the entry point. Nouns are added here; each lives in its own module."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final

import typer
from typer.core import TyperGroup

from flota import __version__
from flota.cli.output import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_USE, fail, warn
from flota.errors import FlotaError, WrongUse

DEBUG_VARIABLE: Final = "FLOTA_DEBUG"
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("flota.cli.up", "Start the whole server with a data directory."),
    "demo": ("flota.cli.demo", "A fleet of virtual devices updates on this machine, in under a minute."),
    "discover": ("flota.cli.discover", "Find boards on the local network."),
    "ship": ("flota.cli.ship", "Create, sign, publish and roll out a file in one go."),
    "push": ("flota.cli.push", "Push a file to a board on the network, without a server."),
    "serve-ameba": ("flota.cli.serve_ameba", "A file for AmebaD boards that fetch it themselves."),
    "arduino-upload": ("flota.cli.arduino_upload", "The Arduino IDE's upload recipe for AmebaD boards."),
    "image": ("flota.cli.image", "Look into, pack and convert firmware files."),
    "type": ("flota.cli.type", "Device types: products, their boards and partition tables."),
    "key": ("flota.cli.key", "Signing keys."),
    "release": ("flota.cli.release", "Releases: create, sign, publish, withdraw."),
    "device": ("flota.cli.device", "Devices: add, import, accept, list."),
    "rollout": ("flota.cli.rollout", "Rollouts: create, watch, pause, cancel."),
    "viam": ("flota.cli.viam", "Viam's micro-RDK: its configuration, evidence."),
    "mqtt": ("flota.cli.mqtt", "What another MQTT broker needs to know."),
    "gateway": ("flota.cli.gateway", "Carry updates to boards that cannot fetch for themselves."),
    "ncp": ("flota.cli.ncp", "Be the network co-processor of an MCU on a serial line."),
    "lab": ("flota.cli.lab", "Virtual devices: run, flash, read, cut the power."),
    "token": ("flota.cli.token", "Access tokens of the management API."),
    "audit": ("flota.cli.audit", "The audit trail."),
}
"""Command name -> (module that defines `app`, one line of help). A module is imported only when its command is used."""


class LazyCommands(TyperGroup):
    """Lists the commands without importing them; imports the one that is asked for.

    Contexts and commands are `Any`: typer carries its own copy of click, whose types have no public name.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, imported now, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage and the command table from `COMMANDS` alone."""
        formatter.write_usage("flota", "COMMAND [OPTIONS] …")
        formatter.write_paragraph()
        formatter.write_text("Self-hosted over-the-air firmware updates for microcontroller fleets.")
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        with formatter.section("Options"):
            formatter.write_dl([("--version", "Print the version."), ("--help", "This text.")])
        with formatter.section("Examples"):
            formatter.write_text("flota image inspect firmware.bin")
            formatter.write_text("flota up --data ./flota-data")
            formatter.write_text("flota ship pump-2.0.bin --type pump --version 2.0 --to type=pump --key release.pem")
        formatter.write_paragraph()
        formatter.write_text("flota COMMAND --help shows each command's options, with examples.")


app = typer.Typer(cls=LazyCommands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flota {__version__}")
        raise typer.Exit(EXIT_DONE)


@app.callback()
def flota(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Self-hosted over-the-air firmware updates for microcontroller fleets."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 the thing asked for failed, 2 wrong use."""
    _speak_utf8(sys.stdout)
    _speak_utf8(sys.stderr)
    try:
        app(args=arguments, prog_name="flota")
    except WrongUse as error:
        fail(error)
        sys.exit(EXIT_WRONG_USE)
    except FlotaError as error:
        fail(error)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone; nothing is left to say
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        fail(_as_told(error))
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        warn("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        warn(f"internal error: {type(error).__name__}: {error}")
        warn(f"  This is a bug in Flota. Run it again with {DEBUG_VARIABLE}=1 and report what it prints.")
        sys.exit(EXIT_FAILED)


def _as_told(error: OSError) -> FlotaError:
    """Say what the operating system refused, and where."""
    where = f" {error.filename}" if error.filename else ""
    return FlotaError(
        f"the system refused access to{where or ' a file or a connection'}",
        found=error.strerror or str(error),
        hint="Check the path, its permissions and the free space.",
    )


def _speak_utf8(stream: Any) -> None:
    """Names and bars are Unicode: a stream in another encoding must not raise on them."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
