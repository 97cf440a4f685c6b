/* VPDPBUSD on 256 bits: AVX-VNNI (Intel's client cores from Alder Lake on, Zen 5), whose encoding is VEX, and the same program in EVEX
 * encoding, for processors that have AVX-512 VNNI: there it is a check of the other, and slower than octo_init_avx512vnni's.
 * Its other kernels are AVX2's. */
#include "kernels.h"
#if defined(OCTO_AVXVNNI)
#include <immintrin.h>

#define GROUP 4

#define TARGET OCTO_TARGET("avx2,avxvnni")
#define FN(name) name##_avxvnni
#define DOT(acc, x, b) _mm256_dpbusd_avx_epi32(acc, x, b)
#include "transpose.inc"
#include "x86_256.inc"
#define TILES "x86_tiles.inc"
#define GRADIENT "x86_planes.inc"
#include "x86_gemm.inc"
#undef TARGET
#undef FN
#undef DOT

#define TARGET OCTO_TARGET("avx2,avx512f,avx512vl,avx512vnni")
#define FN(name) name##_avx512vl
#define DOT(acc, x, b) _mm256_dpbusd_epi32(acc, x, b)
#include "transpose.inc"
#include "x86_256.inc"
#define TILES "x86_tiles.inc"
#define GRADIENT "x86_planes.inc"
#include "x86_gemm.inc"

void octo_init_avxvnni(struct octo_kernels *table) {
    int vex = octo_has_avxvnni() == 1;
    table->gemm_s8 = vex ? gemm_s8_avxvnni : gemm_s8_avx512vl;
    table->columns = columns_avxvnni;
    table->peak_s8 = vex ? peak_s8_avxvnni : peak_s8_avx512vl;
    table->weight_grad_s8 = vex ? weight_grad_s8_avxvnni : weight_grad_s8_avx512vl;
}
#endif
