"""The one table of fuzz targets: everything in the pure packages that reads what somebody else wrote.

To add a reader, add one line to `TARGETS` in `targets_images.py`, `targets_trust.py` or `targets_protocols.py`:

    target(parse_thing, [b"a small input that it takes"]),

Atheris (`make fuzz`), the built-in fuzzer, the Hypothesis properties and the run in the test-suite all go by this
table; `tests/house/test_every_reader_is_fuzzed.py` says when a reader is missing.
"""

from __future__ import annotations

from tests.fuzz.model import Target
from tests.fuzz.targets_blynk import TARGETS as BLYNK
from tests.fuzz.targets_images import TARGETS as IMAGES
from tests.fuzz.targets_protocols import TARGETS as PROTOCOLS
from tests.fuzz.targets_things import TARGETS as THINGS
from tests.fuzz.targets_trust import TARGETS as TRUST

TARGETS: tuple[Target, ...] = (*IMAGES, *TRUST, *PROTOCOLS, *BLYNK, *THINGS)
BY_NAME = {target.name: target for target in TARGETS}
