/* Holds the vectors of one layer against plain loops: every pass, in the order of the register's definition (docs/studies.md).
 * Self-contained; put your own kernel's sums in place of the loops', or compare with the arrays directly. */

#include <stdint.h>
#include <stdio.h>

#include "@HEADER@"

/* The register of one output, and what has come in since the last step. */
typedef struct {
    int64_t sum, group, pair, others;
    long count;
} reg;

static int64_t narrow(int64_t value, int bits, int saturate)
{
    int64_t limit = (int64_t)1 << (bits - 1), low;
    if (saturate)
        return value < -limit ? -limit : value >= limit ? limit - 1 : value;
    low = (value + limit) % (2 * limit);
    return (low < 0 ? low + 2 * limit : low) - limit;
}

static void end_pair(reg *r)
{
    r->group += OCTO_PAIR_BITS ? narrow(r->pair, OCTO_PAIR_BITS ? OCTO_PAIR_BITS : 8, 1) : r->pair;
    r->pair = 0;
}

static void end_group(reg *r)
{
    end_pair(r);
    r->sum = narrow(r->sum + r->group, OCTO_BITS, OCTO_SATURATE);
    r->group = 0;
}

/* data: X in forward and dW, dY in dX; an unsigned register gets it as a uint8 code. */
static void take(reg *r, int data, int other)
{
    r->pair += (OCTO_UNSIGNED ? data + 128 : data) * other;
    r->others += other;
    r->count++;
    if (r->count % OCTO_GROUP == 0)
        end_group(r);
    else if (r->count % OCTO_GROUP % 2 == 0)
        end_pair(r);
}

/* floor(value / 2^shift) */
static int64_t shifted(int64_t value, int shift)
{
    return value >= 0 ? value >> shift : ~(~value >> shift);
}

/* value / 2^shift, rounded as OCTO_ROUNDING says. */
static int64_t rounded(int64_t value, int shift, int rounding)
{
    int64_t half = shift ? (int64_t)1 << (shift - 1) : 0, low = shifted(value, shift), rest = value - low * ((int64_t)1 << shift);
    switch (rounding) {
    case 1: /* half-even */
        return low + (shift && (rest > half || (rest == half && low % 2 != 0)));
    case 2: /* half-away */
        return low + (shift && (rest > half || (rest == half && value > 0)));
    case 3: /* floor */
        return low;
    case 4: /* toward-zero */
        return low + (value < 0 && rest != 0);
    default: /* half-up */
        return low + (shift && rest >= half);
    }
}

/* The sum times multiplier / 2^shift within +-127; gemmlowp rounds twice. */
static int code(int64_t sum, int64_t multiplier, int shift)
{
    int64_t value;
    if (OCTO_ROUNDING == 5) {
        int64_t product = sum * multiplier, nudge = product >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30);
        value = rounded((product + nudge) / ((int64_t)1 << 31), shift - 31, 2);
    } else {
        value = rounded(sum * multiplier, shift, OCTO_ROUNDING);
    }
    return value < -127 ? -127 : value > 127 ? 127 : (int)value;
}

typedef struct {
    const char *pass;
    const int32_t *sums;
    const int8_t *codes;
    const int32_t *multipliers, *shifts;
    long columns; /* of multipliers and shifts: 1, or those of the last axis */
} pass_vectors;

static int check(reg *r, const pass_vectors *v, long index)
{
    int64_t found;
    int expected;
    end_group(r);
    found = narrow(r->sum - (OCTO_UNSIGNED ? 128 * r->others : 0), 32, 0);
    if (found != v->sums[index]) {
        printf("%s %s: sum %ld is %ld, the vectors have %ld\n", OCTO_LAYER, v->pass, index, (long)found, (long)v->sums[index]);
        return 1;
    }
    expected = code(found, v->multipliers[index % v->columns], v->shifts[index % v->columns]);
    if (expected != v->codes[index]) {
        printf("%s %s: code %ld is %d, the vectors have %d\n", OCTO_LAYER, v->pass, index, expected, (int)v->codes[index]);
        return 1;
    }
    return 0;
}

/* A pixel's code; the zero point's outside the image. */
static int x_at(const int8_t *x, int b, int h, int w, int c)
{
    if (h < 0 || h >= OCTO_HEIGHT || w < 0 || w >= OCTO_WIDTH)
        return OCTO_X_ZERO;
    return x[(((long)b * OCTO_HEIGHT + h) * OCTO_WIDTH + w) * OCTO_CHANNELS + c];
}

#if OCTO_HAS_DW || OCTO_HAS_DX
/* h, w: in pixels of X, before the stride; 0 where there is no output. */
static int dy_at(const int8_t *dy, int b, int h, int w, int f)
{
    if (h < 0 || w < 0 || h % OCTO_STRIDE_H || w % OCTO_STRIDE_W)
        return 0;
    h /= OCTO_STRIDE_H;
    w /= OCTO_STRIDE_W;
    return h < OCTO_OUT_H && w < OCTO_OUT_W ? dy[(((long)b * OCTO_OUT_H + h) * OCTO_OUT_W + w) * OCTO_FILTERS + f] : 0;
}
#endif

/* c: the channel within the filter's group, whose channels alone it sees; a depthwise convolution has a group a channel. */
static int w_at(const int8_t *w, int f, int i, int j, int c)
{
    return w[(((long)f * OCTO_KERNEL_H + i) * OCTO_KERNEL_W + j) * OCTO_DEPTH + c];
}

/* The row of X that tap i of output row h lies on; tap j of a column. */
static int row_of(int h, int i)
{
    return h * OCTO_STRIDE_H + i * OCTO_DILATION_H - OCTO_PAD_TOP;
}

static int column_of(int w, int j)
{
    return w * OCTO_STRIDE_W + j * OCTO_DILATION_W - OCTO_PAD_LEFT;
}

/* The first channel that filter f sees. */
static int first_channel(int f)
{
    return f / (OCTO_FILTERS / OCTO_GROUPS) * OCTO_DEPTH;
}

static int forward(void)
{
    const pass_vectors vectors = {"forward", octo_forward, octo_forward_codes, octo_forward_multipliers, octo_forward_shifts,
                                  (long)(sizeof octo_forward_shifts / sizeof *octo_forward_shifts)};
    long index = 0;
    int b, h, w, f, i, j, c;
    for (b = 0; b < OCTO_BATCH; b++)
        for (h = 0; h < OCTO_OUT_H; h++)
            for (w = 0; w < OCTO_OUT_W; w++)
                for (f = 0; f < OCTO_FILTERS; f++, index++) {
                    reg r = {0, 0, 0, 0, 0};
                    for (i = 0; i < OCTO_KERNEL_H; i++)
                        for (j = 0; j < OCTO_KERNEL_W; j++)
                            for (c = 0; c < OCTO_DEPTH; c++)
                                take(&r, x_at(OCTO_FORWARD_X, b, row_of(h, i), column_of(w, j), first_channel(f) + c),
                                     w_at(OCTO_FORWARD_W, f, i, j, c));
                    if (check(&r, &vectors, index))
                        return 1;
                }
    printf("%s forward: %ld sums and codes are equal\n", OCTO_LAYER, index);
    return 0;
}

#if OCTO_HAS_DW
static int weight_grad(void)
{
    const pass_vectors vectors = {"dW", octo_dw, octo_dw_codes, octo_dw_multipliers, octo_dw_shifts,
                                  (long)(sizeof octo_dw_shifts / sizeof *octo_dw_shifts)};
    long index = 0;
    int b, h, w, f, i, j, c;
    for (f = 0; f < OCTO_FILTERS; f++)
        for (i = 0; i < OCTO_KERNEL_H; i++)
            for (j = 0; j < OCTO_KERNEL_W; j++)
                for (c = 0; c < OCTO_DEPTH; c++, index++) {
                    reg r = {0, 0, 0, 0, 0};
                    for (b = 0; b < OCTO_BATCH; b++)
                        for (h = 0; h < OCTO_OUT_H; h++)
                            for (w = 0; w < OCTO_OUT_W; w++)
                                take(&r, x_at(OCTO_DW_X, b, row_of(h, i), column_of(w, j), first_channel(f) + c),
                                     dy_at(OCTO_DW_DY, b, h * OCTO_STRIDE_H, w * OCTO_STRIDE_W, f));
                    if (check(&r, &vectors, index))
                        return 1;
                }
    printf("%s dW: %ld sums and codes are equal\n", OCTO_LAYER, index);
    return 0;
}
#endif

#if OCTO_HAS_DX
static int input_grad(void)
{
    const pass_vectors vectors = {"dX", octo_dx, octo_dx_codes, octo_dx_multipliers, octo_dx_shifts,
                                  (long)(sizeof octo_dx_shifts / sizeof *octo_dx_shifts)};
    const int filters = OCTO_FILTERS / OCTO_GROUPS; /* of a group */
    long index = 0;
    int b, h, w, f, i, j, c;
    for (b = 0; b < OCTO_BATCH; b++)
        for (h = 0; h < OCTO_HEIGHT; h++)
            for (w = 0; w < OCTO_WIDTH; w++)
                for (c = 0; c < OCTO_CHANNELS; c++, index++) {
                    reg r = {0, 0, 0, 0, 0};
                    for (i = 0; i < OCTO_KERNEL_H; i++)
                        for (j = 0; j < OCTO_KERNEL_W; j++)
                            for (f = c / OCTO_DEPTH * filters; f < (c / OCTO_DEPTH + 1) * filters; f++)
                                take(&r, dy_at(OCTO_DX_DY, b, h + OCTO_PAD_TOP - i * OCTO_DILATION_H,
                                               w + OCTO_PAD_LEFT - j * OCTO_DILATION_W, f),
                                     w_at(OCTO_DX_W, f, i, j, c % OCTO_DEPTH));
                    if (check(&r, &vectors, index))
                        return 1;
                }
    printf("%s dX: %ld sums and codes are equal\n", OCTO_LAYER, index);
    return 0;
}
#endif

int main(void)
{
    int failed = forward();
#if OCTO_HAS_DW
    failed += weight_grad();
#endif
#if OCTO_HAS_DX
    failed += input_grad();
#endif
    return failed != 0;
}
