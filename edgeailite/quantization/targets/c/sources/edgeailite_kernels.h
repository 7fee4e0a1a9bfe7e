/* Kernels of networks that edgeailite writes as C: integers only, no allocation, no library.
 *
 * Values are stored channels last, 8 bits as int8_t and 9 to 16 bits as int16_t: `q - offset`, where
 * the offset is 128 (32768) for unsigned grids of 8 (16) bits and else 0. All numbers below are of
 * these stored integers.
 *
 * Define EDGEAILITE_PORTABLE to leave out what a core has beyond C, in all files alike.
 */
#ifndef EDGEAILITE_KERNELS_H
#define EDGEAILITE_KERNELS_H

#include <stdint.h>

#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(EDGEAILITE_PORTABLE)
#define EDGEAILITE_DSP /* four weights a word: SXTB16 and SMLAD */
#endif

/* Where vector units multiply pairs of 16 bits, weights are held so. */
#if (defined(__SSE2__) || defined(__ARM_NEON)) && !defined(EDGEAILITE_PORTABLE)
#define EDGEAILITE_VECTORS
typedef int16_t edgeailite_weight;
#else
typedef int8_t edgeailite_weight;
#endif

#define EDGEAILITE_MAX_TAPS 64 /* of a depthwise kernel */

typedef enum {
    EDGEAILITE_SHIFT, /* v * 2^-shift, ties to even */
    EDGEAILITE_SCALE, /* v * multiplier * 2^-(32 + shift), ties up */
    EDGEAILITE_EXACT, /* the same as float32 rounds it: ties are found where rounding makes them */
    EDGEAILITE_STEPS, /* the number of thresholds that are not above v */
    EDGEAILITE_QUOTIENT /* v * 2^-shift / multiplier, ties to even */
} edgeailite_kind;

typedef enum {
    EDGEAILITE_HALF_EVEN,
    EDGEAILITE_HALF_UP,
    EDGEAILITE_HALF_AWAY
} edgeailite_rounding;

/* From sums to integers of the result's grid: clamp(zero + round(v * factor), low, high). */
typedef struct {
    const int32_t *multiplier; /* or thresholds, `shift[0]` of them, rising */
    const uint8_t *shift;
    uint8_t kind, rounding;
    uint8_t each; /* 1: a factor for each channel, 0: one for all */
    uint8_t left; /* sums are first multiplied by 2^left */
    uint8_t wide; /* results have 16 bits */
    int32_t zero, low, high;
} edgeailite_output;

/* Convolution, transposed convolution, or linear layer: height and width 1. */
typedef struct {
    const edgeailite_weight *weight; /* [out][height][width][in], rows of `row` weights */
    const int16_t *wide_weight;      /* instead: more than 8 bits */
    const uint8_t *packed;           /* instead: 4 or 2 bits, the first in the lowest of a byte */
    const int32_t *bias;
    edgeailite_output output;
    int32_t row; /* a multiple of 4 */
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int16_t kernel_height, kernel_width, stride_height, stride_width;
    int16_t pad_top, pad_left, dilation_height, dilation_width;
    int32_t groups;
    int16_t fill; /* zero of the input */
    uint8_t transposed;
    uint8_t wide; /* values of the input have 16 bits */
    uint8_t bits; /* of packed weights */
} edgeailite_layer;

#define EDGEAILITE_UNPACKED 4 /* channels whose packed weights are unpacked at once */

/* A window that moves over an image. */
typedef struct {
    int32_t in_height, in_width, channels, out_height, out_width;
    int16_t kernel_height, kernel_width, stride_height, stride_width;
    int16_t pad_top, pad_left, dilation_height, dilation_width;
    int16_t zero; /* of the input */
    uint8_t wide;
    uint8_t smallest;                 /* of the values of a window, not the largest */
    const int16_t *spans;             /* of windows that differ: begin and end of each row, then of
                                         each column, of the result */
    const edgeailite_output *outputs; /* of averages: one for each size of a window */
    const uint8_t *which;             /* of these, for each row, then each column, of the result */
} edgeailite_window;

/* Results of pairs that a rule does not give. */
typedef struct {
    int32_t count;
    const uint16_t *pairs; /* a * 256 + b as bytes, rising */
    const int8_t *results;
} edgeailite_list;

/* A mean as float32 computes it: values times a scale, their sums one by one, a quotient, a scale. */
typedef struct {
    int32_t multiplier, divisor; /* scales of the values and of the results: 24 bits, */
    int32_t exponent;            /* and what to multiply their quotient by: 2^exponent */
    const int32_t *areas;        /* one for each size of a window */
    int32_t zero, stored, low, high;
} edgeailite_float_mean;

/* clamp((a * left + b * right + offset) >> shift, low, high); but results of listed pairs. */
typedef struct {
    int32_t left, right, offset;
    uint8_t shift, even; /* even: a tie goes to the even integer of the result, not up */
    int32_t zero, low, high;
    edgeailite_list listed;
} edgeailite_sum;

/* A gain for each channel, another one for negative values, and an offset. */
typedef struct {
    edgeailite_output output;
    const int32_t *gain, *negative, *offset;
    int32_t channels, zero;
} edgeailite_gains;

/* Softmax along an axis of `count` values, which lie `inner` apart. */
typedef struct {
    const int32_t *exponentials; /* of the distance to the largest value */
    const int32_t *numerators;   /* of 24 bits, or 0: exponential over scale */
    const int8_t *exponents;     /* of these: numerator * 2^exponent */
    int32_t outer, count, inner;
    int32_t zero, low, high;
    uint8_t rounding, wide;
} edgeailite_softmax_rows;

/* Functions of values of 9 to 16 bits: a line in each segment of 2^width values. */
typedef struct {
    const int32_t *base, *slope; /* slope: null where each value has a result of its own */
    int32_t first;               /* value with which the segments begin */
    int32_t zero, low, high;
    uint8_t width, rounding, wide;
} edgeailite_lines;

/* Weighted sums along one axis. */
typedef struct {
    int32_t outer, in, out, inner, taps;
    const int32_t *weights; /* [out][taps] */
    const int32_t *starts;  /* of the taps of each result */
    int32_t zero;
    uint8_t bytes; /* of a value that is read */
    uint8_t shift; /* of sums that are no results yet, ties to even */
} edgeailite_axis;

/* Products of matrices (rows, depth) and (depth, columns). */
typedef struct {
    edgeailite_output output;
    int32_t count, rows, depth, columns, zero_a, zero_b;
} edgeailite_matrices;

/* A loop over values: `count` of them, apart in the operand and in the result. */
typedef struct {
    int32_t count, from, to;
} edgeailite_loop;

void edgeailite_convolve(const edgeailite_layer *layer, const void *x, void *y, void *scratch);
void edgeailite_convolve_wide(const edgeailite_layer *layer, const void *x, void *y, void *scratch);
void edgeailite_convolve_depthwise(
    const edgeailite_layer *layer, const int8_t *x, void *y, void *scratch);
void edgeailite_max_pool(const edgeailite_window *window, const void *x, void *y);
void edgeailite_average(const edgeailite_window *window, const void *x, void *y);
void edgeailite_average_float32(
    const edgeailite_window *window, const edgeailite_float_mean *mean, const int8_t *x, int8_t *y);
void edgeailite_look_up(const int8_t *table, const int8_t *x, int32_t size, int8_t *y);
void edgeailite_look_up_wide(const int16_t *table, const int8_t *x, int32_t size, int16_t *y);
void edgeailite_add(
    const edgeailite_sum *sum, const int8_t *a, const int8_t *b, int32_t size, int8_t *y);
void edgeailite_choose(
    int32_t smallest, const int8_t *a, const int8_t *b, int32_t size, int8_t *y);
void edgeailite_move(
    const edgeailite_loop *loops, int32_t depth, int32_t bytes, const void *x, void *y);
void edgeailite_pick(
    const int32_t *places, int32_t size, int32_t fill, int32_t bytes, const void *x, void *y);
void edgeailite_fill(int32_t value, int32_t size, int32_t bytes, void *y);
void edgeailite_multiply(
    const edgeailite_output *output, const edgeailite_list *listed, const edgeailite_loop *loops,
    int32_t depth, int32_t zero_a, int32_t zero_b, const int8_t *a, const int8_t *b, void *y);
void edgeailite_scale_channels(
    const edgeailite_gains *gains, const int8_t *x, int32_t size, void *y);
void edgeailite_add_wide(
    const edgeailite_sum *sum, const void *a, int32_t bytes_a, const void *b, int32_t bytes_b,
    int32_t size, void *y, int32_t bytes);
void edgeailite_softmax(const edgeailite_softmax_rows *rows, const int8_t *x, void *y);
void edgeailite_interpolate(
    const edgeailite_lines *lines, const int16_t *x, int32_t size, void *y);
void edgeailite_resize(
    const edgeailite_axis *axis, const edgeailite_output *output, const void *x, void *y);
void edgeailite_multiply_matrices(
    const edgeailite_matrices *matrices, const int8_t *a, const int8_t *b, void *y);

#endif
