/* Values with few levels, masks, barriers, and statistics of images and channels.  The arithmetic is in elementwise.inc. */
#include "dispatch.h"

/* ---- sums that are rounded once ------------------------------------------------------------------------------------------------ */

void octo_sum_add(octo_sum *sum, double x) {
    int kept = 0;
    for (int i = 0; i < sum->count; i++) {
        double y = sum->parts[i];
        if ((x < 0 ? -x : x) < (y < 0 ? -y : y)) {
            double t = x;
            x = y, y = t;
        }
        double high = x + y, low = y - (high - x);
        if (low != 0) sum->parts[kept++] = low;
        x = high;
    }
    if (x != 0) sum->parts[kept++] = x;
    sum->count = kept;
}

/* From the largest part down, until one is lost in part; a tie is decided by the sign of the next. */
double octo_sum_total(const octo_sum *sum) {
    int i = sum->count;
    if (!i) return 0;
    double high = sum->parts[--i], low = 0;
    while (i > 0) {
        double x = high, y = sum->parts[--i];
        high = x + y;
        low = y - (high - x);
        if (low != 0) break;
    }
    if (i > 0 && ((low < 0 && sum->parts[i - 1] < 0) || (low > 0 && sum->parts[i - 1] > 0))) {
        double y = low * 2, x = high + y;
        if (y == x - high) high = x;
    }
    return high;
}

/* ---- values ---------------------------------------------------------------------------------------------------------------------- */

int octo_within_f32(int64_t n, const float *x, float low, float high, uint8_t *inside) {
    CHECK_COUNT("within", n);
    FOR_EACH_CHUNK(n, octo_table.within_f32(count, x + first, low, high, inside + first));
    return OCTO_OK;
}

int octo_mask_f32(int64_t n, const float *x, const uint8_t *inside, float *y) {
    CHECK_COUNT("mask", n);
    FOR_EACH_CHUNK(n, octo_table.mask_f32(count, x + first, inside + first, y + first));
    return OCTO_OK;
}

int octo_within_columns_f32(int64_t rows, int64_t cols, const float *x, const float *low, const float *high, uint8_t *inside,
                            int8_t *side) {
    CHECK_MATRIX("within", rows, cols);
    EACH_ROWS(rows, cols, octo_table.within_columns_f32(count, cols, x + first * cols, low, high, inside + first * cols,
                                                        side ? side + first * cols : NULL));
    return OCTO_OK;
}

int octo_clip_columns_s8(int64_t rows, int64_t cols, const int8_t *low, const int8_t *high, int8_t *q) {
    CHECK_MATRIX("clip", rows, cols);
    EACH_ROWS(rows, cols, octo_table.clip_columns_s8(count, cols, low, high, q + first * cols));
    return OCTO_OK;
}

int octo_multiply_f32(int64_t n, const float *a, const float *b, float *y) {
    CHECK_COUNT("multiply", n);
    FOR_EACH_CHUNK(n, octo_table.multiply_f32(count, a + first, b + first, y + first));
    return OCTO_OK;
}

#define CHECK_LEVELS(levels) OCTO_CHECK((levels) >= 1 && (levels) <= 255, "levels: %d steps are not 1 .. 255", levels)

int octo_levels_f32(int64_t n, const float *x, int levels, float *y, uint8_t *inside) {
    float low, high;
    CHECK_LEVELS(levels);
    int status = octo_range_f32(n, x, &low, &high);
    if (status) return status;
    FOR_EACH_CHUNK(n, octo_table.levels_f32(count, x + first, (float)levels, y + first, inside + first));
    return OCTO_OK;
}

int octo_level_weights_f32(int64_t n, const float *w, int levels, float *q, float *slope) {
    float low, high;
    CHECK_LEVELS(levels);
    int status = octo_range_f32(n, w, &low, &high);
    if (status) return status;
    FOR_EACH_CHUNK(n, octo_table.tanh_f32(count, w + first, q + first));
    octo_range_f32(n, q, &low, &high);
    float largest = -low > high ? -low : high;
    if (largest > 0)
        FOR_EACH_CHUNK(n, octo_table.level_weights_f32(count, q + first, largest, (float)levels, q + first, slope + first));
    else
        for (int64_t i = 0; i < n; i++) q[i] = 0, slope[i] = 1;
    return OCTO_OK;
}

/* Elements that are summed one after the other before their sum is added to the others'. */
enum { PIECE = 65536 };

int octo_binary_weights_f32(int64_t n, const float *w, float *q) {
    float low, high;
    int status = octo_range_f32(n, w, &low, &high);
    if (status) return status;
    int64_t pieces = (n + PIECE - 1) / PIECE;
    double *sums = octo_scratch(OCTO_SLOT_SUMS, pieces * 8), total = 0;
    if (!sums) return octo_fail(OCTO_ENOMEM, "out of memory in binary weights");
    OCTO_PARALLEL(p, pieces) octo_table.magnitude_sum_f32(octo_min(PIECE, n - p * PIECE), w + p * PIECE, sums + p);
    for (int64_t p = 0; p < pieces; p++) total += sums[p];
    float mean = (float)(total / (double)n);
    FOR_EACH_CHUNK(n, octo_table.binary_f32(count, w + first, mean, q + first));
    return OCTO_OK;
}

int octo_signed_sum_f32(int64_t n, const float *x, const int8_t *side, float *sum) {
    CHECK_COUNT("sum", n);
    int64_t pieces = (n + PIECE - 1) / PIECE;
    double *sums = octo_scratch(OCTO_SLOT_SUMS, pieces * 8), total = 0;
    if (!sums) return octo_fail(OCTO_ENOMEM, "out of memory in sum");
    OCTO_PARALLEL(p, pieces) octo_table.signed_sum_f32(octo_min(PIECE, n - p * PIECE), x + p * PIECE, side + p * PIECE, sums + p);
    for (int64_t p = 0; p < pieces; p++) total += sums[p];
    *sum = (float)total;
    return OCTO_OK;
}

/* Of a range that ordered keys give. */
static float largest_of(const int32_t *keys) {
    float low = 0, high = 0;
    octo_fold_range(1, keys, &low, &high);
    return -low > high ? -low : high;
}

int octo_level_errors_f32(int64_t samples, int64_t size, const float *x, int levels, uint64_t seed, uint32_t step, uint32_t tensor,
                          float *y) {
    float low, high;
    CHECK_MATRIX("levels", samples, size);
    CHECK_LEVELS(levels);
    int status = octo_range_f32(samples * size, x, &low, &high);
    if (status) return status;
    if (octo_most(-low, high) > 1.7014117e38) return octo_fail(OCTO_EFINITE, "twice the largest value is infinite");
    OCTO_PARALLEL(s, samples) {
        int32_t keys[2];
        uint32_t words[1024 + 4];
        octo_table.range_f32(size, x + s * size, keys, keys + 1);
        float largest = largest_of(keys);
        for (int64_t part = 0; part < size; part += 1024) {
            int64_t at = s * size + part, some = octo_min(1024, size - part);
            octo_table.philox(at % 4 + some, at / 4 * 4, seed, step, tensor, words);
            octo_table.level_errors_f32(some, x + at, words + at % 4, largest, (float)levels, y + at);
        }
    }
    return OCTO_OK;
}

int octo_barrier_f32(int64_t n, const float *x, float bound, float tight, float weight, float *g) {
    CHECK_COUNT("barrier", n);
    float edge = 1.0f / (tight * tight);
    FOR_EACH_CHUNK(n, octo_table.barrier_f32(count, x + first, bound, tight, edge, weight, g + first));
    return OCTO_OK;
}

int octo_add_counts(int64_t n, const int64_t *counts, int64_t *total) {
    for (int64_t i = 0; i < n; i++) total[i] += counts[i];
    return OCTO_OK;
}

/* ---- ranges ---------------------------------------------------------------------------------------------------------------------- */

int octo_image_range(int64_t images, int64_t size, const float *x, float *range) {
    float low, high;
    CHECK_MATRIX("range", images, size);
    int status = octo_range_f32(images * size, x, &low, &high);
    if (status) return status;
    int32_t *keys = octo_scratch(OCTO_SLOT_SUMS, images * 2 * 4);
    if (!keys) return octo_fail(OCTO_ENOMEM, "out of memory in range");
    OCTO_PARALLEL(i, images) octo_table.range_f32(size, x + i * size, keys + 2 * i, keys + 2 * i + 1);
    octo_sum lows = {0}, highs = {0};
    for (int64_t i = 0; i < images; i++) {
        octo_fold_range(1, keys + 2 * i, &low, &high);
        octo_sum_add(&lows, (double)low);
        octo_sum_add(&highs, (double)high);
    }
    range[0] = (float)(octo_sum_total(&lows) / (double)images), range[1] = (float)(octo_sum_total(&highs) / (double)images);
    return OCTO_OK;
}

int octo_average_f32(int64_t n, float keep, const float *latest, int from_zero, float *running) {
    CHECK_COUNT("average", n);
    int first = from_zero;
    for (int64_t i = 0; i < n; i++) first &= running[i] == 0;
    for (int64_t i = 0; i < n; i++) running[i] = first ? latest[i] : keep * running[i] + (1.0f - keep) * latest[i];
    return OCTO_OK;
}

int octo_mirror_range(float low, float high, float *range) {
    float most = -low > high ? -low : high;
    range[0] = -most, range[1] = most;
    return OCTO_OK;
}

int octo_earlier_range(float low, float high, float keep, float *running, float *range) {
    const float latest[2] = {low, high};
    int first = running[0] == 0 && running[1] == 0;
    memcpy(range, first ? latest : running, sizeof latest);
    return octo_average_f32(2, keep, latest, 1, running);
}
