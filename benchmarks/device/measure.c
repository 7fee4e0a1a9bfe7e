/* Runs the network on its first test vector; prints ticks or nanoseconds, and differing bytes. */
#include <stdio.h>
#include <string.h>

#include "net.h"
#include "net_vectors.h"

static int32_t arena[(NET_ARENA_SIZE + 3) / 4];

#ifdef __arm__
#define RUNS 1
volatile unsigned wraps;
void SysTick_Handler(void) { wraps++; }
#define SYSTICK ((volatile unsigned *)0xE000E010)
static unsigned long long now(void)
{
    unsigned w, v;
    do {
        w = wraps;
        v = SYSTICK[2];
    } while (w != wraps);
    return (unsigned long long)w * 0x1000000u + (0xFFFFFFu - v);
}
static void start(void)
{
    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7;
}
#else
#define RUNS 200
#include <time.h>
static unsigned long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (unsigned long long)t.tv_sec * 1000000000u + (unsigned long long)t.tv_nsec;
}
static void start(void) {}
#endif

int main(void)
{
    unsigned long long best = ~0ull;
    long wrong = 0, i, j, run;
    start();
    for (run = 0; run < RUNS; run++) {
        unsigned long long begin, took;
        for (i = 0; i < NET_INPUTS; i++)
            memcpy((int8_t *)arena + net_inputs[i].place, net_inputs[i].values,
                   (size_t)net_inputs[i].bytes);
        begin = now();
        net_run(arena);
        took = now() - begin;
        if (took < best) best = took;
    }
    for (i = 0; i < NET_OUTPUTS; i++)
        for (j = 0; j < net_outputs[i].bytes; j++)
            wrong += ((int8_t *)arena)[net_outputs[i].place + j] !=
                     ((const int8_t *)net_outputs[i].values)[j];
    printf("%lu %ld\n", (unsigned long)best, wrong);
    return 0;
}
