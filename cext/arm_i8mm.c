/* Armv8.6 int8 matrix multiply (Neoverse V1, N2; Cortex-A510, A710): SMMLA adds a 2 x 8 by 8 x 2 product to four lanes, modulo 2^32. */
#include "kernels.h"
#if defined(__aarch64__)
#include <arm_neon.h>

#ifdef __clang__
#define TARGET OCTO_TARGET("i8mm")
#else
#define TARGET OCTO_TARGET("arch=armv8.2-a+i8mm")
#endif
#define FN(name) name##_i8mm
#define UNIT 8
#include "arm_gemm.inc"

TARGET static void tile_i8mm(int64_t units, const int8_t *a, int64_t depth, const int8_t *panel, int32_t *c) {
    int32x4_t acc[ARM_ROWS / 2][ARM_COLS / 2]; /* lanes: row 0 col 0, row 0 col 1, row 1 col 0, row 1 col 1 */
    OCTO_UNROLL
    for (int i = 0; i < ARM_ROWS / 2; i++)
        OCTO_UNROLL
        for (int j = 0; j < ARM_COLS / 2; j++) acc[i][j] = vdupq_n_s32(0);
    for (int64_t p = 0; p < units; p++, panel += 64) {
        int8x16_t x[ARM_ROWS / 2];
        OCTO_UNROLL
        for (int i = 0; i < ARM_ROWS / 2; i++)
            x[i] = vcombine_s8(vld1_s8(a + 2 * i * depth + 8 * p), vld1_s8(a + (2 * i + 1) * depth + 8 * p));
        OCTO_UNROLL
        for (int j = 0; j < ARM_COLS / 2; j++) {
            int8x16_t b = vld1q_s8(panel + 16 * j);
            OCTO_UNROLL
            for (int i = 0; i < ARM_ROWS / 2; i++) acc[i][j] = vmmlaq_s32(acc[i][j], x[i], b);
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < ARM_ROWS / 2; i++)
        OCTO_UNROLL
        for (int j = 0; j < ARM_COLS / 2; j++) {
            vst1_s32(c + 2 * i * ARM_COLS + 2 * j, vget_low_s32(acc[i][j]));
            vst1_s32(c + (2 * i + 1) * ARM_COLS + 2 * j, vget_high_s32(acc[i][j]));
        }
}

void octo_init_i8mm(struct octo_kernels *table) { table->gemm_s8 = gemm_s8_i8mm; }
#endif
