/* Convolutions with groups or dilation: windows gathered into matrices, a product a group.  Weight gradients in int64. */
#include "dispatch.h"

#define OUT_OF_MEMORY octo_fail(OCTO_ENOMEM, "out of memory for the windows of a convolution")

/* Rows of gathered windows at once: about 256 KiB of them, a multiple of float32's blocks of k. */
static int64_t rows_at_once(int64_t k, int elem_size) {
    return octo_max(1, octo_min(4096, ((int64_t)1 << 18) / (k * elem_size)) / OCTO_BLOCK_F32) * OCTO_BLOCK_F32;
}

/* What an output pixel sees of a group of x. */
static struct octo_view view_of_x(const octo_conv *g, const void *x, int fill, int64_t group, int elem_size) {
    int64_t some = g->channels / g->groups * elem_size;
    return (struct octo_view){x, g->height, g->width, g->channels * elem_size, group * some, some, octo_out_height(g), octo_out_width(g), g->kernel_w,
                              g->stride_h, g->dilation_h, -g->pad_h, 1, g->stride_w, g->dilation_w, -g->pad_w, 1, fill};
}

/* What an input pixel's gradient sees of a group of dy. */
static struct octo_view view_of_dy(const octo_conv *g, const void *dy, int64_t group, int elem_size) {
    int64_t some = g->filters / g->groups * elem_size;
    return (struct octo_view){dy, octo_out_height(g), octo_out_width(g), g->filters * elem_size, group * some, some, g->height, g->width, g->kernel_w,
                              1, -g->dilation_h, g->pad_h, g->stride_h, 1, -g->dilation_w, g->pad_w, g->stride_w, 0};
}

/* c[row][group][n] = windows of the group times its matrix [n][k] (by_rows) or [k][n]. */
static int windows_times(const octo_conv *g, int of_dy, const void *images, int fill, const void *w, int by_rows, void *c, int elem_size) {
    int64_t across = (of_dy ? g->filters : g->channels) / g->groups, n = (of_dy ? g->channels : g->filters) / g->groups;
    int64_t taps = g->kernel_h * g->kernel_w, k = taps * across, m = g->batch * (of_dy ? g->height * g->width : octo_out_height(g) * octo_out_width(g));
    int64_t step = rows_at_once(k, elem_size), chunks = (m + step - 1) / step;
    int failed = 0;
    OCTO_PARALLEL(i, chunks * g->groups) {
        int64_t first = i / g->groups * step, group = i % g->groups;
        struct octo_view view = of_dy ? view_of_dy(g, images, group, elem_size) : view_of_x(g, images, fill, group, elem_size);
        char *windows = octo_scratch(OCTO_SLOT_LEFT, octo_min(step, m) * k * elem_size + 64);
        struct octo_job job = {.m = octo_min(step, m - first), .n = n, .b_k = by_rows ? 1 : n, .b_n = by_rows ? k : 1, .ldc = n * g->groups,
                               .b = (const char *)w + group * n * k * elem_size, .c = (char *)c + (first * g->groups + group) * n * 4,
                               .scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH)};
        if (!windows || !job.scratch) failed = 1;
        else {
            octo_table.gather_view(&view, first, job.m, 0, taps, windows);
            job.a = octo_plain_rows(windows, job.m, k, k, elem_size);
            if (elem_size == 1) octo_table.gemm_s8(&job);
            else octo_table.gemm_f32(&job);
        }
    }
    return failed ? OUT_OF_MEMORY : OCTO_OK;
}

/* ---- int8: some groups at a time as a convolution without groups, whose weights between groups are 0 --------------------------------- */

/* How many groups make about 32 channels, so that the kernels are worth more than the products with 0 cost; 0: gathered windows are better. */
static int64_t merged(const octo_conv *g, int elem_size) {
    int64_t widest = octo_max(g->channels, g->filters) / g->groups, most = octo_max(1, 32 / widest);
    if (elem_size != 1 || g->dilation_h > 1 || g->dilation_w > 1) return 0;
    while (g->groups % most || (most > 1 && g->kernel_h * g->kernel_w * widest * most > OCTO_MAX_DEPTH)) most--;
    return most;
}

/* Columns first .. first + some - 1 of rows of `cols` elements, to or from a matrix of their own. */
static void move_columns(int64_t rows, int64_t cols, int64_t first, int64_t some, void *whole, void *part, int elem_size, int back) {
    int64_t step = octo_max(1, CHUNK / some), slices = (rows + step - 1) / step;
    OCTO_PARALLEL(i, slices) {
        for (int64_t r = i * step; r < octo_min((i + 1) * step, rows); r++) {
            char *at = (char *)whole + (r * cols + first) * elem_size, *own = (char *)part + r * some * elem_size;
            memcpy(back ? at : own, back ? own : at, (size_t)(some * elem_size));
        }
    }
}

/* One pass, 0 forward, 1 dX, 2 dW, of all groups, `merge` at a time: a and b are its operands, c its result. */
static int in_merged_groups(const octo_conv *g, int64_t merge, int pass, const int8_t *x, int x_zero, const int8_t *w, const int8_t *dy, int32_t *c) {
    octo_conv part = *g;
    int64_t cg = g->channels / g->groups, fg = g->filters / g->groups, taps = g->kernel_h * g->kernel_w;
    part.groups = 1, part.channels = merge * cg, part.filters = merge * fg;
    int64_t pixels = g->batch * g->height * g->width, outputs = g->batch * octo_out_height(g) * octo_out_width(g);
    int64_t size_x = pixels * part.channels, size_y = outputs * part.filters, size_w = part.filters * taps * part.channels;
    int64_t result = pass == 0 ? size_y : pass == 1 ? size_x : size_w;
    int8_t *memory = octo_scratch(OCTO_SLOT_SLICE, size_x + size_y + size_w);
    int32_t *made = octo_scratch(OCTO_SLOT_RESULT, result * 4);
    if (!memory || !made) return OUT_OF_MEMORY;
    int8_t *some_x = memory, *some_dy = memory + size_x, *some_w = memory + size_x + size_y;
    int status = OCTO_OK;
    for (int64_t group = 0; group < g->groups && !status; group += merge) {
        if (pass != 1) move_columns(pixels, g->channels, group * cg, part.channels, (void *)x, some_x, 1, 0);
        if (pass != 0) move_columns(outputs, g->filters, group * fg, part.filters, (void *)dy, some_dy, 1, 0);
        if (pass != 2) memset(some_w, 0, (size_t)size_w);
        for (int64_t f = 0; pass != 2 && f < part.filters; f++)
            for (int64_t t = 0; t < taps; t++)
                memcpy(some_w + (f * taps + t) * part.channels + f / fg * cg, w + ((group * fg + f) * taps + t) * cg, (size_t)cg);
        if (pass == 0) {
            status = octo_conv_forward_s8(&part, some_x, x_zero, some_w, made);
            move_columns(outputs, g->filters, group * fg, part.filters, c, made, 4, 1);
        } else if (pass == 1) {
            status = octo_conv_input_grad_s8(&part, some_dy, some_w, made);
            move_columns(pixels, g->channels, group * cg, part.channels, c, made, 4, 1);
        } else {
            status = octo_conv_weight_grad_s8(&part, some_x, x_zero, some_dy, made);
            for (int64_t f = 0; f < part.filters; f++)
                for (int64_t t = 0; t < taps; t++)
                    memcpy(c + ((group * fg + f) * taps + t) * cg, made + (f * taps + t) * part.channels + f / fg * cg, (size_t)cg * 4);
        }
    }
    return status;
}

int octo_grouped_forward(const octo_conv *g, const void *x, int x_zero, const void *w, void *y, int elem_size) {
    int64_t merge = merged(g, elem_size);
    if (merge) return in_merged_groups(g, merge, 0, x, x_zero, w, NULL, y);
    return windows_times(g, 0, x, x_zero, w, 1, y, elem_size);
}

/* w of a group, transposed: [kernel_h kernel_w filter][channel]. */
int octo_grouped_input_grad(const octo_conv *g, const void *dy, const void *w, void *dx, int elem_size) {
    int64_t fg = g->filters / g->groups, cg = g->channels / g->groups, taps = g->kernel_h * g->kernel_w, merge = merged(g, elem_size);
    if (merge) return in_merged_groups(g, merge, 1, NULL, 0, w, dy, dx);
    size_t pixel = (size_t)(cg * elem_size);
    char *transposed = octo_scratch(OCTO_SLOT_RIGHT, g->filters * taps * cg * elem_size);
    if (!transposed) return OUT_OF_MEMORY;
    for (int64_t group = 0; group < g->groups; group++)
        for (int64_t t = 0; t < taps; t++)
            for (int64_t f = 0; f < fg; f++)
                memcpy(transposed + ((group * taps + t) * fg + f) * (int64_t)pixel, (const char *)w + ((group * fg + f) * taps + t) * (int64_t)pixel, pixel);
    return windows_times(g, 1, dy, 0, transposed, 0, dx, elem_size);
}

/* dw of a group = its dy, transposed, times its windows.  With few groups its taps are cut between the threads; each adds all rows in order. */
int octo_grouped_weight_grad(const octo_conv *g, const void *x, int x_zero, const void *dy, void *dw, int elem_size) {
    int64_t fg = g->filters / g->groups, cg = g->channels / g->groups, taps = g->kernel_h * g->kernel_w, k = taps * cg;
    int64_t m = g->batch * octo_out_height(g) * octo_out_width(g), step = octo_min(rows_at_once(k, elem_size), rows_at_once(fg, elem_size));
    int64_t merge = merged(g, elem_size);
    if (merge) return in_merged_groups(g, merge, 2, x, x_zero, NULL, dy, dw);
    int64_t parts = octo_min(taps, (octo_threads() + g->groups - 1) / g->groups);
    int failed = 0;
    OCTO_PARALLEL(i, g->groups * parts) {
        int64_t group = i / parts, part = i % parts, tap0 = taps * part / parts, tap1 = taps * (part + 1) / parts, n = (tap1 - tap0) * cg;
        struct octo_view view = view_of_x(g, x, x_zero, group, elem_size);
        char *left = octo_scratch(OCTO_SLOT_LEFT, step * fg * elem_size), *windows = octo_scratch(OCTO_SLOT_PADDED, step * n * elem_size + 64);
        struct octo_job job = {.m = fg, .n = n, .b_k = n, .b_n = 1, .ldc = k, .b = windows, .c = (char *)dw + (group * fg * k + tap0 * cg) * 4,
                               .scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH)};
        if (!left || !windows || !job.scratch) failed = 1;
        else
            for (int64_t first = 0; first < m; first += step) {
                int64_t depth = octo_min(step, m - first);
                octo_transpose(depth, fg, (const char *)dy + (first * g->filters + group * fg) * elem_size, g->filters, left, depth, elem_size);
                octo_table.gather_view(&view, first, depth, tap0, tap1, windows);
                job.a = octo_plain_rows(left, fg, depth, depth, elem_size);
                job.accumulate = first > 0;
                if (elem_size == 1) octo_table.gemm_s8(&job);
                else octo_table.gemm_f32(&job);
            }
    }
    return failed ? OUT_OF_MEMORY : OCTO_OK;
}

/* ---- weight gradients of any length ------------------------------------------------------------------------------------------------ */

typedef int weight_grad(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int32_t *dw);

/* So many products of int8 codes are exact in int32: 131,071 * 2^14 < 2^31. */
enum { EXACT_TERMS = 131071 };

static int add_part(weight_grad *call, const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int64_t size, int64_t *dw) {
    int32_t *part = octo_scratch(OCTO_SLOT_PART, size * 4);
    if (!part) return OUT_OF_MEMORY;
    int status = call(g, x, x_zero, dy, part);
    for (int64_t i = 0; i < size && !status; i++) dw[i] += part[i];
    return status;
}

/* Whole images, or of images with more output pixels some lines.  status: of the check of g. */
static int long_weight_grad(int status, weight_grad *call, const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int64_t size,
                            int64_t *dw) {
    if (status) return status;
    int64_t out_h = octo_out_height(g), out_w = octo_out_width(g), image = g->height * g->width * g->channels, gradient = out_h * out_w * g->filters;
    int64_t some = EXACT_TERMS / (out_h * out_w), lines = EXACT_TERMS / out_w, extent = (g->kernel_h - 1) * g->dilation_h + 1;
    OCTO_CHECK(lines >= 1, "convolution: a line of %lld outputs is too long for exact sums", (long long)out_w);
    memset(dw, 0, (size_t)size * sizeof *dw);
    octo_conv part = *g;
    for (int64_t i = 0; some && i < g->batch && !status; i += some) {
        part.batch = octo_min(some, g->batch - i);
        status = add_part(call, &part, x + i * image, x_zero, dy + i * gradient, size, dw);
    }
    part.batch = 1;
    for (int64_t i = 0; !some && i < g->batch; i++)
        for (int64_t first = 0; first < out_h && !status; first += lines) {
            int64_t count = octo_min(lines, out_h - first), top = first * g->stride_h - g->pad_h, bottom = (first + count - 1) * g->stride_h - g->pad_h + extent;
            int64_t from = octo_max(top, 0), to = octo_min(bottom, g->height);
            part.height = to - from, part.pad_h = from - top, part.pad_bottom = bottom - to;
            status = add_part(call, &part, x + i * image + from * g->width * g->channels, x_zero, dy + i * gradient + first * out_w * g->filters, size, dw);
        }
    return status;
}

int octo_conv_weight_grad_s64(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int64_t *dw) {
    OCTO_CHECK(g->groups >= 1, "convolution: no groups");
    return long_weight_grad(octo_check_conv(g), octo_conv_weight_grad_s8, g, x, x_zero, dy,
                            g->filters * g->kernel_h * g->kernel_w * (g->channels / g->groups), dw);
}

int octo_depthwise_weight_grad_s64(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int64_t *dw) {
    return long_weight_grad(octo_check_depthwise(g), octo_depthwise_weight_grad_s8, g, x, x_zero, dy, g->channels * g->kernel_h * g->kernel_w, dw);
}

int octo_dequantize_rows_s64(int64_t rows, int64_t cols, const int64_t *acc, const int32_t *sums, int zero, float scale, float *y) {
    CHECK_MATRIX("dequantize", rows, cols);
    EACH_ROWS(rows, cols, {
        for (int64_t r = first; r < first + count; r++)
            for (int64_t c = 0; c < cols; c++) y[r * cols + c] = (float)(acc[r * cols + c] - (int64_t)zero * sums[r]) * scale;
    });
    return OCTO_OK;
}
