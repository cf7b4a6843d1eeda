/* The few registers of the RTL872xD that the sample touches, the same for both cores. Source: the vendor's SDK headers
 * (hal_platform.h: log UART; rtl8721d_uart.h) and the Armv8-M architecture reference manual (SCB, HardFault). */
#pragma once

#include <stdint.h>

void uart_puts(const char *text);
void uart_put_hex(uint32_t value);
void uart_put_dec(uint32_t value);

__attribute__((noreturn)) void board_reset(void);

/* What the boot loaders look for at the start of a RAM segment: 32 bytes. */
struct start_block {
    void (*entry)(void);
    void (*wake)(void); /* after deep sleep; NULL = none */
    const void *third;  /* differs from core to core; no boot loader reads it */
    char text[8];       /* "RTKWin" and its NUL */
    uint32_t reserved[3];
};

/* What each core's program supplies. */
__attribute__((noreturn)) void core_main(void);
