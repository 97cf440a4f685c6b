/* In the place of the compiler's header: intrinsics of AVX-512, AVX-VNNI and AMX as C functions (SIMDe), so that their kernels run on a
 * processor that has none of them.  What SIMDe 0.7.4 leaves out is below, lane by lane. */
#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <stdint.h>
#include <string.h>

#ifndef __mmask16
#define __mmask16 simde__mmask16
#endif
#undef _mm512_madd_epi16 /* that of 0.7.4 asks for a mask */
#define _mm512_madd_epi16(x, y) simde_mm512_madd_epi16(x, y)
#define _mm256_dpbusd_avx_epi32(sums, x, y) _mm256_dpbusd_epi32(sums, x, y)

static inline __m512i emulated_widen_epi8(__m128i from) {
    int8_t x[16];
    int32_t y[16];
    __m512i made;
    memcpy(x, &from, sizeof x);
    for (int i = 0; i < 16; i++) y[i] = x[i];
    memcpy(&made, y, sizeof made);
    return made;
}
#define _mm512_cvtepi8_epi32(x) emulated_widen_epi8(x)

static inline __m128i emulated_narrow_epi32(__m512i from) {
    int32_t x[16];
    int8_t y[16];
    __m128i made;
    memcpy(x, &from, sizeof x);
    for (int i = 0; i < 16; i++) y[i] = (int8_t)x[i];
    memcpy(&made, y, sizeof made);
    return made;
}
#define _mm512_cvtepi32_epi8(x) emulated_narrow_epi32(x)

static inline __m512i emulated_shift_epi32(__m512i from, unsigned count) {
    int32_t x[16];
    memcpy(x, &from, sizeof x);
    for (int i = 0; i < 16; i++) x[i] >>= count > 31 ? 31 : count;
    memcpy(&from, x, sizeof from);
    return from;
}
#define _mm512_srai_epi32(x, count) emulated_shift_epi32(x, count)

static inline __m512i emulated_extend_si128(__m128i x) {
    __m512i made = _mm512_setzero_si512();
    memcpy(&made, &x, sizeof x);
    return made;
}
#define _mm512_zextsi128_si512(x) emulated_extend_si128(x)

/* Lanes without a bit are not touched in memory. */
static inline __m128i emulated_load_epi8(uint16_t mask, const void *from) {
    int8_t x[16] = {0};
    __m128i made;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) x[i] = ((const int8_t *)from)[i];
    memcpy(&made, x, sizeof made);
    return made;
}
#define _mm_maskz_loadu_epi8(mask, from) emulated_load_epi8(mask, from)

static inline __m512i emulated_load_512_epi8(uint64_t mask, const void *from) {
    __m512i made = _mm512_setzero_si512();
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) memcpy((char *)&made + i, (const char *)from + i, 1);
    return made;
}
#define _mm512_maskz_loadu_epi8(mask, from) emulated_load_512_epi8(mask, from)

static inline void emulated_store_512_epi8(void *to, uint64_t mask, __m512i x) {
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) memcpy((char *)to + i, (const char *)&x + i, 1);
}
#define _mm512_mask_storeu_epi8(to, mask, x) emulated_store_512_epi8(to, mask, x)

static inline __m512i emulated_load_epi32(uint16_t mask, const void *from) {
    int32_t x[16] = {0};
    __m512i made;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy(x + i, (const char *)from + 4 * i, 4);
    memcpy(&made, x, sizeof made);
    return made;
}
#define _mm512_maskz_loadu_epi32(mask, from) emulated_load_epi32(mask, from)

static inline void emulated_store_epi32(void *to, uint16_t mask, __m512i x) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy((char *)to + 4 * i, (const char *)&x + 4 * i, 4);
}
#define _mm512_mask_storeu_epi32(to, mask, x) emulated_store_epi32(to, mask, x)

/* AMX: the shapes of 8 tiles and their bytes; rows and bytes beyond a tile's shape are zero (Intel SDM, TILELOADD, TDPBUSD). */
static _Thread_local struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} emulated_shapes;
static _Thread_local uint8_t emulated_tiles[8][16][64];

static inline void _tile_loadconfig(const void *shapes) {
    memcpy(&emulated_shapes, shapes, sizeof emulated_shapes);
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}
static inline void _tile_release(void) { memset(&emulated_shapes, 0, sizeof emulated_shapes); }
static inline void _tile_zero(int t) { memset(emulated_tiles[t], 0, sizeof emulated_tiles[t]); }
static inline void _tile_loadd(int t, const void *from, int64_t stride) {
    _tile_zero(t);
    for (int i = 0; i < emulated_shapes.rows[t]; i++) memcpy(emulated_tiles[t][i], (const char *)from + i * stride, emulated_shapes.row_bytes[t]);
}
static inline void _tile_stored(int t, void *to, int64_t stride) {
    for (int i = 0; i < emulated_shapes.rows[t]; i++) memcpy((char *)to + i * stride, emulated_tiles[t][i], emulated_shapes.row_bytes[t]);
}
static inline void _tile_dpbssd(int sums, int a, int b) {
    if (emulated_shapes.row_bytes[a] != 4 * emulated_shapes.rows[b] || emulated_shapes.rows[sums] != emulated_shapes.rows[a] ||
        emulated_shapes.row_bytes[sums] != emulated_shapes.row_bytes[b] || emulated_shapes.palette != 1)
        __builtin_trap(); /* the processor's #UD */
    for (int m = 0; m < emulated_shapes.rows[a]; m++)
        for (int n = 0; n < emulated_shapes.row_bytes[b] / 4; n++) {
            int32_t sum;
            memcpy(&sum, emulated_tiles[sums][m] + 4 * n, 4);
            for (int k = 0; k < emulated_shapes.row_bytes[a]; k++)
                sum = (int32_t)((uint32_t)sum + (uint32_t)((int8_t)emulated_tiles[a][m][k] * (int8_t)emulated_tiles[b][k / 4][4 * n + k % 4]));
            memcpy(emulated_tiles[sums][m] + 4 * n, &sum, 4);
        }
}
#endif
