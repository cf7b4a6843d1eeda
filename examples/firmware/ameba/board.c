#include "board.h"

#define REG(address) (*(volatile uint32_t *)(address))

#define LOGUART_LSR REG(0x48012014u)
#define LOGUART_THR REG(0x48012024u)
#define LSR_THR_EMPTY (1u << 5)

#define SCB_VTOR REG(0xE000ED08u)
#define SCB_AIRCR REG(0xE000ED0Cu)
#define AIRCR_SYSTEM_RESET 0x05FA0004u

extern uint32_t _bss_start[], _bss_end[], _stack_top[];

__attribute__((noreturn)) void start(void);
static void fault(void);

const struct start_block start_block __attribute__((section(".start_block"), used)) = {
    start, 0, 0, "RTKWin", {0, 0, 0},
};

/* Only what a sample needs: everything that goes wrong ends in one handler. The first entry is never used here, since
 * the boot loader jumps to the start block's entry. */
static const void *const vectors[16] __attribute__((section(".vectors"), used)) = {
    _stack_top, start, fault, fault, fault, fault, fault, fault,
    0,          0,     0,     fault, fault, 0,     fault, fault,
};

__attribute__((noreturn, used)) static void run(void)
{
    for (uint32_t *word = _bss_start; word < _bss_end; word++) {
        *word = 0;
    }
    SCB_VTOR = (uint32_t)vectors;
    core_main();
}

/* The boot loader's stack lies where the program's data go: take our own first. */
__attribute__((naked, noreturn)) void start(void)
{
    __asm__ volatile("ldr r0, =_stack_top\n msr msp, r0\n b run\n .ltorg");
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

__attribute__((noreturn)) void board_reset(void)
{
    __asm__ volatile("dsb");
    SCB_AIRCR = AIRCR_SYSTEM_RESET;
    for (;;) {
    }
}

static void uart_put(char letter)
{
    while (!(LOGUART_LSR & LSR_THR_EMPTY)) {
    }
    LOGUART_THR = (uint8_t)letter;
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
