/* The scalar definition of every kernel; always compiled.  Loops without a better form are in loops.inc. */
#include "kernels.h"

#define FN(name) name##_ref
#define TARGET
#define VECTOR_BYTES 16
#include "loops.inc"

#define OPERAND int8_t
#define PRODUCT int16_t
#define RESULT int32_t
#define SUM uint32_t
#define KIND(name) FN(plain_##name##_s8)
#include "depthwise.inc"

static void depthwise_s8_ref(const octo_conv *g, int64_t first, int64_t count, const int8_t *x, const int8_t *outside, const int8_t *w,
                             void *scratch, int32_t *y) {
    (void)scratch;
    plain_depthwise_s8_ref(g, first, count, x, outside, w, y);
}

static void depthwise_input_grad_s8_ref(const octo_conv *g, int64_t first, int64_t count, const int8_t *dy, const int8_t *zeros, const int8_t *w,
                                        void *scratch, int32_t *dx) {
    (void)zeros, (void)scratch;
    plain_depthwise_input_grad_s8_ref(g, first, count, dy, w, dx);
}

static void depthwise_weight_grad_s8_ref(const octo_conv *g, int64_t first, int64_t count, const int8_t *x, const int8_t *outside,
                                         const int8_t *dy, void *scratch, int32_t *sums) {
    (void)scratch;
    plain_depthwise_weight_grad_s8_ref(g, first, count, x, outside, dy, sums);
}

/* Products of two int8 codes are at most 2^14 in magnitude.  The sum is taken modulo 2^32 (unsigned, so defined), hence exact
 * for k <= 131,071 with codes down to -128 and for k <= 133,144 with codes in +-127: 133,144 * 127^2 = 2,147,479,576 < 2^31. */
static void gemm_s8_ref(const struct octo_job *job) {
    for (int64_t i = 0; i < job->m; i++) {
        const int8_t *row = (const int8_t *)job->a.base + octo_row_offset(&job->a, job->first + i);
        int32_t *c = (int32_t *)job->c + i * job->ldc;
        for (int64_t j = 0; j < job->n; j++) {
            const int8_t *b = (const int8_t *)job->b + j * job->b_n;
            uint32_t sum = job->accumulate ? (uint32_t)c[j] : 0;
            for (int64_t s = 0; s < job->a.segments; s++)
                for (int64_t p = 0; p < job->a.length; p++, b += job->b_k)
                    sum += (uint32_t)(row[s * job->a.segment_stride + p] * *b);
            c[j] = (int32_t)sum;
        }
    }
}

static void weight_grad_s8_ref(const struct octo_rows *x, int64_t channels, int64_t c0, int64_t c1, int64_t line, int64_t lines, int64_t filters,
                               const int8_t *dy, void *scratch, int accumulate, int32_t *dw) {
    int64_t k = x->segments * x->length, rows = lines * x->width;
    (void)scratch;
    for (int64_t f = 0; f < filters; f++)
        for (int64_t p = 0; p < k; p++) {
            if (p % channels < c0 || p % channels >= c1) continue;
            uint32_t sum = accumulate ? (uint32_t)dw[f * k + p] : 0;
            for (int64_t r = 0; r < rows; r++) {
                int64_t at = octo_row_offset(x, line * x->width + r) + p / x->length * x->segment_stride + p % x->length;
                sum += (uint32_t)(dy[r * filters + f] * ((const int8_t *)x->base)[at]);
            }
            dw[f * k + p] = (int32_t)sum;
        }
}

static int64_t narrow(int64_t value, int bits, int saturate) {
    int64_t limit = (int64_t)1 << (bits - 1);
    if (saturate) return value < -limit ? -limit : value >= limit ? limit - 1 : value;
    return (int64_t)(((uint64_t)value + (uint64_t)limit) & (2 * (uint64_t)limit - 1)) - limit;
}

/* The smallest w with -2^(w-1) <= low and high < 2^(w-1). */
static int bits_needed(int64_t low, int64_t high) {
    int w = 1;
    while (low < -((int64_t)1 << (w - 1)) || high >= (int64_t)1 << (w - 1)) w++;
    return w < 33 ? w : 33;
}

static void gemm_s8_accumulate_ref(const struct octo_job *job, const octo_accumulator *how, int a_unsigned, octo_overflow *counts) {
    int64_t k = job->a.length;
    for (int64_t i = 0; i < job->m; i++) {
        const int8_t *row = (const int8_t *)job->a.base + octo_row_offset(&job->a, job->first + i);
        for (int64_t j = 0; j < job->n; j++) {
            const int8_t *b = (const int8_t *)job->b + j * job->b_n;
            int64_t acc = 0, low = 0, high = 0;
            for (int64_t p = 0; p < k; p += how->group) {
                int64_t end = p + how->group < k ? p + how->group : k, sum = 0;
                for (int64_t q = p; q < end; q += 2) {
                    int64_t pair = 0;
                    for (int64_t r = q; r < q + 2 && r < end; r++)
                        pair += (int64_t)(a_unsigned ? (uint8_t)row[r] : row[r]) * b[r * job->b_k];
                    sum += how->pair_bits ? narrow(pair, how->pair_bits, 1) : pair;
                }
                int64_t wanted = acc + sum;
                acc = narrow(wanted, how->bits, how->saturate);
                if (!counts) continue;
                counts->steps++;
                counts->narrowed += acc != wanted;
                low = wanted < low ? wanted : low;
                high = wanted > high ? wanted : high;
            }
            ((int32_t *)job->c)[i * job->ldc + j] = (int32_t)acc;
            if (counts) counts->needed[bits_needed(low, high)]++;
        }
    }
}

enum { columns_ref = 1, depth_ref = 0 }; /* its loops are vectors of any width; no tiles */

static int64_t peak_s8_ref(int64_t rounds) {
    int32_t acc[8] = {0}, x = 3, y = 5;
    for (int i = 0; i < 8; i++) OCTO_OPAQUE("+r"(acc[i]));
    for (int64_t r = 0; r < rounds; r++)
        OCTO_UNROLL
        for (int i = 0; i < 8; i++) {
            OCTO_OPAQUE("+r"(x));
            acc[i] += x * y;
        }
    for (int i = 0; i < 8; i++) OCTO_OPAQUE("+r"(acc[i]));
    return rounds * 8;
}

void octo_init_ref(struct octo_kernels *table) {
    init_loops_ref(table);
    table->gemm_s8 = gemm_s8_ref;
    table->weight_grad_s8 = weight_grad_s8_ref;
    table->gemm_s8_accumulate = gemm_s8_accumulate_ref;
    table->depthwise_s8 = depthwise_s8_ref;
    table->depthwise_input_grad_s8 = depthwise_input_grad_s8_ref;
    table->depthwise_weight_grad_s8 = depthwise_weight_grad_s8_ref;
    table->peak_s8 = peak_s8_ref;
    table->columns = columns_ref;
    table->depth = depth_ref;
}
