#include "hooks.h"

#include "behaviour.h"
#include "board.h"

__attribute__((weak)) void hook_confirm(void)
{
    uart_puts("confirmed\n");
}

__attribute__((weak)) bool hook_network_is_up(void)
{
    return SAMPLE_BEHAVIOUR != LOSE_NETWORK;
}
