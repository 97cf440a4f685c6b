/* Armv8.0: SMULL and SMLAL2 multiply bytes into 16 bits, SADALP adds pairs of these to 32 bits: 16 products in 3 instructions
 * (SMLAL on 16-bit copies does 4 an instruction).
 *
 * An int16 lane holds two products before SADALP.  Where no code of b is -128, |a b| <= 128 * 127 = 16,256 and their sum stays
 * within 32,512 < 2^15, whatever a is.  With -128 on both sides it may be 2 * 128^2 = 2^15, one too many; there each product
 * (at most 2^14) is added to 32 bits by itself, in 4 instructions.  Sums of 32 bits are modulo 2^32, as in gemm_s8_ref. */
#include "kernels.h"
#if defined(__aarch64__)
#include <arm_neon.h>

#define TARGET
#define FN(name) name##_neon
#define VECTOR_BYTES 16
#define POSITIVE(x) signs_neon((float32x4_t)(x))
#define MIN(a, b) (lanes_s32_neon)vminq_s32((int32x4_t)(a), (int32x4_t)(b))
#define MAX(a, b) (lanes_s32_neon)vmaxq_s32((int32x4_t)(a), (int32x4_t)(b))
/* By selection: FMIN takes a NaN from either side. */
#define MIN_F32(a, b) (lanes_f32_neon)vbslq_f32(vcltq_f32((float32x4_t)(a), (float32x4_t)(b)), (float32x4_t)(a), (float32x4_t)(b))
#define MAX_F32(a, b) (lanes_f32_neon)vbslq_f32(vcgtq_f32((float32x4_t)(a), (float32x4_t)(b)), (float32x4_t)(a), (float32x4_t)(b))
#define WIDEN_S8(from) (lanes_s32_neon)widen_neon(from)
#define NARROW_S8(x, to) narrow_neon((int32x4_t)(x), to)
static inline uint32_t signs_neon(float32x4_t x) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtzq_f32(x), bit));
}
static inline int32x4_t widen_neon(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}
/* int32 within int8 */
static inline void narrow_neon(int32x4_t x, int8_t *to) {
    int16x4_t words = vmovn_s32(x);
    int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    memcpy(to, &four, sizeof four);
}
#include "loops.inc"

enum { TILE_ROWS = 4, TILE_COLS = 4, GROUP = 16 };

static int full_range_neon(const int8_t *x, int64_t bytes) {
    int8x16_t least = vdupq_n_s8(127);
    for (int64_t i = 0; i < bytes; i += 16) least = vminq_s8(least, vld1q_s8(x + i));
    return vminvq_s8(least) == -128;
}

static inline __attribute__((always_inline)) void tile_of(int full_range, const int8_t *a, const int8_t *b, int64_t groups, int32_t *sums) {
    int32x4_t acc[TILE_ROWS][TILE_COLS]; /* four partial sums each */
    OCTO_UNROLL
    for (int i = 0; i < TILE_ROWS; i++)
        OCTO_UNROLL
        for (int j = 0; j < TILE_COLS; j++) acc[i][j] = vdupq_n_s32(0);
    for (int64_t p = 0; p < groups; p++, a += GROUP * TILE_ROWS, b += GROUP * TILE_COLS) {
        int8x16_t y[TILE_COLS];
        OCTO_UNROLL
        for (int j = 0; j < TILE_COLS; j++) y[j] = vld1q_s8(b + GROUP * j);
        OCTO_UNROLL
        for (int i = 0; i < TILE_ROWS; i++) {
            int8x16_t x = vld1q_s8(a + GROUP * i);
            OCTO_UNROLL
            for (int j = 0; j < TILE_COLS; j++) {
                int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y[j]));
                if (full_range) acc[i][j] = vpadalq_s16(vpadalq_s16(acc[i][j], low), vmull_high_s8(x, y[j]));
                else acc[i][j] = vpadalq_s16(acc[i][j], vmlal_high_s8(low, x, y[j]));
            }
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < TILE_ROWS; i++)
        vst1q_s32(sums + TILE_COLS * i, vpaddq_s32(vpaddq_s32(acc[i][0], acc[i][1]), vpaddq_s32(acc[i][2], acc[i][3])));
}

static void tile_neon(const int8_t *a, const int8_t *b, int64_t groups, int full_range, int32_t *sums) {
    if (full_range) tile_of(1, a, b, groups, sums);
    else tile_of(0, a, b, groups, sums);
}

#define DOT(acc, x, y) vpadalq_s16(acc, vmlal_high_s8(vmull_s8(vget_low_s8(x), vget_low_s8(y)), x, y))
#define MACS 16
#include "arm_gemm.inc"

/* int16 pairs: the products of the lower and of the upper half, neighbours added. */
static inline int32x4_t pairs_neon(int16x8_t a, int16x8_t b) {
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
#define MADD(a, b) (s32_neon)pairs_neon((int16x8_t)(a), (int16x8_t)(b))
#include "accumulate.inc"

#define VECTOR int8x16_t
static inline int8x16_t pieces_neon(int bytes, const int8_t *const *from) {
    return bytes == 16 ? vld1q_s8(from[0]) : vcombine_s8(vld1_s8(from[0]), vld1_s8(from[1]));
}
#define PAIR_VECTORS 2
static inline int8x16_t zero_neon(void) { return vdupq_n_s8(0); }
static inline void pair_codes_neon(int8x16_t a, int8x16_t b, int8x16_t pairs[2]) { pairs[0] = vzip1q_s8(a, b), pairs[1] = vzip2q_s8(a, b); }
static inline void pair_factors_neon(int8x16_t a, int8x16_t b, int8x16_t pairs[2]) { pair_codes_neon(a, b, pairs); }
/* The products of a pair stand side by side in 16 bits, which SADALP adds in 32. */
static inline void add_half_neon(const int8x16_t *codes, const int8x16_t *factors, int8x16_t acc[2]) {
    int16x8_t low = vmull_s8(vget_low_s8(*codes), vget_low_s8(*factors)), high = vmull_high_s8(*codes, *factors);
    acc[0] = vreinterpretq_s8_s32(vpadalq_s16(vreinterpretq_s32_s8(acc[0]), low));
    acc[1] = vreinterpretq_s8_s32(vpadalq_s16(vreinterpretq_s32_s8(acc[1]), high));
}
static inline void pair_sums_neon(const int8x16_t acc[4], int8x16_t sums[4]) {
    OCTO_UNROLL
    for (int i = 0; i < 4; i++) sums[i] = acc[i];
}
#include "depthwise_pairs.inc"

void octo_init_neon(struct octo_kernels *table) {
    init_loops_neon(table);
    table->gemm_s8 = gemm_s8_neon;
    table->columns = TILE_COLS;
    table->peak_s8 = peak_s8_neon;
    table->weight_grad_s8 = NULL;
    table->gemm_s8_accumulate = gemm_s8_accumulate_neon;
    table->depthwise_s8 = depthwise_s8_neon;
    table->depthwise_input_grad_s8 = depthwise_input_grad_s8_neon;
    table->depthwise_weight_grad_s8 = depthwise_weight_grad_s8_neon;
}
#endif
