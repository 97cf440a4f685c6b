/* Everything but matrix products: argument checks, the cut into slices, threads, and the sums over slices in ascending order. */
#include "dispatch.h"

int octo_philox(int64_t n, uint64_t seed, uint32_t step, uint32_t tensor, uint32_t *out) {
    CHECK_COUNT("philox", n);
    FOR_EACH_CHUNK(n, octo_table.philox(count, first, seed, step, tensor, out + first));
    return OCTO_OK;
}

int octo_normal_f32(int64_t n, uint64_t seed, uint32_t step, uint32_t tensor, float mean, float deviation, float *out) {
    CHECK_COUNT("normal", n);
    FOR_EACH_CHUNK(n, WITH_WORDS(octo_table.normal_f32(some, words, mean, deviation, out + at)));
    return OCTO_OK;
}

int octo_exp_f32(int64_t n, const float *x, float *y) {
    CHECK_COUNT("exp", n);
    FOR_EACH_CHUNK(n, octo_table.exp_f32(count, x + first, y + first));
    return OCTO_OK;
}

int octo_log_f32(int64_t n, const float *x, float *y) {
    CHECK_COUNT("log", n);
    FOR_EACH_CHUNK(n, octo_table.log_f32(count, x + first, y + first));
    return OCTO_OK;
}

/* ---- sums over columns ----------------------------------------------------------------------------------------------------------- */

void octo_add_blocks(int64_t blocks, int64_t cols, const float *partial, float *out) {
    OCTO_PARALLEL(part, (cols + 255) / 256) {
        double sums[256] = {0};
        int64_t c0 = part * 256, count = octo_min(256, cols - c0);
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t c = 0; c < count; c++) sums[c] += (double)partial[b * cols + c0 + c];
        for (int64_t c = 0; c < count; c++) out[c0 + c] = (float)sums[c];
    }
}

int octo_column_sums_f32(int64_t rows, int64_t cols, const float *x, float *sums) {
    CHECK_MATRIX("column sums", rows, cols);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step;
    float *partial = octo_scratch(OCTO_SLOT_SUMS, blocks * cols * 4);
    if (!partial) return octo_fail(OCTO_ENOMEM, "out of memory in column sums");
    OCTO_PARALLEL(b, blocks) {
        octo_table.column_sums_f32(octo_min(step, rows - b * step), cols, x + b * step * cols, partial + b * cols);
    }
    octo_add_blocks(blocks, cols, partial, sums);
    return OCTO_OK;
}

/* So many int8 codes, or more, may add up to what int32 does not hold: 2^24 * -128 == -2^31. */
#define SAFE_TERMS ((int64_t)1 << 24)

int octo_column_sums_s8(int64_t rows, int64_t cols, const int8_t *x, int32_t *sums) {
    CHECK_MATRIX("column sums", rows, cols);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step;
    int32_t *partial = octo_scratch(OCTO_SLOT_SUMS, blocks * cols * 4);
    if (!partial) return octo_fail(OCTO_ENOMEM, "out of memory in column sums");
    OCTO_PARALLEL(b, blocks) {
        octo_table.column_sums_s8(octo_min(step, rows - b * step), cols, x + b * step * cols, partial + b * cols);
    }
    for (int64_t c = 0; rows >= SAFE_TERMS && c < cols; c++) {
        int64_t sum = 0;
        for (int64_t b = 0; b < blocks; b++) sum += partial[b * cols + c];
        OCTO_CHECK(sum == (int32_t)sum, "column sums: the sum %lld of column %lld is beyond int32", (long long)sum, (long long)c);
    }
    memcpy(sums, partial, (size_t)cols * sizeof *sums);
    for (int64_t b = 1; b < blocks; b++)
        for (int64_t c = 0; c < cols; c++) sums[c] = (int32_t)((uint32_t)sums[c] + (uint32_t)partial[b * cols + c]);
    return OCTO_OK;
}

int octo_row_sums_s8(int64_t rows, int64_t cols, const int8_t *x, int32_t *sums) {
    CHECK_MATRIX("row sums", rows, cols);
    for (int64_t r = 0; cols >= SAFE_TERMS && r < rows; r++) {
        int64_t sum = 0;
        for (int64_t c = 0; c < cols; c++) sum += x[r * cols + c];
        OCTO_CHECK(sum == (int32_t)sum, "row sums: the sum %lld of row %lld is beyond int32", (long long)sum, (long long)r);
    }
    EACH_ROWS(rows, cols, octo_table.row_sums_s8(count, cols, x + first * cols, sums + first));
    return OCTO_OK;
}

int octo_affine_f32(int64_t rows, int64_t cols, const float *x, const float *scale, const float *shift, int relu, float *y) {
    CHECK_MATRIX("affine", rows, cols);
    EACH_ROWS(rows, cols, octo_table.affine_f32(count, cols, x + first * cols, scale, shift, relu, y + first * cols));
    return OCTO_OK;
}

/* ---- the other layers ---------------------------------------------------------------------------------------------------------------- */

static int check_images(int64_t images, int64_t pixels, int64_t cols) {
    CHECK_MATRIX("average pooling", pixels, cols);
    CHECK_MATRIX("average pooling", images, pixels * cols);
    return OCTO_OK;
}

int octo_avgpool_f32(int64_t images, int64_t pixels, int64_t cols, const float *x, float *y) {
    int status = check_images(images, pixels, cols);
    if (status) return status;
    float inv_pixels = 1.0f / (float)pixels;
    EACH_ROWS(images, pixels * cols,
              octo_table.avgpool_f32(count, pixels, cols, inv_pixels, x + first * pixels * cols, y + first * cols));
    return OCTO_OK;
}

int octo_avgpool_backward_f32(int64_t images, int64_t pixels, int64_t cols, const float *dy, float *dx) {
    int status = check_images(images, pixels, cols);
    if (status) return status;
    float inv_pixels = 1.0f / (float)pixels;
    EACH_ROWS(images, pixels * cols,
              octo_table.avgpool_backward_f32(count, pixels, cols, inv_pixels, dy + first * cols, dx + first * pixels * cols));
    return OCTO_OK;
}

int octo_check_pool(const octo_pool *g) {
    OCTO_CHECK(g->batch >= 1 && g->channels >= 1 && g->kernel >= 1 && g->kernel <= 15 && g->stride >= 1,
               "max pooling: kernel must be in 1 .. 15, stride and sizes positive");
    OCTO_CHECK(g->height >= g->kernel && g->width >= g->kernel, "max pooling: the %lld x %lld window is larger than the %lld x %lld image",
               (long long)g->kernel, (long long)g->kernel, (long long)g->height, (long long)g->width);
    OCTO_CHECK((double)g->batch * (double)g->height * (double)g->width * (double)g->channels < 1099511627776.0,
               "max pooling: a tensor has more than 2^40 elements");
    return OCTO_OK;
}

int octo_maxpool_f32(const octo_pool *g, const float *x, float *y, uint8_t *argmax) {
    int status = octo_check_pool(g);
    if (status) return status;
    int64_t rows = g->batch * ((g->height - g->kernel) / g->stride + 1);
    EACH_ROWS(rows, g->width * g->channels * g->kernel, octo_table.maxpool_f32(g, first, count, x, 0, y, argmax));
    return OCTO_OK;
}

int octo_maxpool_backward_f32(const octo_pool *g, const float *dy, const uint8_t *argmax, float *dx) {
    int status = octo_check_pool(g);
    if (status) return status;
    EACH_ROWS(g->batch * g->height, g->width * g->channels, octo_table.maxpool_backward_f32(g, first, count, dy, argmax, dx));
    return OCTO_OK;
}

int octo_dropout_f32(int64_t n, const float *x, float rate, uint64_t seed, uint32_t step, uint32_t tensor, float *y) {
    CHECK_COUNT("dropout", n);
    OCTO_CHECK(rate >= 0 && rate < 1, "dropout: rate must be in [0, 1), not %g", (double)rate);
    uint32_t threshold = (uint32_t)((double)rate * 4294967296.0);
    float scale = 1.0f / (1.0f - rate);
    FOR_EACH_CHUNK(n, WITH_WORDS(octo_table.dropout_f32(some, x + at, words, threshold, scale, y + at)));
    return OCTO_OK;
}

int octo_softmax_cross_entropy_f32(int64_t rows, int64_t cols, const float *logits, const int32_t *labels, float smoothing,
                                   float *loss, float *dlogits, int64_t *correct) {
    CHECK_MATRIX("softmax", rows, cols);
    OCTO_CHECK(smoothing >= 0 && smoothing < 1, "softmax: label smoothing must be in [0, 1), not %g", (double)smoothing);
    for (int64_t r = 0; r < rows; r++)
        OCTO_CHECK(labels[r] >= 0 && labels[r] < cols, "softmax: label %d of row %lld is not in 0 .. %lld", (int)labels[r], (long long)r,
                   (long long)cols - 1);
    float low, high;
    int status = octo_range_f32(rows * cols, logits, &low, &high);
    if (status) return status;
    float *losses = octo_scratch(OCTO_SLOT_SUMS, rows * 4);
    if (!losses) return octo_fail(OCTO_ENOMEM, "out of memory in softmax");
    octo_table.softmax_f32(rows, cols, logits, labels, smoothing, 1.0f / (float)rows, losses, dlogits);
    double sum = 0;
    *correct = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t best = 0;
        for (int64_t c = 1; c < cols; c++)
            if (logits[r * cols + c] > logits[r * cols + best]) best = c;
        *correct += best == labels[r];
        sum += (double)losses[r];
    }
    *loss = (float)(sum / (double)rows);
    return OCTO_OK;
}

int octo_mean_squared_error_f32(int64_t n, const float *y, const float *target, float *loss, float *dy) {
    CHECK_COUNT("loss", n);
    OCTO_CHECK(n >= 1, "loss: no values");
    float low, high, factor = 2.0f / (float)n;
    int status = octo_range_f32(n, y, &low, &high);
    if (!status) status = octo_range_f32(n, target, &low, &high);
    if (status) return status;
    octo_sum sum = {0};
    for (int64_t i = 0; i < n; i++) {
        float d = y[i] - target[i];
        if (dy) dy[i] = d * factor;
        octo_sum_add(&sum, (double)d * (double)d);
    }
    *loss = (float)(octo_sum_total(&sum) / (double)n);
    return OCTO_OK;
}

/* ---- optimizers ---------------------------------------------------------------------------------------------------------------------- */

/* Elements [first, first + count) of a gradient as float32: in place, or made in `memory`. */
static const float *gradient(const octo_tensor *g, int64_t cols, int64_t first, int64_t count, float *memory) {
    if (!g->sums) return g->values + first;
    for (int64_t at = first, n; at < first + count; at += n) {
        int64_t row = at / cols;
        n = octo_min(first + count, (row + 1) * cols) - at;
        octo_table.dequantize_row_s32(n, g->sums + at, g->add[row], *g->scale, memory + (at - first));
    }
    return memory;
}

/* The call, which makes a step on elements [first, first + count) of w by their gradient `g_`, on slices; then w's range.
 * All while the slice is in the cache. */
#define STEP(name, rows, cols, w, g, range, call)                                                                         \
    do {                                                                                                           \
        CHECK_MATRIX(name, rows, cols);                                                                            \
        CHECK_TENSOR(name, g);                                                                                     \
        int64_t n_ = (rows) * (cols), pieces_ = (n_ + CHUNK - 1) / CHUNK;                                          \
        int32_t *keys_ = octo_scratch(OCTO_SLOT_SUMS, pieces_ * 2 * 4);                                            \
        int failed_ = !keys_;                                                                                      \
        if (keys_) FOR_EACH_CHUNK(n_, {                                                                                \
            float *memory_ = octo_scratch(OCTO_SLOT_KERNEL, (g)->sums ? CHUNK * 4 : 0);                            \
            if (!memory_) failed_ = 1;                                                                             \
            else {                                                                                                 \
                const float *g_ = gradient(g, cols, first, count, memory_);                                        \
                call;                                                                                              \
                octo_table.range_f32(count, (w) + first, keys_ + 2 * (first / CHUNK), keys_ + 2 * (first / CHUNK) + 1); \
            }                                                                                                      \
        });                                                                                                        \
        return failed_ ? octo_fail(OCTO_ENOMEM, "out of memory in " name) : octo_fold_range(pieces_, keys_, range, (range) + 1); \
    } while (0)

int octo_sgd_f32(int64_t rows, int64_t cols, float *w, const octo_tensor *g, float *v, float lr, float momentum, float decay,
                 float *range) {
    STEP("sgd", rows, cols, w, g, range, octo_table.sgd_f32(count, w + first, g_, v + first, lr, momentum, decay));
}

int octo_adam_f32(int64_t rows, int64_t cols, float *w, const octo_tensor *g, float *m, float *v, float lr, float b1, float b2,
                  float eps, float c1, float c2, float decay, float *range) {
    STEP("adam", rows, cols, w, g, range,
         octo_table.adam_f32(count, w + first, g_, m + first, v + first, lr, b1, b2, eps, c1, c2, decay));
}

int octo_lac_fold_f32(int64_t rows, int64_t cols, const float *alpha, const float *mu, const float *offset, const float *bias,
                      const int32_t *zero_term, float scale, int32_t *out, float *rest) {
    CHECK_MATRIX("compensation", rows, cols);
    float inverse = scale ? (float)octo_least(1.0 / (double)scale, 3e38) : 0;
    OCTO_CHECK((alpha && mu && offset) || (!alpha && !mu && !offset), "compensation: alpha, mu and offset go together");
    EACH_ROWS(rows, cols, for (int64_t r = first; r < first + count; r++)
        octo_table.lac_fold_f32(cols, alpha ? alpha + r * cols : NULL, mu ? mu + r * cols : NULL, offset ? offset + r * cols : NULL, bias,
                                zero_term, inverse, out + r * cols));
    if (!rest) return OCTO_OK;
    int none = 1.0 / (double)scale > 3e38; /* fits; the scale is 0, or so small that its inverse is no float32 */
    rest[rows * cols] = 0;
    for (int fill = 0; fill <= (rest[rows * cols] != 0); fill++) /* first whether there is anything, which is rare */
        for (int64_t i = 0; i < rows * cols; i++) {
            float v = bias[i % cols];
            if (alpha) v = v + (alpha[i] * mu[i] + offset[i]);
            float units = v * inverse;
            int left = none ? v != 0 : units > 1073741824.0f || units < -1073741824.0f;
            if (left) rest[rows * cols] = 1;
            if (fill) rest[i] = left ? v : -0.0f;
            if (fill && left) out[i] = zero_term[i % cols];
        }
    return OCTO_OK;
}

int octo_lac_backward_f32(int64_t n, const float *sums, const float *alpha, const float *mu, const float *offset, float decay,
                          float *dalpha, float *dmu, float *doffset) {
    CHECK_COUNT("compensation", n);
    FOR_EACH_CHUNK(n, octo_table.lac_backward_f32(count, sums + first, alpha + first, mu + first, offset + first, decay, dalpha + first,
                                              dmu + first, doffset + first));
    return OCTO_OK;
}
