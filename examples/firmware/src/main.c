/* A small application for the ESP32-C3, as a firmware update carries it: it says which version it is, tests itself,
 * confirms itself if all is well, and goes on checking that the flash it runs from reads the same every time. */

#include <stdbool.h>
#include <stdint.h>

#include "app_desc.h"
#include "behaviour.h"
#include "board.h"
#include "crc32.h"
#include "hooks.h"

#define ROUND_MS 1000u
#define CONFIRM_DEADLINE_ROUNDS 30u

extern const uint8_t _rodata_start[], _rodata_end[], _text_start[], _text_end[];

/* Virtual devices run no machine code: they read what this build does from here (docs/reference/virtual-devices.md). */
static const char marker[] __attribute__((section(".rodata.marker"), used)) = SAMPLE_MARKER;

static uint32_t crc_of_own_flash(void)
{
    uint32_t crc = crc32_of(0, &app_desc, sizeof app_desc);
    crc = crc32_of(crc, _rodata_start, (uint32_t)(_rodata_end - _rodata_start));
    return crc32_of(crc, _text_start, (uint32_t)(_text_end - _text_start));
}

static bool self_test(void)
{
    if (crc32_of(0, "123456789", 9) != 0xCBF43926u) { /* the check value of this CRC */
        uart_puts("self-test: CRC unit wrong\n");
        return false;
    }
    if (app_desc.magic != APP_DESC_MAGIC || crc_of_own_flash() != crc_of_own_flash()) {
        uart_puts("self-test: flash does not read the same twice\n");
        return false;
    }
    if (SAMPLE_BEHAVIOUR == CRASH) {
        __asm__ volatile("unimp");
    }
    if (!hook_network_is_up()) {
        uart_puts("self-test: no network\n");
        return false;
    }
    return true;
}

__attribute__((noreturn)) void panic(uint32_t cause, uint32_t address, uint32_t value)
{
    uart_puts("\npanic: cause ");
    uart_put_hex(cause);
    uart_puts(" at ");
    uart_put_hex(address);
    uart_puts(" value ");
    uart_put_hex(value);
    uart_puts(", version ");
    uart_puts(app_desc.version);
    uart_puts("\n");
    board_reset();
}

__attribute__((noreturn)) void sample_main(void)
{
    uart_puts("\n");
    uart_puts(app_desc.project_name);
    uart_puts(" ");
    uart_puts(app_desc.version);
    uart_puts("\n");

    const bool healthy = self_test(); /* under the boot loader's watchdog: a hang ends in a reset */
    board_stop_boot_watchdog();
    if (healthy && SAMPLE_BEHAVIOUR != NEVER_CONFIRM) {
        hook_confirm();
    }

    const uint32_t expected = crc_of_own_flash();
    for (uint32_t round = 1;; round++) {
        board_wait_ms(ROUND_MS);
        if (crc_of_own_flash() != expected) {
            uart_puts("flash has changed under us\n");
            board_reset();
        }
        uart_puts("round ");
        uart_put_dec(round);
        uart_puts(" crc ");
        uart_put_hex(expected);
        uart_puts("\n");
        if (!healthy && round >= CONFIRM_DEADLINE_ROUNDS) {
            uart_puts("self-test failed: giving the slot back\n");
            board_reset(); /* unconfirmed, so the boot loader returns to the other slot */
        }
    }
}
