/* In the place of the compiler's header: intrinsics of AVX-512 and AVX-VNNI as C functions (SIMDe), so that their kernels run on a
 * processor that has neither.  What SIMDe 0.7.4 leaves out is below, lane by lane. */
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
#endif
