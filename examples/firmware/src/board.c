#include "board.h"

#define REG(address) (*(volatile uint32_t *)(address))

#define UART0_FIFO REG(0x60000000u)
#define UART0_STATUS REG(0x6000001Cu)
#define UART_TXFIFO_COUNT(status) (((status) >> 16) & 0x3FFu)
#define UART_TXFIFO_FULL_AT 120u /* of 128 bytes */

#define RTC_CNTL_OPTIONS0 REG(0x60008000u)
#define RTC_CNTL_SW_SYS_RST (1u << 31)
#define RTC_CNTL_WDTCONFIG0 REG(0x60008090u)
#define RTC_CNTL_WDTWPROTECT REG(0x600080A8u)
#define RTC_CNTL_SWD_CONF REG(0x600080ACu)
#define RTC_CNTL_SWD_AUTO_FEED_EN (1u << 31)
#define RTC_CNTL_SWD_WPROTECT REG(0x600080B0u)
#define WDT_KEY 0x50D83AA1u
#define SWD_KEY 0x8F1D312Au

#define TIMG0_WDTCONFIG0 REG(0x6001F048u)
#define TIMG0_WDTWPROTECT REG(0x6001F064u)

#define SYSTIMER_UNIT0_OP REG(0x60023004u)
#define SYSTIMER_UPDATE (1u << 30)
#define SYSTIMER_VALUE_VALID (1u << 29)
#define SYSTIMER_UNIT0_VALUE_LO REG(0x60023044u)
#define SYSTIMER_UNIT0_VALUE_HI REG(0x60023040u)
#define SYSTIMER_TICKS_PER_US_LOG2 4 /* 16 MHz */

static void uart_put(char letter)
{
    while (UART_TXFIFO_COUNT(UART0_STATUS) >= UART_TXFIFO_FULL_AT) {
    }
    UART0_FIFO = (uint8_t)letter;
}

void uart_puts(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n') {
            uart_put('\r');
        }
        uart_put(*text);
    }
}

void uart_put_hex(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4) {
        uart_put("0123456789abcdef"[(value >> shift) & 0xF]);
    }
}

void uart_put_dec(uint32_t value)
{
    char digits[11];
    char *at = &digits[sizeof digits - 1];
    *at = '\0';
    do {
        *--at = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    uart_puts(at);
}

uint32_t board_micros(void)
{
    SYSTIMER_UNIT0_OP = SYSTIMER_UPDATE;
    while (!(SYSTIMER_UNIT0_OP & SYSTIMER_VALUE_VALID)) {
    }
    uint32_t low = SYSTIMER_UNIT0_VALUE_LO;
    uint32_t high = SYSTIMER_UNIT0_VALUE_HI;
    return low >> SYSTIMER_TICKS_PER_US_LOG2 | high << (32 - SYSTIMER_TICKS_PER_US_LOG2);
}

void board_wait_ms(uint32_t ms)
{
    uint32_t start = board_micros();
    while (board_micros() - start < ms * 1000u) {
    }
}

void board_stop_boot_watchdog(void)
{
    RTC_CNTL_WDTWPROTECT = WDT_KEY;
    RTC_CNTL_WDTCONFIG0 = 0;
    RTC_CNTL_WDTWPROTECT = 0;
    RTC_CNTL_SWD_WPROTECT = SWD_KEY;
    RTC_CNTL_SWD_CONF |= RTC_CNTL_SWD_AUTO_FEED_EN;
    RTC_CNTL_SWD_WPROTECT = 0;
    TIMG0_WDTWPROTECT = WDT_KEY;
    TIMG0_WDTCONFIG0 = 0;
    TIMG0_WDTWPROTECT = 0;
}

void board_reset(void)
{
    RTC_CNTL_OPTIONS0 |= RTC_CNTL_SW_SYS_RST;
    for (;;) {
    }
}
