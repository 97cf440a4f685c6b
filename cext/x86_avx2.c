/* AVX2, exact: bytes are widened to 16 bits and VPMADDWD adds two products in 32 bits, where |a b| <= 2^14 cannot overflow.
 * (VPMADDUBSW would be faster and saturate; it is another arithmetic.) */
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET OCTO_TARGET("avx2")
#define FN(name) name##_avx2
#define VECTOR_BYTES 32
#include "loops.inc"
#define MADD(a, b) (FN(s32))_mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#define MIN(a, b) (FN(s32))_mm256_min_epi32((__m256i)(a), (__m256i)(b))
#define MAX(a, b) (FN(s32))_mm256_max_epi32((__m256i)(a), (__m256i)(b))
#include "accumulate.inc"

/* Packed operands, 16-bit: rows of a, `depth` elements each (16 more than k, rounded up to an odd number of 64-byte lines);
 * panels of b with 16 columns x 2 consecutive k in two vectors, zero beyond k and n. */
enum { ROWS = 24, COLS = 16, TILE = 4 };

TARGET static void pack_rows(const struct octo_job *job, int64_t first, int64_t count, int64_t depth, int16_t *out) {
    const struct octo_rows *a = &job->a;
    struct octo_walk walk = octo_walk_from(a, job->first + first);
    const int8_t *readable = (const int8_t *)a->end - 16;
    for (int64_t i = 0; i < count; i++, out += depth) {
        const int8_t *from = (const int8_t *)a->base + octo_walk_next(&walk);
        int16_t *to = out;
        for (int64_t s = 0; s < a->segments; s++, from += a->segment_stride, to += a->length) {
            int64_t p = 0;
            for (; p < a->length && from + p <= readable; p += 16) /* writes past a short run: overwritten by what follows */
                _mm256_storeu_si256((__m256i *)(to + p), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(from + p))));
            for (; p < a->length; p++) to[p] = from[p];
        }
        to[0] = 0; /* the odd k's partner */
    }
}

TARGET static void pack_adjacent(const int8_t *b, int64_t b_k, int64_t k, int16_t *panel) {
    for (int64_t p = 0; p < k; p += 2, b += 2 * b_k, panel += 2 * COLS) {
        __m128i r0 = _mm_loadu_si128((const __m128i *)b);
        __m128i r1 = p + 1 < k ? _mm_loadu_si128((const __m128i *)(b + b_k)) : _mm_setzero_si128();
        _mm256_storeu_si256((__m256i *)panel, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(r0, r1)));
        _mm256_storeu_si256((__m256i *)(panel + COLS), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(r0, r1)));
    }
}

TARGET static void pack_any(const int8_t *b, int64_t b_k, int64_t b_n, int64_t k, int64_t cols, int16_t *panel) {
    for (int64_t j = 0; j < COLS; j++)
        for (int64_t p = 0; p < (k + 1) / 2 * 2; p++)
            panel[p / 2 * 2 * COLS + 2 * j + p % 2] = j < cols && p < k ? b[p * b_k + j * b_n] : 0;
}

TARGET OCTO_INLINE void tile(int rows, const int16_t *a, int64_t depth, int64_t pairs, const int16_t *panel, int32_t *c, int64_t ldc,
                             int64_t cols, int accumulate) {
    __m256i acc[TILE][2];
    OCTO_UNROLL
    for (int i = 0; i < rows; i++) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; p++, panel += 2 * COLS) {
        __m256i b0 = _mm256_load_si256((const __m256i *)panel), b1 = _mm256_load_si256((const __m256i *)(panel + COLS));
    OCTO_UNROLL
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, a + i * depth + 2 * p, sizeof pair);
            __m256i x = _mm256_set1_epi32(pair);
            acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(x, b0));
            acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(x, b1));
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < rows; i++) {
        int32_t sums[COLS], *to = c + i * ldc;
        if (cols == COLS) {
            __m256i *out = (__m256i *)to;
            __m256i s0 = acc[i][0], s1 = acc[i][1];
            if (accumulate) s0 = _mm256_add_epi32(s0, _mm256_loadu_si256(out)), s1 = _mm256_add_epi32(s1, _mm256_loadu_si256(out + 1));
            _mm256_storeu_si256(out, s0);
            _mm256_storeu_si256(out + 1, s1);
            continue;
        }
        _mm256_storeu_si256((__m256i *)sums, acc[i][0]);
        _mm256_storeu_si256((__m256i *)(sums + 8), acc[i][1]);
        for (int64_t j = 0; j < cols; j++) to[j] = accumulate ? (int32_t)((uint32_t)to[j] + (uint32_t)sums[j]) : sums[j];
    }
}

/* Functions of their own: inlined side by side, their accumulators would not stay in registers. */
#define TILE_OF(ROWS_OF_TILE)                                                                                                       \
    TARGET static __attribute__((noinline)) void tile_##ROWS_OF_TILE(const int16_t *a, int64_t depth, int64_t pairs,                \
                                                                     const int16_t *panel, int32_t *c, int64_t ldc, int64_t cols,   \
                                                                     int accumulate) {                                              \
        tile(ROWS_OF_TILE, a, depth, pairs, panel, c, ldc, cols, accumulate);                                                       \
    }
TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4)
#undef TILE_OF

TARGET static void gemm_s8_avx2(const struct octo_job *job) {
    static void (*const tiles[])(const int16_t *, int64_t, int64_t, const int16_t *, int32_t *, int64_t, int64_t, int) = {
        tile_1, tile_2, tile_3, tile_4};
    int64_t k = job->a.segments * job->a.length, pairs = (k + 1) / 2, depth = ((2 * pairs + 47) / 32 | 1) * 32;
    int16_t *rows = job->scratch, *panels = rows + ROWS * depth + 32;
    int64_t room = ((int64_t)1 << 18) / (2 * pairs * COLS) * COLS; /* columns at a time: half a megabyte, 16 at least */
    if (room < COLS) room = COLS;
    for (int64_t j0 = 0; j0 < job->n; j0 += room) {
        int64_t width = job->n - j0 < room ? job->n - j0 : room;
        for (int64_t j = 0; j < width; j += COLS) {
            const int8_t *b = (const int8_t *)job->b + (j0 + j) * job->b_n;
            int16_t *panel = panels + 2 * pairs * j;
            if (job->b_n == 1 && width - j >= COLS) pack_adjacent(b, job->b_k, k, panel);
            else pack_any(b, job->b_k, job->b_n, k, width - j < COLS ? width - j : COLS, panel);
        }
        for (int64_t i0 = 0; i0 < job->m; i0 += ROWS) {
            int64_t height = job->m - i0 < ROWS ? job->m - i0 : ROWS;
            pack_rows(job, i0, height, depth, rows);
            for (int64_t j = 0; j < width; j += COLS) {
                int64_t cols = width - j < COLS ? width - j : COLS, i = 0;
                int32_t *c = (int32_t *)job->c + i0 * job->ldc + j0 + j;
                const int16_t *panel = panels + 2 * pairs * j;
                for (int64_t left = (height + TILE - 1) / TILE; left; left--) { /* even shares */
                    int64_t count = (height - i + left - 1) / left;
                    tiles[count - 1](rows + i * depth, depth, pairs, panel, c + i * job->ldc, job->ldc, cols, job->accumulate);
                    i += count;
                }
            }
        }
    }
}

TARGET static void signs_f32_masks(int64_t n, const float *x, uint8_t *signs) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        signs[i / 8] = (uint8_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_GT_OQ));
    FN(signs_f32)(n - i, x + i, signs + i / 8);
}

void octo_init_avx2(struct octo_kernels *table) {
    init_loops_avx2(table);
    table->gemm_s8 = gemm_s8_avx2;
    table->weight_grad_s8 = NULL;
    table->gemm_s8_accumulate = gemm_s8_accumulate_avx2;
    table->signs_f32 = signs_f32_masks;
}
#endif
