/* Depthwise convolutions: argument checks, slices of rows. */
#include "dispatch.h"

int octo_check_depthwise(const octo_conv *g) {
    octo_conv grouped = *g; /* its sums are of one channel */
    grouped.groups = g->groups == 1 ? g->channels : g->groups, grouped.filters = g->channels;
    int status = octo_check_conv(&grouped);
    if (status) return status;
    OCTO_CHECK(!octo_is_grouped(g), "depthwise convolution: groups and dilation belong to octo_conv_forward");
    OCTO_CHECK(g->filters == g->channels, "depthwise convolution: %lld filters for %lld channels, expected as many",
               (long long)g->filters, (long long)g->channels);
    OCTO_CHECK(g->kernel_h * g->kernel_w <= OCTO_DEPTHWISE_TAPS, "depthwise convolution: a %lld x %lld kernel has more than %d taps",
               (long long)g->kernel_h, (long long)g->kernel_w, OCTO_DEPTHWISE_TAPS);
    return OCTO_OK;
}

/* The weights [channel][tap] as the kernels want them, [tap][channel]. */
static void *taps_first(const octo_conv *g, const void *w, int elem_size) {
    int64_t taps = g->kernel_h * g->kernel_w;
    void *out = octo_scratch(OCTO_SLOT_RIGHT, taps * g->channels * elem_size);
    if (out) octo_transpose(g->channels, taps, w, taps, out, g->channels, elem_size);
    return out;
}

/* A pixel of padding. */
static int8_t *zero_pixel(const octo_conv *g, int x_zero) {
    int8_t *out = octo_scratch(OCTO_SLOT_PADDED, g->channels);
    if (out) memset(out, x_zero, (size_t)g->channels);
    return out;
}

#define OUT_OF_MEMORY octo_fail(OCTO_ENOMEM, "out of memory in a depthwise convolution")

/* int8: the kernels set out with making factors for all channels, so slices of rows are larger than CHUNK where there are enough. */
static int64_t rows_of_slice(int64_t rows, int64_t cols) {
    return octo_max(1, octo_max(CHUNK / cols, octo_min(4 * CHUNK / cols, rows / (4 * octo_threads()))));
}

/* The call runs for rows first .. first + count - 1 of each slice of `step` with `scratch`; `failed` where there is no memory for that. */
#define EACH_ROWS_S8(rows, step, failed, call)                                                                       \
    do {                                                                                                             \
        int64_t step_ = step, slices_ = ((rows) + step_ - 1) / step_;                                                \
        OCTO_PARALLEL(slice_, slices_) {                                                                             \
            int64_t first = slice_ * step_, count = octo_min(step_, (rows) - first);                                 \
            void *scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_DEPTHWISE_SCRATCH);                                  \
            if (!scratch) failed = 1;                                                                                \
            else call;                                                                                               \
        }                                                                                                            \
    } while (0)

int octo_depthwise_forward_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *w, int32_t *y) {
    CHECK_CODE(x_zero);
    int status = octo_check_depthwise(g), failed = 0;
    if (status) return status;
    const int8_t *taps = taps_first(g, w, 1), *outside = zero_pixel(g, x_zero);
    if (!taps || !outside) return OUT_OF_MEMORY;
    int64_t rows = g->batch * octo_out_height(g);
    EACH_ROWS_S8(rows, rows_of_slice(rows, octo_out_width(g) * g->channels), failed,
                 octo_table.depthwise_s8(g, first, count, x, outside, taps, scratch, y));
    return failed ? OUT_OF_MEMORY : OCTO_OK;
}

int octo_depthwise_forward_f32(const octo_conv *g, const float *x, const float *w, float *y) {
    int status = octo_check_depthwise(g);
    if (status) return status;
    const float *taps = taps_first(g, w, 4);
    if (!taps) return OUT_OF_MEMORY;
    EACH_ROWS(g->batch * octo_out_height(g), octo_out_width(g) * g->channels, octo_table.depthwise_f32(g, first, count, x, NULL, taps, y));
    return OCTO_OK;
}

int octo_depthwise_input_grad_s8(const octo_conv *g, const int8_t *dy, const int8_t *w, int32_t *dx) {
    int status = octo_check_depthwise(g), failed = 0;
    if (status) return status;
    const int8_t *taps = taps_first(g, w, 1), *zeros = zero_pixel(g, 0);
    if (!taps || !zeros) return OUT_OF_MEMORY;
    int64_t rows = g->batch * g->height;
    EACH_ROWS_S8(rows, rows_of_slice(rows, g->width * g->channels), failed,
                 octo_table.depthwise_input_grad_s8(g, first, count, dy, zeros, taps, scratch, dx));
    return failed ? OUT_OF_MEMORY : OCTO_OK;
}

int octo_depthwise_input_grad_f32(const octo_conv *g, const float *dy, const float *w, float *dx) {
    int status = octo_check_depthwise(g);
    if (status) return status;
    const float *taps = taps_first(g, w, 4);
    if (!taps) return OUT_OF_MEMORY;
    EACH_ROWS(g->batch * g->height, g->width * g->channels, octo_table.depthwise_input_grad_f32(g, first, count, dy, taps, dx));
    return OCTO_OK;
}

/* float32: sums of slices of rows of dy, [slice][tap][channel], each slice about CHUNK elements, whose borders are part of the
 * definition. */
static void *slice_sums(const octo_conv *g, int64_t *step, int64_t *slices) {
    int64_t rows = g->batch * octo_out_height(g);
    *step = octo_max(1, CHUNK / (octo_out_width(g) * g->channels));
    *slices = (rows + *step - 1) / *step;
    return octo_scratch(OCTO_SLOT_SUMS, (*slices + 1) * g->kernel_h * g->kernel_w * g->channels * 4);
}

int octo_depthwise_weight_grad_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int32_t *dw) {
    CHECK_CODE(x_zero);
    int status = octo_check_depthwise(g), failed = 0;
    if (status) return status;
    int64_t taps = g->kernel_h * g->kernel_w, size = taps * g->channels, rows = g->batch * octo_out_height(g), cols = octo_out_width(g) * g->channels;
    int64_t step = rows_of_slice(rows, cols), slices = (rows + step - 1) / step; /* once: another thread may set the number of threads */
    const int8_t *outside = zero_pixel(g, x_zero);
    uint32_t *sums = octo_scratch(OCTO_SLOT_SUMS, slices * size * (int64_t)sizeof *sums);
    if (!outside || !sums) return OUT_OF_MEMORY;
    EACH_ROWS_S8(rows, step, failed,
                 octo_table.depthwise_weight_grad_s8(g, first, count, x, outside, dy, scratch, (int32_t *)sums + first / step * size));
    for (int64_t i = 1; i < slices; i++)
        for (int64_t j = 0; j < size; j++) sums[j] += sums[i * size + j];
    for (int64_t t = 0; t < taps; t++)
        for (int64_t c = 0; c < g->channels; c++) dw[c * taps + t] = (int32_t)sums[t * g->channels + c];
    return failed ? OUT_OF_MEMORY : OCTO_OK;
}

int octo_depthwise_weight_grad_f32(const octo_conv *g, const float *x, const float *dy, float *dw) {
    int status = octo_check_depthwise(g);
    if (status) return status;
    int64_t step, slices, size = g->kernel_h * g->kernel_w * g->channels, rows = g->batch * octo_out_height(g);
    float *sums = slice_sums(g, &step, &slices), *total = sums ? sums + slices * size : NULL;
    if (!sums) return OUT_OF_MEMORY;
    OCTO_PARALLEL(i, slices) {
        octo_table.depthwise_weight_grad_f32(g, i * step, octo_min(step, rows - i * step), x, NULL, dy, sums + i * size);
    }
    octo_add_blocks(slices, size, sums, total);
    octo_transpose(g->kernel_h * g->kernel_w, g->channels, total, g->channels, dw, g->kernel_h * g->kernel_w, 4);
    return OCTO_OK;
}
