/* Codes with a scale for each block of OCTO_SIDE x OCTO_SIDE: their matrix products. */
#include "dispatch.h"

#define OUT_OF_MEMORY "out of memory for a product of blocks"

/* The product of blocks for rows row0 .. row1 - 1 and columns col0 .. col1 - 1 of c, all borders multiples of OCTO_SIDE or ends: in tiles
 * whose int32 sums stay in the cache, OCTO_SIDE steps of k at a time.  b is [k][n]; transpose_b tells how its scales lie. */
static int product_tiles(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, const float *scales_a,
                         const int8_t *b, const float *scales_b, float *c, int64_t row0, int64_t row1, int64_t col0, int64_t col1) {
    enum { WIDE = 256, TALL = 4032, TILE = 24576 }; /* 96 KiB of sums; TALL: a multiple of 96, as all heights */
    int64_t wide = octo_min(WIDE, col1 - col0), tall = octo_min(octo_max(TILE / wide / 96 * 96, 96), TALL), blocks = (k + OCTO_SIDE - 1) / OCTO_SIDE;
    int32_t *sums = octo_scratch(OCTO_SLOT_SUMS, octo_min(tall, row1 - row0) * wide * 4);
    int8_t *left = transpose_a ? octo_scratch(OCTO_SLOT_LEFT, octo_min(tall, row1 - row0) * OCTO_SIDE) : NULL;
    struct octo_job job = {.b_k = n, .b_n = 1, .c = sums, .scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH)};
    if (!sums || !job.scratch || (transpose_a && !left)) return OCTO_ENOMEM;
    int64_t bands = (m + OCTO_SIDE - 1) / OCTO_SIDE, strips = (n + OCTO_SIDE - 1) / OCTO_SIDE;
    for (int64_t r = row0; r < row1; r += tall)
        for (int64_t j = col0; j < col1; j += wide) {
            job.m = octo_min(tall, row1 - r), job.n = job.ldc = octo_min(wide, col1 - j);
            for (int64_t p = 0; p < blocks; p++) {
                int64_t from = p * OCTO_SIDE, depth = octo_min(OCTO_SIDE, k - from);
                float row_scales[TALL / OCTO_SIDE], col_scales[WIDE / OCTO_SIDE];
                for (int64_t i = 0; i < (job.m + OCTO_SIDE - 1) / OCTO_SIDE; i++)
                    row_scales[i] = transpose_a ? scales_a[p * bands + r / OCTO_SIDE + i] : scales_a[(r / OCTO_SIDE + i) * blocks + p];
                for (int64_t i = 0; i < (job.n + OCTO_SIDE - 1) / OCTO_SIDE; i++)
                    col_scales[i] = transpose_b ? scales_b[(j / OCTO_SIDE + i) * blocks + p] : scales_b[p * strips + j / OCTO_SIDE + i];
                if (transpose_a) {
                    octo_table.transpose_s8(depth, job.m, a + from * m + r, m, left, depth);
                    job.a = octo_plain_rows(left, job.m, depth, depth, 1);
                } else
                    job.a = octo_plain_rows(a + r * k + from, job.m, depth, k, 1);
                job.b = b + from * n + j;
                octo_table.gemm_s8(&job);
                octo_table.add_scaled_s32(job.m, job.n, sums, row_scales, col_scales, p > 0, c + r * n + j, n);
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
        if (product_tiles(transpose_a, transpose_b, m, n, k, a, scales_a, right ? right : b, scales_b, c, by_rows ? from : 0,
                          by_rows ? to : m, by_rows ? 0 : from, by_rows ? n : to)) failed = 1;
    }
    return failed ? octo_fail(OCTO_ENOMEM, OUT_OF_MEMORY) : OCTO_OK;
}
