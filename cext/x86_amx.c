/* AMX-INT8 (Intel's servers from Sapphire Rapids on): 1,024 int8 products a cycle, eight times as many as AVX-512 VNNI.  Its other kernels are those of
 * x86_avx512vnni.c. */
#include "kernels.h"
#if defined(OCTO_AMX)
#include <immintrin.h>

#define TARGET OCTO_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")
#define FN(name) name##_amx
#define GROUP 4
#include "x86_512.inc"
#define SIGNED /* TDPBSSD: both operands have a sign */
#define TILES "x86_amx.inc"
#define GRADIENT "x86_amx_grad.inc"
#include "x86_gemm.inc"

/* What tiles alone can do, as peak_s8 of x86_tiles.inc. */
TARGET static int64_t peak_s8(int64_t rounds) {
    begin_amx(16);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(6);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 6); _tile_dpbssd(2, 4, 6); _tile_dpbssd(3, 4, 6);
    }
    end_amx();
    return rounds * 4 * 16 * 16 * 64;
}

/* The vectors' kernels, for what tiles are slower at: a short reduction, where most of the time goes into their
 * sums; a weight gradient of a single channel, whose taps are adjacent in no direction that tiles read. */
static struct octo_kernels vectors;

TARGET static void gemm_s8(const struct octo_job *job) {
    if (job->a.segments * job->a.length <= depth_amx) vectors.gemm_s8(job);
    else gemm_s8_amx(job);
}

TARGET static void weight_grad_s8(const struct octo_rows *x, int64_t channels, int64_t c0, int64_t c1, int64_t line, int64_t lines,
                                  int64_t filters, const int8_t *dy, void *scratch, int accumulate, int32_t *dw) {
    if (channels == 1) vectors.weight_grad_s8(x, channels, c0, c1, line, lines, filters, dy, scratch, accumulate, dw);
    else weight_grad_s8_amx(x, channels, c0, c1, line, lines, filters, dy, scratch, accumulate, dw);
}

void octo_init_amx(struct octo_kernels *table) {
    vectors = *table;
    table->gemm_s8 = gemm_s8;
    table->columns = columns_amx;
    table->depth = depth_amx;
    table->peak_s8 = peak_s8;
    table->weight_grad_s8 = weight_grad_s8;
}
#endif
