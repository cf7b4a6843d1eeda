/* Entry from the boot loader, and the one trap vector. Interrupts stay off: whatever traps here is a crash. */

    .section .iram.start, "ax"
    .globl _start
_start:
    csrci   mstatus, 8              /* MIE off */
    la      sp, _stack_top
    la      t0, trap_vector
    ori     t0, t0, 1               /* the core of the ESP32-C3 knows vectored mode only */
    csrw    mtvec, t0
    la      t0, _bss_start
    la      t1, _bss_end
1:  bgeu    t0, t1, 2f
    sw      zero, 0(t0)
    addi    t0, t0, 4
    j       1b
2:  call    sample_main
    /* sample_main never returns */
3:  j       3b

    .section .iram.vectors, "ax"
    .balign 256
    .option push
    .option norvc
trap_vector:
    .rept 32
    j       trap_entry
    .endr
    .option pop

trap_entry:
    la      sp, _stack_top          /* the old stack may be what broke */
    csrr    a0, mcause
    csrr    a1, mepc
    csrr    a2, mtval
    tail    panic
