"""The kept mutants: what is broken on purpose, where, and what has to notice it.

`lines` name devices for the sweep (the cut in them does not matter), `tests` are for pytest. `fast` ones are judged in
the suite; `make mutants` judges all.
"""

from __future__ import annotations

from dataclasses import dataclass

OTA = "src/flota/virtual/esp_ota.py"
BOOT = "src/flota/virtual/boot/esp_idf.py"
BOARD = "src/flota/virtual/esp_board.py"
SLOTS = "src/flota/virtual/esp_slots.py"
ENTRY = "src/flota/images/esp_otadata.py"
DEVICE = "src/flota/virtual/device.py"
FLASH = "src/flota/virtual/flash.py"
NVS = "src/flota/images/esp_nvs_writing.py"
RDK = "src/flota/virtual/agents/viam_micro_rdk.py"
HTTPS = "src/flota/virtual/agents/esp_https_ota.py"
TWO_FILES = "src/flota/virtual/boot/two_files.py"
NUVOTON_STOCK = "src/flota/virtual/boot/nuvoton_stock.py"
NUVOTON_ROLLBACK = "src/flota/virtual/boot/nuvoton_rollback.py"
NUVOTON_JOURNAL = "src/flota/virtual/boot/nuvoton_journal.py"
NUVOTON_PAL = "src/flota/virtual/nuvoton_pal.py"
MCUBOOT_OVERWRITE = "src/flota/virtual/boot/mcuboot_overwrite.py"
NUVOTON_GOLDEN = ("tests/golden/test_nuvoton_boot.py",)
NUVOTON_PARTS = ("tests/virtual/test_nuvoton.py",)
NUVOTON_CUTS = ("tests/faults/test_nuvoton_power_cuts.py",)
NUVOTON_BOARDS = ("tests/scenarios/test_nuvoton_qualification.py",)
AB_BOARD = "src/flota/virtual/ab_board.py"
AB_RECORD = "src/flota/virtual/boot/ab_record.py"
OTA_CORE = "src/flota/virtual/agents/aws_ota/core.py"
OTA_PAL = "src/flota/virtual/agents/aws_ota/ab_pal.py"
OTA_TRANSFER = "src/flota/virtual/agents/aws_ota/transfer.py"


def line(agent: str, rollback: str, scenario: str) -> str:
    board = {"micro-rdk": "esp32", "aws-ota": "aws-reference"}.get(agent, "esp32-c3")
    return f"flota-cuts-1 board={board} agent={agent} rollback={rollback} image=20480 scenario={scenario} cuts=0:before"


RDK_PLAIN = line("micro-rdk", "off", "two-updates")
RDK_PLAIN_REFUSED = line("micro-rdk", "off", "refused")
RDK_CRASH = line("micro-rdk", "on", "crash")
C3_PLAIN = line("esp-https-ota", "off", "two-updates")
C3_ROLLBACK = line("esp-https-ota", "on", "two-updates")
C3_CRASH = line("esp-https-ota", "on", "crash")
AWS_TWO = line("aws-ota", "on", "two-updates")
AWS_REFUSED = line("aws-ota", "on", "refused")
AWS_CRASH = line("aws-ota", "on", "crash")
CORE_TESTS = "tests/virtual/test_aws_ota_core.py"
C3_ANTI = line("esp-https-ota", "anti", "two-updates")


@dataclass(frozen=True)
class Mutant:
    """One edit of one file: `old` (there exactly once) becomes `new`; `breaks` says which rule that breaks."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    lines: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    fast: bool = False


MUTANTS = (
    # --- the boot loader ----------------------------------------------------------------------------------------------
    Mutant(
        "boots-the-lower-number",
        "the entry with the higher sequence number wins",
        BOOT,
        "active = max(eligible, key=lambda sector: (entries[sector].seq, -sector), default=None)",
        "active = min(eligible, key=lambda sector: (entries[sector].seq, -sector), default=None)",
        (RDK_PLAIN,),
    ),
    Mutant(
        "trial-is-never-marked",
        "a NEW app becomes PENDING_VERIFY before it starts",
        BOOT,
        "if build.rolls_back and state == OtaState.NEW:",
        "if False and build.rolls_back and state == OtaState.NEW:",
        (C3_CRASH,),
        fast=True,
    ),
    Mutant(
        "trial-never-ends",
        "a PENDING_VERIFY app is given up at the next reset",
        BOOT,
        "if entries[sector].state == OtaState.PENDING_VERIFY:",
        "if False and entries[sector].state == OtaState.PENDING_VERIFY:",
        (RDK_CRASH,),
    ),
    Mutant(
        "failed-trial-counts-as-good",
        "a failed trial is noted as ABORTED",
        BOOT,
        "writes.append(SetState(sector, OtaState.ABORTED))",
        "writes.append(SetState(sector, OtaState.VALID))",
        (C3_CRASH,),
    ),
    Mutant(
        "falls-back-to-nothing",
        "an image that does not load is passed over",
        BOARD,
        '                refused.append(f"{partition.label}: {reason}")\n                continue\n',
        '                refused.append(f"{partition.label}: {reason}")\n                break\n',
        tests=("tests/virtual/test_esp_board.py", "tests/golden/test_boot_vectors.py"),
    ),
    Mutant(
        "boots-anything",
        "the boot loader verifies what it starts",
        BOARD,
        "            refuse_illegal_load_addresses(self._verified(partition), self.chip)\n"
        "        except ImageError as error:",
        "            walk_image(self.flash.read(partition.address, partition.size))\n"
        "        except ImageError as error:",
        tests=("tests/virtual/test_esp_board.py",),
    ),
    Mutant(
        "first-boot-is-not-noted",
        "the slot that boots with a blank otadata is written down",
        BOOT,
        "if not decision.initial or loaded < 0:",
        "if True or not decision.initial or loaded < 0:",
        tests=("tests/virtual/test_esp_board.py", "tests/golden/test_boot_vectors.py"),
    ),
    Mutant(
        "every-boot-writes",
        "a boot that changes nothing writes nothing",
        BOOT,
        "    if not decision.initial or loaded < 0:\n        return ()\n    entry",
        "    if loaded < 0:\n        return ()\n    entry",
        (RDK_PLAIN,),
        fast=True,
    ),
    Mutant(
        "counter-before-the-trial",
        "the anti-rollback counter moves after the confirmation only",
        BOOT,
        "if versions is not None and state == OtaState.VALID:",
        "if versions is not None and state in (OtaState.NEW, OtaState.VALID):",
        (C3_ANTI,),
    ),
    Mutant(
        "torn-number-is-believed",
        "an entry without a right CRC does not count",
        ENTRY,
        "return not self.invalid and self.crc_ok",
        "return not self.invalid",
        (C3_CRASH,),
    ),
    Mutant(
        "trial-that-stays-new",
        "two files: a NEW slot is put on trial before it starts",
        TWO_FILES,
        "elif entry is not None and entry.state is SlotState.NEW:",
        "elif entry is not None and entry.state is SlotState.VALID:",
        tests=("tests/virtual/test_two_files.py",),
    ),
    # --- the OTA calls ------------------------------------------------------------------------------------------------
    Mutant(
        "verifies-nothing",
        "an image is verified before it is chosen",
        BOARD,
        "        try:\n"
        "            self._verified(partition)\n        except ImageError as error:\n            return str(error)\n"
        "        return None\n\n    def _why_not_loadable",
        "        return None\n\n    def _why_not_loadable",
        (RDK_PLAIN_REFUSED,),
        fast=True,
    ),
    Mutant(
        "writes-without-erasing",
        "a program needs erased flash",
        OTA,
        "            self._flash.erase(handle.partition.address, length)\n            handle.erased_to = length",
        "            handle.erased_to = length",
        (RDK_PLAIN,),
    ),
    Mutant(
        "forgets-a-sector",
        "each sector is erased before it is written",
        OTA,
        "        while handle.sequential and handle.erased_to < end:",
        "        while handle.sequential and handle.erased_to + self._flash.sector_size < end:",
        (C3_PLAIN,),
    ),
    Mutant(
        "updates-the-running-slot",
        "the update goes to another slot than the running one",
        OTA,
        "return next((index for index in slots if index > self.running), slots[0])",
        "return next((index for index in slots if index >= self.running), slots[0])",
        (RDK_PLAIN,),
    ),
    Mutant(
        "erases-both-entries",
        "one of the two entries survives every rewrite",
        OTA,
        "        self.erase(sector)\n        self._flash.program(",
        "        self.erase(1 - sector)\n        self.erase(sector)\n        self._flash.program(",
        (C3_CRASH, C3_ROLLBACK),
    ),
    Mutant(
        "rewrites-the-active-entry",
        "a new choice goes to the other sector",
        OTA,
        "sector, seq = 1 - active, next_seq(entries[active].seq, index, self._count)",
        "sector, seq = active, next_seq(entries[active].seq, index, self._count)",
        (C3_CRASH, RDK_CRASH),
        ("tests/golden/test_boot_vectors.py",),
    ),
    Mutant(
        "number-of-the-wrong-slot",
        "the new sequence number names the slot that was written",
        OTA,
        "    candidate = (index + 1) % ota_count",
        "    candidate = (index + 2) % ota_count",
        (RDK_PLAIN,),
    ),
    Mutant(
        "number-does-not-rise",
        "the new sequence number is above the active one",
        OTA,
        "self._otadata.rewrite(sector, OtaEntry.for_seq(seq, state, label=entries[sector].label))",
        "self._otadata.rewrite(sector, OtaEntry.for_seq(min(seq, 2), state, label=entries[sector].label))",
        (RDK_PLAIN,),
    ),
    Mutant(
        "new-app-needs-no-trial",
        "in a rollback build a choice is NEW",
        OTA,
        "state = OtaState.NEW if self.build.rolls_back else OtaState.UNDEFINED",
        "state = OtaState.UNDEFINED",
        (C3_CRASH,),
    ),
    Mutant(
        "confirmation-is-lost",
        "confirming makes the entry VALID",
        OTA,
        "self._otadata.rewrite(active, replace(entries[active], state=OtaState.VALID))",
        "self._otadata.rewrite(active, replace(entries[active], state=OtaState.PENDING_VERIFY))",
        (C3_ROLLBACK,),
    ),
    Mutant(
        "program-before-erase",
        "an entry is erased before it is programmed",
        OTA,
        "        self.erase(sector)\n"
        "        self._flash.program(self._address + ENTRY_OFFSETS[sector], pack_entry(entry))",
        "        self._flash.program(self._address + ENTRY_OFFSETS[sector], pack_entry(entry))\n"
        "        self.erase(sector)",
        (RDK_PLAIN,),
    ),
    Mutant(
        "begin-erases-the-active-entry",
        "beginning an update costs the inactive entry at most",
        OTA,
        "        if not names_a_slot(other) or other.slot_index(self._count) == self.running:\n"
        "            return None\n"
        "        return 1 - active",
        "        return active",
        (C3_CRASH,),
        ("tests/golden/test_boot_vectors.py",),
    ),
    # --- the agents and the app ---------------------------------------------------------------------------------------
    Mutant(
        "chosen-before-written",
        "a slot is chosen after its image is whole",
        RDK,
        "            writer = await self._slots.begin_erased(self._slot)\n",
        "            self._slots.ota.set_boot(self._slots.ota.next_update_partition())\n"
        "            writer = await self._slots.begin_erased(self._slot)\n",
        (RDK_PLAIN,),
    ),
    Mutant(
        "tag-before-choice",
        "the tag is stored after the slot is chosen",
        RDK,
        "        self._slots.set_boot(self._slot)\n        await self._context.pace.pay()\n",
        "        if self._slots.nvs is not None:\n"
        "            self._slots.nvs.set_string(NVS_NAMESPACE, NVS_VERSION_KEY, self._service.version)\n"
        "        self._slots.set_boot(self._slot)\n        await self._context.pace.pay()\n",
        (RDK_PLAIN,),
        fast=True,
    ),
    Mutant(
        "tag-is-never-stored",
        "what was installed is remembered",
        RDK,
        "        nvs.set_string(NVS_NAMESPACE, NVS_VERSION_KEY, self._service.version)\n        stored",
        "        stored",
        (RDK_PLAIN,),
    ),
    Mutant(
        "erases-as-it-goes",
        "micro-RDK erases the whole slot: no leftovers follow a shorter image",
        SLOTS,
        "handle = self.ota.begin(self._partition(slot).index, SIZE_UNKNOWN)",
        "handle = self.ota.begin(self._partition(slot).index, WITH_SEQUENTIAL_WRITES)",
        (RDK_PLAIN_REFUSED,),
    ),
    Mutant(
        "progress-ahead-of-flash",
        "progress is noted after the bytes are in flash",
        HTTPS,
        '{"slot": writer.slot, "written": writer.durable, "etag": fetch.etag}',
        '{"slot": writer.slot, "written": writer.durable + 4096, "etag": fetch.etag}',
        (line("esp-https-ota", "off", "two-updates").replace("20480", "73728"),),
    ),
    Mutant(
        "tries-the-rolled-back-again",
        "a version that was rolled back is not installed again",
        HTTPS,
        "if version == self._rolled_back_version(context):",
        'if version == "":',
        (C3_CRASH,),
    ),
    Mutant(
        "choice-is-forgotten",
        "the new slot is chosen",
        HTTPS,
        "        slots.set_boot(slot)\n        await context.pace.pay()\n",
        "        await context.pace.pay()\n",
        (C3_PLAIN,),
    ),
    Mutant(
        "confirms-before-the-self-test",
        "self-test first, then confirmation",
        DEVICE,
        "        if behaviour is Behaviour.CRASH:\n            await self._panic(app)\n",
        "        if app.awaits_confirmation:\n            slots.confirm()\n"
        "        if behaviour is Behaviour.CRASH:\n            await self._panic(app)\n",
        (C3_CRASH,),
    ),
    Mutant(
        "never-confirms",
        "a healthy app confirms itself",
        DEVICE,
        "            slots.confirm()\n            await self._pace.pay()\n",
        "            await self._pace.pay()\n",
        (C3_ROLLBACK,),
    ),
    # --- NVS ----------------------------------------------------------------------------------------------------------
    Mutant(
        "struck-out-before-written",
        "a new value is written before the old one is struck out",
        NVS,
        '    writer.append(index, ItemType.STRING, key_bytes(key, "key"), content)\n'
        '    writer.strike_out_older(index, key_bytes(key, "key"))\n',
        "    for item in writer._now.items:\n"
        '        if item.key == key_bytes(key, "key"):\n'
        "            writer._strike_out(item)\n"
        '    writer.append(index, ItemType.STRING, key_bytes(key, "key"), content)\n',
        tests=("tests/properties/test_esp_nvs_and_secure_boot.py",),
    ),
    # --- Nuvoton: the shipped boot programs, the restoring ones, MCUboot that overwrites ------------------------------
    Mutant(
        "loader-compares-eight-bytes",
        "the loader looks at seven bytes, never at the flag",
        NUVOTON_STOCK,
        "    to_cloner = head.startswith(MAGIC)",
        "    to_cloner = head == MAGIC + bytes((0xFF,))",
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "cloner-takes-pending",
        "the Cloner takes the flags new and valid only",
        NUVOTON_STOCK,
        "descriptor.flag in (ImageFlag.NEW, ImageFlag.VALID)",
        "descriptor.flag in (ImageFlag.NEW, ImageFlag.VALID, ImageFlag.PENDING_COMMIT)",
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "cloner-forgets-the-start",
        "the start address is checked",
        NUVOTON_STOCK,
        '("start address", descriptor.start < DESCRIPTOR_LIMIT)',
        '("start address", True)',
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "cloner-takes-the-limit",
        "the end address is below the limit",
        NUVOTON_STOCK,
        '("end address", descriptor.end < DESCRIPTOR_LIMIT)',
        '("end address", descriptor.end <= DESCRIPTOR_LIMIT)',
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "cloner-executes-anywhere",
        "the execute address lies in the image",
        NUVOTON_STOCK,
        "descriptor.start <= descriptor.execute <= descriptor.end",
        "descriptor.start <= descriptor.execute",
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "clone-that-failed-counts",
        "a failed checksum leaves the flag new",
        NUVOTON_STOCK,
        '        lines.append("Failed on checksum!")\n        return',
        '        lines.append("Failed on checksum!")',
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "descriptor-page-is-cut-short",
        "the Cloner writes the whole page of the descriptor back",
        NUVOTON_STOCK,
        "    program_page(controller, DESCRIPTOR_ADDR, bytes(page))",
        "    program_page(controller, DESCRIPTOR_ADDR, bytes(page[:DESCRIPTOR_SIZE]))",
        tests=NUVOTON_GOLDEN,
    ),
    Mutant(
        "staged-sum-is-not-checked",
        "what was altered after its check is not copied",
        NUVOTON_ROLLBACK,
        "if expected != NO_CRC and self._crc_of(STAGING_ADDR, size) != expected:",
        "if False and self._crc_of(STAGING_ADDR, size) != expected:",
        tests=NUVOTON_BOARDS,
    ),
    Mutant(
        "absent-chip-is-cloned",
        "an SPI flash that does not answer is not copied",
        NUVOTON_ROLLBACK,
        '        if not self._answers():\n            return "No SPI flash"',
        '        if False:\n            return "No SPI flash"',
        tests=NUVOTON_BOARDS,
    ),
    Mutant(
        "trial-is-never-noted",
        "a new image has one boot to commit itself",
        NUVOTON_ROLLBACK,
        "            self._controller.program_unit(TRIAL_ADDR, TRIAL_USED)\n",
        "",
        tests=NUVOTON_CUTS,
    ),
    Mutant(
        "trial-page-is-never-erased",
        "each new image has its own trial",
        NUVOTON_ROLLBACK,
        "        self._controller.erase_page(TRIAL_ADDR)\n",
        "",
        tests=NUVOTON_BOARDS,
    ),
    Mutant(
        "broken-backup-is-restored",
        "a backup is restored only if its sum holds",
        NUVOTON_ROLLBACK,
        "            if record is None or self._crc_of(address, size) != record.image_crc:\n",
        "            if record is None:\n",
        tests=NUVOTON_PARTS,
    ),
    Mutant(
        "page-is-judged-by-its-head",
        "a page that is half there is copied again",
        NUVOTON_ROLLBACK,
        "if self._controller.read(target, PAGE_SIZE) == wanted:",
        "if self._controller.read(target, 8) == wanted[:8]:",
        tests=NUVOTON_CUTS,
    ),
    Mutant(
        "page-before-its-copy",
        "the copy is written before the descriptor's page is erased",
        NUVOTON_JOURNAL,
        "    controller.erase_page(DESCRIPTOR_COPY_ADDR)\n"
        "    program_page(controller, DESCRIPTOR_COPY_ADDR, record.pack())\n"
        "    _write_page(controller, record)",
        "    controller.erase_page(DESCRIPTOR_COPY_ADDR)\n    _write_page(controller, record)",
        tests=NUVOTON_CUTS,
    ),
    Mutant(
        "interrupted-copy-counts",
        "a copy whose checksum does not hold is none",
        NUVOTON_JOURNAL,
        "zlib.crc32(data[: RECORD_SIZE - 4]) != crc",
        "False and crc",
        tests=NUVOTON_PARTS,
    ),
    Mutant(
        "accepted-image-is-undone",
        "what was committed has no backup any more",
        NUVOTON_PAL,
        "descriptor = replace(descriptor, reserved=0)",
        "descriptor = replace(descriptor)",
        tests=NUVOTON_CUTS,
    ),
    Mutant(
        "staged-image-is-not-checked",
        "MCUboot checks the staged image before it erases the old one",
        MCUBOOT_OVERWRITE,
        "        refused = why_not(secondary, chain)\n",
        "        refused = None\n",
        tests=NUVOTON_BOARDS,
    ),
    Mutant(
        "staged-image-is-erased-first",
        "the staged image is erased after it was copied",
        MCUBOOT_OVERWRITE,
        "    for start in range(0, size, COPY_BYTES):\n",
        "    drop_staged(secondary)\n    for start in range(0, size, COPY_BYTES):\n",
        tests=NUVOTON_CUTS,
    ),
    # --- the flash model itself ---------------------------------------------------------------------------------------
    Mutant(
        "cut-after-loses-the-operation",
        "a cut after an operation leaves it done",
        FLASH,
        "        if cut.phase is CutPhase.AFTER:\n"
        "            self._memory[start:end] = operation.after\n            return",
        "        if cut.phase is CutPhase.AFTER:\n            return",
        tests=("tests/virtual/test_flash.py",),
    ),
    Mutant(
        "tears-are-whole",
        "an interrupted operation leaves a part",
        FLASH,
        "        self._memory[start:end] = cut.tear(before, operation.after)",
        "        self._memory[start:end] = operation.after",
        tests=("tests/virtual/test_flash.py",),
    ),
    Mutant(
        "code-lives-on-after-a-cut",
        "nothing works until the power is back",
        FLASH,
        '        if not self.on:\n            raise PowerCut("the device has no power")',
        "        return",
        tests=("tests/virtual/test_flash.py",),
    ),
    Mutant(
        "programs-set-bits",
        "a program only clears bits",
        FLASH,
        "            if int.from_bytes(before) & new != new:",
        "            if int.from_bytes(before) & new != new and not new:",
        tests=("tests/virtual/test_flash.py",),
    ),
    # --- aws-reference and AWS's agent --------------------------------------------------------------------------------
    Mutant(
        "ab-record-in-one-place",
        "the sector of the older boot record is the one that is written",
        AB_BOARD,
        "place = 0 if index is None else (index + 1) % RECORD_SECTORS * self.flash.sector_size",
        "place = 0",
        (AWS_TWO,),
    ),
    Mutant(
        "ab-record-older-wins",
        "the record with the higher number counts",
        AB_RECORD,
        "max(found, key=lambda each: each[:2])",
        "min(found, key=lambda each: each[:2])",
        (AWS_TWO,),
        ("tests/virtual/test_ab_board.py",),
    ),
    Mutant(
        "ab-record-without-its-crc",
        "a record that was torn is none",
        AB_RECORD,
        "_CRC.unpack(crc)[0] != zlib.crc32(body)",
        "not crc",
        (),
        ("tests/virtual/test_ab_board.py",),
    ),
    Mutant(
        "ab-entry-outlives-its-image",
        "a slot leaves the boot record before it is erased",
        AB_BOARD,
        "        if slot in record.files:\n            self.hardware.write_record(",
        "        if slot not in record.files:\n            self.hardware.write_record(",
        (),
        ("tests/virtual/test_ab_board.py",),
    ),
    Mutant(
        "pal-tries-what-it-did-not-check",
        "an image goes on trial only after its signature was checked",
        OTA_PAL,
        "        _check_signature(content, file.signature, self._certificate)\n",
        "",
        (AWS_REFUSED,),
        fast=True,
    ),
    Mutant(
        "pal-rejects-what-is-not-on-trial",
        "a rejected job takes nothing from an image that is confirmed",
        OTA_PAL,
        "        if not on_trial:\n            self._writer",
        "        if False:\n            self._writer",
        (),
        (CORE_TESTS,),
    ),
    Mutant(
        "agent-accepts-the-same-version",
        "only an image that is newer than the one that installed it is tested",
        OTA_CORE,
        "or self._running > job.updated_by",
        "or self._running >= job.updated_by",
        (),
        (CORE_TESTS,),
    ),
    Mutant(
        "agent-takes-blocks-of-any-size",
        "a block that is not the file's fails the job",
        OTA_TRANSFER,
        "return 0 <= number <= last and size == wanted",
        "return 0 <= number <= last",
        (),
        (CORE_TESTS,),
    ),
    Mutant(
        "agent-counts-a-range-twice",
        "a range that waits to be taken is not asked for again",
        OTA_TRANSFER,
        "        if self._is_untaken:\n            return 1\n",
        "",
        (),
        (CORE_TESTS,),
    ),
    Mutant(
        "agent-forgets-what-it-has",
        "a job that comes again goes on with the missing blocks",
        OTA_CORE,
        "if job.job_id == self._active_job and self._transfer is not None and self._transfer.is_open:",
        "if job.job_id == self._active_job and self._transfer is None:",
        (),
        (CORE_TESTS,),
    ),
    Mutant(
        "agent-holds-a-third-message",
        "a block that comes while both buffers are in use is lost",
        OTA_CORE,
        "self.buffers_in_use >= limit",
        "self.buffers_in_use > limit",
        (),
        (CORE_TESTS,),
    ),
    Mutant(
        "blocks-go-out-in-one-burst",
        "an agent that holds two blocks gets two at once",
        "src/flota/server/api/aws_iot/agent_limits.py",
        "now = payloads[:at_once]",
        "now = payloads",
        (),
        ("tests/server/test_aws_iot_agent_limits.py",),
    ),
)
