/* Armv8.2 dot product (Cortex-A55, A76, A78; Neoverse N1): SDOT adds four products to each 32-bit lane, modulo 2^32. */
#include "kernels.h"
#if defined(__aarch64__)
#include <arm_neon.h>

#ifdef __clang__
#define TARGET OCTO_TARGET("dotprod")
#else
#define TARGET OCTO_TARGET("arch=armv8.2-a+dotprod")
#endif
#define FN(name) name##_dotprod
#define UNIT 4
#include "arm_gemm.inc"

TARGET static void tile_dotprod(int64_t units, const int8_t *a, int64_t depth, const int8_t *panel, int32_t *c) {
    int32x4_t acc[ARM_ROWS][2];
    OCTO_UNROLL
    for (int i = 0; i < ARM_ROWS; i++) acc[i][0] = acc[i][1] = vdupq_n_s32(0);
    for (int64_t p = 0; p < units; p++, panel += 32) {
        int8x16_t b0 = vld1q_s8(panel), b1 = vld1q_s8(panel + 16);
        OCTO_UNROLL
        for (int i = 0; i < ARM_ROWS; i++) {
            int32_t group;
            memcpy(&group, a + i * depth + 4 * p, sizeof group);
            int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(group));
            acc[i][0] = vdotq_s32(acc[i][0], b0, x);
            acc[i][1] = vdotq_s32(acc[i][1], b1, x);
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < ARM_ROWS; i++) {
        vst1q_s32(c + i * ARM_COLS, acc[i][0]);
        vst1q_s32(c + i * ARM_COLS + 4, acc[i][1]);
    }
}

void octo_init_dotprod(struct octo_kernels *table) { table->gemm_s8 = gemm_s8_dotprod; }
#endif
