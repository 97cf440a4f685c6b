/* AVX2: bytes are widened to 16 bits and VPMADDWD adds two products in 32 bits, where |a b| <= 2^14 cannot overflow.
 * (VPMADDUBSW would be faster and saturate; it is another arithmetic.) */
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET OCTO_TARGET("avx2")
#define FN(name) name##_avx2
#define VECTOR_BYTES 32
#define POSITIVE(x) _mm256_movemask_ps(_mm256_cmp_ps((__m256)(x), _mm256_setzero_ps(), _CMP_GT_OQ))
#define MIN(a, b) (FN(lanes_s32))_mm256_min_epi32((__m256i)(a), (__m256i)(b))
#define MAX(a, b) (FN(lanes_s32))_mm256_max_epi32((__m256i)(a), (__m256i)(b))
#define MIN_F32(a, b) (FN(lanes_f32))_mm256_min_ps((__m256)(a), (__m256)(b))
#define MAX_F32(a, b) (FN(lanes_f32))_mm256_max_ps((__m256)(a), (__m256)(b))
#define WIDEN_S8(from) (FN(lanes_s32))_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(from)))
#define NARROW_S8(x, to) _mm_storel_epi64((__m128i *)(to), narrow_avx2((__m256i)(x)))
/* int32 within int8 -> int8, in the lower half. */
TARGET OCTO_INLINE __m128i narrow_avx2(__m256i x) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_packs_epi16(words, words);
}
#include "loops.inc"
#define MADD(a, b) (FN(s32))_mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#include "accumulate.inc"

#include "x86_256.inc"
#include "depthwise_pairs.inc"
#define GROUP 2
#define DOT(acc, x, b) _mm256_add_epi32(acc, _mm256_madd_epi16(x, b))
#define TILES "x86_tiles.inc"
#define GRADIENT "x86_planes.inc"
#include "x86_gemm.inc"

void octo_init_avx2(struct octo_kernels *table) {
    init_loops_avx2(table);
    table->gemm_s8 = gemm_s8_avx2;
    table->columns = columns_avx2;
    table->in_place = 1;
    table->peak_s8 = peak_s8_avx2;
    table->weight_grad_s8 = weight_grad_s8_avx2;
    table->gemm_s8_accumulate = gemm_s8_accumulate_avx2;
    table->depthwise_s8 = depthwise_s8_avx2;
    table->depthwise_input_grad_s8 = depthwise_input_grad_s8_avx2;
    table->depthwise_weight_grad_s8 = depthwise_weight_grad_s8_avx2;
}
#endif
