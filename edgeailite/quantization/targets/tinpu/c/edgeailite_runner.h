/* Runs a network that edgeailite wrote as C: integers only, no allocation, no library.
 *
 * Values are bytes, signed or unsigned as the operation says, in the order channel, height, width.
 * Every result is clip(floor((sum + offset) * multiplier * 2^-shift), low, high), or read from a
 * table.
 */
#ifndef EDGEAILITE_RUNNER_H
#define EDGEAILITE_RUNNER_H

#include <stdint.h>

enum {
    EDGEAILITE_INPUT,                /* raw floats to integers: the normalisation of the input */
    EDGEAILITE_RESCALE,              /* offset, multiplier and shift of each value */
    EDGEAILITE_CONVOLUTION,
    EDGEAILITE_TRANSPOSED_CONVOLUTION,
    EDGEAILITE_LINEAR,
    EDGEAILITE_WINDOW_SUM,           /* average pooling: sums, then one over the area */
    EDGEAILITE_MAX_POOL,
    EDGEAILITE_ADD,
    EDGEAILITE_COPY,                 /* one operand of a concat */
    EDGEAILITE_PERMUTE,
    EDGEAILITE_TABLE,                /* a function: its result for each integer */
    EDGEAILITE_MULTIPLY,             /* the other operand may have axes of size 1 */
    EDGEAILITE_SOFTMAX               /* over the middle axis */
};

typedef struct {
    uint8_t kind;
    uint8_t is_signed, other_is_signed; /* whether the operands' bytes are */
    uint8_t weight_bits;                /* 8, 4 or 2; lowest bits of a byte first */
    uint32_t input, other, output;      /* places in the arena, bytes */
    /* Operand and result: channels, height, width. */
    uint32_t in[3], out[3];
    /* Height and width of the window, its step, zeros before it, distance of its taps. */
    uint16_t kernel[2], stride[2], padding[2], dilation[2];
    uint16_t groups;
    /* PERMUTE: where the next value of each axis comes from; MULTIPLY: of the other operand.
     * TABLE: steps[0] is the place of the result for 0; SOFTMAX: one over the scale. */
    uint32_t steps[3];
    uint32_t num_steps;                 /* entries of the tables below: 1, channels, or places */
    const uint8_t *weights;             /* TABLE: results, from the smallest integer on */
    const int32_t *offsets;             /* SOFTMAX: exponentials of distances to the largest */
    const int16_t *multipliers;
    const uint8_t *shifts;
    const float *float_offsets, *factors; /* INPUT only */
    int16_t low, high;
} edgeailite_operation;

/* Run one operation. The arena holds all values; `input` are the network's raw values. */
void edgeailite_step(const edgeailite_operation *op, const float *input, uint8_t *arena);

/* Run a network; its result is then in the arena, at the output of the last operation. */
void edgeailite_run(
    const edgeailite_operation *ops, uint32_t count, const float *input, uint8_t *arena);

#endif
