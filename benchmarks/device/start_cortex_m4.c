/* Vector table of a Cortex-M4 with its FPU on; newlib's _start runs main. */
extern int main(void);
extern void _start(void);
void SysTick_Handler(void);

void Reset(void)
{
    *(volatile unsigned *)0xE000ED88 |= 0xF00000;
    __asm volatile("dsb\nisb");
    _start();
}

static void stop(void)
{
    for (;;) {
    }
}

__attribute__((section(".vec"), used)) void *const vectors[16] = {
    (void *)0x20300000, (void *)Reset, stop, stop, stop, stop, stop, 0, 0, 0, 0, stop, stop, 0,
    stop, (void *)SysTick_Handler};

void _init(void) {}
void _fini(void) {}
