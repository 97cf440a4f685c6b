/* AVX-512 with VNNI.  References: Intel SDM, VPDPBUSD; Fog's and uops.info tables: one 512-bit VPDPBUSD a cycle on Zen 4,
 * latency 4, so at least 4 independent accumulators; the tiles below have 24.  Its other kernels are those of x86_avx512bw.c,
 * but for float32 products on a core that executes 512 bits as two halves: with vectors of 256 bits they are 1.4 times as fast on Zen 4. */
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET OCTO_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#define FN(name) name##_avx512vnni
#define VECTOR_BYTES 32
#define MANY_REGISTERS
#include "products.inc"
#include "x86_512.inc"
#define GROUP 4
#define DOT(acc, x, b) _mm512_dpbusd_epi32(acc, x, b)
#define TILES "x86_tiles.inc"
#define GRADIENT "x86_planes.inc"
#include "x86_gemm.inc"

void octo_init_avx512vnni(struct octo_kernels *table) {
    table->gemm_s8 = gemm_s8_avx512vnni;
    table->columns = columns_avx512vnni;
    table->peak_s8 = peak_s8_avx512vnni;
    table->weight_grad_s8 = weight_grad_s8_avx512vnni;
    if (octo_halves_512()) {
        table->gemm_f32 = gemm_f32_avx512vnni;
        table->weight_grad_f32 = weight_grad_f32_avx512vnni;
        table->lanes = lanes_avx512vnni;
    }
}
#endif
