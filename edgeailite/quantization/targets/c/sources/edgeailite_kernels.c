/* See edgeailite_kernels.h. Right shifts of negative integers round down, as all compilers do. */
#include "edgeailite_kernels.h"

#include <string.h>

#define BLOCK 32 /* channels whose sums are held at once */

#ifdef EDGEAILITE_DSP
#include <arm_acle.h>
typedef int8_t narrow; /* values of a patch that have 8 bits */
#else
typedef int16_t narrow;
#endif

/* ---- requantization ---------------------------------------------------------------------- */

static inline int32_t clamp(int32_t v, int32_t low, int32_t high)
{
    return v < low ? low : v > high ? high : v;
}

static inline int32_t shifted(int32_t v, int32_t shift)
{
    int32_t sum = v + (1 << (shift - 1));
    int32_t y = sum >> shift;
    return y - ((sum & ((1 << shift) - 1)) == 0 ? (y & 1) : 0);
}

static inline int32_t scaled(int32_t v, int32_t multiplier, int32_t shift)
{
    int32_t high = (int32_t)(((int64_t)v * multiplier) >> 32);
    return (high + (1 << (shift - 1))) >> shift;
}

/* To 24 significant bits, ties to even, as float32. */
static int64_t round24(int64_t v)
{
    uint64_t m = v < 0 ? 0 - (uint64_t)v : (uint64_t)v, half;
    int32_t bits = 0;
    while (m >> bits >> 24) bits++;
    if (bits == 0) return v;
    half = (uint64_t)1 << (bits - 1);
    m += half - 1 + ((m >> bits) & 1);
    m = m >> bits << bits;
    return v < 0 ? -(int64_t)m : (int64_t)m;
}

/* round(p * 2^-shift) as float32 computes it, for a p of 24 significant bits. */
static int32_t rounded(int64_t p, int32_t shift, int32_t rounding)
{
    int64_t half = (int64_t)1 << (shift - 1), y;
    if (rounding == EDGEAILITE_HALF_UP) {
        y = round24(p + half) >> shift;
    } else if (rounding == EDGEAILITE_HALF_AWAY) {
        y = round24((p < 0 ? -p : p) + half) >> shift;
        y = p < 0 ? -y : y;
    } else {
        y = (p + half) >> shift;
        if (((p + half) & (2 * half - 1)) == 0) y &= ~(int64_t)1;
    }
    return y < -65536 ? -65536 : y > 65536 ? 65536 : (int32_t)y;
}

/* round(float(v) * multiplier * 2^-(32 + shift)) as float32 computes it; 24 bits of the multiplier
 * count, and the others are zero. */
static int32_t exact(int64_t v, int32_t multiplier, int32_t shift, int32_t rounding)
{
    return rounded(round24(round24(v) * (multiplier >> 7)), shift + 25, rounding);
}

/* Distance in steps of 2^-shift within which float32 may round a result, below 2^9 (or 2^17), to a
 * tie, and one more for the bits that `scaled` drops. */
static inline int32_t margin(int32_t shift, int32_t wide)
{
    return 1 + ((1 << (shift - 1)) >> (wide ? 5 : 13));
}

static inline int32_t is_near_tie(int32_t v, int32_t multiplier, int32_t shift, int32_t wide)
{
    int32_t near = margin(shift, wide);
    uint32_t high = (uint32_t)(((int64_t)v * multiplier) >> 32) + (1u << (shift - 1));
    return ((high + (uint32_t)near) & ((1u << shift) - 1)) <= 2 * (uint32_t)near;
}

static int32_t counted(int32_t v, const int32_t *thresholds, int32_t count)
{
    int32_t low = 0, high = count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (thresholds[middle] <= v) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Results of `n` sums with a factor each, or one for all. */
static int32_t divided(int32_t v, int32_t divisor, int32_t shift)
{
    int64_t by = ((int64_t)divisor << shift) * 2, over = 2 * (int64_t)v + by / 2, y = over / by;
    if (over % by < 0) y--;
    else if (over % by == 0) y &= ~(int64_t)1;
    return (int32_t)y;
}

#define DEFINE_RESULTS(NAME, STEP)                                                                 \
    static void NAME(const edgeailite_output *o, int32_t first, int32_t n,                         \
                     const int32_t *restrict v, int32_t *restrict y)                               \
    {                                                                                              \
        const int32_t *m = o->multiplier + (STEP)*first;                                           \
        const uint8_t *s = o->shift + (STEP)*first;                                                \
        int32_t i, near = 0, wide = o->wide;                                                       \
        if (o->kind == EDGEAILITE_SHIFT) {                                                         \
            for (i = 0; i < n; i++) y[i] = shifted(v[i], s[(STEP)*i]);                             \
            return;                                                                                \
        }                                                                                          \
        if (o->kind == EDGEAILITE_SCALE) {                                                         \
            for (i = 0; i < n; i++) y[i] = scaled(v[i], m[(STEP)*i], s[(STEP)*i]);                 \
            return;                                                                                \
        }                                                                                          \
        for (i = 0; i < n; i++) {                                                                  \
            y[i] = scaled(v[i], m[(STEP)*i], s[(STEP)*i]);                                         \
            near |= is_near_tie(v[i], m[(STEP)*i], s[(STEP)*i], wide);                             \
        }                                                                                          \
        for (i = 0; near && i < n; i++)                                                            \
            if (is_near_tie(v[i], m[(STEP)*i], s[(STEP)*i], wide))                                 \
                y[i] = exact(v[i], m[(STEP)*i], s[(STEP)*i], o->rounding);                         \
    }

DEFINE_RESULTS(results, 0)
DEFINE_RESULTS(results_of_channels, 1)

static void write_out(
    const edgeailite_output *o, int32_t n, const int32_t *restrict v, void *y, int32_t at)
{
    int32_t i, zero = o->zero, low = o->low, high = o->high;
    if (o->wide) {
        int16_t *restrict out = (int16_t *)y + at;
        for (i = 0; i < n; i++) out[i] = (int16_t)clamp(v[i] + zero, low, high);
    } else {
        int8_t *restrict out = (int8_t *)y + at;
        for (i = 0; i < n; i++) out[i] = (int8_t)clamp(v[i] + zero, low, high);
    }
}

/* Sums of `n` channels, BLOCK at most, from `first` on become values of `y`, from place `at` on. */
static void requantize(
    const edgeailite_output *o, int32_t first, int32_t n, int32_t *restrict v, void *y, int32_t at)
{
    int32_t i, q[BLOCK];
    if (o->left) {
        int32_t limit = 1 << (30 - o->left);
        for (i = 0; i < n; i++) v[i] = clamp(v[i], -limit, limit) * (1 << o->left);
    }
    if (o->kind == EDGEAILITE_STEPS)
        for (i = 0; i < n; i++) q[i] = counted(v[i], o->multiplier, o->shift[0]);
    else if (o->kind == EDGEAILITE_QUOTIENT)
        for (i = 0; i < n; i++) q[i] = divided(v[i], o->multiplier[0], o->shift[0]);
    else if (o->each)
        results_of_channels(o, first, n, v, q);
    else
        results(o, first, n, v, q);
    write_out(o, n, q, y, at);
}

/* ---- convolutions ------------------------------------------------------------------------ */

/* Row or column of the input that a tap reads; -1: none. */
static inline int32_t place_of(
    int32_t transposed, int32_t out, int32_t tap, int32_t stride, int32_t pad, int32_t dilation,
    int32_t size)
{
    int32_t in;
    if (transposed) {
        in = out + pad - tap * dilation;
        if (in < 0 || in % stride) return -1;
        in /= stride;
    } else {
        in = out * stride - pad + tap * dilation;
    }
    return in < 0 || in >= size ? -1 : in;
}

/* The values under a kernel, in the order of its weights. */
#define DEFINE_GATHER(NAME, PATCH, VALUE)                                                          \
    static void NAME(                                                                              \
        const edgeailite_layer *l, int32_t group, const VALUE *x, int32_t oy, int32_t ox,          \
        PATCH *restrict p)                                                                         \
    {                                                                                              \
        int32_t n = l->in_channels / l->groups, ky, kx, i;                                         \
        int32_t dense = l->groups == 1 && !l->transposed && l->dilation_width == 1;                \
        int32_t left = ox * l->stride_width - l->pad_left, width = l->kernel_width * n;            \
        PATCH fill = (PATCH)l->fill;                                                               \
        for (ky = 0; ky < l->kernel_height; ky++) {                                                \
            int32_t iy = place_of(l->transposed, oy, ky, l->stride_height, l->pad_top,             \
                                  l->dilation_height, l->in_height);                               \
            const VALUE *row = x + (iy < 0 ? 0 : iy) * l->in_width * l->in_channels;               \
            if (iy < 0) {                                                                          \
                for (i = 0; i < width; i++) *p++ = fill;                                           \
            } else if (dense) {                                                                    \
                int32_t begin = left < 0 ? -left * n : 0;                                          \
                int32_t end = (l->in_width - left) * n;                                            \
                const VALUE *from = row + left * n;                                                \
                if (begin > width) begin = width;                                                  \
                if (end > width) end = width;                                                      \
                if (end < begin) end = begin;                                                      \
                for (i = 0; i < begin; i++) p[i] = fill;                                           \
                for (i = begin; i < end; i++) p[i] = (PATCH)from[i];                               \
                for (i = end; i < width; i++) p[i] = fill;                                         \
                p += width;                                                                        \
            } else {                                                                               \
                for (kx = 0; kx < l->kernel_width; kx++, p += n) {                                 \
                    int32_t ix = place_of(l->transposed, ox, kx, l->stride_width, l->pad_left,     \
                                          l->dilation_width, l->in_width);                         \
                    const VALUE *from = row + (ix < 0 ? 0 : ix) * l->in_channels + group * n;      \
                    if (ix < 0) for (i = 0; i < n; i++) p[i] = fill;                               \
                    else for (i = 0; i < n; i++) p[i] = (PATCH)from[i];                            \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

DEFINE_GATHER(gather, narrow, int8_t)
DEFINE_GATHER(gather_wide, int16_t, int16_t)
#ifdef EDGEAILITE_DSP
DEFINE_GATHER(gather_widened, int16_t, int8_t)
#else
#define gather_widened gather
#endif

/* Sums of `channels` rows of weights with two patches of `n` values each. */
#ifdef EDGEAILITE_VECTORS
static void sum_products(
    const int16_t *restrict x0, const int16_t *restrict x1, const edgeailite_weight *restrict w,
    const int32_t *restrict bias, int32_t n, int32_t channels, int32_t *restrict a,
    int32_t *restrict b)
{
    int32_t c = 0, k;
    for (; c + 4 <= channels; c += 4, w += 4 * n) {
        const edgeailite_weight *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n;
        int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        for (k = 0; k < n; k++) {
            a0 += x0[k] * w[k];
            a1 += x0[k] * w1[k];
            a2 += x0[k] * w2[k];
            a3 += x0[k] * w3[k];
            b0 += x1[k] * w[k];
            b1 += x1[k] * w1[k];
            b2 += x1[k] * w2[k];
            b3 += x1[k] * w3[k];
        }
        a[c] = bias[c] + a0, a[c + 1] = bias[c + 1] + a1;
        a[c + 2] = bias[c + 2] + a2, a[c + 3] = bias[c + 3] + a3;
        b[c] = bias[c] + b0, b[c + 1] = bias[c + 1] + b1;
        b[c + 2] = bias[c + 2] + b2, b[c + 3] = bias[c + 3] + b3;
    }
    for (; c < channels; c++, w += n) {
        int32_t a0 = 0, b0 = 0;
        for (k = 0; k < n; k++) {
            a0 += x0[k] * w[k];
            b0 += x1[k] * w[k];
        }
        a[c] = bias[c] + a0, b[c] = bias[c] + b0;
    }
}
#else
static void sum_products(
    const int16_t *x0, const int16_t *x1, const edgeailite_weight *w, const int32_t *bias,
    int32_t n, int32_t channels, int32_t *restrict a, int32_t *restrict b)
{
    int32_t c = 0, k;
    for (; c + 2 <= channels; c += 2, w += 2 * n) {
        const edgeailite_weight *w0 = w, *w1 = w + n;
        const int16_t *p = x0, *q = x1;
        int32_t a0 = bias[c], a1 = bias[c + 1], b0 = a0, b1 = a1;
        for (k = n; k > 0; k -= 2) { /* n is a multiple of 4 */
            int32_t x = *p++, y = *q++, u = *w0++, v = *w1++;
            a0 += x * u, a1 += x * v, b0 += y * u, b1 += y * v;
            x = *p++, y = *q++, u = *w0++, v = *w1++;
            a0 += x * u, a1 += x * v, b0 += y * u, b1 += y * v;
        }
        a[c] = a0, a[c + 1] = a1, b[c] = b0, b[c + 1] = b1;
    }
    for (; c < channels; c++, w += n) {
        int32_t a0 = bias[c], b0 = bias[c];
        for (k = 0; k < n; k++) a0 += x0[k] * w[k], b0 += x1[k] * w[k];
        a[c] = a0, b[c] = b0;
    }
}
#endif

/* The same with one patch. */
static void sum_products_once(
    const int16_t *restrict x, const edgeailite_weight *restrict w, const int32_t *restrict bias,
    int32_t n, int32_t channels, int32_t *restrict a)
{
    int32_t c = 0, k;
    for (; c + 4 <= channels; c += 4, w += 4 * n) {
        const edgeailite_weight *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n;
        int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0;
        for (k = 0; k < n; k++) {
            a0 += x[k] * w[k];
            a1 += x[k] * w1[k];
            a2 += x[k] * w2[k];
            a3 += x[k] * w3[k];
        }
        a[c] = bias[c] + a0, a[c + 1] = bias[c + 1] + a1;
        a[c + 2] = bias[c + 2] + a2, a[c + 3] = bias[c + 3] + a3;
    }
    for (; c < channels; c++, w += n) {
        int32_t a0 = 0;
        for (k = 0; k < n; k++) a0 += x[k] * w[k];
        a[c] = bias[c] + a0;
    }
}

#ifdef EDGEAILITE_DSP
static inline uint32_t word(const int8_t *x)
{
    uint32_t w;
    memcpy(&w, x, 4);
    return w;
}

/* Bytes 0 and 2, or 1 and 3, as two integers of 16 bits. */
static inline int32_t even_bytes(uint32_t w)
{
    int32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(w));
    return r;
}

static inline int32_t odd_bytes(uint32_t w)
{
    int32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(w));
    return r;
}

static void sum_products_of_bytes(
    const int8_t *x0, const int8_t *x1, const int8_t *w, const int32_t *bias, int32_t n,
    int32_t channels, int32_t *restrict a, int32_t *restrict b)
{
    int32_t c = 0;
    for (; c + 2 <= channels; c += 2, w += 2 * n) {
        const int8_t *w0 = w, *w1 = w + n, *p = x0, *q = x1, *end = x0 + n;
        int32_t a0 = bias[c], a1 = bias[c + 1], b0 = a0, b1 = a1;
        while (p != end) {
            uint32_t x = word(p), y = word(q), u = word(w0), v = word(w1);
            int32_t xe = even_bytes(x), ye = even_bytes(y), ue = even_bytes(u), ve = even_bytes(v);
            p += 4, q += 4, w0 += 4, w1 += 4;
            a0 = __smlad(xe, ue, a0), a1 = __smlad(xe, ve, a1);
            b0 = __smlad(ye, ue, b0), b1 = __smlad(ye, ve, b1);
            xe = odd_bytes(x), ye = odd_bytes(y), ue = odd_bytes(u), ve = odd_bytes(v);
            a0 = __smlad(xe, ue, a0), a1 = __smlad(xe, ve, a1);
            b0 = __smlad(ye, ue, b0), b1 = __smlad(ye, ve, b1);
        }
        a[c] = a0, a[c + 1] = a1, b[c] = b0, b[c + 1] = b1;
    }
    for (; c < channels; c++, w += n) {
        int32_t a0 = bias[c], b0 = bias[c], k;
        for (k = 0; k < n; k += 4) {
            uint32_t x = word(x0 + k), y = word(x1 + k), u = word(w + k);
            a0 = __smlad(even_bytes(x), even_bytes(u), a0);
            a0 = __smlad(odd_bytes(x), odd_bytes(u), a0);
            b0 = __smlad(even_bytes(y), even_bytes(u), b0);
            b0 = __smlad(odd_bytes(y), odd_bytes(u), b0);
        }
        a[c] = a0, b[c] = b0;
    }
}

static void sum_products_of_bytes_once(
    const int8_t *x, const int8_t *w, const int32_t *bias, int32_t n, int32_t channels,
    int32_t *restrict a)
{
    int32_t c = 0;
    for (; c + 3 <= channels; c += 3, w += 3 * n) {
        const int8_t *w0 = w, *w1 = w + n, *w2 = w1 + n, *p = x, *end = x + n;
        int32_t a0 = bias[c], a1 = bias[c + 1], a2 = bias[c + 2];
        while (p != end) {
            uint32_t s = word(p), t = word(w0), u = word(w1), v = word(w2);
            int32_t even = even_bytes(s), odd = odd_bytes(s);
            p += 4, w0 += 4, w1 += 4, w2 += 4;
            a0 = __smlad(odd, odd_bytes(t), __smlad(even, even_bytes(t), a0));
            a1 = __smlad(odd, odd_bytes(u), __smlad(even, even_bytes(u), a1));
            a2 = __smlad(odd, odd_bytes(v), __smlad(even, even_bytes(v), a2));
        }
        a[c] = a0, a[c + 1] = a1, a[c + 2] = a2;
    }
    for (; c < channels; c++, w += n) {
        int32_t a0 = bias[c], k;
        for (k = 0; k < n; k += 4) {
            uint32_t s = word(x + k), t = word(w + k);
            a0 = __smlad(even_bytes(s), even_bytes(t), a0);
            a0 = __smlad(odd_bytes(s), odd_bytes(t), a0);
        }
        a[c] = a0;
    }
}
#else
#define sum_products_of_bytes sum_products
#define sum_products_of_bytes_once sum_products_once
#endif

/* One kernel position after the other may be read from the input itself. */
static int32_t is_pointwise(const edgeailite_layer *l)
{
    return sizeof(narrow) == 1 && l->row == l->in_channels && l->kernel_height == 1 &&
           l->kernel_width == 1 && l->stride_height == 1 && l->stride_width == 1 &&
           l->pad_top == 0 && l->pad_left == 0 && l->groups == 1 && !l->transposed;
}

/* Weights from number `first` on, of two's complement with 4 or 2 bits. */
static void unpack(const edgeailite_layer *l, int32_t first, int32_t n, edgeailite_weight *w)
{
    int32_t i, bits = l->bits, each = 8 / bits, sign = 1 << (bits - 1);
    for (i = 0; i < n; i++) {
        int32_t field = l->packed[(first + i) / each] >> (first + i) % each * bits;
        w[i] = (edgeailite_weight)(((field & (2 * sign - 1)) ^ sign) - sign);
    }
}

/* Patches that are held at once: two pixels share the loads of weights. */
static int32_t patches(const edgeailite_layer *l)
{
    return l->out_height * l->out_width > 1 ? 2 : 1;
}

/* `size` channels of a group, from `begin` on, with weights `w`. */
static void convolve_channels(
    const edgeailite_layer *l, int32_t g, int32_t begin, int32_t size, const edgeailite_weight *w,
    const void *x, void *y, void *scratch)
{
    int32_t n = l->row, pointwise = is_pointwise(l) && !l->wide;
    int32_t bytes = l->wide ? 2 : (int32_t)sizeof(narrow), oy, ox, c;
    int8_t *held = (int8_t *)scratch;
    int32_t a[BLOCK], b[BLOCK];
    if (!pointwise) memset(held, 0, (size_t)(patches(l) * n * bytes));
    for (oy = 0; oy < l->out_height; oy++)
        for (ox = 0; ox < l->out_width; ox += 2) {
            int32_t two = ox + 1 < l->out_width, at = oy * l->out_width + ox;
            const void *p = held, *q = held + n * bytes;
            if (l->wide) {
                gather_wide(l, g, (const int16_t *)x, oy, ox, (int16_t *)scratch);
                if (two)
                    gather_wide(l, g, (const int16_t *)x, oy, ox + 1, (int16_t *)scratch + n);
            } else if (pointwise) {
                p = (const int8_t *)x + at * n;
                q = (const int8_t *)x + (at + two) * n;
            } else {
                gather(l, g, (const int8_t *)x, oy, ox, (narrow *)scratch);
                if (two) gather(l, g, (const int8_t *)x, oy, ox + 1, (narrow *)scratch + n);
            }
            for (c = 0; c < size; c += BLOCK) {
                int32_t first = begin + c, count = size - c < BLOCK ? size - c : BLOCK;
                const edgeailite_weight *rows = w + c * n;
                const int32_t *bias = l->bias + first;
                if (l->wide && two)
                    sum_products((const int16_t *)p, (const int16_t *)q, rows, bias, n, count, a,
                                 b);
                else if (l->wide)
                    sum_products_once((const int16_t *)p, rows, bias, n, count, a);
                else if (two)
                    sum_products_of_bytes((const narrow *)p, (const narrow *)q, rows, bias, n,
                                          count, a, b);
                else
                    sum_products_of_bytes_once((const narrow *)p, rows, bias, n, count, a);
                requantize(&l->output, first, count, a, y, at * l->out_channels + first);
                if (two)
                    requantize(&l->output, first, count, b, y, (at + 1) * l->out_channels + first);
            }
        }
}

void edgeailite_convolve(const edgeailite_layer *l, const void *x, void *y, void *scratch)
{
    int32_t n = l->row, size = l->out_channels / l->groups, g, c;
    for (g = 0; g < l->groups; g++) {
        int16_t *behind = (int16_t *)scratch + patches(l) * n;
        edgeailite_weight *w = (edgeailite_weight *)behind;
        if (!l->packed)
            convolve_channels(l, g, g * size, size, l->weight + g * size * n, x, y, scratch);
        for (c = 0; l->packed && c < size; c += EDGEAILITE_UNPACKED) {
            int32_t count = size - c < EDGEAILITE_UNPACKED ? size - c : EDGEAILITE_UNPACKED;
            unpack(l, (g * size + c) * n, count * n, w);
            convolve_channels(l, g, g * size + c, count, w, x, y, scratch);
        }
    }
}

/* Sums of more than 31 bits, or weights of more than 8: not fast. */
void edgeailite_convolve_wide(const edgeailite_layer *l, const void *x, void *y, void *scratch)
{
    int32_t n = l->row, size = l->out_channels / l->groups, g, oy, ox, c, k;
    int16_t *p = (int16_t *)scratch;
    const edgeailite_output *o = &l->output;
    memset(p, 0, (size_t)n * 2);
    for (g = 0; g < l->groups; g++)
        for (oy = 0; oy < l->out_height; oy++)
            for (ox = 0; ox < l->out_width; ox++) {
                int32_t at = (oy * l->out_width + ox) * l->out_channels;
                if (l->wide) gather_wide(l, g, (const int16_t *)x, oy, ox, p);
                else gather_widened(l, g, (const int8_t *)x, oy, ox, p);
                for (c = g * size; c < (g + 1) * size; c++) {
                    int64_t sum = l->bias[c];
                    int32_t v, j = o->each ? c : 0;
                    if (l->wide_weight)
                        for (k = 0; k < n; k++) sum += p[k] * l->wide_weight[c * n + k];
                    else
                        for (k = 0; k < n; k++) sum += p[k] * l->weight[c * n + k];
                    v = exact(sum, o->multiplier[j], o->shift[j] - o->left, o->rounding);
                    write_out(o, 1, &v, y, at + c);
                }
            }
}

/* Sums of `n` channels over the taps of a kernel, each channel with weights of its own. */
static void sum_taps(
    const int8_t *const *taps, int32_t count, const edgeailite_weight *w, int32_t channels,
    const int32_t *bias, int32_t n, int32_t *restrict a)
{
    int32_t c = 0, t, i;
#ifdef EDGEAILITE_VECTORS
    for (; c + 16 <= n; c += 16) {
        int32_t s[16];
        for (i = 0; i < 16; i++) s[i] = bias[c + i];
        for (t = 0; t < count; t++) {
            const int8_t *restrict x = taps[t] + c;
            const edgeailite_weight *restrict u = w + t * channels + c;
            for (i = 0; i < 16; i++) s[i] += x[i] * u[i];
        }
        for (i = 0; i < 16; i++) a[c + i] = s[i];
    }
#else
    for (; c + 4 <= n; c += 4) {
        const edgeailite_weight *u = w + c;
        int32_t s0 = bias[c], s1 = bias[c + 1], s2 = bias[c + 2], s3 = bias[c + 3];
        for (t = 0; t < count; t++, u += channels) {
            const int8_t *x = taps[t] + c;
#ifdef EDGEAILITE_DSP
            uint32_t xs = word(x), us = word(u);
            int32_t xe = even_bytes(xs), ue = even_bytes(us);
            int32_t xo = odd_bytes(xs), uo = odd_bytes(us);
            s0 = __smlabb(xe, ue, s0), s1 = __smlabb(xo, uo, s1);
            s2 = __smlatt(xe, ue, s2), s3 = __smlatt(xo, uo, s3);
#else
            s0 += x[0] * u[0], s1 += x[1] * u[1], s2 += x[2] * u[2], s3 += x[3] * u[3];
#endif
        }
        a[c] = s0, a[c + 1] = s1, a[c + 2] = s2, a[c + 3] = s3;
    }
#endif
    for (; c < n; c++) {
        int32_t s = bias[c];
        for (t = 0; t < count; t++) s += taps[t][c] * w[t * channels + c];
        a[c] = s;
    }
    (void)i;
}

/* Weights are [height][width][channels]; the scratch holds a row of zeros of the input. */
void edgeailite_convolve_depthwise(
    const edgeailite_layer *l, const int8_t *x, void *y, void *scratch)
{
    const int8_t *taps[EDGEAILITE_MAX_TAPS];
    int32_t channels = l->out_channels, oy, ox, ky, kx, c, t, count;
    int32_t a[BLOCK];
    int8_t *zeros = (int8_t *)scratch;
    const edgeailite_weight *w = l->weight;
    if (l->packed) {
        edgeailite_weight *unpacked = (edgeailite_weight *)scratch;
        count = l->kernel_height * l->kernel_width * channels;
        unpack(l, 0, count, unpacked);
        w = unpacked;
        zeros += count * (int32_t)sizeof(edgeailite_weight);
    }
    memset(zeros, l->fill, (size_t)channels);
    for (oy = 0; oy < l->out_height; oy++)
        for (ox = 0; ox < l->out_width; ox++) {
            count = 0;
            for (ky = 0; ky < l->kernel_height; ky++) {
                int32_t iy = place_of(0, oy, ky, l->stride_height, l->pad_top, l->dilation_height,
                                      l->in_height);
                for (kx = 0; kx < l->kernel_width; kx++) {
                    int32_t ix = place_of(0, ox, kx, l->stride_width, l->pad_left,
                                          l->dilation_width, l->in_width);
                    taps[count++] = iy < 0 || ix < 0 ? zeros
                                                     : x + (iy * l->in_width + ix) * channels;
                }
            }
            for (c = 0; c < channels; c += BLOCK) {
                int32_t n = channels - c < BLOCK ? channels - c : BLOCK;
                for (t = 0; c > 0 && t < count; t++) taps[t] += BLOCK;
                sum_taps(taps, count, w + c, channels, l->bias + c, n, a);
                requantize(&l->output, c, n, a, y, (oy * l->out_width + ox) * channels + c);
            }
        }
}

/* ---- windows ----------------------------------------------------------------------------- */

static inline int32_t value(const void *x, int32_t wide, int32_t at)
{
    return wide ? ((const int16_t *)x)[at] : ((const int8_t *)x)[at];
}

/* Place of a tap's pixel; -1: outside of the image. */
static int32_t pixel(const edgeailite_window *w, int32_t oy, int32_t ox, int32_t ky, int32_t kx)
{
    int32_t iy = oy * w->stride_height - w->pad_top + ky * w->dilation_height;
    int32_t ix = ox * w->stride_width - w->pad_left + kx * w->dilation_width;
    if (w->spans) {
        iy = w->spans[2 * oy] + ky;
        ix = w->spans[2 * (w->out_height + ox)] + kx;
        if (iy >= w->spans[2 * oy + 1] || ix >= w->spans[2 * (w->out_height + ox) + 1]) return -1;
    }
    if (iy < 0 || iy >= w->in_height || ix < 0 || ix >= w->in_width) return -1;
    return iy * w->in_width + ix;
}

#define DEFINE_MAX(NAME, VALUE)                                                                    \
    static void NAME(const edgeailite_window *w, const VALUE *restrict x, int32_t first,           \
                     VALUE *restrict y)                                                            \
    {                                                                                              \
        int32_t c, n = w->channels;                                                                \
        if (first) memcpy(y, x, (size_t)n * sizeof(VALUE));                                        \
        else if (w->smallest) for (c = 0; c < n; c++) y[c] = x[c] < y[c] ? x[c] : y[c];            \
        else for (c = 0; c < n; c++) y[c] = x[c] > y[c] ? x[c] : y[c];                             \
    }

DEFINE_MAX(larger, int8_t)
DEFINE_MAX(larger_wide, int16_t)

void edgeailite_max_pool(const edgeailite_window *w, const void *x, void *y)
{
    int32_t n = w->channels, oy, ox, ky, kx;
    for (oy = 0; oy < w->out_height; oy++)
        for (ox = 0; ox < w->out_width; ox++) {
            int32_t at = (oy * w->out_width + ox) * n, first = 1;
            for (ky = 0; ky < w->kernel_height; ky++)
                for (kx = 0; kx < w->kernel_width; kx++) {
                    int32_t from = pixel(w, oy, ox, ky, kx) * n;
                    if (from < 0) continue;
                    if (w->wide)
                        larger_wide(w, (const int16_t *)x + from, first, (int16_t *)y + at);
                    else larger(w, (const int8_t *)x + from, first, (int8_t *)y + at);
                    first = 0;
                }
        }
}

void edgeailite_average(const edgeailite_window *w, const void *x, void *y)
{
    int32_t oy, ox, ky, kx, c, i, a[BLOCK];
    for (oy = 0; oy < w->out_height; oy++)
        for (ox = 0; ox < w->out_width; ox++) {
            int32_t place = oy * w->out_width + ox;
            const edgeailite_output *o = w->outputs + (w->which ? w->which[place] : 0);
            for (c = 0; c < w->channels; c += BLOCK) {
                int32_t n = w->channels - c < BLOCK ? w->channels - c : BLOCK;
                for (i = 0; i < n; i++) a[i] = 0;
                for (ky = 0; ky < w->kernel_height; ky++)
                    for (kx = 0; kx < w->kernel_width; kx++) {
                        int32_t from = pixel(w, oy, ox, ky, kx) * w->channels;
                        if (from < 0) continue;
                        if (w->wide)
                            for (i = 0; i < n; i++)
                                a[i] += ((const int16_t *)x)[from + c + i] - w->zero;
                        else
                            for (i = 0; i < n; i++)
                                a[i] += ((const int8_t *)x)[from + c + i] - w->zero;
                    }
                requantize(o, 0, n, a, y, place * w->channels + c);
            }
        }
}

/* m / divisor with 24 significant bits; its exponent is added. */
static int64_t quotient24(int64_t m, int32_t divisor, int32_t *exponent)
{
    uint64_t over = (uint64_t)(m < 0 ? -m : m) << 32, q = over / (uint32_t)divisor * 2;
    int64_t v = round24((int64_t)(q + (over % (uint32_t)divisor != 0)));
    *exponent -= 33;
    while (v >= 1 << 24) v /= 2, ++*exponent; /* exact: the bits that go are 0 */
    return m < 0 ? -v : v;
}

static int32_t mean_of(const edgeailite_float_mean *f, int64_t sum, int32_t area)
{
    int32_t exponent = f->exponent, shift;
    int64_t v = sum;
    while (v >= 1 << 24 || v <= -(1 << 24)) v /= 2, exponent++;
    v = quotient24(quotient24(v, area, &exponent), f->divisor, &exponent);
    shift = -40 - exponent; /* to steps of 2^-40 */
    if (shift <= 0) v = shift < -30 ? (v < 0 ? -1 : v > 0) * ((int64_t)1 << 56)
                                    : v * ((int64_t)1 << -shift);
    else if (shift > 30) v = v < 0 ? -1 : v > 0;
    else v = v >> shift | ((v & (((int64_t)1 << shift) - 1)) != 0);
    v = rounded(round24(v + f->zero * ((int64_t)1 << 40)), 40, EDGEAILITE_HALF_EVEN);
    return clamp((int32_t)v - f->stored, f->low, f->high);
}

void edgeailite_average_float32(
    const edgeailite_window *w, const edgeailite_float_mean *f, const int8_t *x, int8_t *y)
{
    int32_t oy, ox, ky, kx, c;
    for (oy = 0; oy < w->out_height; oy++)
        for (ox = 0; ox < w->out_width; ox++)
            for (c = 0; c < w->channels; c++) {
                int32_t place = oy * w->out_width + ox;
                int64_t sum = 0;
                for (ky = 0; ky < w->kernel_height; ky++)
                    for (kx = 0; kx < w->kernel_width; kx++) {
                        int32_t from = pixel(w, oy, ox, ky, kx);
                        if (from < 0) continue;
                        sum = round24(sum + round24((int64_t)(x[from * w->channels + c] - w->zero) *
                                                    f->multiplier));
                    }
                y[place * w->channels + c] =
                    (int8_t)mean_of(f, sum, f->areas[w->which ? w->which[place] : 0]);
            }
}

/* ---- values one by one ------------------------------------------------------------------- */

void edgeailite_look_up(const int8_t *table, const int8_t *x, int32_t size, int8_t *y)
{
    int32_t i;
    for (i = 0; i < size; i++) y[i] = table[(uint8_t)x[i]];
}

void edgeailite_look_up_wide(const int16_t *table, const int8_t *x, int32_t size, int16_t *y)
{
    int32_t i;
    for (i = 0; i < size; i++) y[i] = table[(uint8_t)x[i]];
}

static int8_t listed(const edgeailite_list *l, int8_t a, int8_t b, int8_t otherwise)
{
    int32_t low = 0, high = l->count, pair = (uint8_t)a * 256 + (uint8_t)b;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (l->pairs[middle] < pair) low = middle + 1;
        else high = middle;
    }
    return low < l->count && l->pairs[low] == pair ? l->results[low] : otherwise;
}

void edgeailite_add(
    const edgeailite_sum *s, const int8_t *a, const int8_t *b, int32_t size, int8_t *y)
{
    int32_t i, left = s->left, right = s->right, offset = s->offset, shift = s->shift;
    int32_t zero = s->zero, low = s->low, high = s->high;
    int32_t mask = (1 << shift) - 1;
    for (i = 0; i < size; i++) {
        int32_t sum = a[i] * left + b[i] * right + offset, v = sum >> shift;
        v -= s->even && (sum & mask) == 0 ? v & 1 : 0;
        v = clamp(v + zero, low, high);
        y[i] = (int8_t)v;
    }
    if (s->listed.count)
        for (i = 0; i < size; i++) y[i] = listed(&s->listed, a[i], b[i], y[i]);
}

void edgeailite_choose(
    int32_t smallest, const int8_t *a, const int8_t *b, int32_t size, int8_t *y)
{
    int32_t i;
    if (smallest) for (i = 0; i < size; i++) y[i] = a[i] < b[i] ? a[i] : b[i];
    else for (i = 0; i < size; i++) y[i] = a[i] > b[i] ? a[i] : b[i];
}

void edgeailite_fill(int32_t v, int32_t size, int32_t bytes, void *y)
{
    int32_t i;
    if (bytes == 1) memset(y, v, (size_t)size);
    else for (i = 0; i < size; i++) ((int16_t *)y)[i] = (int16_t)v;
}

void edgeailite_pick(
    const int32_t *places, int32_t size, int32_t fill, int32_t bytes, const void *x, void *y)
{
    int32_t i;
    for (i = 0; i < size; i++) {
        int32_t v = places[i] < 0 ? fill : value(x, bytes == 2, places[i]);
        if (bytes == 2) ((int16_t *)y)[i] = (int16_t)v;
        else ((int8_t *)y)[i] = (int8_t)v;
    }
}

/* Loops from the outermost to the innermost. */
void edgeailite_move(
    const edgeailite_loop *loops, int32_t depth, int32_t bytes, const void *x, void *y)
{
    int32_t i;
    const int8_t *from = (const int8_t *)x;
    int8_t *to = (int8_t *)y;
    if (depth > 1) {
        for (i = 0; i < loops->count; i++)
            edgeailite_move(loops + 1, depth - 1, bytes, from + i * loops->from * bytes,
                            to + i * loops->to * bytes);
    } else if (loops->from == 1 && loops->to == 1) {
        memcpy(to, from, (size_t)(loops->count * bytes));
    } else if (bytes == 1) {
        for (i = 0; i < loops->count; i++) to[i * loops->to] = from[i * loops->from];
    } else {
        for (i = 0; i < loops->count; i++)
            ((int16_t *)y)[i * loops->to] = ((const int16_t *)x)[i * loops->from];
    }
}

/* Of each loop, `from` is the distance in `a` and `to` that in `b`; results lie side by side. */
void edgeailite_multiply(
    const edgeailite_output *output, const edgeailite_list *list, const edgeailite_loop *loops,
    int32_t depth, int32_t zero_a, int32_t zero_b, const int8_t *a, const int8_t *b, void *y)
{
    int32_t i, j, n, size = 1, v[BLOCK], step_a = loops->from, step_b = loops->to;
    for (i = 1; i < depth; i++) size *= loops[i].count;
    if (depth > 1) {
        size *= output->wide ? 2 : 1;
        for (i = 0; i < loops->count; i++)
            edgeailite_multiply(output, list, loops + 1, depth - 1, zero_a, zero_b, a + i * step_a,
                                b + i * step_b, (int8_t *)y + i * size);
        return;
    }
    for (i = 0; i < loops->count; i += BLOCK) {
        n = loops->count - i < BLOCK ? loops->count - i : BLOCK;
        for (j = 0; j < n; j++)
            v[j] = (a[(i + j) * step_a] - zero_a) * (b[(i + j) * step_b] - zero_b);
        requantize(output, 0, n, v, y, i);
        for (j = i; list->count && j < i + n; j++)
            ((int8_t *)y)[j] =
                listed(list, a[j * step_a], b[j * step_b], ((const int8_t *)y)[j]);
    }
}

void edgeailite_scale_channels(
    const edgeailite_gains *g, const int8_t *x, int32_t size, void *y)
{
    int32_t i, c, j, n, v[BLOCK];
    for (i = 0; i < size; i += g->channels)
        for (c = 0; c < g->channels; c += BLOCK) {
            n = g->channels - c < BLOCK ? g->channels - c : BLOCK;
            for (j = 0; j < n; j++) {
                int32_t u = x[i + c + j] - g->zero;
                v[j] = u * (u < 0 ? g->negative : g->gain)[c + j] + g->offset[c + j];
            }
            requantize(&g->output, c, n, v, y, i + c);
        }
}

static void put(void *y, int32_t wide, int32_t at, int32_t v)
{
    if (wide) ((int16_t *)y)[at] = (int16_t)v;
    else ((int8_t *)y)[at] = (int8_t)v;
}

void edgeailite_add_wide(
    const edgeailite_sum *s, const void *a, int32_t bytes_a, const void *b, int32_t bytes_b,
    int32_t size, void *y, int32_t bytes)
{
    int32_t i;
    int64_t mask = ((int64_t)1 << s->shift) - 1;
    for (i = 0; i < size; i++) {
        int64_t sum = (int64_t)value(a, bytes_a == 2, i) * s->left +
                      (int64_t)value(b, bytes_b == 2, i) * s->right + s->offset;
        int32_t v = (int32_t)(sum >> s->shift);
        v -= s->even && (sum & mask) == 0 ? v & 1 : 0;
        put(y, bytes == 2, i, clamp(v + s->zero, s->low, s->high));
    }
}

void edgeailite_softmax(const edgeailite_softmax_rows *r, const int8_t *x, void *y)
{
    int32_t o, i, j;
    for (o = 0; o < r->outer; o++)
        for (j = 0; j < r->inner; j++) {
            const int8_t *row = x + o * r->count * r->inner + j;
            int32_t largest = row[0], total = 0;
            for (i = 1; i < r->count; i++)
                if (row[i * r->inner] > largest) largest = row[i * r->inner];
            for (i = 0; i < r->count; i++)
                total += r->exponentials[largest - row[i * r->inner]];
            for (i = 0; i < r->count; i++) {
                int32_t at = largest - row[i * r->inner], shift = 33 - r->exponents[at], v = 0;
                uint64_t over = (uint64_t)r->numerators[at] << 32;
                uint64_t quotient = over / (uint32_t)total * 2 + (over % (uint32_t)total != 0);
                if (shift < 62) v = rounded(round24((int64_t)quotient), shift, r->rounding);
                put(y, r->wide, (o * r->count + i) * r->inner + j,
                    clamp(v + r->zero, r->low, r->high));
            }
        }
}

void edgeailite_interpolate(
    const edgeailite_lines *l, const int16_t *x, int32_t size, void *y)
{
    int32_t i;
    for (i = 0; i < size; i++) {
        int32_t place = x[i] - l->first, v = l->base[place >> l->width];
        if (l->slope) {
            int32_t rest = place & ((1 << l->width) - 1);
            int64_t sum = v + (int64_t)l->slope[place >> l->width] * rest, half = 1 << 13;
            if (l->rounding == EDGEAILITE_HALF_AWAY && sum < 0) half--;
            v = (int32_t)((sum + half) >> 14);
            if (l->rounding == EDGEAILITE_HALF_EVEN && ((sum + half) & 16383) == 0) v &= ~1;
        }
        put(y, l->wide, i, clamp(v + l->zero, l->low, l->high));
    }
}

void edgeailite_resize(
    const edgeailite_axis *a, const edgeailite_output *output, const void *x, void *y)
{
    int32_t o, i, j, k, n, t, v[BLOCK];
    for (o = 0; o < a->outer; o++)
        for (i = 0; i < a->out; i++)
            for (j = 0; j < a->inner; j += BLOCK) {
                const int32_t *w = a->weights + i * a->taps;
                int32_t at = (o * a->out + i) * a->inner + j;
                n = a->inner - j < BLOCK ? a->inner - j : BLOCK;
                for (k = 0; k < n; k++) v[k] = 0;
                for (t = 0; t < a->taps; t++) {
                    int32_t from = (o * a->in + a->starts[i] + t) * a->inner + j;
                    if (w[t] == 0) continue;
                    for (k = 0; k < n; k++)
                        v[k] += w[t] * (a->bytes == 4 ? ((const int32_t *)x)[from + k]
                                                      : value(x, a->bytes == 2, from + k) - a->zero);
                }
                if (output) requantize(output, 0, n, v, y, at);
                else
                    for (k = 0; k < n; k++)
                        ((int32_t *)y)[at + k] = a->shift ? shifted(v[k], a->shift) : v[k];
            }
}

void edgeailite_multiply_matrices(
    const edgeailite_matrices *m, const int8_t *a, const int8_t *b, void *y)
{
    int32_t i, j, k, c, n, v[BLOCK];
    for (i = 0; i < m->count * m->rows; i++)
        for (j = 0; j < m->columns; j += BLOCK) {
            const int8_t *row = a + i * m->depth;
            const int8_t *columns = b + i / m->rows * m->depth * m->columns + j;
            n = m->columns - j < BLOCK ? m->columns - j : BLOCK;
            for (c = 0; c < n; c++) v[c] = 0;
            for (k = 0; k < m->depth; k++, columns += m->columns) {
                int32_t u = row[k] - m->zero_a;
                for (c = 0; c < n; c++) v[c] += u * (columns[c] - m->zero_b);
            }
            requantize(&m->output, 0, n, v, y, i * m->columns + j);
        }
}
