/* Ranges, moments, codes: argument checks, the cut into slices, threads.  The arithmetic is in quantize.inc. */
#include "dispatch.h"
#include <math.h>

/* ---- ranges and moments ------------------------------------------------------------------------------------------------------ */

/* Back from the ordered int32 of range_f32. */
static float from_key(int32_t key) {
    int32_t bits = key ^ (int32_t)((uint32_t)(key >> 31) >> 1);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

int octo_fold_range(int64_t slices, const int32_t *keys, float *min, float *max) {
    int32_t low = keys[0], high = keys[1];
    for (int64_t i = 1; i < slices; i++) {
        if (keys[2 * i] < low) low = keys[2 * i];
        if (keys[2 * i + 1] > high) high = keys[2 * i + 1];
    }
    /* +infinity is 0x7f800000, -infinity the key 0x807fffff: outside lie they and the NaNs */
    if (high >= 0x7f800000 || low <= (int32_t)0x807fffffu) return octo_fail(OCTO_EFINITE, "a value is NaN or infinite");
    *min = from_key(low), *max = from_key(high);
    return OCTO_OK;
}

int octo_range_f32(int64_t n, const float *x, float *min, float *max) {
    CHECK_COUNT("range", n);
    OCTO_CHECK(n > 0, "range: no elements");
    int64_t slices = (n + CHUNK - 1) / CHUNK;
    int32_t *keys = octo_scratch(OCTO_SLOT_SUMS, slices * 2 * 4);
    if (!keys) return octo_fail(OCTO_ENOMEM, "out of memory in range");
    FOR_EACH_CHUNK(n, octo_table.range_f32(count, x + first, keys + first / CHUNK * 2, keys + first / CHUNK * 2 + 1));
    return octo_fold_range(slices, keys, min, max);
}

int octo_range_s32(int64_t n, const int32_t *x, int32_t *min, int32_t *max) {
    CHECK_COUNT("range", n);
    OCTO_CHECK(n > 0, "range: no elements");
    int64_t slices = (n + CHUNK - 1) / CHUNK;
    int32_t *ends = octo_scratch(OCTO_SLOT_SUMS, slices * 2 * 4);
    if (!ends) return octo_fail(OCTO_ENOMEM, "out of memory in range");
    FOR_EACH_CHUNK(n, octo_table.range_s32(count, x + first, ends + first / CHUNK * 2, ends + first / CHUNK * 2 + 1));
    *min = ends[0], *max = ends[1];
    for (int64_t i = 1; i < slices; i++) {
        if (ends[2 * i] < *min) *min = ends[2 * i];
        if (ends[2 * i + 1] > *max) *max = ends[2 * i + 1];
    }
    return OCTO_OK;
}

/* The pivot is the first element; slices are added in double, in ascending order. */
int octo_moments_f32(int64_t n, const float *x, float *mean, float *deviation) {
    CHECK_COUNT("moments", n);
    OCTO_CHECK(n > 0, "moments: no elements");
    int64_t slices = (n + CHUNK - 1) / CHUNK;
    float *sums = octo_scratch(OCTO_SLOT_SUMS, slices * 2 * 4), pivot = x[0];
    if (!sums) return octo_fail(OCTO_ENOMEM, "out of memory in moments");
    FOR_EACH_CHUNK(n, octo_table.moments_f32(count, x + first, pivot, sums + first / CHUNK * 2, sums + first / CHUNK * 2 + 1));
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < slices; i++) sum += (double)sums[2 * i], squares += (double)sums[2 * i + 1];
    sum /= (double)n, squares /= (double)n;
    double variance = squares - sum * sum;
    *mean = (float)((double)pivot + sum);
    *deviation = octo_sqrt(variance > 0 ? (float)variance : 0);
    return OCTO_OK;
}

/* ---- float32 and int8 ---------------------------------------------------------------------------------------------------- */

#define CHECK_CODES(zero, lo, hi)                                                                             \
    OCTO_CHECK(-128 <= (lo) && (lo) <= (hi) && (hi) <= 127 && -128 <= (zero) && (zero) <= 127,                \
               "quantize: codes %d .. %d with zero point %d do not fit in int8", lo, hi, zero)

#define CHECK_NUMBER(value, name) \
    if (isnan((double)(value))) return octo_fail(OCTO_EFINITE, name " is NaN")

int octo_quantize_s8(int64_t n, const float *x, float inv_scale, int rounding, int zero, int lo, int hi, uint64_t seed,
                     uint32_t step, uint32_t tensor, int8_t *q) {
    CHECK_COUNT("quantize", n);
    CHECK_CODES(zero, lo, hi);
    OCTO_CHECK(rounding >= OCTO_HALF_EVEN && rounding <= OCTO_STOCHASTIC, "quantize: rounding %d is not for float32 values", rounding);
    CHECK_NUMBER(inv_scale, "quantize: the scale");
    if (rounding == OCTO_STOCHASTIC)
        FOR_EACH_CHUNK(n, WITH_WORDS(octo_table.quantize_s8(some, x + at, words, inv_scale, rounding, zero, lo, hi, q + at)));
    else
        FOR_EACH_CHUNK(n, octo_table.quantize_s8(count, x + first, NULL, inv_scale, rounding, zero, lo, hi, q + first));
    return OCTO_OK;
}

/* ---- scales and zero points ---------------------------------------------------------------------------------------------- */

static const double LARGEST_CODE = 127; /* -128 stays unused: |q| <= 127 bounds every sum of products */

/* Half to even, for |x| < 2^51. */
static double nearest(double x) {
    const double shift = 6755399441055744.0; /* 1.5 2^52: a sum beside it has no fraction */
    return (x + shift) - shift;
}

/* inverse of a scale, where that is finite: a tensor below about 1e-36 becomes all zero codes. */
static int set_scale(octo_codes *codes, double scale) {
    if (scale > 3.4028234e38) return octo_fail(OCTO_EFINITE, "a range is infinite");
    codes->scale = (float)scale;
    codes->inverse = (double)codes->scale > 1e-38 ? (float)(1.0 / (double)codes->scale) : 0;
    return OCTO_OK;
}

/* A clip's end, rounded to the nearest code: clip, then round, is round, then clip to the rounded end. */
static int32_t end_code(double end, float inverse) {
    return (int32_t)octo_least(LARGEST_CODE, octo_most(-LARGEST_CODE, nearest((double)((float)end * inverse))));
}

int octo_symmetric_codes(double low, double high, double share, octo_codes *codes) {
    CHECK_NUMBER(low, "an end of a range");
    CHECK_NUMBER(high, "an end of a range");
    CHECK_NUMBER(share, "a share of a range");
    low *= share, high *= share;
    int status = set_scale(codes, octo_most(low < 0 ? -low : low, high < 0 ? -high : high) / LARGEST_CODE);
    if (status) return status;
    codes->zero = 0;
    codes->lo = end_code(low, codes->inverse), codes->hi = end_code(high, codes->inverse);
    return OCTO_OK;
}

int octo_asymmetric_codes(double low, double high, octo_codes *codes) {
    CHECK_NUMBER(low, "an end of a range");
    CHECK_NUMBER(high, "an end of a range");
    OCTO_CHECK(low <= high, "the low end of a range, %g, is above its high end, %g", low, high);
    low = octo_least(low, 0), high = octo_most(high, 0);
    int status = set_scale(codes, (high - low) / (2 * LARGEST_CODE));
    if (status) return status;
    double zero = codes->inverse > 0 ? nearest(-LARGEST_CODE - low * (double)codes->inverse) : 0;
    codes->zero = (int32_t)octo_least(LARGEST_CODE, octo_most(-LARGEST_CODE, zero));
    codes->lo = -(int32_t)LARGEST_CODE, codes->hi = (int32_t)LARGEST_CODE;
    return OCTO_OK;
}

int octo_product_scale(double a, double b, float *scale) {
    *scale = (float)(a * b);
    return OCTO_OK;
}

int octo_follow_range(float low, float high, float weight, float *running) {
    const float range[2] = {low, high};
    int first = running[0] == 0 && running[1] == 0;
    for (int i = 0; i < 2; i++) running[i] = first ? range[i] : running[i] + weight * (range[i] - running[i]);
    return OCTO_OK;
}

int octo_join_ranges(int64_t count, const float *const *ranges, float *range) {
    OCTO_CHECK(count >= 1, "range: no ranges");
    float low = ranges[0][0], high = ranges[0][1];
    for (int64_t i = 1; i < count; i++) {
        if (ranges[i][0] < low) low = ranges[i][0];
        if (ranges[i][1] > high) high = ranges[i][1];
    }
    range[0] = low, range[1] = high;
    return OCTO_OK;
}

int octo_zero_term(int64_t n, const int32_t *sums, int zero, int32_t *out) {
    CHECK_COUNT("zero point", n);
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)((uint32_t)sums[i] * (uint32_t)-zero);
    return OCTO_OK;
}

/* ---- codes to float32 ------------------------------------------------------------------------------------------------------ */

int octo_dequantize_s8(int64_t n, const int8_t *q, float scale, int zero, float *x) {
    CHECK_COUNT("dequantize", n);
    FOR_EACH_CHUNK(n, octo_table.dequantize_s8(count, q + first, scale, zero, x + first));
    return OCTO_OK;
}

int octo_dequantize_s32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, float scale, const float *rest, float *y) {
    CHECK_MATRIX("dequantize", rows, cols);
    EACH_ROWS(rows, cols, {
        octo_table.dequantize_s32(count, cols, acc + first * cols, add, scale, y + first * cols);
        octo_add_rest(count, cols, rest, y + first * cols);
    });
    return OCTO_OK;
}

int octo_dequantize_rows_s32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, float scale, float *y) {
    CHECK_MATRIX("dequantize", rows, cols);
    EACH_ROWS(rows, cols, for (int64_t r = first; r < first + count; r++)
        octo_table.dequantize_row_s32(cols, acc + r * cols, add[r], scale, y + r * cols));
    return OCTO_OK;
}

int octo_images_f32(int64_t n, const uint8_t *x, float scale, float shift, float *y) {
    CHECK_COUNT("images", n);
    FOR_EACH_CHUNK(n, octo_table.images_f32(count, x + first, scale, shift, y + first));
    return OCTO_OK;
}

int octo_copy_f32(int64_t n, const float *x, float *y) {
    CHECK_COUNT("copy", n);
    FOR_EACH_CHUNK(n, memmove(y + first, x + first, (size_t)count * 4)); /* in place too: memcpy may not meet itself */
    return OCTO_OK;
}

/* ---- int32 sums to int8 ------------------------------------------------------------------------------------------------------ */

typedef void requantize_kernel(int64_t rows, int64_t cols, const int32_t *acc, const struct octo_columns *columns, const uint32_t *words,
                               int rounding, int zero, int lo, int hi, int8_t *q);

static struct octo_columns from_column(const struct octo_columns *columns, int64_t c) {
    struct octo_columns rest = *columns;
    rest.add += c;
    if (rest.scale) rest.scale += c;
    if (rest.multiplier) rest.multiplier += c, rest.shift += c, rest.limit += c, rest.lift += c;
    return rest;
}

/* All rows of a slice; where words are needed, in pieces of at most 1,024 elements: rows, or parts of a row. */
static void requantize_slice(requantize_kernel *kernel, int64_t first, int64_t rows, int64_t cols, const int32_t *acc,
                             const struct octo_columns *columns, int rounding, int zero, int lo, int hi, uint64_t seed,
                             uint32_t step, uint32_t tensor, int8_t *q) {
    if (rounding != OCTO_STOCHASTIC) {
        kernel(rows, cols, acc + first * cols, columns, NULL, rounding, zero, lo, hi, q + first * cols);
        return;
    }
    uint32_t words[1024 + 4];
    int64_t step_rows = octo_max(1, 1024 / cols), step_cols = octo_min(1024, cols);
    for (int64_t r = 0; r < rows; r += step_rows)
        for (int64_t c = 0; c < cols; c += step_cols) {
            int64_t at = (first + r) * cols + c, height = octo_min(step_rows, rows - r), width = octo_min(step_cols, cols - c);
            struct octo_columns part = from_column(columns, c);
            octo_table.philox(at % 4 + height * width, at / 4 * 4, seed, step, tensor, words);
            kernel(height, width, acc + at, &part, words + at % 4, rounding, zero, lo, hi, q + at);
        }
}

int octo_requantize_f32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, const float *scale, int rounding,
                        int zero, int lo, int hi, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *q) {
    CHECK_MATRIX("requantize", rows, cols);
    CHECK_CODES(zero, lo, hi);
    OCTO_CHECK(rounding >= OCTO_HALF_EVEN && rounding <= OCTO_STOCHASTIC, "requantize: rounding %d is not for float32 scales", rounding);
    for (int64_t c = 0; c < cols; c++) CHECK_NUMBER(scale[c], "requantize: a scale");
    struct octo_columns columns = {.add = add, .scale = scale};
    EACH_ROWS(rows, cols, requantize_slice(octo_table.requantize_f32, first, count, cols, acc, &columns, rounding, zero, lo, hi, seed,
                                           step, tensor, q));
    return OCTO_OK;
}

/* The scale multiplier / 2^shift as multiplier' / 2^(32 + shift'), 1 <= shift' <= 30: the multiplier is shifted left as far as 31
 * bits and shift' <= 30 allow; what then is still missing is taken by shifting x left.  A lift above 0 means that the multiplier has
 * 31 bits, so |x| >= 2^(31 - lift) - 1 gives at least 2^27 and any code saturates: x is kept within that.  A lift above 30
 * (a scale of at least 2^28, at which every x but 0 saturates) is the same as one of 30. */
static void fixed_point(int32_t *multiplier, int32_t *shift, int32_t *limit, int32_t *lift) {
    int64_t m = *multiplier, t = *shift;
    while (m && m < (int64_t)1 << 30 && t < 62) m *= 2, t++;
    if (!m) t = 62;
    *lift = (int32_t)octo_min(30, octo_max(0, 33 - t));
    *limit = (int32_t)(((int64_t)1 << (31 - *lift)) - 1);
    *multiplier = (int32_t)m;
    *shift = (int32_t)octo_max(33, t) - 32;
}

int octo_requantize_s32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, const int32_t *multiplier,
                        const int32_t *shift, int rounding, int zero, int lo, int hi, uint64_t seed, uint32_t step,
                        uint32_t tensor, int8_t *q) {
    CHECK_MATRIX("requantize", rows, cols);
    CHECK_CODES(zero, lo, hi);
    OCTO_CHECK(rounding >= OCTO_HALF_EVEN && rounding <= OCTO_GEMMLOWP, "requantize: no rounding %d", rounding);
    int64_t most = rounding >= OCTO_PSEUDO_STOCHASTIC ? 31 : 62;
    for (int64_t c = 0; c < cols; c++) {
        OCTO_CHECK(rounding != OCTO_PSEUDO_STOCHASTIC || multiplier[c] == 1,
                   "requantize: pseudo-stochastic rounding is for shifts: multiplier %d of column %lld is not 1", multiplier[c], (long long)c);
        OCTO_CHECK(shift[c] >= 0 && shift[c] <= most, "requantize: shift %d of column %lld is not in 0 .. %lld", shift[c], (long long)c,
                   (long long)most);
        OCTO_CHECK(multiplier[c] >= 0, "requantize: multiplier %d of column %lld is negative", multiplier[c], (long long)c);
    }
    int32_t *prepared = octo_scratch(OCTO_SLOT_SUMS, cols * 4 * 4);
    if (!prepared) return octo_fail(OCTO_ENOMEM, "out of memory in requantize");
    int32_t *m = prepared, *t = m + cols, *limit = t + cols, *lift = limit + cols;
    struct octo_columns columns = {.add = add, .multiplier = m, .shift = t, .limit = limit, .lift = lift, .plain = 1};
    for (int64_t c = 0; c < cols; c++) {
        m[c] = multiplier[c], t[c] = shift[c], limit[c] = INT32_MAX, lift[c] = 0;
        if (rounding < OCTO_PSEUDO_STOCHASTIC) fixed_point(m + c, t + c, limit + c, lift + c);
        if (lift[c]) columns.plain = 0;
    }
    EACH_ROWS(rows, cols, requantize_slice(octo_table.requantize_s32, first, count, cols, acc, &columns, rounding, zero, lo, hi, seed,
                                           step, tensor, q));
    return OCTO_OK;
}

/* ---- 8-bit codes with logarithmic steps -------------------------------------------------------------------------------------- */

int octo_encode_mu8(int64_t n, const float *x, float inv_bound, const float *threshold, uint8_t *q, int64_t *clipped) {
    CHECK_COUNT("encode", n);
    int64_t slices = (n + CHUNK - 1) / CHUNK, *counts = octo_scratch(OCTO_SLOT_SUMS, slices * 8 + 8);
    if (!counts) return octo_fail(OCTO_ENOMEM, "out of memory in encode");
    FOR_EACH_CHUNK(n, octo_table.encode_mu8(count, x + first, inv_bound, threshold, q + first, counts + first / CHUNK));
    *clipped = 0;
    for (int64_t i = 0; i < slices; i++) *clipped += counts[i];
    return OCTO_OK;
}

int octo_decode_mu8(int64_t n, const uint8_t *q, const float *level, float bound, float *x) {
    CHECK_COUNT("decode", n);
    FOR_EACH_CHUNK(n, octo_table.decode_mu8(count, q + first, level, bound, x + first));
    return OCTO_OK;
}

int octo_gemm_mu8(int64_t m, int64_t n, int64_t k, const uint8_t *a, const uint8_t *b, const octo_mu8 *mu, uint8_t *c,
                  int64_t *saturated) {
    CHECK_MATRIX("mu8 product", m, k);
    CHECK_MATRIX("mu8 product", k, n);
    CHECK_MATRIX("mu8 product", m, n);
    OCTO_CHECK(mu->group >= 1 && mu->group <= 32, "mu8 product: group must be in 1 .. 32, not %d", mu->group);
    OCTO_CHECK(mu->shift >= (mu->group > 16) && mu->shift <= 30, "mu8 product: a shift of %d does not fit groups of %d", mu->shift, mu->group);
    OCTO_CHECK(mu->threshold[0] == 0 && mu->level[0] == 0, "mu8 product: the first threshold and level must be 0");
    for (int i = 0; i < 256; i++)
        OCTO_CHECK(mu->decode[i] >= -8191 && mu->decode[i] <= 8191, "mu8 product: operand value %d is past 8191", mu->decode[i]);
    for (int i = 1; i < 128; i++)
        OCTO_CHECK(mu->threshold[i] > mu->threshold[i - 1] && mu->level[i] > mu->level[i - 1] && mu->level[i] <= (int32_t)1 << 30,
                   "mu8 product: thresholds and levels must ascend, up to 2^30");
    int64_t ldb = (n + 63) / 64 * 64, step = 8, slices = (m + step - 1) / step;
    int16_t *linear = octo_scratch(OCTO_SLOT_RIGHT, k * ldb * 2);
    int64_t *counts = octo_scratch(OCTO_SLOT_SUMS, slices * 8);
    if (!linear || !counts) return octo_fail(OCTO_ENOMEM, "out of memory in mu8 product");
    OCTO_PARALLEL(p, k) {
        for (int64_t j = 0; j < ldb; j++) linear[p * ldb + j] = j < n ? mu->decode[b[p * n + j]] : 0;
    }
    OCTO_PARALLEL(s, slices) {
        octo_table.gemm_mu8(octo_min(step, m - s * step), n, k, a + s * step * k, linear, ldb, mu, c + s * step * n, counts + s);
    }
    *saturated = 0;
    for (int64_t s = 0; s < slices; s++) *saturated += counts[s];
    return OCTO_OK;
}
