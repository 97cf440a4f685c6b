/* Batch normalization, addition and ReLU, with what stands beside them in a network done in the same pass over memory: int32 sums
 * become float32 on the way in; the ReLU mask, codes for the backward pass and the range are made on the way out.  All of it in pieces that
 * stay in the cache, by the kernels that would do it one after the other, so that the results are theirs to the bit. */
#include "dispatch.h"

/* Rows of a piece: about CHUNK elements, a multiple of 8 (masks fill whole bytes) and of the lane rows. */
static int64_t piece_rows(int64_t cols) {
    int64_t unit = octo_max(8, LANE_ROWS(cols));
    return octo_max(1, CHUNK / cols / unit) * unit;
}

/* Rows [first, first + count) of a tensor as float32: in place, or made in `memory`. */
static const float *piece(const octo_tensor *t, int64_t cols, int64_t first, int64_t count, float *memory) {
    if (!t->sums) return t->values + first * cols;
    octo_table.dequantize_s32(count, cols, t->sums + first * cols, t->add, *t->scale, memory);
    octo_add_rest(count, cols, t->rest, memory);
    return memory;
}

/* Column values of a normalization, `count` arrays of cols floats, then 2 * blocks * cols partial sums, then `pieces` ranges. */
static float *columns_and_partials(int64_t count, int64_t blocks, int64_t cols, int64_t pieces) {
    return octo_scratch(OCTO_SLOT_SUMS, ((count + 2 * blocks) * cols + 2 * pieces) * 4);
}

/* A thread's memory: two pieces, then the lanes. */
static float *pieces_and_lanes(int64_t cols) {
    return octo_scratch(OCTO_SLOT_KERNEL, (2 * piece_rows(cols) * cols + 2 * LANE_ROWS(cols) * cols) * 4);
}

int octo_batchnorm_forward(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                           float momentum, float *running_mean, float *running_var, float *mean, float *inv_std, int relu, float *y,
                           int8_t *codes, uint8_t *relu_mask, float *range) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", x);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step, part = piece_rows(cols), pieces = (rows + part - 1) / part;
    float *scale = columns_and_partials(7, blocks, cols, pieces);
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    float *shift = scale + cols, *to_code = shift + cols, *from_zero = to_code + cols, *pivot = from_zero + cols, *sums = pivot + cols;
    float *squares = sums + cols, *partial = squares + cols, *partial2 = partial + blocks * cols;
    int32_t *keys = (int32_t *)(partial2 + blocks * cols);
    int failed = 0;
    memmove(pivot, piece(x, cols, 0, 1, pivot), (size_t)cols * sizeof *pivot); /* the first row, which may be there already */
    OCTO_PARALLEL(b, blocks) {
        float *memory = pieces_and_lanes(cols), *lanes = memory + 2 * part * cols;
        if (!memory) failed = 1;
        else {
            memset(lanes, 0, 2 * (size_t)(LANE_ROWS(cols) * cols) * sizeof *lanes);
            for (int64_t first = b * step, last = octo_min(first + step, rows); first < last; first += part) {
                int64_t count = octo_min(part, last - first);
                octo_table.column_moments_f32(count, cols, piece(x, cols, first, count, memory), pivot, lanes);
            }
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
    OCTO_PARALLEL(p, pieces) {
        float *memory = pieces_and_lanes(cols);
        int64_t first = p * part, count = octo_min(part, rows - first), n = count * cols, at = first * cols;
        if (!memory) failed = 1;
        else {
            const float *in = piece(x, cols, first, count, memory);
            if (codes) {
                octo_table.affine_f32(count, cols, in, to_code, from_zero, 0, memory + part * cols);
                octo_table.quantize_s8(n, memory + part * cols, NULL, 1, OCTO_HALF_EVEN, 0, -127, 127, codes + at);
            }
            octo_table.affine_f32(count, cols, in, scale, shift, relu, y + at);
            if (relu_mask) octo_table.relu_mask_f32(n, y + at, relu_mask + at / 8);
            if (range) octo_table.range_f32(n, y + at, keys + 2 * p, keys + 2 * p + 1);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    return range ? octo_fold_range(pieces, keys, range, range + 1) : OCTO_OK;
}

int octo_batchnorm_inference(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                             const float *running_mean, const float *running_var, int relu, float *y) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", x);
    int64_t part = piece_rows(cols), pieces = (rows + part - 1) / part;
    float *scale = columns_and_partials(2, 0, cols, 0), *shift = scale + cols;
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    int failed = 0;
    for (int64_t c = 0; c < cols; c++) {
        scale[c] = gamma[c] * (1.0f / octo_sqrt(running_var[c] + eps));
        shift[c] = beta[c] - running_mean[c] * scale[c];
    }
    OCTO_PARALLEL(p, pieces) {
        float *memory = pieces_and_lanes(cols);
        int64_t first = p * part, count = octo_min(part, rows - first);
        if (memory) octo_table.affine_f32(count, cols, piece(x, cols, first, count, memory), scale, shift, relu, y + first * cols);
        else failed = 1;
    }
    return failed ? octo_fail(OCTO_ENOMEM, "out of memory in batch normalization") : OCTO_OK;
}

/* What the backward pass knows of a piece: dy with the ReLU mask applied, and x or its normalized codes. */
struct gradient_piece {
    const float *x, *dy;
};

static struct gradient_piece gradient_piece(const octo_tensor *dy, const float *x, const int8_t *codes, const uint8_t *relu_mask, int64_t cols,
                                            int64_t first, int64_t count, float *memory) {
    int64_t n = count * cols, at = first * cols;
    struct gradient_piece made = {x ? x + at : memory, piece(dy, cols, first, count, memory + piece_rows(cols) * cols)};
    if (codes) octo_table.dequantize_s8(n, codes + at, OCTO_NORMALIZED_STEP, 0, memory);
    if (relu_mask) {
        octo_table.relu_backward_f32(n, relu_mask + at / 8, made.dy, memory + piece_rows(cols) * cols);
        made.dy = memory + piece_rows(cols) * cols;
    }
    return made;
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
    float *scale = columns_and_partials(4, blocks, cols, pieces);
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    float *shift = scale + cols, *slope = shift + cols, *center = slope + cols, *partial = center + cols, *partial2 = partial + blocks * cols;
    int32_t *keys = (int32_t *)(partial2 + blocks * cols);
    int failed = 0;
    for (int64_t c = 0; c < cols; c++) center[c] = codes ? 0 : mean[c];
    OCTO_PARALLEL(b, blocks) {
        float *memory = pieces_and_lanes(cols), *lanes = memory + 2 * part * cols;
        if (!memory) failed = 1;
        else {
            memset(lanes, 0, 2 * (size_t)(LANE_ROWS(cols) * cols) * sizeof *lanes);
            for (int64_t first = b * step, last = octo_min(first + step, rows); first < last; first += part) {
                int64_t count = octo_min(part, last - first);
                struct gradient_piece in = gradient_piece(dy, x, codes, relu_mask, cols, first, count, memory);
                octo_table.column_dots_f32(count, cols, in.x, center, in.dy, lanes);
            }
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
    OCTO_PARALLEL(p, pieces) {
        float *memory = pieces_and_lanes(cols);
        int64_t first = p * part, count = octo_min(part, rows - first), at = first * cols;
        if (!memory) failed = 1;
        else {
            struct gradient_piece in = gradient_piece(dy, x, codes, relu_mask, cols, first, count, memory);
            octo_table.batchnorm_grad_f32(count, cols, in.x, in.dy, center, scale, shift, slope, dx + at);
            if (range) octo_table.range_f32(count * cols, dx + at, keys + 2 * p, keys + 2 * p + 1);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    return range ? octo_fold_range(pieces, keys, range, range + 1) : OCTO_OK;
}

/* ---- addition and ReLU ----------------------------------------------------------------------------------------------------------- */

int octo_relu_f32(int64_t n, const float *x, float *y, uint8_t *relu_mask, float *range) {
    CHECK_COUNT("relu", n);
    OCTO_CHECK(n > 0 || !range, "relu: no elements");
    int32_t *keys = octo_scratch(OCTO_SLOT_SUMS, (n + CHUNK - 1) / CHUNK * 2 * 4);
    if (!keys) return octo_fail(OCTO_ENOMEM, "out of memory in relu");
    FOR_EACH_CHUNK(n, {
        octo_table.relu_f32(count, x + first, y + first);
        if (relu_mask) octo_table.relu_mask_f32(count, y + first, relu_mask + first / 8);
        if (range) octo_table.range_f32(count, y + first, keys + first / CHUNK * 2, keys + first / CHUNK * 2 + 1);
    });
    return range ? octo_fold_range((n + CHUNK - 1) / CHUNK, keys, range, range + 1) : OCTO_OK;
}

/* Pieces of a pass over one or two tensors: of float32 values, whose columns do not matter, CHUNK elements. */
struct pieces {
    int64_t rows, cols, step, count;
};

static struct pieces pieces_of(int64_t rows, int64_t cols, const octo_tensor *a, const octo_tensor *b) {
    struct pieces p = {rows, cols, 0, 0};
    if (!a->sums && !(b && b->sums)) p.rows = rows * cols, p.cols = 1;
    p.step = piece_rows(p.cols);
    p.count = (p.rows + p.step - 1) / p.step;
    return p;
}

/* y = a + b for rows [first, first + count); memory: two pieces. */
static void add_piece(const struct pieces *p, const octo_tensor *a, const octo_tensor *b, int64_t first, int64_t count, float *memory,
                      float *y) {
    const float *left = piece(a, p->cols, first, count, memory), *right = piece(b, p->cols, first, count, memory + p->step * p->cols);
    octo_table.add_f32(count * p->cols, left, right, y);
}

int octo_add(int64_t rows, int64_t cols, const octo_tensor *a, const octo_tensor *b, int relu, float *y, uint8_t *relu_mask, float *range) {
    CHECK_MATRIX("add", rows, cols);
    CHECK_TENSOR("add", a);
    CHECK_TENSOR("add", b);
    struct pieces p = pieces_of(rows, cols, a, b);
    int32_t *keys = octo_scratch(OCTO_SLOT_SUMS, 2 * p.count * 4);
    int failed = !keys;
    OCTO_PARALLEL(i, failed ? 0 : p.count) {
        float *memory = octo_scratch(OCTO_SLOT_KERNEL, 2 * p.step * p.cols * 4);
        int64_t first = i * p.step, count = octo_min(p.step, p.rows - first), n = count * p.cols, at = first * p.cols;
        if (!memory) failed = 1;
        else {
            add_piece(&p, a, b, first, count, memory, y + at);
            if (relu) octo_table.relu_f32(n, y + at, y + at);
            if (relu_mask) octo_table.relu_mask_f32(n, y + at, relu_mask + at / 8);
            if (range) octo_table.range_f32(n, y + at, keys + 2 * i, keys + 2 * i + 1);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in add");
    return range ? octo_fold_range(p.count, keys, range, range + 1) : OCTO_OK;
}

int octo_relu_backward(int64_t rows, int64_t cols, const uint8_t *relu_mask, const octo_tensor *a, const octo_tensor *b, float *dx) {
    CHECK_MATRIX("relu", rows, cols);
    CHECK_TENSOR("relu", a);
    if (b) CHECK_TENSOR("relu", b);
    struct pieces p = pieces_of(rows, cols, a, b);
    int failed = 0;
    OCTO_PARALLEL(i, p.count) {
        float *memory = octo_scratch(OCTO_SLOT_KERNEL, 2 * p.step * p.cols * 4);
        int64_t first = i * p.step, count = octo_min(p.step, p.rows - first), at = first * p.cols;
        if (!memory) failed = 1;
        else {
            const float *dy = b ? dx + at : piece(a, p.cols, first, count, memory);
            if (b) add_piece(&p, a, b, first, count, memory, dx + at);
            octo_table.relu_backward_f32(count * p.cols, relu_mask + at / 8, dy, dx + at);
        }
    }
    return failed ? octo_fail(OCTO_ENOMEM, "out of memory in relu") : OCTO_OK;
}
