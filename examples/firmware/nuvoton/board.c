#include "board.h"

#define REG(address) (*(volatile uint32_t *)(address))

/* UART0 is at the same place on both chips; the M2354's application sees it in the non-secure alias. */
#ifdef SAMPLE_NON_SECURE
#define UART0 0x50070000u
#else
#define UART0 0x40070000u
#endif

#define UART_DAT REG(UART0 + 0x00)
#define UART_LINE REG(UART0 + 0x0C)
#define UART_FIFOSTS REG(UART0 + 0x18)
#define UART_BAUD REG(UART0 + 0x24)
#define FIFOSTS_TX_FULL (1u << 23)
#define LINE_8N1 3u
#define BAUD_115200_OF_12_MHZ 0x30000066u /* mode 2: clock / (0x66 + 2) */

#define SYS_GPB_MFPH REG(0x4000003Cu)
#define PB12_PB13_MASK 0x00FF0000u
#define PB12_RX_PB13_TX 0x00660000u
#define CLK_APBCLK0 REG(0x40000208u)
#define APBCLK0_UART0 (1u << 16)
#define CLK_CLKSEL1 REG(0x40000214u)
#define CLKSEL1_UART0_HIRC (3u << 24) /* the internal 12 MHz, whatever the core runs at */

#define SCB_AIRCR REG(0xE000ED0Cu)
#define AIRCR_SYSTEM_RESET 0x05FA0004u

extern uint32_t _bss_start[], _bss_end[], _stack_top[];

__attribute__((noreturn)) void start(void);
static void fault(void);

/* The sixteen vectors of the core; no interrupt of the chip is used. The first word is the stack, the second the entry:
 * all that a loader, or the secure world, knows of the program. */
static const void *const vectors[16] __attribute__((section(".vectors"), used)) = {
    _stack_top, start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault,
};

__attribute__((noreturn, used)) void start(void)
{
    for (uint32_t *word = _bss_start; word < _bss_end; word++) {
        *word = 0;
    }
    board_start_uart();
    app_main();
}

__attribute__((noreturn)) static void fault(void)
{
    uint32_t number;
    __asm__ volatile("mrs %0, ipsr" : "=r"(number));
    uart_puts("\npanic: exception ");
    uart_put_dec(number);
    uart_puts("\n");
    board_reset();
}

void board_start_uart(void)
{
#ifndef SAMPLE_NON_SECURE /* clocks and pins belong to the secure world of the M2354, which has set them */
    CLK_APBCLK0 |= APBCLK0_UART0;
    CLK_CLKSEL1 |= CLKSEL1_UART0_HIRC;
    SYS_GPB_MFPH = (SYS_GPB_MFPH & ~PB12_PB13_MASK) | PB12_RX_PB13_TX;
#endif
    UART_LINE = LINE_8N1;
    UART_BAUD = BAUD_115200_OF_12_MHZ;
}

__attribute__((noreturn)) void board_reset(void)
{
    __asm__ volatile("dsb");
    SCB_AIRCR = AIRCR_SYSTEM_RESET;
    for (;;) {
    }
}

static void uart_put(char letter)
{
    while (UART_FIFOSTS & FIFOSTS_TX_FULL) {
    }
    UART_DAT = (uint8_t)letter;
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
        uart_put("0123456789abcdef"[value >> shift & 0xF]);
    }
}

void uart_put_dec(uint32_t value)
{
    char text[11];
    char *first = text + 10;
    *first = 0;
    do {
        *--first = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    uart_puts(first);
}
