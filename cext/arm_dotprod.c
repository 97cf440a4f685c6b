/* Armv8.2 dot product: SDOT adds four products of bytes to each of four 32-bit lanes, exactly (4 * 2^14 = 2^16) and modulo 2^32. */
#include "kernels.h"
#if defined(OCTO_ARM_EXTENSIONS)
#include <arm_neon.h>

#define TARGET OCTO_TARGET_ARM("dotprod")
#define FN(name) name##_dotprod
enum { TILE_ROWS = 8, TILE_COLS = 8, GROUP = 4 };

static int full_range_dotprod(const int8_t *x, int64_t bytes) { return (void)x, (void)bytes, 1; }

/* A row's four bytes are a lane of x, so its number is part of the instruction. */
#define ROW(i, x, lane) acc[i][0] = vdotq_laneq_s32(acc[i][0], y0, x, lane), acc[i][1] = vdotq_laneq_s32(acc[i][1], y1, x, lane)

TARGET static void tile_dotprod(const int8_t *a, const int8_t *b, int64_t groups, int full_range, int32_t *sums) {
    (void)full_range;
    int32x4_t acc[TILE_ROWS][2];
    OCTO_UNROLL
    for (int i = 0; i < TILE_ROWS; i++) acc[i][0] = acc[i][1] = vdupq_n_s32(0);
    for (int64_t p = 0; p < groups; p++, a += GROUP * TILE_ROWS, b += GROUP * TILE_COLS) {
        int8x16_t x0 = vld1q_s8(a), x1 = vld1q_s8(a + 16), y0 = vld1q_s8(b), y1 = vld1q_s8(b + 16);
        ROW(0, x0, 0), ROW(1, x0, 1), ROW(2, x0, 2), ROW(3, x0, 3);
        ROW(4, x1, 0), ROW(5, x1, 1), ROW(6, x1, 2), ROW(7, x1, 3);
    }
    OCTO_UNROLL
    for (int i = 0; i < TILE_ROWS; i++) {
        vst1q_s32(sums + TILE_COLS * i, acc[i][0]);
        vst1q_s32(sums + TILE_COLS * i + 4, acc[i][1]);
    }
}

#define DOT(acc, x, y) vdotq_s32(acc, x, y)
#define MACS 16
#include "arm_gemm.inc"

void octo_init_dotprod(struct octo_kernels *table) {
    table->gemm_s8 = gemm_s8_dotprod;
    table->columns = TILE_COLS;
    table->peak_s8 = peak_s8_dotprod;
}
#endif
