/* AVX-512 without VNNI (Skylake-X and its servers): VPMADDWD on 512 bits; and the loops of every AVX-512. */
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>

/* gcc vectorizes loops with 256 bits unless told otherwise; clang (which has no such attribute) decides by itself. */
#ifdef __clang__
#define TARGET OCTO_TARGET("avx512f,avx512bw,avx512vl,avx512dq")
#else
#define TARGET OCTO_TARGET("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
#define FN(name) name##_avx512bw
#define VECTOR_BYTES 64
#define MANY_REGISTERS
#define POSITIVE(x) _mm512_cmp_ps_mask((__m512)(x), _mm512_setzero_ps(), _CMP_GT_OQ)
#define MIN(a, b) (FN(lanes_s32))_mm512_min_epi32((__m512i)(a), (__m512i)(b))
#define MAX(a, b) (FN(lanes_s32))_mm512_max_epi32((__m512i)(a), (__m512i)(b))
#define MIN_F32(a, b) (FN(lanes_f32))_mm512_min_ps((__m512)(a), (__m512)(b))
#define MAX_F32(a, b) (FN(lanes_f32))_mm512_max_ps((__m512)(a), (__m512)(b))
#define WIDEN_S8(from) (FN(lanes_s32))_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from)))
#define NARROW_S8(x, to) _mm_storeu_si128((__m128i *)(to), _mm512_cvtepi32_epi8((__m512i)(x)))
#include "loops.inc"
#define MADD(a, b) (FN(s32))_mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#include "accumulate.inc"

#include "x86_512.inc"
#include "depthwise_pairs.inc"
#define GROUP 2
#define DOT(acc, x, b) _mm512_add_epi32(acc, _mm512_madd_epi16(x, b))
#define TILES "x86_tiles.inc"
#define GRADIENT "x86_planes.inc"
#include "x86_gemm.inc"

void octo_init_avx512bw(struct octo_kernels *table) {
    init_loops_avx512bw(table);
    table->gemm_s8 = gemm_s8_avx512bw;
    table->columns = columns_avx512bw;
    table->peak_s8 = peak_s8_avx512bw;
    table->weight_grad_s8 = weight_grad_s8_avx512bw;
    table->gemm_s8_accumulate = gemm_s8_accumulate_avx512bw;
    table->depthwise_s8 = depthwise_s8_avx512bw;
    table->depthwise_input_grad_s8 = depthwise_input_grad_s8_avx512bw;
    table->depthwise_weight_grad_s8 = depthwise_weight_grad_s8_avx512bw;
}
#endif
