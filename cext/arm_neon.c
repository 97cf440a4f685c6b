/* Armv8.0 Advanced SIMD (Cortex-A53, A57, A72).  SMULL makes 16-bit products, |p| <= 2^14; SADALP adds neighbours to 32 bits.
 * (SMLAL would save an addition where two products fit 16 bits; with -128 they do not: 2 * 2^14 = 2^15.)
 * The loops of loops.inc are compiled for Advanced SIMD in ref.c already: it belongs to every AArch64 processor. */
#include "kernels.h"
#if defined(__aarch64__)
#include <arm_neon.h>

#define TARGET
#define FN(name) name##_neon
#define VECTOR_BYTES 16
#define UNIT 2
#include "arm_gemm.inc"

static void tile_neon(int64_t units, const int8_t *a, int64_t depth, const int8_t *panel, int32_t *c) {
    int32x4_t acc[ARM_ROWS][2];
    OCTO_UNROLL
    for (int i = 0; i < ARM_ROWS; i++) acc[i][0] = acc[i][1] = vdupq_n_s32(0);
    for (int64_t p = 0; p < units; p++, panel += 16) {
        int8x16_t b = vld1q_s8(panel);
        OCTO_UNROLL
        for (int i = 0; i < ARM_ROWS; i++) {
            int16_t pair;
            memcpy(&pair, a + i * depth + 2 * p, sizeof pair);
            int8x16_t x = vreinterpretq_s8_s16(vdupq_n_s16(pair));
            acc[i][0] = vpadalq_s16(acc[i][0], vmull_s8(vget_low_s8(x), vget_low_s8(b)));
            acc[i][1] = vpadalq_s16(acc[i][1], vmull_high_s8(x, b));
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < ARM_ROWS; i++) {
        vst1q_s32(c + i * ARM_COLS, acc[i][0]);
        vst1q_s32(c + i * ARM_COLS + 4, acc[i][1]);
    }
}

/* int16 pairs: the products of the lower and of the upper half, neighbours added. */
static inline int32x4_t pairs_neon(int16x8_t a, int16x8_t b) {
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
#define MADD(a, b) (s32_neon)pairs_neon((int16x8_t)(a), (int16x8_t)(b))
#define MIN(a, b) (s32_neon)vminq_s32((int32x4_t)(a), (int32x4_t)(b))
#define MAX(a, b) (s32_neon)vmaxq_s32((int32x4_t)(a), (int32x4_t)(b))
#include "accumulate.inc"

void octo_init_neon(struct octo_kernels *table) {
    table->gemm_s8 = gemm_s8_neon;
    table->gemm_s8_accumulate = gemm_s8_accumulate_neon;
}
#endif
