/* Armv8.6 int8 matrix multiply: SMMLA adds a 2 x 8 by 8 x 2 product of bytes to a 2 x 2 block of 32-bit sums, exactly
 * (8 * 2^14 = 2^17) and modulo 2^32. */
#include "kernels.h"
#if defined(OCTO_ARM_EXTENSIONS)
#include <arm_neon.h>

#define TARGET OCTO_TARGET_ARM("i8mm")
#define FN(name) name##_i8mm
enum { TILE_ROWS = 8, TILE_COLS = 8, GROUP = 8 };

static int full_range_i8mm(const int8_t *x, int64_t bytes) { return (void)x, (void)bytes, 1; }

TARGET static void tile_i8mm(const int8_t *a, const int8_t *b, int64_t groups, int full_range, int32_t *sums) {
    (void)full_range;
    int32x4_t acc[TILE_ROWS / 2][TILE_COLS / 2]; /* (row, column): (0, 0), (0, 1), (1, 0), (1, 1) */
    OCTO_UNROLL
    for (int i = 0; i < TILE_ROWS / 2; i++)
        OCTO_UNROLL
        for (int j = 0; j < TILE_COLS / 2; j++) acc[i][j] = vdupq_n_s32(0);
    for (int64_t p = 0; p < groups; p++, a += GROUP * TILE_ROWS, b += GROUP * TILE_COLS) {
        int8x16_t y[TILE_COLS / 2];
        OCTO_UNROLL
        for (int j = 0; j < TILE_COLS / 2; j++) y[j] = vld1q_s8(b + 16 * j);
        OCTO_UNROLL
        for (int i = 0; i < TILE_ROWS / 2; i++) {
            int8x16_t x = vld1q_s8(a + 16 * i);
            OCTO_UNROLL
            for (int j = 0; j < TILE_COLS / 2; j++) acc[i][j] = vmmlaq_s32(acc[i][j], x, y[j]);
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < TILE_ROWS / 2; i++)
        OCTO_UNROLL
        for (int j = 0; j < TILE_COLS / 2; j++) {
            vst1_s32(sums + TILE_COLS * 2 * i + 2 * j, vget_low_s32(acc[i][j]));
            vst1_s32(sums + TILE_COLS * (2 * i + 1) + 2 * j, vget_high_s32(acc[i][j]));
        }
}

#define DOT(acc, x, y) vmmlaq_s32(acc, x, y)
#define MACS 32
#include "arm_gemm.inc"

void octo_init_i8mm(struct octo_kernels *table) {
    table->gemm_s8 = gemm_s8_i8mm;
    table->columns = TILE_COLS;
    table->peak_s8 = peak_s8_i8mm;
}
#endif
