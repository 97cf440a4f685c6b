/* Statistics and scales of channels: range normalization, clipping values, biases of integer sums.  Made of the kernels that others use
 * too, so that the results are theirs to the bit. */
#include "dispatch.h"

/* 1 / scale in float32, 0 where that is not finite. */
static float reciprocal(float scale) { return (double)scale > 1e-38 ? (float)(1.0 / (double)scale) : 0; }

/* ---- range normalization ----------------------------------------------------------------------------------------------------- */

/* y: x as 255 codes between its least and its largest value represent it. */
static int round_to_range(int64_t n, const float *x, float *y) {
    float low, high;
    int status = octo_range_f32(n, x, &low, &high);
    if (status) return status;
    float step = (float)(((double)high - (double)low) / 254), inverse = reciprocal(step);
    for (int64_t i = 0; i < n; i++) {
        int8_t q;
        float shifted = x[i] - low;
        octo_table.quantize_s8(1, &shifted, NULL, inverse, OCTO_HALF_EVEN, -127, -127, 127, &q);
        octo_table.dequantize_s8(1, &q, step, -127, y + i);
        y[i] = y[i] + low;
    }
    return OCTO_OK;
}

int octo_range_norm_forward(int64_t rows, int64_t cols, int64_t chunks, const float *x, const float *gamma, const float *beta, float eps,
                            float factor, float keep, float *running_mean, float *running_deviation, float *columns, int32_t *extremes,
                            float *centered, float *y) {
    CHECK_MATRIX("range normalization", rows, cols);
    OCTO_CHECK(chunks >= 0 && (chunks == 0 || rows % chunks == 0), "range normalization: %lld chunks of %lld rows", (long long)chunks,
               (long long)rows);
    float *scale = columns, *coded_scale = columns + cols, *coded_gamma = columns + 2 * cols, low, high;
    float *memory = octo_scratch(OCTO_SLOT_LEFT, (5 * cols + 2 * chunks * cols) * 4);
    if (!memory) return octo_fail(OCTO_ENOMEM, "out of memory in range normalization");
    float *mean = memory, *deviation = mean + cols, *coded_beta = deviation + cols, *slope = coded_beta + cols, *spare = slope + cols;
    float *highs = spare + cols, *lows = highs + chunks * cols;
    int status = octo_range_f32(rows * cols, x, &low, &high);
    if (status) return status;
    if (chunks) {
        int64_t count = rows / chunks, all = chunks * cols;
        OCTO_PARALLEL(p, chunks)
        octo_table.column_extremes_f32(count, cols, x + p * count * cols, highs + p * cols, lows + p * cols, extremes + p * cols,
                                       extremes + all + p * cols);
        octo_column_sums_f32(chunks, cols, highs, deviation);
        octo_column_sums_f32(chunks, cols, lows, spare);
        octo_column_sums_f32(rows, cols, x, mean);
        for (int64_t c = 0; c < cols; c++) {
            mean[c] = mean[c] / (float)rows;
            deviation[c] = (deviation[c] - spare[c]) / (float)chunks * factor;
        }
        octo_average_f32(cols, keep, mean, 0, running_mean);
        octo_average_f32(cols, keep, deviation, 0, running_deviation);
    } else {
        memcpy(mean, running_mean, (size_t)cols * 4);
        memcpy(deviation, running_deviation, (size_t)cols * 4);
    }
    for (int64_t c = 0; c < cols; c++) scale[c] = 1.0f / (deviation[c] + eps);
    if ((status = round_to_range(cols, gamma, coded_gamma)) || (status = round_to_range(cols, beta, coded_beta)) ||
        (status = round_to_range(cols, scale, coded_scale)))
        return status;
    for (int64_t c = 0; c < cols; c++) slope[c] = coded_scale[c] * coded_gamma[c];
    EACH_ROWS(rows, cols, {
        octo_table.subtract_columns_f32(count, cols, x + first * cols, mean, centered + first * cols);
        octo_table.affine_f32(count, cols, centered + first * cols, slope, coded_beta, 0, y + first * cols);
    });
    return OCTO_OK;
}

int octo_range_norm_backward(int64_t rows, int64_t cols, int64_t chunks, const float *dy, const float *centered, const float *columns,
                             float factor, const int32_t *extremes, float *dx, float *dgamma, float *dbeta) {
    CHECK_MATRIX("range normalization", rows, cols);
    OCTO_CHECK(chunks >= 1 && rows % chunks == 0, "range normalization: %lld chunks of %lld rows", (long long)chunks, (long long)rows);
    int64_t count = rows / chunks, all = chunks * cols; /* rows of a chunk; extremes of a kind */
    for (int64_t i = 0; i < 2 * all; i++)
        OCTO_CHECK(extremes[i] >= 0 && extremes[i] < count, "range normalization: row %ld of %lld", (long)extremes[i], (long long)count);
    const float *scale = columns, *coded_scale = columns + cols, *coded_gamma = columns + 2 * cols;
    float *products = octo_scratch(OCTO_SLOT_LEFT, 3 * cols * 4), *slope = products + cols, *mean = slope + cols;
    if (!products) return octo_fail(OCTO_ENOMEM, "out of memory in range normalization");
    FOR_EACH_CHUNK(rows * cols, octo_table.multiply_f32(count, dy + first, centered + first, dx + first));
    octo_column_sums_f32(rows, cols, dx, products);
    octo_column_sums_f32(rows, cols, dy, dbeta);
    for (int64_t c = 0; c < cols; c++) dgamma[c] = products[c] * coded_scale[c], slope[c] = coded_gamma[c] * coded_scale[c];
    EACH_ROWS(rows, cols, octo_table.scale_columns_f32(count, cols, dy + first * cols, slope, dx + first * cols));
    octo_column_sums_f32(rows, cols, dx, mean);
    for (int64_t c = 0; c < cols; c++) mean[c] = mean[c] / (float)rows;
    EACH_ROWS(rows, cols, octo_table.subtract_columns_f32(count, cols, dx + first * cols, mean, dx + first * cols));
    /* d(1 / (C range + eps)) / d range = -C scale^2; the range's own gradient goes to the chunks' extremes */
    for (int64_t p = 0; p < chunks; p++)
        for (int64_t c = 0; c < cols; c++) {
            float d_range = products[c] * coded_gamma[c] * -(scale[c] * scale[c]) * factor, share = d_range / (float)chunks;
            float *part = dx + p * count * cols + c;
            part[extremes[p * cols + c] * cols] += share;
            part[extremes[all + p * cols + c] * cols] += -share;
        }
    return OCTO_OK;
}

/* ---- clipping values --------------------------------------------------------------------------------------------------------------- */

int octo_channel_clips(int64_t rows, int64_t cols, const float *dy, float low, float high, int64_t most_beyond, float keep, float share,
                       float *clip, float *scales, float *inverses) {
    CHECK_MATRIX("clipping values", rows, cols);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step;
    float largest = -low > high ? -low : high, unit = (double)largest > 1e-30 ? largest : 1.0f;
    float *memory = octo_scratch(OCTO_SLOT_LEFT, (2 * blocks + 2) * cols * 4);
    int32_t *counts = octo_scratch(OCTO_SLOT_RIGHT, blocks * cols * 4);
    int failed = !memory || !counts;
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in clipping values");
    float *most = memory, *partial = most + blocks * cols, *sums = partial + blocks * cols, *sigma = sums + cols;
    OCTO_PARALLEL(b, blocks) {
        int64_t count = octo_min(step, rows - b * step);
        const float *x = dy + b * step * cols;
        float *squares = octo_scratch(OCTO_SLOT_KERNEL, count * cols * 4);
        if (!squares) failed = 1;
        else {
            octo_table.column_largest_f32(count, cols, x, most + b * cols);
            octo_table.scaled_squares_f32(count * cols, x, unit, squares);
            octo_table.column_sums_f32(count, cols, squares, partial + b * cols);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in clipping values");
    octo_add_blocks(blocks, cols, partial, sums);
    for (int64_t c = 0; c < cols; c++) sigma[c] = octo_sqrt(sums[c] / (float)rows);
    OCTO_PARALLEL(b, blocks)
    octo_table.column_beyond_f32(octo_min(step, rows - b * step), cols, dy + b * step * cols, unit, sigma, counts + b * cols);
    for (int64_t c = 0; c < cols; c++) {
        int64_t beyond = 0;
        float best = 0;
        for (int64_t b = 0; b < blocks; b++) {
            beyond += counts[b * cols + c];
            if (most[b * cols + c] > best) best = most[b * cols + c];
        }
        float follow = keep * clip[c] + share * best;
        clip[c] = beyond > most_beyond || clip[c] == 0 ? best : follow;
        scales[c] = clip[c] / 127.0f;
        inverses[c] = reciprocal(scales[c]);
    }
    return OCTO_OK;
}

int octo_dequantize_channels_s32(int64_t rows, int64_t cols, const int32_t *acc, const float *scales, float factor, float *y) {
    CHECK_MATRIX("dequantize", rows, cols);
    EACH_ROWS(rows, cols, for (int64_t r = first; r < first + count; r++)
        octo_table.dequantize_row_s32(cols, acc + r * cols, 0, scales[r] * factor, y + r * cols));
    return OCTO_OK;
}

/* ---- integer sums of quantized weights ----------------------------------------------------------------------------------------------- */

int octo_quantize_rows_s8(int64_t rows, int64_t cols, const float *x, float *scales, int8_t *q, float *y) {
    float low, high;
    CHECK_MATRIX("quantize", rows, cols);
    int status = octo_range_f32(rows * cols, x, &low, &high);
    if (status) return status;
    EACH_ROWS(rows, cols, for (int64_t r = first; r < first + count; r++) {
        octo_table.column_largest_f32(cols, 1, x + r * cols, scales + r);
        scales[r] = scales[r] / 127.0f;
        float inverse = scales[r] > 1e-38f ? 1.0f / scales[r] : 0;
        octo_table.quantize_s8(cols, x + r * cols, NULL, inverse, OCTO_HALF_EVEN, 0, -127, 127, q + r * cols);
        octo_table.dequantize_s8(cols, q + r * cols, scales[r], 0, y + r * cols);
    });
    return OCTO_OK;
}

/* Half to even, as ROUNDER, for any |v| below infinity. */
static float nearest_float(float v) {
    float a = v < 0 ? -v : v, t = a < 8388608.0f ? (a + 8388608.0f) - 8388608.0f : a;
    return v < 0 ? -t : t;
}

int octo_fold_bias(int64_t cols, int64_t count, const float *weight_scales, float x_scale, int zero, const float *bias,
                   const int32_t *weight_sums, float *scales, int32_t *add, float *rest) {
    OCTO_CHECK(cols >= 1 && (count == 1 || count == cols), "bias: %lld scales of %lld channels", (long long)count, (long long)cols);
    int one = count == 1, any = 0;
    for (int64_t i = 0; i < count; i++) scales[i] = weight_scales[i] * x_scale;
    for (int64_t c = 0; c < cols; c++) {
        float scale = scales[one ? 0 : c], v = scale > 0 ? nearest_float(bias[c] / scale) : 0;
        int left = !(scale > 0) || v > 1073741824.0f || v < -1073741824.0f;
        any |= left;
        rest[c] = left ? bias[c] : one ? -0.0f : 0.0f;
        add[c] = (int32_t)((uint32_t)(left ? 0 : (int32_t)v) - (uint32_t)zero * (uint32_t)weight_sums[c]);
    }
    rest[cols] = (float)any;
    return OCTO_OK;
}

int octo_code_ends(float scale, int zero, float *range) {
    range[0] = scale * (float)(-127 - zero), range[1] = scale * (float)(127 - zero);
    return OCTO_OK;
}

int octo_counteract(double lr, float deviation, float slope, double least, double *rate) {
    float exponent = (float)octo_most(-87, octo_least(87, slope * deviation)), factor; /* where exp_f32 holds */
    octo_table.exp_f32(1, &exponent, &factor);
    *rate = lr * octo_most((double)factor, least);
    return OCTO_OK;
}
