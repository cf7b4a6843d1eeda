/* The few registers of the ESP32-C3 that the sample touches. Source: ESP32-C3 Technical Reference Manual, chapters
 * "UART Controller", "Low-power Management", "Watchdog Timers", "System Timer". */
#pragma once

#include <stdint.h>

void uart_puts(const char *text);
void uart_put_hex(uint32_t value);
void uart_put_dec(uint32_t value);

/* Microseconds since reset, from the 16 MHz system timer; wraps after about 71 minutes. */
uint32_t board_micros(void);
void board_wait_ms(uint32_t ms);

/* The boot loader leaves its watchdog running. Until this is called, an application that hangs is reset. */
void board_stop_boot_watchdog(void);

__attribute__((noreturn)) void board_reset(void);
