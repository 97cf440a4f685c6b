/* Batch normalization, addition and ReLU, with what stands beside them in a network done in the same pass over memory. */
#include "dispatch.h"

/* Rows of a piece: about CHUNK elements, a multiple of 8 (masks fill whole bytes) and of the lane rows. */
static int64_t piece_rows(int64_t cols) {
    int64_t unit = octo_max(8, LANE_ROWS(cols));
    return octo_max(1, CHUNK / cols / unit) * unit;
}

/* The tensor from element `at` on. */
static octo_tensor from(octo_tensor t, int64_t at) {
    if (t.sums) t.sums += at;
    else t.values += at;
    return t;
}

/* The tensor with its columns' values laid out in 2 octo_laid(cols) elements of memory; rest, where it holds nothing, left out. */
static octo_tensor laid_out(const octo_tensor *t, int64_t cols, void *memory) {
    octo_tensor made = *t;
    if (!t->sums) return made;
    octo_lay(cols, t->add, memory);
    made.add = memory;
    if (t->rest && t->rest[cols] != 0) {
        octo_lay(cols, t->rest, (float *)memory + octo_laid(cols));
        made.rest = (float *)memory + octo_laid(cols);
    } else made.rest = NULL;
    return made;
}

/* Values of columns laid out, `count` arrays and two for a tensor, then 2 * blocks * cols partial sums, then `pieces` ranges. */
static float *columns_and_partials(int64_t count, int64_t blocks, int64_t cols, int64_t pieces) {
    return octo_scratch(OCTO_SLOT_SUMS, ((count + 2) * octo_laid(cols) + 2 * blocks * cols + 2 * pieces) * 4);
}

/* A thread's two lanes for each column of each lane row, zeros; or NULL. */
static float *zero_lanes(int64_t cols) {
    int64_t bytes = 2 * LANE_ROWS(cols) * cols * 4;
    float *lanes = octo_scratch(OCTO_SLOT_KERNEL, bytes);
    return lanes ? memset(lanes, 0, (size_t)bytes) : NULL;
}

int octo_batchnorm_forward(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                           float momentum, float *running_mean, float *running_var, float *mean, float *inv_std, int relu, float *y,
                           int8_t *codes, uint8_t *relu_mask, float *range) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", x);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step, part = piece_rows(cols), pieces = (rows + part - 1) / part;
    int64_t laid = octo_laid(cols), width = LANE_ROWS(cols) * cols;
    float *scale = columns_and_partials(7, blocks, cols, pieces);
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    float *shift = scale + laid, *to_code = shift + laid, *from_zero = to_code + laid, *pivot = from_zero + laid, *sums = pivot + laid;
    float *squares = sums + laid, *columns = squares + laid, *partial = columns + 2 * laid, *partial2 = partial + blocks * cols;
    int32_t *keys = (int32_t *)(partial2 + blocks * cols);
    octo_tensor in = laid_out(x, cols, columns);
    int failed = 0;
    for (int64_t c = 0; c < cols; c++) { /* the first row */
        pivot[c] = in.sums ? (float)(int32_t)((uint32_t)in.sums[c] + (uint32_t)in.add[c]) * *in.scale : in.values[c];
        if (in.sums && in.rest) pivot[c] = pivot[c] + in.rest[c];
    }
    octo_lay(cols, pivot, pivot);
    OCTO_PARALLEL(b, blocks) {
        float *lanes = zero_lanes(cols);
        if (!lanes) failed = 1;
        else {
            octo_tensor block = from(in, b * step * cols);
            octo_table.column_moments_f32(octo_min(step, rows - b * step) * cols, width, &block, pivot, lanes);
            octo_table.fold_pairs_f32(cols, lanes, partial + b * cols, partial2 + b * cols);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    octo_add_blocks(blocks, cols, partial, sums);
    octo_add_blocks(blocks, cols, partial2, squares);
    float keep = 1.0f - momentum, unbiased = rows > 1 ? (float)rows / (float)(rows - 1) : 1.0f;
    for (int64_t c = 0; c < cols; c++) {
        double shifted = (double)sums[c] / (double)rows, variance = (double)squares[c] / (double)rows - shifted * shifted;
        float var = variance > 0 ? (float)variance : 0;
        mean[c] = (float)((double)pivot[c] + shifted);
        inv_std[c] = 1.0f / octo_sqrt(var + eps);
        scale[c] = gamma[c] * inv_std[c];
        shift[c] = beta[c] - mean[c] * scale[c];
        to_code[c] = inv_std[c] * (1.0f / OCTO_NORMALIZED_STEP);
        from_zero[c] = -(mean[c] * to_code[c]);
        running_mean[c] = keep * running_mean[c] + momentum * mean[c];
        running_var[c] = keep * running_var[c] + momentum * (var * unbiased);
    }
    for (int i = 0; i < 4; i++) octo_lay(cols, scale + i * laid, scale + i * laid);
    struct octo_normalization how = {scale, shift, to_code, from_zero, relu};
    OCTO_PARALLEL(p, pieces) {
        int64_t at = p * part * cols;
        octo_tensor piece = from(in, at);
        octo_table.normalize_f32(octo_min(part, rows - p * part) * cols, width, &piece, &how, y + at, codes ? codes + at : NULL,
                                 relu_mask ? relu_mask + at / 8 : NULL, range ? keys + 2 * p : NULL);
    }
    return range ? octo_fold_range(pieces, keys, range, range + 1) : OCTO_OK;
}

int octo_batchnorm_inference(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                             const float *running_mean, const float *running_var, int relu, float *y) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", x);
    int64_t part = piece_rows(cols), pieces = (rows + part - 1) / part, laid = octo_laid(cols);
    float *scale = columns_and_partials(2, 0, cols, 0), *shift = scale + laid;
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    octo_tensor in = laid_out(x, cols, shift + laid);
    for (int64_t c = 0; c < cols; c++) {
        scale[c] = gamma[c] * (1.0f / octo_sqrt(running_var[c] + eps));
        shift[c] = beta[c] - running_mean[c] * scale[c];
    }
    octo_lay(cols, scale, scale);
    octo_lay(cols, shift, shift);
    struct octo_normalization how = {scale, shift, NULL, NULL, relu};
    OCTO_PARALLEL(p, pieces) {
        int64_t at = p * part * cols;
        octo_tensor piece = from(in, at);
        octo_table.normalize_f32(octo_min(part, rows - p * part) * cols, LANE_ROWS(cols) * cols, &piece, &how, y + at, NULL, NULL, NULL);
    }
    return OCTO_OK;
}

static struct octo_gradient gradient_from(struct octo_gradient g, int64_t at) {
    if (g.x) g.x += at;
    else g.codes += at;
    if (g.relu_mask) g.relu_mask += at / 8;
    g.dy = from(g.dy, at);
    return g;
}

/* With s = gamma inv_std, xn = (x - mean) inv_std:
 * dx = s dy - s mean(dy) - xn s mean(dy xn);  dgamma = sum(dy xn);  dbeta = sum(dy)  (Ioffe & Szegedy 2015). */
int octo_batchnorm_backward(int64_t rows, int64_t cols, const octo_tensor *dy, const float *x, const int8_t *codes, const uint8_t *relu_mask,
                            const float *gamma, const float *mean, const float *inv_std, float *dx, float *dgamma, float *dbeta,
                            float *range) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", dy);
    OCTO_CHECK(!x != !codes, "batch normalization: x or its codes");
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step, part = piece_rows(cols), pieces = (rows + part - 1) / part;
    int64_t laid = octo_laid(cols), width = LANE_ROWS(cols) * cols;
    float *scale = columns_and_partials(4, blocks, cols, pieces);
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    float *shift = scale + laid, *slope = shift + laid, *center = slope + laid, *columns = center + laid, *partial = columns + 2 * laid;
    float *partial2 = partial + blocks * cols;
    int32_t *keys = (int32_t *)(partial2 + blocks * cols);
    octo_lay(cols, mean, center);
    const struct octo_gradient all = {x, center, codes, laid_out(dy, cols, columns), relu_mask};
    int failed = 0;
    OCTO_PARALLEL(b, blocks) {
        float *lanes = zero_lanes(cols);
        if (!lanes) failed = 1;
        else {
            struct octo_gradient block = gradient_from(all, b * step * cols);
            octo_table.column_dots_f32(octo_min(step, rows - b * step) * cols, width, &block, lanes);
            octo_table.fold_pairs_f32(cols, lanes, partial + b * cols, partial2 + b * cols);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    octo_add_blocks(blocks, cols, partial, dbeta);
    octo_add_blocks(blocks, cols, partial2, dgamma);
    float inv_rows = 1.0f / (float)rows;
    for (int64_t c = 0; c < cols; c++) {
        float to_normalized = codes ? 1 : inv_std[c];
        scale[c] = gamma[c] * inv_std[c];
        shift[c] = scale[c] * (dbeta[c] * inv_rows);
        slope[c] = scale[c] * (to_normalized * to_normalized) * (dgamma[c] * inv_rows);
        dgamma[c] = dgamma[c] * to_normalized;
    }
    for (int i = 0; i < 3; i++) octo_lay(cols, scale + i * laid, scale + i * laid);
    OCTO_PARALLEL(p, pieces) {
        int64_t at = p * part * cols;
        struct octo_gradient piece = gradient_from(all, at);
        octo_table.batchnorm_grad_f32(octo_min(part, rows - p * part) * cols, width, &piece, scale, shift, slope, dx + at,
                                      range ? keys + 2 * p : NULL);
    }
    return range ? octo_fold_range(pieces, keys, range, range + 1) : OCTO_OK;
}

/* ---- addition and ReLU ----------------------------------------------------------------------------------------------------------- */

int octo_relu_f32(int64_t n, const float *x, float *y, uint8_t *relu_mask, float *range) {
    CHECK_COUNT("relu", n);
    OCTO_CHECK(n > 0 || !range, "relu: no elements");
    int32_t *keys = octo_scratch(OCTO_SLOT_SUMS, (n + CHUNK - 1) / CHUNK * 2 * 4);
    if (!keys) return octo_fail(OCTO_ENOMEM, "out of memory in relu");
    FOR_EACH_CHUNK(n, octo_table.relu_f32(count, x + first, y + first, relu_mask ? relu_mask + first / 8 : NULL,
                                          range ? keys + first / CHUNK * 2 : NULL));
    return range ? octo_fold_range((n + CHUNK - 1) / CHUNK, keys, range, range + 1) : OCTO_OK;
}

/* The pieces of a pass over one or two tensors: of float32 values, whose columns do not matter, CHUNK elements. */
struct pieces {
    int64_t all, width, step, count;
    octo_tensor a, b;
    int32_t *keys;
};

static int pieces_of(int64_t rows, int64_t cols, const octo_tensor *a, const octo_tensor *b, struct pieces *p) {
    int by_column = a->sums || (b && b->sums);
    p->all = rows * cols, p->width = by_column ? LANE_ROWS(cols) * cols : CHUNK;
    p->step = by_column ? piece_rows(cols) * cols : CHUNK;
    p->count = (p->all + p->step - 1) / p->step;
    int64_t laid = by_column ? octo_laid(cols) : 0;
    float *columns = octo_scratch(OCTO_SLOT_SUMS, (4 * laid + 2 * p->count) * 4);
    if (!columns) return octo_fail(OCTO_ENOMEM, "out of memory in an addition");
    p->a = laid_out(a, cols, columns);
    if (b) p->b = laid_out(b, cols, columns + 2 * laid);
    p->keys = (int32_t *)(columns + 4 * laid);
    return OCTO_OK;
}

int octo_add(int64_t rows, int64_t cols, const octo_tensor *a, const octo_tensor *b, int relu, float *y, uint8_t *relu_mask, float *range) {
    CHECK_MATRIX("add", rows, cols);
    CHECK_TENSOR("add", a);
    CHECK_TENSOR("add", b);
    struct pieces all;
    int status = pieces_of(rows, cols, a, b, &all);
    if (status) return status;
    OCTO_PARALLEL(i, all.count) {
        int64_t at = i * all.step;
        octo_tensor left = from(all.a, at), right = from(all.b, at);
        octo_table.add_f32(octo_min(all.step, all.all - at), all.width, &left, &right, relu, y + at, relu_mask ? relu_mask + at / 8 : NULL,
                           range ? all.keys + 2 * i : NULL);
    }
    return range ? octo_fold_range(all.count, all.keys, range, range + 1) : OCTO_OK;
}

int octo_relu_backward(int64_t rows, int64_t cols, const uint8_t *relu_mask, const octo_tensor *a, const octo_tensor *b, float *dx) {
    CHECK_MATRIX("relu", rows, cols);
    CHECK_TENSOR("relu", a);
    if (b) CHECK_TENSOR("relu", b);
    struct pieces all;
    int status = pieces_of(rows, cols, a, b, &all);
    if (status) return status;
    OCTO_PARALLEL(i, all.count) {
        int64_t at = i * all.step;
        octo_tensor left = from(all.a, at), right = b ? from(all.b, at) : left;
        octo_table.relu_backward_f32(octo_min(all.step, all.all - at), all.width, relu_mask + at / 8, &left, b ? &right : NULL, dx + at);
    }
    return OCTO_OK;
}
