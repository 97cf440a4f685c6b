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

/* ---- bands of images: lines under whole rows of a pooling's windows, an image's last with the lines that no window sees.  About BAND
 * elements, which stay in the cache from one kernel to the next. */

enum { BAND = 4096 };

struct bands {
    const octo_pool *pool;
    int64_t lines, each, count; /* lines of a band but an image's last, bands of an image and of all */
};

/* g: of its part of the image alone.  first, pixels: rows of x; at, n: elements of x; pooled, windows: elements of y. */
struct band {
    octo_pool g;
    int64_t first, pixels, at, n, pooled, windows;
};

static struct bands bands_of(const octo_pool *g) {
    int64_t out_h = g->height / g->kernel, most = octo_min(octo_max(1, BAND / (g->kernel * g->width * g->channels)), out_h);
    int64_t rows = (out_h - 1) / ((out_h - 1) / most + 1) + 1, each = (out_h - 1) / rows + 1;
    return (struct bands){g, rows * g->kernel, each, g->batch * each};
}

static struct band band_at(const struct bands *bands, int64_t index) {
    octo_pool g = *bands->pool;
    int64_t image = index / bands->each, top = index % bands->each * bands->lines, across = g.width / g.kernel * g.channels;
    int64_t first = (image * g.height + top) * g.width, pooled = (image * (g.height / g.kernel) + top / g.kernel) * across;
    g.height = (index + 1) % bands->each ? bands->lines : g.height - top, g.batch = 1;
    int64_t pixels = g.height * g.width;
    return (struct band){g, first, pixels, first * g.channels, pixels * g.channels, pooled, g.height / g.kernel * across};
}

/* The band of a row of x. */
static int64_t band_of(const struct bands *bands, int64_t row) {
    const octo_pool *g = bands->pool;
    int64_t line = row / g->width;
    return line / g->height * bands->each + octo_min(line % g->height / bands->lines, bands->each - 1);
}

static int check_side_by_side(const octo_pool *g) {
    int status = octo_check_pool(g);
    if (status) return status;
    OCTO_CHECK(g->stride == g->kernel, "batch normalization: the windows of the max pooling behind it must lie side by side");
    return OCTO_OK;
}

/* Of a band: values are max pooled. */
static void pool_band(const struct band *band, const float *values, float *y, uint8_t *argmax, int32_t *range) {
    octo_table.maxpool_f32(&band->g, 0, band->g.height / band->g.kernel, values, 1, y + band->pooled, argmax + band->pooled);
    if (range) octo_table.range_f32(band->windows, y + band->pooled, range, range + 1);
}

/* Of a band: dy where a window has its largest, else 0, to dx[band->n]; memory: for band->windows elements. */
static void unpool_band(const struct band *band, const octo_tensor *dy, const uint8_t *argmax, float *memory, float *dx) {
    if (dy->sums) {
        int64_t cols = band->g.channels, rows = band->windows / cols;
        octo_table.dequantize_s32(rows, cols, dy->sums + band->pooled, dy->add, *dy->scale, memory);
        octo_add_rest(rows, cols, dy->rest, memory);
    }
    octo_table.maxpool_backward_f32(&band->g, 0, band->g.height, dy->sums ? memory : dy->values + band->pooled, argmax + band->pooled, dx);
}

/* A band's and its windows' elements. */
static float *band_memory(const struct bands *bands) {
    struct band largest = band_at(bands, bands->each - 1);
    int64_t n = octo_max(largest.n, bands->lines * bands->pool->width * bands->pool->channels);
    return octo_scratch(OCTO_SLOT_PART, 2 * n * 4);
}

/* ---- batch normalization ---- */

/* pool, argmax: of a max pooling behind the ReLU, or NULL: y is what it makes then. */
static int forward(const octo_pool *pool, int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                   float momentum, float *running_mean, float *running_var, float *mean, float *inv_std, int relu, float *y, uint8_t *argmax,
                   int8_t *codes, uint8_t *relu_mask, float *range) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", x);
    struct bands bands = {0};
    if (pool) bands = bands_of(pool);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step, part = piece_rows(cols);
    int64_t pieces = pool ? bands.count : (rows + part - 1) / part;
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
        struct band band = {.at = p * part * cols, .n = octo_min(part, rows - p * part) * cols};
        if (pool) band = band_at(&bands, p);
        float *values = pool ? band_memory(&bands) : y + band.at;
        int32_t *found = range ? keys + 2 * p : NULL;
        octo_tensor piece = from(in, band.at);
        if (!values) failed = 1;
        else {
            octo_table.normalize_f32(band.n, width, &piece, &how, values, codes ? codes + band.at : NULL,
                                     relu_mask ? relu_mask + band.at / 8 : NULL, pool ? NULL : found);
            if (pool) pool_band(&band, values, y, argmax, found);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    return range ? octo_fold_range(pieces, keys, range, range + 1) : OCTO_OK;
}

int octo_batchnorm_forward(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                           float momentum, float *running_mean, float *running_var, float *mean, float *inv_std, int relu, float *y,
                           int8_t *codes, uint8_t *relu_mask, float *range) {
    return forward(NULL, rows, cols, x, gamma, beta, eps, momentum, running_mean, running_var, mean, inv_std, relu, y, NULL, codes, relu_mask,
                   range);
}

int octo_batchnorm_maxpool_forward(const octo_pool *g, const octo_tensor *x, const float *gamma, const float *beta, float eps, float momentum,
                                   float *running_mean, float *running_var, float *mean, float *inv_std, float *y, uint8_t *argmax,
                                   int8_t *codes, float *range) {
    int status = check_side_by_side(g);
    if (status) return status;
    return forward(g, g->batch * g->height * g->width, g->channels, x, gamma, beta, eps, momentum, running_mean, running_var, mean, inv_std, 0,
                   y, argmax, codes, NULL, range);
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

/* Adds the dots of `rows` rows, the first of which falls in lane row `first` modulo their number. */
static void add_dots(int64_t first, int64_t rows, int64_t cols, struct octo_gradient part, float *lanes) {
    int64_t lane_rows = LANE_ROWS(cols), width = lane_rows * cols, lane = first % lane_rows, head = lane ? octo_min(rows, lane_rows - lane) : 0;
    if (head) octo_table.column_dots_f32(head * cols, width, &part, lanes + lane * cols);
    part = gradient_from(part, head * cols);
    if (rows > head) octo_table.column_dots_f32((rows - head) * cols, width, &part, lanes);
}

/* With s = gamma inv_std, xn = (x - mean) inv_std:
 * dx = s dy - s mean(dy) - xn s mean(dy xn);  dgamma = sum(dy xn);  dbeta = sum(dy)  (Ioffe & Szegedy 2015). */
static int backward(const octo_pool *pool, int64_t rows, int64_t cols, const octo_tensor *dy, const uint8_t *argmax, const float *x,
                    const int8_t *codes, const uint8_t *relu_mask, const float *gamma, const float *mean, const float *inv_std, float *dx,
                    float *dgamma, float *dbeta, float *range) {
    CHECK_MATRIX("batch normalization", rows, cols);
    CHECK_TENSOR("batch normalization", dy);
    OCTO_CHECK(!x != !codes, "batch normalization: x or its codes");
    struct bands bands = {0};
    if (pool) bands = bands_of(pool);
    int64_t step = octo_block_rows(cols), blocks = (rows + step - 1) / step, part = piece_rows(cols);
    int64_t pieces = pool ? bands.count : (rows + part - 1) / part, laid = octo_laid(cols), width = LANE_ROWS(cols) * cols;
    float *scale = columns_and_partials(4, blocks, cols, pieces);
    if (!scale) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    float *shift = scale + laid, *slope = shift + laid, *center = slope + laid, *columns = center + laid, *partial = columns + 2 * laid;
    float *partial2 = partial + blocks * cols;
    int32_t *keys = (int32_t *)(partial2 + blocks * cols);
    octo_lay(cols, mean, center);
    const struct octo_gradient all = {x, center, codes, pool ? (octo_tensor){.values = dx} : laid_out(dy, cols, columns), relu_mask};
    int failed = 0;
    OCTO_PARALLEL(b, blocks) {
        int64_t first = b * step, end = octo_min(rows, first + step);
        float *lanes = zero_lanes(cols), *values = pool ? band_memory(&bands) : dx;
        if (!lanes || !values) failed = 1;
        else {
            if (!pool) add_dots(0, end - first, cols, gradient_from(all, first * cols), lanes);
            for (int64_t i = pool ? band_of(&bands, first) : bands.count; i < bands.count; i++) {
                struct band band = band_at(&bands, i);
                if (band.first >= end) break;
                int64_t from_row = octo_max(first, band.first), to_row = octo_min(end, band.first + band.pixels);
                unpool_band(&band, dy, argmax, values + band.n, values);
                struct octo_gradient rest = gradient_from(all, from_row * cols);
                rest.dy = (octo_tensor){.values = values + (from_row - band.first) * cols};
                add_dots(from_row - first, to_row - from_row, cols, rest, lanes);
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
    for (int i = 0; i < 3; i++) octo_lay(cols, scale + i * laid, scale + i * laid);
    OCTO_PARALLEL(p, pieces) {
        struct band band = {.at = p * part * cols, .n = octo_min(part, rows - p * part) * cols};
        if (pool) band = band_at(&bands, p);
        struct octo_gradient piece = gradient_from(all, band.at);
        float *memory = pool ? band_memory(&bands) : dx;
        if (!memory) failed = 1;
        else {
            if (pool) {
                unpool_band(&band, dy, argmax, memory + band.n, memory);
                piece.dy.values = memory;
            }
            octo_table.batchnorm_grad_f32(band.n, width, &piece, scale, shift, slope, dx + band.at, range ? keys + 2 * p : NULL);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory in batch normalization");
    return range ? octo_fold_range(pieces, keys, range, range + 1) : OCTO_OK;
}

int octo_batchnorm_backward(int64_t rows, int64_t cols, const octo_tensor *dy, const float *x, const int8_t *codes, const uint8_t *relu_mask,
                            const float *gamma, const float *mean, const float *inv_std, float *dx, float *dgamma, float *dbeta,
                            float *range) {
    return backward(NULL, rows, cols, dy, NULL, x, codes, relu_mask, gamma, mean, inv_std, dx, dgamma, dbeta, range);
}

int octo_batchnorm_maxpool_backward(const octo_pool *g, const octo_tensor *dy, const uint8_t *argmax, const float *x, const int8_t *codes,
                                    const float *gamma, const float *mean, const float *inv_std, float *dx, float *dgamma, float *dbeta,
                                    float *range) {
    int status = check_side_by_side(g);
    if (status) return status;
    return backward(g, g->batch * g->height * g->width, g->channels, dy, argmax, x, codes, NULL, gamma, mean, inv_std, dx, dgamma, dbeta,
                    range);
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
