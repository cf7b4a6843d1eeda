/* The application of a Nuvoton board: it says which version it is, tests itself, accepts itself if all is well, and goes
 * on checking that the flash it runs from reads the same every time. */

#include <stdbool.h>

#include "behaviour.h"
#include "board.h"
#include "crc32.h"

#define LOOPS_A_ROUND 2000000u /* about a second at the clock after reset */
#define ACCEPT_WITHIN_ROUNDS 16u

extern const uint8_t _image_start[], _image_end[];

/* Virtual devices run no machine code: they read version and behaviour from here (docs/reference/virtual-devices.md). */
static const char marker[] __attribute__((section(".rodata.marker"), used)) =
    "FLOTA-LAB{version=" SAMPLE_VERSION ";behaviour=" SAMPLE_BEHAVIOUR_NAME "}";

/* In a product this is the OTA agent's part: OTA_SetImageState(OtaImageStateAccepted), which the platform layer turns
 * into the flag 0xFC of the descriptor (M487) or psa_fwu_accept() (M2354). */
__attribute__((weak)) void hook_accept(void)
{
    uart_puts("Accepted and committed final image.\n");
}

static uint32_t crc_of_own_flash(void)
{
    return crc32_of(0, _image_start, (uint32_t)(_image_end - _image_start));
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

__attribute__((noreturn)) void app_main(void)
{
    uart_puts("\nflota-sample-" SAMPLE_BOARD " " SAMPLE_VERSION "\n");
    const bool healthy = self_test();
    if (healthy && SAMPLE_BEHAVIOUR != NEVER_CONFIRM) {
        hook_accept();
    }
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
        if (!healthy && round >= ACCEPT_WITHIN_ROUNDS) {
            uart_puts("self-test failed\n");
            board_reset();
        }
    }
}
