/* KM4's part, the application: it says which version it is, tests itself, and goes on checking that the flash it runs
 * from reads the same every time. There is nothing to confirm on this chip: the boot loader knows no trial. */

#include <stdbool.h>

#include "behaviour.h"
#include "board.h"
#include "crc32.h"

#define LOOPS_A_ROUND 2000000u /* about a second from flash at 200 MHz */

extern const uint8_t _xip_start[], _xip_end[];

/* Virtual devices run no machine code: they read version and behaviour from here (docs/reference/virtual-devices.md). */
static const char marker[] __attribute__((section(".rodata.marker"), used)) =
    "FLOTA-LAB{version=" SAMPLE_VERSION ";behaviour=" SAMPLE_BEHAVIOUR_NAME "}";

static uint32_t crc_of_own_flash(void)
{
    return crc32_of(0, _xip_start, (uint32_t)(_xip_end - _xip_start));
}

static bool self_test(void)
{
    if (crc32_of(0, "123456789", 9) != 0xCBF43926u) { /* the check value of this CRC */
        uart_puts("self-test: CRC wrong\n");
        return false;
    }
    if (crc_of_own_flash() != crc_of_own_flash()) {
        uart_puts("self-test: flash does not read the same twice\n");
        return false;
    }
    if (SAMPLE_BEHAVIOUR == CRASH) {
        __asm__ volatile("udf #0");
    }
    return true;
}

__attribute__((noreturn)) void core_main(void)
{
    uart_puts("\nflota-sample-ameba " SAMPLE_VERSION "\n");
    if (!self_test()) {
        board_reset();
    }
    uart_puts("self-test passed\n");
    const uint32_t expected = crc_of_own_flash();
    for (uint32_t round = 1;; round++) {
        for (volatile uint32_t loop = 0; loop < LOOPS_A_ROUND; loop++) {
        }
        if (crc_of_own_flash() != expected) {
            uart_puts("flash has changed under us\n");
            board_reset();
        }
        uart_puts("round ");
        uart_put_dec(round);
        uart_puts(" crc ");
        uart_put_hex(expected);
        uart_puts("\n");
    }
}
