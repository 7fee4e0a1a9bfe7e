/* Reference runner: plain and exact, not fast. See edgeailite_runner.h. */
#include "edgeailite_runner.h"

static int32_t load(const uint8_t *values, uint32_t i, uint8_t is_signed)
{
    return is_signed ? (int32_t)(int8_t)values[i] : (int32_t)values[i];
}

static int32_t load_weight(const uint8_t *weights, uint32_t i, uint8_t bits)
{
    uint32_t per_byte = 8u / bits;
    uint32_t field = (uint32_t)weights[i / per_byte] >> (i % per_byte * bits);
    int32_t value = (int32_t)(field & ((1u << bits) - 1u));
    return value >= (1 << (bits - 1)) ? value - (1 << bits) : value;
}

static uint8_t clip(int64_t value, const edgeailite_operation *op)
{
    if (value < op->low) value = op->low;
    if (value > op->high) value = op->high;
    return (uint8_t)(value & 0xFF);
}

static int64_t shift_down(int64_t value, uint8_t shift)
{
    int64_t unit = (int64_t)1 << shift;
    return value >= 0 ? value / unit : -((-value + unit - 1) / unit);
}

static uint8_t rescale(int64_t sum, const edgeailite_operation *op, uint32_t entry)
{
    uint32_t i = op->num_steps == 1 ? 0 : entry;
    int64_t scaled = (sum + op->offsets[i]) * op->multipliers[i];
    return clip(shift_down(scaled, op->shifts[i]), op);
}

static void run_input(const edgeailite_operation *op, const float *input, uint8_t *out)
{
    uint32_t area = op->in[1] * op->in[2];
    for (uint32_t i = 0; i < op->in[0] * area; i++) {
        uint32_t entry = op->num_steps == 1 ? 0 : i / area;
        float sum = input[i] + op->float_offsets[entry];
        float value = sum * op->factors[entry];
        int32_t whole;
        if (value < (float)op->low) whole = op->low;
        else if (value >= (float)op->high) whole = op->high;
        else {
            whole = (int32_t)value;
            if ((float)whole > value) whole--;
        }
        out[i] = clip(whole, op);
    }
}

static void run_convolution(const edgeailite_operation *op, const uint8_t *in, uint8_t *out)
{
    uint32_t in_per_group = op->in[0] / op->groups, out_per_group = op->out[0] / op->groups;
    int transposed = op->kind == EDGEAILITE_TRANSPOSED_CONVOLUTION;
    for (uint32_t c = 0; c < op->out[0]; c++)
    for (uint32_t y = 0; y < op->out[1]; y++)
    for (uint32_t x = 0; x < op->out[2]; x++) {
        int64_t sum = 0;
        uint32_t group = c / out_per_group;
        for (uint32_t d = 0; d < in_per_group; d++)
        for (uint32_t ky = 0; ky < op->kernel[0]; ky++)
        for (uint32_t kx = 0; kx < op->kernel[1]; kx++) {
            int32_t iy, ix;
            uint32_t channel = group * in_per_group + d, weight;
            if (transposed) {
                iy = (int32_t)(y + op->padding[0]) - (int32_t)(ky * op->dilation[0]);
                ix = (int32_t)(x + op->padding[1]) - (int32_t)(kx * op->dilation[1]);
                if (iy < 0 || ix < 0 || iy % op->stride[0] || ix % op->stride[1]) continue;
                iy /= op->stride[0];
                ix /= op->stride[1];
                weight = channel * out_per_group + c % out_per_group;
            } else {
                iy = (int32_t)(y * op->stride[0] + ky * op->dilation[0]) - op->padding[0];
                ix = (int32_t)(x * op->stride[1] + kx * op->dilation[1]) - op->padding[1];
                weight = c * in_per_group + d;
            }
            if (iy < 0 || ix < 0 || iy >= (int32_t)op->in[1] || ix >= (int32_t)op->in[2]) continue;
            weight = (weight * op->kernel[0] + ky) * op->kernel[1] + kx;
            channel = (channel * op->in[1] + (uint32_t)iy) * op->in[2] + (uint32_t)ix;
            sum += load(in, channel, op->is_signed)
                 * load_weight(op->weights, weight, op->weight_bits);
        }
        out[(c * op->out[1] + y) * op->out[2] + x] = rescale(sum, op, c);
    }
}

/* `in` and `out` are rows and features: every row is multiplied with the same weights. */
static void run_linear(const edgeailite_operation *op, const uint8_t *in, uint8_t *out)
{
    for (uint32_t row = 0; row < op->in[0]; row++)
    for (uint32_t c = 0; c < op->out[1]; c++) {
        int64_t sum = 0;
        for (uint32_t d = 0; d < op->in[1]; d++)
            sum += load(in, row * op->in[1] + d, op->is_signed)
                 * load_weight(op->weights, c * op->in[1] + d, op->weight_bits);
        out[row * op->out[1] + c] = rescale(sum, op, c);
    }
}

static void run_window(const edgeailite_operation *op, const uint8_t *in, uint8_t *out)
{
    int is_max = op->kind == EDGEAILITE_MAX_POOL;
    for (uint32_t c = 0; c < op->out[0]; c++)
    for (uint32_t y = 0; y < op->out[1]; y++)
    for (uint32_t x = 0; x < op->out[2]; x++) {
        int64_t result = is_max ? INT32_MIN : 0;
        for (uint32_t ky = 0; ky < op->kernel[0]; ky++)
        for (uint32_t kx = 0; kx < op->kernel[1]; kx++) {
            int32_t iy = (int32_t)(y * op->stride[0] + ky * op->dilation[0]) - op->padding[0];
            int32_t ix = (int32_t)(x * op->stride[1] + kx * op->dilation[1]) - op->padding[1];
            int32_t value;
            if (iy < 0 || ix < 0 || iy >= (int32_t)op->in[1] || ix >= (int32_t)op->in[2]) continue;
            value = load(in, (c * op->in[1] + (uint32_t)iy) * op->in[2] + (uint32_t)ix,
                         op->is_signed);
            result = is_max ? (value > result ? value : result) : result + value;
        }
        uint32_t place = y * op->out[2] + x;
        uint8_t *target = out + c * op->out[1] * op->out[2] + place;
        *target = is_max ? clip(result, op) : rescale(result, op, place);
    }
}

static void run_elements(const edgeailite_operation *op, uint8_t *arena)
{
    const uint8_t *in = arena + op->input, *other = arena + op->other;
    uint8_t *out = arena + op->output;
    uint32_t area = op->in[1] * op->in[2];
    for (uint32_t i = 0; i < op->in[0] * area; i++) {
        int32_t value = load(in, i, op->is_signed);
        if (op->kind == EDGEAILITE_ADD) value += load(other, i, op->other_is_signed);
        out[i] = op->kind == EDGEAILITE_RESCALE ? rescale(value, op, i / area) : clip(value, op);
    }
}

static void run_table(const edgeailite_operation *op, const uint8_t *in, uint8_t *out)
{
    for (uint32_t i = 0; i < op->in[0] * op->in[1] * op->in[2]; i++)
        out[i] = op->weights[load(in, i, op->is_signed) + (int32_t)op->steps[0]];
}

static void run_product(const edgeailite_operation *op, uint8_t *arena)
{
    const uint8_t *in = arena + op->input, *other = arena + op->other;
    uint8_t *out = arena + op->output;
    uint32_t i = 0;
    for (uint32_t c = 0; c < op->out[0]; c++)
    for (uint32_t y = 0; y < op->out[1]; y++)
    for (uint32_t x = 0; x < op->out[2]; x++, i++) {
        uint32_t j = c * op->steps[0] + y * op->steps[1] + x * op->steps[2];
        int32_t product = load(in, i, op->is_signed) * load(other, j, op->other_is_signed);
        out[i] = rescale(product, op, 0);
    }
}

static void run_softmax(const edgeailite_operation *op, const uint8_t *in, uint8_t *out)
{
    uint32_t count = op->in[1], inner = op->in[2];
    for (uint32_t a = 0; a < op->in[0]; a++)
    for (uint32_t c = 0; c < inner; c++) {
        uint32_t first = a * count * inner + c;
        int32_t largest = INT32_MIN;
        int64_t sum = 0; /* times steps[1]: one over the scale is steps[0] / steps[1] */
        for (uint32_t b = 0; b < count; b++) {
            int32_t value = load(in, first + b * inner, op->is_signed);
            if (value > largest) largest = value;
        }
        for (uint32_t b = 0; b < count; b++)
            sum += (int64_t)op->steps[1]
                 * op->offsets[largest - load(in, first + b * inner, op->is_signed)];
        for (uint32_t b = 0; b < count; b++) {
            uint32_t i = first + b * inner;
            int64_t e = op->offsets[largest - load(in, i, op->is_signed)];
            out[i] = clip((2 * e * op->steps[0] + sum) / (2 * sum), op);
        }
    }
}

static void run_permute(const edgeailite_operation *op, const uint8_t *in, uint8_t *out)
{
    uint32_t i = 0;
    for (uint32_t a = 0; a < op->out[0]; a++)
    for (uint32_t b = 0; b < op->out[1]; b++)
    for (uint32_t c = 0; c < op->out[2]; c++)
        out[i++] = in[a * op->steps[0] + b * op->steps[1] + c * op->steps[2]];
}

void edgeailite_step(const edgeailite_operation *op, const float *input, uint8_t *arena)
{
    const uint8_t *in = arena + op->input;
    uint8_t *out = arena + op->output;
    switch (op->kind) {
    case EDGEAILITE_INPUT: run_input(op, input, out); break;
    case EDGEAILITE_CONVOLUTION:
    case EDGEAILITE_TRANSPOSED_CONVOLUTION: run_convolution(op, in, out); break;
    case EDGEAILITE_LINEAR: run_linear(op, in, out); break;
    case EDGEAILITE_WINDOW_SUM:
    case EDGEAILITE_MAX_POOL: run_window(op, in, out); break;
    case EDGEAILITE_PERMUTE: run_permute(op, in, out); break;
    case EDGEAILITE_TABLE: run_table(op, in, out); break;
    case EDGEAILITE_MULTIPLY: run_product(op, arena); break;
    case EDGEAILITE_SOFTMAX: run_softmax(op, in, out); break;
    default: run_elements(op, arena); break;
    }
}

void edgeailite_run(
    const edgeailite_operation *ops, uint32_t count, const float *input, uint8_t *arena)
{
    for (uint32_t i = 0; i < count; i++) edgeailite_step(&ops[i], input, arena);
}
