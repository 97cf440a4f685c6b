/* What this machine can do at most, measured: int8 multiply-accumulates from registers alone, and memory bandwidth.
 * Benchmarks state their results as shares of these. */
#include "dispatch.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Keeps a value unknown to the compiler, so that a loop is run as it is written. */
#define OPAQUE(operand) __asm__ volatile("" : operand)

#if defined(__x86_64__)
/* 16 accumulators: more than latency 4 x 2 a cycle needs. */
OCTO_TARGET("avx512f,avx512vnni") static int64_t peak_avx512vnni(int64_t rounds) {
    __m512i acc[16], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
    OCTO_UNROLL
    for (int i = 0; i < 16; i++) {
        acc[i] = _mm512_setzero_si512();
        OPAQUE("+v"(acc[i])); /* or the compiler would see that all are equal */
    }
    for (int64_t r = 0; r < rounds; r++) {
        OPAQUE("+v"(x));
        OCTO_UNROLL
        for (int i = 0; i < 16; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], x, y);
    }
    OCTO_UNROLL
    for (int i = 0; i < 16; i++) OPAQUE("+v"(acc[i]));
    return rounds * 16 * 64;
}

OCTO_TARGET("avx2") static int64_t peak_avx2(int64_t rounds) {
    __m256i acc[8], x = _mm256_set1_epi16(3), y = _mm256_set1_epi16(5);
    OCTO_UNROLL
    for (int i = 0; i < 8; i++) {
        acc[i] = _mm256_setzero_si256();
        OPAQUE("+x"(acc[i]));
    }
    for (int64_t r = 0; r < rounds; r++)
        OCTO_UNROLL
        for (int i = 0; i < 8; i++) {
            OPAQUE("+x"(x));
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(x, y));
        }
    OCTO_UNROLL
    for (int i = 0; i < 8; i++) OPAQUE("+x"(acc[i]));
    return rounds * 8 * 16;
}
#endif

static int64_t peak_scalar(int64_t rounds) {
    int32_t acc[8] = {0}, x = 3, y = 5;
    for (int i = 0; i < 8; i++) OPAQUE("+r"(acc[i]));
    for (int64_t r = 0; r < rounds; r++)
        OCTO_UNROLL
        for (int i = 0; i < 8; i++) {
            OPAQUE("+r"(x));
            acc[i] += x * y;
        }
    for (int i = 0; i < 8; i++) OPAQUE("+r"(acc[i]));
    return rounds * 8;
}

int octo_peak_s8(int64_t rounds, int64_t *macs) {
    OCTO_CHECK(rounds >= 1 && rounds <= (int64_t)1 << 40, "peak: rounds must be in 1 .. 2^40");
    int64_t each = 0, threads = octo_threads();
    OCTO_PARALLEL(i, threads) {
        int64_t done = 0;
#if defined(__x86_64__)
        if (!strcmp(octo_isa(), "avx512vnni")) done = peak_avx512vnni(rounds);
        else if (!strcmp(octo_isa(), "avx2")) done = peak_avx2(rounds);
#endif
        if (!done) done = peak_scalar(rounds);
        if (!i) each = done;
    }
    *macs = each * threads;
    return OCTO_OK;
}

/* STREAM's triad (McCalpin 1995): a = b + scalar c; 12 n bytes by its rule, which counts no write-allocate. */
int octo_stream_triad(int64_t n, float *a, const float *b, const float *c, float scalar) {
    OCTO_CHECK(n >= 0, "triad: bad element count %lld", (long long)n);
    int64_t slices = octo_threads();
    OCTO_PARALLEL(s, slices) {
        for (int64_t i = n * s / slices; i < n * (s + 1) / slices; i++) a[i] = b[i] + scalar * c[i];
    }
    return OCTO_OK;
}
