/* What this machine can do at most, measured: int8 multiply-accumulates from registers alone, and memory bandwidth.
 * Benchmarks state their results as shares of these. */
#include "dispatch.h"
int octo_peak_s8(int64_t rounds, int64_t *macs) {
    OCTO_CHECK(rounds >= 1 && rounds <= (int64_t)1 << 40, "peak: rounds must be in 1 .. 2^40");
    int64_t each = 0, threads = octo_threads();
    OCTO_PARALLEL(i, threads) {
        int64_t done = octo_table.peak_s8(rounds);
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
