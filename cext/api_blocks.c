/* Codes with a scale for each block of OCTO_SIDE x OCTO_SIDE: quantization, matrix products. */
#include "dispatch.h"

#define OUT_OF_MEMORY "out of memory for a product of blocks"
#define BLOCKS(size) (((size) + OCTO_SIDE - 1) / OCTO_SIDE)

/* The product of blocks for rows row0 .. row1 - 1 and columns col0 .. col1 - 1 of c, all borders multiples of OCTO_SIDE or ends: in tiles
 * whose int32 sums stay in the cache, OCTO_SIDE steps of k at a time.  b is [k][n]; transpose_b tells how its scales lie.  c begins
 * with row row0. */
static int product_tiles(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, const float *scales_a,
                         const int8_t *b, const float *scales_b, float *c, int64_t row0, int64_t row1, int64_t col0, int64_t col1) {
    enum { WIDE = 256, TALL = 4032, TILE = 24576 }; /* 96 KiB of sums; TALL: a multiple of 96, as all heights */
    int64_t wide = octo_min(WIDE, col1 - col0), tall = octo_min(octo_max(TILE / wide / 96 * 96, 96), TALL), blocks = BLOCKS(k);
    int32_t *sums = octo_scratch(OCTO_SLOT_SUMS, octo_min(tall, row1 - row0) * wide * 4);
    int8_t *left = transpose_a ? octo_scratch(OCTO_SLOT_LEFT, octo_min(tall, row1 - row0) * OCTO_SIDE) : NULL;
    struct octo_job job = {.b_k = n, .b_n = 1, .c = sums, .scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH)};
    if (!sums || !job.scratch || (transpose_a && !left)) return OCTO_ENOMEM;
    int64_t bands = BLOCKS(m), strips = BLOCKS(n);
    for (int64_t r = row0; r < row1; r += tall)
        for (int64_t j = col0; j < col1; j += wide) {
            job.m = octo_min(tall, row1 - r), job.n = job.ldc = octo_min(wide, col1 - j);
            for (int64_t p = 0; p < blocks; p++) {
                int64_t from = p * OCTO_SIDE, depth = octo_min(OCTO_SIDE, k - from);
                float row_scales[TALL / OCTO_SIDE], col_scales[WIDE / OCTO_SIDE];
                for (int64_t i = 0; i < BLOCKS(job.m); i++)
                    row_scales[i] = transpose_a ? scales_a[p * bands + r / OCTO_SIDE + i] : scales_a[(r / OCTO_SIDE + i) * blocks + p];
                for (int64_t i = 0; i < BLOCKS(job.n); i++)
                    col_scales[i] = transpose_b ? scales_b[(j / OCTO_SIDE + i) * blocks + p] : scales_b[p * strips + j / OCTO_SIDE + i];
                if (transpose_a) {
                    octo_table.transpose_s8(depth, job.m, a + from * m + r, m, left, depth);
                    job.a = octo_plain_rows(left, job.m, depth, depth, 1);
                } else
                    job.a = octo_plain_rows(a + r * k + from, job.m, depth, k, 1);
                job.b = b + from * n + j;
                octo_table.gemm_s8(&job);
                octo_table.add_scaled_s32(job.m, job.n, sums, row_scales, col_scales, p > 0, c + (r - row0) * n + j, n);
            }
        }
    return OCTO_OK;
}

int octo_gemm_blocks_s8(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, const float *scales_a,
                        const int8_t *b, const float *scales_b, float *c) {
    int status = octo_check_sizes(transpose_a, transpose_b, m, n, k, transpose_a ? m : k, transpose_b ? k : n, n);
    if (status || !m || !n) return status;
    if (!k) memset(c, 0, (size_t)(m * n) * sizeof *c);
    int8_t *right = transpose_b ? octo_scratch(OCTO_SLOT_RIGHT, n * k) : NULL; /* turned once: its parts are packed for every tile */
    if (transpose_b && !right) return octo_fail(OCTO_ENOMEM, OUT_OF_MEMORY);
    if (transpose_b) octo_table.transpose_s8(n, k, b, k, right, n);
    int by_rows = m >= n, failed = 0;
    int64_t extent = by_rows ? m : n, unit = by_rows ? 96 : 64, units = (extent + unit - 1) / unit, slices = octo_min(units, octo_threads());
    OCTO_PARALLEL(i, slices) {
        int64_t from = units * i / slices * unit, to = octo_min(units * (i + 1) / slices * unit, extent);
        if (product_tiles(transpose_a, transpose_b, m, n, k, a, scales_a, right ? right : b, scales_b, by_rows ? c + from * n : c, by_rows ? from : 0,
                          by_rows ? to : m, by_rows ? 0 : from, by_rows ? n : to)) failed = 1;
    }
    return failed ? octo_fail(OCTO_ENOMEM, OUT_OF_MEMORY) : OCTO_OK;
}

int octo_conv_input_grad_blocks_s8(const octo_conv *g, const int8_t *dy, const float *scales_dy, const int8_t *w, const float *scales_w,
                                   float *dx) {
    int status = octo_check_conv(g);
    if (status) return status;
    OCTO_CHECK(!octo_is_grouped(g), "convolution of blocks: no groups and no dilation");
    int64_t pixels = octo_out_height(g) * octo_out_width(g), n = g->kernel_h * g->kernel_w * g->channels, m = g->batch * pixels;
    int64_t some = octo_max(1, 131072 / (pixels * n)), parts = (g->batch + some - 1) / some, slices = octo_min(parts, octo_threads());
    int failed = 0; /* some images at a time, whose windows stay in the cache; their rows with those that share a block with them */
    OCTO_PARALLEL(s, slices) {
        float *windows = octo_scratch(OCTO_SLOT_PADDED, (octo_min(some, g->batch) * pixels + 2 * OCTO_SIDE) * n * 4);
        int status_here = windows ? OCTO_OK : OCTO_ENOMEM;
        for (int64_t part = parts * s / slices; part < parts * (s + 1) / slices && !status_here; part++) {
            int64_t image = part * some, images = octo_min(some, g->batch - image), row = image * pixels / OCTO_SIDE * OCTO_SIDE;
            int64_t end = octo_min(BLOCKS((image + images) * pixels) * OCTO_SIDE, m);
            status_here = product_tiles(0, 0, m, n, g->filters, dy, scales_dy, w, scales_w, windows, row, end, 0, n);
            if (!status_here)
                octo_table.scatter_windows_f32(g, 0, images * g->height, windows + (image * pixels - row) * n,
                                               dx + image * g->height * g->width * g->channels);
        }
        if (status_here) failed = 1;
    }
    return failed ? octo_fail(OCTO_ENOMEM, OUT_OF_MEMORY) : OCTO_OK;
}

/* ---- quantization ------------------------------------------------------------------------------------------------------------ */

/* Bands of blocks, from x or, where these are given, from windows; about CHUNK elements at a time. */
static int quantize_bands(int64_t rows, int64_t cols, const float *x, const struct octo_rows *windows, int half, int rounding, uint64_t seed,
                          uint32_t step, uint32_t tensor, int8_t *q, float *scales, float *y) {
    int64_t bands = BLOCKS(rows), strips = BLOCKS(cols), group = octo_max(1, CHUNK / (OCTO_SIDE * cols)), slices = (bands + group - 1) / group;
    int failed = 0, infinite = 0;
    OCTO_PARALLEL(s, slices) {
        float *units = octo_scratch(OCTO_SLOT_LEFT, OCTO_SIDE * cols * 4);
        int8_t *codes = q ? NULL : octo_scratch(OCTO_SLOT_RIGHT, OCTO_SIDE * cols);
        int enough = units && (q || codes);
        if (!enough) failed = 1;
        for (int64_t band = s * group; enough && band < octo_min((s + 1) * group, bands); band++) {
            int64_t row = band * OCTO_SIDE, height = octo_min(OCTO_SIDE, rows - row), first = row * cols, count = height * cols;
            float *scale = scales + band * strips;
            const float *from = windows ? units : x + first;
            int8_t *to = q ? q + first : codes;
            if (windows) octo_table.gather_rows(windows, row, height, 4, units, cols);
            octo_table.block_scales_f32(height, cols, from, half, scale);
            for (int64_t i = 0; i < strips; i++)
                if (scale[i] > 3.4e38f) infinite = 1;
            octo_table.divide_blocks_f32(height, cols, from, scale, units);
            if (rounding == OCTO_STOCHASTIC)
                WITH_WORDS(octo_table.quantize_s8(some, units + part_, words, 1.0f, rounding, 0, -127, 127, to + part_));
            else octo_table.quantize_s8(count, units, NULL, 1.0f, rounding, 0, -127, 127, to);
            if (y) octo_table.dequantize_blocks_s8(height, cols, to, scale, y + first);
        }
    }
    if (failed) return octo_fail(OCTO_ENOMEM, "out of memory for codes in blocks");
    return infinite ? octo_fail(OCTO_EFINITE, "a value is NaN or infinite") : OCTO_OK;
}

int octo_quantize_blocks_s8(int64_t rows, int64_t cols, const float *x, int half, int rounding, uint64_t seed, uint32_t step, uint32_t tensor,
                            int8_t *q, float *scales, float *y) {
    CHECK_MATRIX("blocks", rows, cols);
    OCTO_CHECK(rounding >= OCTO_HALF_EVEN && rounding <= OCTO_STOCHASTIC, "blocks: bad rounding %d", rounding);
    return quantize_bands(rows, cols, x, NULL, half, rounding, seed, step, tensor, q, scales, y);
}

int octo_quantize_windows_s8(const octo_conv *g, const float *x, int half, int8_t *q, float *scales) {
    struct octo_rows windows;
    int status = octo_check_conv(g);
    if (status) return status;
    OCTO_CHECK(!octo_is_grouped(g), "convolution of blocks: no groups and no dilation");
    status = octo_window_rows(g, x, 0, 4, &windows);
    return status ? status
                  : quantize_bands(g->batch * windows.height * windows.width, windows.segments * windows.length, NULL, &windows, half,
                                   OCTO_HALF_EVEN, 0, 0, 0, q, scales, NULL);
}

int octo_dequantize_blocks_s8(int64_t rows, int64_t cols, const int8_t *q, const float *scales, float *y) {
    CHECK_MATRIX("blocks", rows, cols);
    int64_t bands = BLOCKS(rows), group = octo_max(1, CHUNK / (OCTO_SIDE * cols)), slices = (bands + group - 1) / group;
    OCTO_PARALLEL(s, slices) {
        for (int64_t band = s * group; band < octo_min((s + 1) * group, bands); band++) {
            int64_t row = band * OCTO_SIDE;
            octo_table.dequantize_blocks_s8(octo_min(OCTO_SIDE, rows - row), cols, q + row * cols, scales + band * BLOCKS(cols), y + row * cols);
        }
    }
    return OCTO_OK;
}
