/* Activations, pooling windows, views, normalized rows, batched products: checks, slices, threads. */
#include "dispatch.h"

/* ---- activations ------------------------------------------------------------------------------------------------------------ */

int octo_activation_f32(int64_t n, int kind, const float *x, float a, float b, float *y, uint8_t *gate, float *range) {
    CHECK_COUNT("activation", n);
    OCTO_CHECK(kind >= OCTO_CLIP && kind <= OCTO_GELU_TANH, "activation: no kind %d", kind);
    OCTO_CHECK(n > 0 || !range, "activation: no elements");
    int32_t *keys = octo_scratch(OCTO_SLOT_SUMS, (n + CHUNK - 1) / CHUNK * 2 * 4);
    if (!keys) return octo_fail(OCTO_ENOMEM, "out of memory in an activation");
    FOR_EACH_CHUNK(n, {
        octo_table.activation_f32(count, kind, x + first, a, b, y + first, gate ? gate + first / 8 : NULL);
        if (range) octo_table.range_f32(count, y + first, keys + first / CHUNK * 2, keys + first / CHUNK * 2 + 1);
    });
    return range ? octo_fold_range((n + CHUNK - 1) / CHUNK, keys, range, range + 1) : OCTO_OK;
}

int octo_activation_backward_f32(int64_t n, int kind, const float *kept, const float *dy, float *dx) {
    CHECK_COUNT("activation", n);
    OCTO_CHECK(kind >= OCTO_HARD_SWISH && kind <= OCTO_GELU_TANH, "activation: no kind %d with a slope of its own", kind);
    FOR_EACH_CHUNK(n, octo_table.activation_backward_f32(count, kind, kept + first, dy + first, dx + first));
    return OCTO_OK;
}

int octo_gate_backward_f32(int64_t n, const uint8_t *gate, const float *dy, float set, float unset, float *dx) {
    CHECK_COUNT("activation", n);
    FOR_EACH_CHUNK(n, octo_table.gate_backward_f32(count, gate + first / 8, dy + first, set, unset, dx + first));
    return OCTO_OK;
}

/* ---- pooling -------------------------------------------------------------------------------------------------------------------- */

static int check_window(const octo_window *g) {
    const int64_t limit = 1 << 20;
    OCTO_CHECK(g->batch >= 1 && g->height >= 1 && g->width >= 1 && g->channels >= 1 && g->kernel_h >= 1 && g->kernel_w >= 1 && g->stride_h >= 1 &&
                   g->stride_w >= 1 && g->out_h >= 1 && g->out_w >= 1,
               "pooling: sizes and strides must be positive");
    OCTO_CHECK(g->batch <= limit && g->height <= limit && g->width <= limit && g->channels <= limit && g->out_h <= limit && g->out_w <= limit &&
                   g->kernel_h <= limit && g->kernel_w <= limit && g->pad_bottom <= limit && g->pad_right <= limit,
               "pooling: a size is larger than 2^20");
    OCTO_CHECK(g->stride_h <= INT32_MAX && g->stride_w <= INT32_MAX, "pooling: a stride is larger than 2^31 - 1");
    OCTO_CHECK((double)g->batch * (double)g->height * (double)g->width * (double)g->channels < 1099511627776.0 &&
                   (double)g->batch * (double)g->out_h * (double)g->out_w * (double)g->channels < 1099511627776.0,
               "pooling: a tensor has more than 2^40 elements");
    OCTO_CHECK(g->pad_h >= 0 && g->pad_w >= 0 && g->pad_bottom >= 0 && g->pad_right >= 0 && g->pad_h < g->kernel_h && g->pad_w < g->kernel_w,
               "pooling: the padding must be smaller than the window");
    OCTO_CHECK((g->out_h - 1) * g->stride_h - g->pad_h < g->height && (g->out_w - 1) * g->stride_w - g->pad_w < g->width,
               "pooling: a window lies beside the image");
    return OCTO_OK;
}

#define CHECK_POSITIONS(g)                                                                                                                  \
    OCTO_CHECK((g)->kernel_h <= 256 && (g)->kernel_w <= 256 && (g)->kernel_h * (g)->kernel_w <= 256, "max pooling: a window has more than 256 elements")

int octo_window_max_f32(const octo_window *g, const float *x, float *y, uint8_t *argmax) {
    int status = check_window(g);
    if (status) return status;
    CHECK_POSITIONS(g);
    EACH_ROWS(g->batch * g->out_h, g->width * g->channels * g->kernel_h, octo_table.window_max_f32(g, first, count, x, y, argmax));
    return OCTO_OK;
}

/* Whether every position of an image's windows lies in the window and on the image: dx is written there. */
static int positions_fit(const octo_window *g, const uint8_t *argmax) {
    int outside = 0;
    for (int64_t oy = 0; oy < g->out_h; oy++)
        for (int64_t ox = 0; ox < g->out_w; ox++, argmax += g->channels) {
            int64_t top = oy * g->stride_h - g->pad_h, left = ox * g->stride_w - g->pad_w;
            if (top >= 0 && left >= 0 && top + g->kernel_h <= g->height && left + g->kernel_w <= g->width) {
                int64_t positions = g->kernel_h * g->kernel_w;
                for (int64_t i = 0; i < g->channels; i++) outside |= argmax[i] >= positions;
            } else
                for (int64_t i = 0; i < g->channels; i++) {
                    int64_t y = argmax[i] / g->kernel_w, x = argmax[i] % g->kernel_w;
                    outside |= y >= g->kernel_h || top + y < 0 || top + y >= g->height || left + x < 0 || left + x >= g->width;
                }
        }
    return !outside;
}

int octo_window_max_backward_f32(const octo_window *g, const float *dy, const uint8_t *argmax, float *dx) {
    int status = check_window(g), failed = 0;
    if (status) return status;
    CHECK_POSITIONS(g);
    OCTO_PARALLEL(image, g->batch) if (!positions_fit(g, argmax + image * g->out_h * g->out_w * g->channels)) failed = 1;
    OCTO_CHECK(!failed, "max pooling: a position lies outside its window or the image");
    OCTO_PARALLEL(image, g->batch) octo_table.window_max_backward_f32(g, image, 1, dy, argmax, dx);
    return OCTO_OK;
}

int octo_window_avg_f32(const octo_window *g, int include, const float *x, float *y) {
    int status = check_window(g);
    if (status) return status;
    EACH_ROWS(g->batch * g->out_h, g->width * g->channels * g->kernel_h, octo_table.window_avg_f32(g, first, count, include, x, y));
    return OCTO_OK;
}

int octo_window_avg_backward_f32(const octo_window *g, int include, const float *dy, float *dx) {
    int status = check_window(g);
    if (status) return status;
    OCTO_PARALLEL(image, g->batch) octo_table.window_avg_backward_f32(g, image, 1, include, dy, dx);
    return OCTO_OK;
}

/* ---- views ---------------------------------------------------------------------------------------------------------------------- */

int octo_strided_f32(const octo_strided *g, int op, const float *a, const float *b, float *y) {
    double elements = 1;
    OCTO_CHECK(op >= OCTO_COPY && op <= OCTO_TIMES && (op == OCTO_COPY || b), "view: no operation %d", op);
    for (int d = 0; d < 6; d++) {
        OCTO_CHECK(g->size[d] >= 0 && g->a[d] >= 0 && g->b[d] >= 0 && g->y[d] >= 0, "view: a size or a stride is negative");
        elements *= (double)g->size[d];
    }
    OCTO_CHECK(elements < 1099511627776.0, "view: more than 2^40 elements");
    if (elements == 0) return OCTO_OK;
    int cut = 0; /* the first dimension in which y moves: slices of it write apart */
    while (cut < 5 && (g->size[cut] == 1 || !g->y[cut])) cut++;
    if (!g->y[cut]) {
        octo_table.strided_f32(g, op, a, b, y);
        return OCTO_OK;
    }
    EACH_ROWS(g->size[cut], octo_max(1, (int64_t)elements / g->size[cut]), {
        octo_strided part = *g;
        part.size[cut] = count;
        octo_table.strided_f32(&part, op, a + first * g->a[cut], b ? b + first * g->b[cut] : NULL, y + first * g->y[cut]);
    });
    return OCTO_OK;
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------ */

int octo_layernorm_f32(int64_t rows, int64_t cols, const float *x, const float *gamma, const float *beta, float eps, float *y, float *mean,
                       float *inv_std) {
    CHECK_MATRIX("layer normalization", rows, cols);
    EACH_ROWS(rows, cols, octo_table.layernorm_f32(count, cols, x + first * cols, gamma, beta, eps, y + first * cols, mean + first, inv_std + first));
    return OCTO_OK;
}

int octo_layernorm_backward_f32(int64_t rows, int64_t cols, const float *x, const float *dy, const float *gamma, const float *mean,
                                const float *inv_std, float *dx, float *products) {
    CHECK_MATRIX("layer normalization", rows, cols);
    EACH_ROWS(rows, cols, octo_table.layernorm_grad_f32(count, cols, x + first * cols, dy + first * cols, gamma, mean + first, inv_std + first,
                                                        dx + first * cols, products + first * cols));
    return OCTO_OK;
}

int octo_softmax_f32(int64_t rows, int64_t cols, const float *x, float scale, float *y) {
    CHECK_MATRIX("softmax", rows, cols);
    OCTO_CHECK(scale >= 0, "softmax: the scale %g is negative or NaN", (double)scale);
    EACH_ROWS(rows, cols, octo_table.softmax_rows_f32(count, cols, x + first * cols, scale, y + first * cols));
    return OCTO_OK;
}

int octo_softmax_backward_f32(int64_t rows, int64_t cols, const float *y, const float *dy, float scale, float *dx) {
    CHECK_MATRIX("softmax", rows, cols);
    EACH_ROWS(rows, cols, octo_table.softmax_grad_f32(count, cols, y + first * cols, dy + first * cols, scale, dx + first * cols));
    return OCTO_OK;
}

/* ---- batched products -------------------------------------------------------------------------------------------------------------- */

static int batched(const octo_batched *g, const void *a, const void *b, void *c, int element) {
    OCTO_CHECK(g->batch >= 0 && g->heads >= 0 && g->a_batch >= 0 && g->a_head >= 0 && g->b_batch >= 0 && g->b_head >= 0 && g->c_batch >= 0 &&
                   g->c_head >= 0,
               "batched product: a size or a stride is negative");
    int ta = g->transpose_a != 0, tb = g->transpose_b != 0, failed = octo_check_sizes(ta, tb, g->m, g->n, g->k, g->lda, g->ldb, g->ldc);
    if (failed) return failed;
    OCTO_PARALLEL(i, g->batch * g->heads) {
        int64_t image = i / g->heads, head = i % g->heads;
        int64_t at_a = image * g->a_batch + head * g->a_head, at_b = image * g->b_batch + head * g->b_head, at_c = image * g->c_batch + head * g->c_head;
        int status = element == 1 ? octo_gemm_s8(ta, tb, g->m, g->n, g->k, (const int8_t *)a + at_a, g->lda, (const int8_t *)b + at_b, g->ldb,
                                                 (int32_t *)c + at_c, g->ldc)
                                  : octo_gemm_f32(ta, tb, g->m, g->n, g->k, (const float *)a + at_a, g->lda, (const float *)b + at_b, g->ldb,
                                                  (float *)c + at_c, g->ldc);
        if (status) failed = 1;
    }
    return failed ? octo_fail(OCTO_ENOMEM, "out of memory in a batched product") : OCTO_OK;
}

int octo_gemm_batched_s8(const octo_batched *g, const int8_t *a, const int8_t *b, int32_t *c) { return batched(g, a, b, c, 1); }
int octo_gemm_batched_f32(const octo_batched *g, const float *a, const float *b, float *c) { return batched(g, a, b, c, 4); }
