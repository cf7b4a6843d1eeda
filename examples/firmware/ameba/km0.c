/* KM0's part: in the vendor's firmware it keeps power and Wi-Fi's low-power side; here it only shows that it runs. */

#include "board.h"
#include "crc32.h"

extern const uint8_t _xip_start[], _xip_end[];

/* KM0 has to give KM4 power and let it boot. That is the vendor's business: a product replaces this. */
__attribute__((weak)) void hook_start_km4(void) {}

__attribute__((noreturn)) void core_main(void)
{
    uart_puts("\nKM0 crc ");
    uart_put_hex(crc32_of(0, _xip_start, (uint32_t)(_xip_end - _xip_start)));
    uart_puts("\n");
    hook_start_km4();
    for (;;) {
        __asm__ volatile("wfi");
    }
}
