/* Training on integers: codes with an exponent, and codes with steps of powers of two.  The arithmetic is in integers.inc. */
#include "dispatch.h"

static const int LARGEST = 127;

int octo_copy_s8(int64_t n, const int8_t *x, int8_t *y) {
    CHECK_COUNT("copy", n);
    FOR_EACH_CHUNK(n, memmove(y + first, x + first, (size_t)count)); /* as octo_copy_f32 */
    return OCTO_OK;
}

int octo_images_s8(int64_t n, const uint8_t *x, int shift, int8_t *y) {
    CHECK_COUNT("images", n);
    OCTO_CHECK(shift >= 1 && shift <= 7, "images: a shift by %d makes no codes", shift);
    FOR_EACH_CHUNK(n, octo_table.images_s8(count, x + first, shift, y + first));
    return OCTO_OK;
}

int octo_add_exponents(int a, int b, int32_t *sum) {
    *sum = a + b;
    return OCTO_OK;
}

int octo_power_of_two(int exponent, float *value) {
    uint32_t bits = (uint32_t)((int)octo_least(120, octo_most(-120, exponent)) + 127) << 23;
    memcpy(value, &bits, sizeof bits);
    return OCTO_OK;
}

/* Bits of the largest magnitude. */
static int magnitude_bits(int32_t low, int32_t high) {
    int64_t most = octo_max(-(int64_t)low, high);
    int bits = 0;
    for (; most > 0; most >>= 1) bits++;
    return bits;
}

int octo_narrow_s32(int64_t n, const int32_t *acc, int bits, int rounding, int exponent, int8_t *q, int32_t *result) {
    int32_t low, high, add = 0, multiplier = 1, shift;
    OCTO_CHECK(bits >= 1 && bits <= 7, "narrow: codes have 1 .. 7 bits, not %d", bits);
    OCTO_CHECK(rounding != OCTO_STOCHASTIC, "narrow: no stochastic rounding");
    int status = octo_range_s32(n, acc, &low, &high);
    if (status) return status;
    shift = (int32_t)octo_max(0, magnitude_bits(low, high) - bits);
    *result = exponent + shift;
    return octo_requantize_s32(n, 1, acc, &add, &multiplier, &shift, rounding, 0, -LARGEST, LARGEST, 0, 0, 0, q);
}

int octo_align_s8(int64_t n, const int8_t *a, int exponent_a, const int8_t *b, int exponent_b, int32_t *acc, int8_t *q, int32_t *result) {
    CHECK_COUNT("sum of codes", n);
    int64_t distance = (int64_t)exponent_a - exponent_b, far = distance < 0 ? -distance : distance, lost = far > 22;
    int32_t times = lost ? 1 : (int32_t)1 << far;
    int32_t times_a = distance >= 0 ? times : !lost, times_b = distance >= 0 ? !lost : times;
    FOR_EACH_CHUNK(n, octo_table.combine_s8(count, a + first, times_a, b + first, times_b, acc + first));
    int exponent = (distance >= 0) == lost ? exponent_a : exponent_b;
    return octo_narrow_s32(n, acc, 7, OCTO_HALF_AWAY, exponent, q, result);
}

/* ---- layers ---------------------------------------------------------------------------------------------------------------- */

int octo_relu_s8(int64_t n, const int8_t *x, int8_t *y) {
    CHECK_COUNT("relu", n);
    FOR_EACH_CHUNK(n, octo_table.relu_s8(count, x + first, y + first));
    return OCTO_OK;
}

int octo_relu_backward_s8(int64_t n, const int8_t *y, const int8_t *dy, int8_t *dx) {
    CHECK_COUNT("relu", n);
    FOR_EACH_CHUNK(n, octo_table.relu_backward_s8(count, y + first, dy + first, dx + first));
    return OCTO_OK;
}

int octo_dropout_s8(int64_t rows, int64_t cols, const int8_t *x, int doublings, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *y) {
    CHECK_MATRIX("dropout", rows, cols);
    OCTO_CHECK(doublings >= 1 && doublings <= 16, "dropout: 1 .. 16 doublings, not %d", doublings);
    FOR_EACH_CHUNK(cols, WITH_WORDS({
        for (int64_t i = at; i < rows * cols; i += cols) octo_table.dropout_s8(some, x + i, words, doublings, y + i);
    }));
    return OCTO_OK;
}

#define CHECK_POOL(g)                                                                                                                \
    OCTO_CHECK((g)->batch >= 1 && (g)->channels >= 1 && (g)->kernel >= 1 && (g)->kernel <= 15 && (g)->stride >= 1 &&                 \
                   (g)->kernel <= (g)->height && (g)->kernel <= (g)->width && (g)->height <= 1 << 20 && (g)->width <= 1 << 20 &&     \
                   (g)->channels <= 1 << 20 && (g)->batch <= ((int64_t)1 << 40) / ((g)->height * (g)->width * (g)->channels),        \
               "pooling: bad geometry")

int octo_maxpool_s8(const octo_pool *g, const int8_t *x, int8_t *y, uint8_t *argmax) {
    CHECK_POOL(g);
    int64_t rows = g->batch * ((g->height - g->kernel) / g->stride + 1), cols = ((g->width - g->kernel) / g->stride + 1) * g->channels;
    EACH_ROWS(rows, cols, octo_table.maxpool_s8(g, first, count, x, y, argmax));
    return OCTO_OK;
}

int octo_maxpool_backward_s8(const octo_pool *g, const int8_t *dy, const uint8_t *argmax, int32_t *dx) {
    CHECK_POOL(g);
    EACH_ROWS(g->batch * g->height, g->width * g->channels, octo_table.maxpool_backward_s8(g, first, count, dy, argmax, dx));
    return OCTO_OK;
}

int octo_pixel_sums_s8(int64_t images, int64_t pixels, int64_t cols, const int8_t *x, int32_t *sums) {
    CHECK_MATRIX("average pooling", images, cols);
    CHECK_MATRIX("average pooling", images * cols, pixels);
    EACH_ROWS(images, pixels * cols, for (int64_t i = first; i < first + count; i++)
        octo_table.column_sums_s8(pixels, cols, x + i * pixels * cols, sums + i * cols));
    return OCTO_OK;
}

int octo_spread_s8(int64_t images, int64_t pixels, int64_t cols, const int8_t *dy, int8_t *dx) {
    CHECK_MATRIX("average pooling", images, cols);
    CHECK_MATRIX("average pooling", images * cols, pixels);
    EACH_ROWS(images * pixels, cols, for (int64_t i = first; i < first + count; i++)
        memcpy(dx + i * cols, dy + i / pixels * cols, (size_t)cols));
    return OCTO_OK;
}

/* ---- loss and updates -------------------------------------------------------------------------------------------------------- */

static int check_labels(int64_t rows, int64_t cols, const int32_t *labels) {
    for (int64_t r = 0; r < rows; r++)
        OCTO_CHECK(labels[r] >= 0 && labels[r] < cols, "loss: label %d of row %lld is not in 0 .. %lld", labels[r], (long long)r,
                   (long long)cols - 1);
    return OCTO_OK;
}

int octo_softmax_s8(int64_t rows, int64_t cols, const int8_t *q, int exponent, const int32_t *labels, uint64_t seed, uint32_t step,
                    uint32_t tensor, int8_t *dlogits) {
    CHECK_MATRIX("loss", rows, cols);
    int status = check_labels(rows, cols, labels);
    if (status) return status;
    int32_t *grad = octo_scratch(OCTO_SLOT_LEFT, rows * cols * 4), add = 0, multiplier = 1, shift = 4;
    if (!grad) return octo_fail(OCTO_ENOMEM, "out of memory in loss");
    EACH_ROWS(rows, cols, octo_table.softmax_s8(count, cols, q + first * cols, exponent, labels + first, grad + first * cols));
    return octo_requantize_s32(rows * cols, 1, grad, &add, &multiplier, &shift, OCTO_STOCHASTIC, 0, -LARGEST, LARGEST, seed, step,
                               tensor, dlogits);
}

int octo_squared_error(int64_t rows, int64_t cols, const float *logits, const int32_t *labels, double *loss, float *dlogits,
                       int64_t *correct) {
    CHECK_MATRIX("loss", rows, cols);
    float low, high;
    int status = check_labels(rows, cols, labels);
    if (!status) status = octo_range_f32(rows * cols, logits, &low, &high);
    if (status) return status;
    octo_sum sum = {0};
    *correct = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t best = 0;
        for (int64_t c = 0; c < cols; c++) {
            float v = logits[r * cols + c], d = c == labels[r] ? v - 1.0f : v;
            if (v > logits[r * cols + best]) best = c;
            if (dlogits) dlogits[r * cols + c] = d;
            octo_sum_add(&sum, (double)d * (double)d);
        }
        *correct += best == labels[r];
    }
    *loss = 0.5 * octo_sum_total(&sum) / (double)rows;
    return OCTO_OK;
}

int octo_subtract_s8(int64_t n, const int8_t *g, int limit, int8_t *w) {
    CHECK_COUNT("update", n);
    OCTO_CHECK(limit >= 1 && limit <= 127, "update: codes within +-%d are no int8", limit);
    FOR_EACH_CHUNK(n, octo_table.subtract_s8(count, g + first, limit, w + first));
    return OCTO_OK;
}

int octo_ternary_s8(int64_t n, const int8_t *x, int limit, int8_t *y) {
    CHECK_COUNT("ternary", n);
    OCTO_CHECK(limit >= 0 && limit <= 127, "ternary: a threshold of %d is no code", limit);
    FOR_EACH_CHUNK(n, octo_table.ternary_s8(count, x + first, limit, y + first));
    return OCTO_OK;
}

/* The exponent of 2^round(log2 x), x > 0; a mantissa of at least sqrt(1/2) is nearer to the power above.  Numbers that float32 holds are
 * normal in double. */
static int nearest_power(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52 & 2047) - 1022; /* x = mantissa 2^exponent, 1/2 <= mantissa < 1 */
    bits = (bits & 0xfffffffffffffu) | (uint64_t)1022 << 52;
    double mantissa;
    memcpy(&mantissa, &bits, sizeof bits);
    return mantissa >= 0.7071067811865476 ? exponent : exponent - 1;
}

static double power(int exponent) {
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

int octo_direction_scale(float low, float high, float least, float *inverse, float *scale) {
    double most = octo_most(-(double)low, high);
    *inverse = most > 1e-30 ? (float)(power(-nearest_power(most)) / (double)least) : 0;
    *scale = most > 1e-30 ? (float)(power(nearest_power(most)) * (double)least) : 0;
    return OCTO_OK;
}

int octo_walk_s8(int64_t n, const int32_t *g, double rate, int limit, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *w) {
    int32_t low, high;
    OCTO_CHECK(rate > 0 && rate <= 128, "update: rate must be above 0, at most 128, not %g", rate);
    OCTO_CHECK(limit >= 1 && limit <= 127, "update: codes within +-%d are no int8", limit);
    int status = octo_range_s32(n, g, &low, &high);
    if (status) return status;
    double most = octo_most(-(double)low, high);
    if (most == 0) return OCTO_OK;
    double factor = rate / power(nearest_power(most)) * 32768; /* most factor < 2^(1/2) 128 2^15 < 2^23 */
    FOR_EACH_CHUNK(n, WITH_WORDS(octo_table.walk_s8(some, g + at, words, factor, limit, w + at)));
    return OCTO_OK;
}
