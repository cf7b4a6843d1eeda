"""A release for the 4 MB board never reaches a 2 MB board: refused at three doors, each of them alone.

The second door, the gateway, is in `test_gateway.py` beside the other things that it refuses.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flota.cli.app import main
from flota.errors import Refused
from flota.protocols.ddi import FeedbackFinished
from tests.gateway.benches import accepts, bench, device, ota, signed
from tests.server.management_api import api, declared_type, uploaded
from tests.virtual.ameba_devices import blank_board, image_of, running

BIG = ota(size=1_500_000)
