/* The few registers that the sample touches. Source: the vendor's register headers in mbed-os (uart_reg.h, sys_reg.h,
 * clk_reg.h of M480 and M2354) and the Armv7-M and Armv8-M architecture reference manuals (SCB, HardFault). */
#pragma once

#include <stdint.h>

void board_start_uart(void);

void uart_puts(const char *text);
void uart_put_hex(uint32_t value);
void uart_put_dec(uint32_t value);

__attribute__((noreturn)) void board_reset(void);

/* What the program supplies. */
__attribute__((noreturn)) void app_main(void);
