/* AVX-512 with VNNI.  References: Intel SDM, VPDPBUSD; Fog's and uops.info tables: one 512-bit VPDPBUSD a cycle on Zen 4,
 * latency 4, so at least 4 independent accumulators; the tiles below have 24. */
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>

/* gcc vectorizes loops with 256 bits unless told otherwise; clang (which has no such attribute) decides by itself. */
#ifdef __clang__
#define TARGET OCTO_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#else
#define TARGET OCTO_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#endif
#define FN(name) name##_avx512vnni
#define VECTOR_BYTES 64
#define TILE_BYTES 32 /* of float32 products: on Zen 4 1.4 times as fast as 64; cores with two 512-bit multipliers would prefer those */
#include "loops.inc"
#define MADD(a, b) (FN(s32))_mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#define MIN(a, b) (FN(s32))_mm512_min_epi32((__m512i)(a), (__m512i)(b))
#define MAX(a, b) (FN(s32))_mm512_max_epi32((__m512i)(a), (__m512i)(b))
#include "accumulate.inc"

/* VPDPBUSD multiplies unsigned by signed bytes: sum (a + 128) b = sum a b + 128 sum b.  So a is stored as a ^ 0x80 = a + 128 and
 * the accumulators start at -128 sum b, a constant of the column.  Everything is modulo 2^32, as in gemm_s8_ref.
 *
 * Packed operands: rows of a, `depth` bytes each (k rounded up to 4, then to an odd number of 64-byte lines so that the rows of
 * a tile fall into different cache sets); panels of b with 16 columns x 4 consecutive k in a vector, zero beyond k and n. */

enum { ROWS = 48, AHEAD = 32 };

TARGET static void pack_rows(const struct octo_job *job, int64_t first, int64_t count, int64_t depth, uint8_t *out) {
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    const struct octo_rows *a = &job->a;
    struct octo_walk walk = octo_walk_from(a, job->first + first);
    for (int64_t i = 0; i < count; i++, out += depth) {
        const int8_t *from = (const int8_t *)a->base + octo_walk_next(&walk);
        uint8_t *to = out;
        if (a->length <= 16) {
            __mmask16 mask = (__mmask16)((1u << a->length) - 1);
            for (int64_t s = 0; s < a->segments; s++, from += a->segment_stride, to += a->length)
                _mm_storeu_si128((__m128i *)to, _mm_xor_si128(_mm_maskz_loadu_epi8(mask, from), _mm512_castsi512_si128(flip)));
            continue;
        }
        for (int64_t s = 0; s < a->segments; s++, from += a->segment_stride, to += a->length) {
            int64_t p = 0;
            for (; p + 64 <= a->length; p += 64)
                _mm512_storeu_si512(to + p, _mm512_xor_si512(_mm512_loadu_si512(from + p), flip));
            int64_t rest = a->length - p;
            if (!rest) continue;
            __mmask64 mask = ((__mmask64)1 << rest) - 1;
            __m512i v = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, from + p), flip);
            /* a full store may run into the next row's cells only before those are written */
            _mm512_storeu_si512(to + p, v);
        }
    }
}

/* Four rows of 16 columns, `stride` bytes apart -> one vector: row i into lane i, dword l of every lane into lane l, then a 4 x 4
 * transposition of its bytes.  rows: how many of the four there are; mask: the columns. */
TARGET static inline __m512i interleave(const int8_t *b, int64_t stride, int rows, __mmask16 mask) {
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i all;
    if (rows == 4 && mask == 0xffff) { /* four loads that write a lane each */
        all = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)b));
        all = _mm512_mask_broadcast_i32x4(all, 0x00f0, _mm_loadu_si128((const __m128i *)(b + stride)));
        all = _mm512_mask_broadcast_i32x4(all, 0x0f00, _mm_loadu_si128((const __m128i *)(b + 2 * stride)));
        all = _mm512_mask_broadcast_i32x4(all, 0xf000, _mm_loadu_si128((const __m128i *)(b + 3 * stride)));
    } else {
        all = _mm512_zextsi128_si512(_mm_maskz_loadu_epi8(mask, b));
        if (rows > 1) all = _mm512_inserti32x4(all, _mm_maskz_loadu_epi8(mask, b + stride), 1);
        if (rows > 2) all = _mm512_inserti32x4(all, _mm_maskz_loadu_epi8(mask, b + 2 * stride), 2);
        if (rows > 3) all = _mm512_inserti32x4(all, _mm_maskz_loadu_epi8(mask, b + 3 * stride), 3);
    }
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, all), bytes);
}

/* b[k][width], columns adjacent in memory -> panels of 64 columns, `groups` groups of 4 k each; four whole rows at a time, so
 * that memory is read in long runs, and the rows to come are fetched early. */
TARGET static void pack_adjacent(const int8_t *b, int64_t b_k, int64_t k, int64_t width, int64_t groups, int8_t *panels) {
    for (int64_t p = 0; p < k; p += 4, b += 4 * b_k) {
        int rows = k - p < 4 ? (int)(k - p) : 4;
        for (int64_t j = 0; j < width; j += 64) {
            int64_t cols = width - j < 64 ? width - j : 64;
            int vectors = (int)((cols + 15) / 16);
            int8_t *panel = panels + j * groups * 4 + p / 4 * 64 * vectors;
            OCTO_UNROLL
            for (int i = 0; i < 4; i++) _mm_prefetch(b + (AHEAD + i) * b_k + j, _MM_HINT_T0);
            if (cols == 64 && rows == 4) {
                OCTO_UNROLL
                for (int v = 0; v < 4; v++) _mm512_store_si512(panel + 64 * v, interleave(b + j + 16 * v, b_k, 4, 0xffff));
            } else
                for (int v = 0; v < vectors; v++) {
                    __mmask16 mask = cols - 16 * v >= 16 ? 0xffff : (__mmask16)((1u << (cols - 16 * v)) - 1);
                    _mm512_store_si512(panel + 64 * v, interleave(b + j + 16 * v, b_k, rows, mask));
                }
        }
    }
}

/* t[j] lane i = r[i] lane j. */
TARGET static inline __attribute__((always_inline)) void transpose_dwords(const __m512i r[16], __m512i t[16]) {
    __m512i u[16], v[16];
    OCTO_UNROLL
    for (int i = 0; i < 8; i++) {
        u[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        u[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    OCTO_UNROLL
    for (int i = 0; i < 4; i++) {
        v[4 * i] = _mm512_unpacklo_epi64(u[4 * i], u[4 * i + 2]);
        v[4 * i + 1] = _mm512_unpackhi_epi64(u[4 * i], u[4 * i + 2]);
        v[4 * i + 2] = _mm512_unpacklo_epi64(u[4 * i + 1], u[4 * i + 3]);
        v[4 * i + 3] = _mm512_unpackhi_epi64(u[4 * i + 1], u[4 * i + 3]);
    }
    /* v[4 i + d], lane l: dword 4 l + d of rows 4 i .. 4 i + 3 */
    OCTO_UNROLL
    for (int d = 0; d < 4; d++) {
        __m512i x0 = _mm512_shuffle_i32x4(v[d], v[4 + d], 0x44), x1 = _mm512_shuffle_i32x4(v[d], v[4 + d], 0xee);
        __m512i y0 = _mm512_shuffle_i32x4(v[8 + d], v[12 + d], 0x44), y1 = _mm512_shuffle_i32x4(v[8 + d], v[12 + d], 0xee);
        t[d] = _mm512_shuffle_i32x4(x0, y0, 0x88), t[4 + d] = _mm512_shuffle_i32x4(x0, y0, 0xdd);
        t[8 + d] = _mm512_shuffle_i32x4(x1, y1, 0x88), t[12 + d] = _mm512_shuffle_i32x4(x1, y1, 0xdd);
    }
}

/* b[cols][k], k adjacent in memory. */
TARGET static void pack_strided(const int8_t *b, int64_t b_n, int64_t k, int64_t cols, int vectors, int8_t *panel) {
    for (int v = 0; v < vectors; v++) {
        int64_t width = cols - 16 * v < 16 ? cols - 16 * v : 16, p = 0;
        const int8_t *from = b + 16 * v * b_n;
        int8_t *to = panel + 64 * v;
        for (; p + 64 <= k; p += 64) {
            __m512i r[16], t[16];
            for (int i = 0; i < 16; i++)
                r[i] = i < width ? _mm512_loadu_si512(from + i * b_n + p) : _mm512_setzero_si512();
            transpose_dwords(r, t);
            for (int i = 0; i < 16; i++) _mm512_store_si512(to + (p / 4 + i) * 64 * vectors, t[i]);
        }
        for (; p < k; p += 4) {
            int32_t group[16] = {0};
            for (int64_t i = 0; i < width; i++) memcpy(group + i, from + i * b_n + p, (size_t)(k - p < 4 ? k - p : 4));
            memcpy(to + p / 4 * 64 * vectors, group, sizeof group);
        }
    }
}

TARGET static void pack_any(const int8_t *b, int64_t b_k, int64_t b_n, int64_t k, int64_t cols, int vectors, int8_t *panel) {
    for (int64_t p = 0; p < k; p += 4, panel += 64 * vectors) {
        memset(panel, 0, (size_t)(64 * vectors));
        for (int64_t i = 0; i < 4 && p + i < k; i++)
            for (int64_t j = 0; j < cols; j++) panel[4 * j + i] = b[(p + i) * b_k + j * b_n];
    }
}

/* start[16 * vectors] = -128 sum over k of b: with unsigned ones, VPDPBUSD adds up four k at a time. */
TARGET static void column_starts(const int8_t *panel, int64_t groups, int vectors, int32_t *start) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int v = 0; v < vectors; v++) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t p = 0; p < groups; p++)
            sum = _mm512_dpbusd_epi32(sum, ones, _mm512_load_si512(panel + (p * vectors + v) * 64));
        _mm512_storeu_si512(start + 16 * v, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
    }
}

/* The left operand of a tile: rows `stride` bytes apart, each `runs` runs of `groups` groups of 4 bytes, the r-th from places[r] on. */
struct left {
    const uint8_t *base;
    int64_t stride, runs, groups;
    const int64_t *places;
};

TARGET static inline __attribute__((always_inline)) void tile(int rows, int vectors, const struct left *a, const uint8_t *base,
                                                              const int8_t *panel, const int32_t *start, int32_t *c, int64_t ldc,
                                                              int64_t cols, int accumulate) {
    __m512i acc[12][4];
    int64_t stride = a->stride, groups = a->groups;
    for (int v = 0; v < vectors; v++)
        for (int i = 0; i < rows; i++) acc[i][v] = _mm512_loadu_si512(start + 16 * v);
    for (int64_t r = 0; r < a->runs; r++) {
        const uint8_t *from = base + a->places[r];
        for (int64_t p = 0; p < groups; p++, panel += 64 * vectors, from += 4) {
            __m512i b[4];
            for (int v = 0; v < vectors; v++) b[v] = _mm512_load_si512(panel + 64 * v);
    OCTO_UNROLL
            for (int i = 0; i < rows; i++) {
                int32_t group;
                memcpy(&group, from + i * stride, sizeof group);
                __m512i x = _mm512_set1_epi32(group);
    OCTO_UNROLL
                for (int v = 0; v < vectors; v++) acc[i][v] = _mm512_dpbusd_epi32(acc[i][v], x, b[v]);
            }
        }
    }
    OCTO_UNROLL
    for (int i = 0; i < rows; i++)
    OCTO_UNROLL
        for (int v = 0; v < vectors; v++) {
            int64_t rest = cols - 16 * v;
            __mmask16 mask = rest >= 16 ? 0xffff : (__mmask16)((1u << rest) - 1);
            int32_t *to = c + i * ldc + 16 * v;
            __m512i sum = acc[i][v];
            if (accumulate) sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(mask, to));
            _mm512_mask_storeu_epi32(to, mask, sum);
        }
}

/* At most 24 accumulators where the panel has 2, 3 or 4 vectors.  The rows are shared out evenly: 30 are 3 tiles of 10, not
 * 12, 12 and 6. */
#define TILE_CASE(ROWS_OF_TILE, VECTORS)                                                                                      \
    case ROWS_OF_TILE:                                                                                                        \
        tile(ROWS_OF_TILE, VECTORS, a, base, panel, start, c, ldc, cols, accumulate);                                         \
        break;
#define TILE(name, MOST, VECTORS, CASES)                                                                                      \
    TARGET static void name(int64_t rows, const struct left *a, const int8_t *panel, const int32_t *start, int32_t *c,         \
                            int64_t ldc, int64_t cols, int accumulate) {                                                       \
        const uint8_t *base = a->base;                                                                                         \
        for (int64_t left = (rows + MOST - 1) / MOST; left; left--) {                                                          \
            int64_t count = (rows + left - 1) / left;                                                                         \
            switch (count) { CASES(VECTORS) }                                                                                 \
            rows -= count, base += count * a->stride, c += count * ldc;                                                       \
        }                                                                                                                     \
    }
#define UP_TO_6(V) TILE_CASE(1, V) TILE_CASE(2, V) TILE_CASE(3, V) TILE_CASE(4, V) TILE_CASE(5, V) TILE_CASE(6, V)
#define UP_TO_8(V) UP_TO_6(V) TILE_CASE(7, V) TILE_CASE(8, V)
#define UP_TO_12(V) UP_TO_8(V) TILE_CASE(9, V) TILE_CASE(10, V) TILE_CASE(11, V) TILE_CASE(12, V)
TILE(tile_1, 12, 1, UP_TO_12)
TILE(tile_2, 12, 2, UP_TO_12)
TILE(tile_3, 8, 3, UP_TO_8)
TILE(tile_4, 6, 4, UP_TO_6)
#undef TILE
static void (*const tiles[])(int64_t, const struct left *, const int8_t *, const int32_t *, int32_t *, int64_t, int64_t,
                             int) = {tile_1, tile_2, tile_3, tile_4};

TARGET static void gemm_s8_avx512vnni(const struct octo_job *job) {
    int64_t k = job->a.segments * job->a.length, groups = (k + 3) / 4, depth = ((k + 63) / 64 | 1) * 64;
    uint8_t *rows = job->scratch;
    struct left left = {rows, depth, 1, groups, (const int64_t[]){0}};
    int8_t *panels = (int8_t *)rows + ROWS * depth + 64;
    int64_t room = ((int64_t)1 << 19) / (groups * 256) * 64; /* columns at a time: half a megabyte, 64 at least */
    if (room < 64) room = 64;
    int32_t *starts = (int32_t *)(panels + (room < job->n + 63 ? room : (job->n + 63) / 64 * 64) * groups * 4);
    for (int64_t j0 = 0; j0 < job->n; j0 += room) {
        int64_t width = job->n - j0 < room ? job->n - j0 : room;
        if (job->b_n == 1) pack_adjacent((const int8_t *)job->b + j0, job->b_k, k, width, groups, panels);
        for (int64_t j = 0; j < width; j += 64) {
            const int8_t *b = (const int8_t *)job->b + (j0 + j) * job->b_n;
            int64_t cols = width - j < 64 ? width - j : 64;
            int vectors = (int)((cols + 15) / 16);
            int8_t *panel = panels + j * groups * 4;
            if (job->b_n == 1) { /* packed above */
            } else if (job->b_k == 1) pack_strided(b, job->b_n, k, cols, vectors, panel);
            else pack_any(b, job->b_k, job->b_n, k, cols, vectors, panel);
            column_starts(panel, groups, vectors, starts + j);
        }
        int64_t blocks = (job->m + ROWS - 1) / ROWS, most = ((job->m + blocks - 1) / blocks + 5) / 6 * 6; /* even shares */
        for (int64_t i = 0; i < job->m; i += most) {
            int64_t height = job->m - i < most ? job->m - i : most;
            pack_rows(job, i, height, depth, rows);
            for (int64_t j = 0; j < width; j += 64) {
                int64_t cols = width - j < 64 ? width - j : 64;
                tiles[(cols - 1) / 16](height, &left, panels + j * groups * 4, starts + j,
                                       (int32_t *)job->c + i * job->ldc + j0 + j, job->ldc, cols, job->accumulate);
            }
        }
    }
}

/* dw[f][k0 + i] (+)= sums[i][f], i < rows (16 at most), f < cols. */
TARGET static void add_transposed(int64_t rows, int64_t cols, const int32_t *sums, int32_t *dw, int64_t ldw, int accumulate) {
    __mmask16 mask = (__mmask16)((1u << rows) - 1);
    for (int64_t f0 = 0; f0 < cols; f0 += 16) {
        __m512i r[16], t[16];
        for (int i = 0; i < 16; i++) r[i] = i < rows ? _mm512_loadu_si512(sums + i * 64 + f0) : _mm512_setzero_si512();
        transpose_dwords(r, t);
        for (int64_t f = f0; f < f0 + 16 && f < cols; f++) {
            __m512i sum = t[f - f0];
            if (accumulate) sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(mask, dw + f * ldw));
            _mm512_mask_storeu_epi32(dw + f * ldw, mask, sum);
        }
    }
}

/* The left operand is x with channels apart (planes), so that four neighbouring pixels of a channel are four bytes; moving a plane
 * by a tap's offset gives the row of that tap, without im2col.  The right operand is dY, four pixels of a line to a group; what
 * a line's last group reads beyond the line is multiplied by 0. */
TARGET static void weight_grad_s8_avx512vnni(const struct octo_rows *x, int64_t channels, int64_t c0, int64_t c1, int64_t line, int64_t lines,
                                             int64_t filters, const int8_t *dy, void *scratch, int accumulate, int32_t *dw) {
    int64_t groups = (x->width + 3) / 4, all = lines * groups, first = octo_line_offset(x, line), k = x->segments * x->length;
    int64_t taps = x->length / channels, *places = scratch, pixels, plane;
    for (int64_t l = 0; l < lines; l++) places[l] = (octo_line_offset(x, line + l) - first) / channels;
    pixels = places[lines - 1] + ((x->segments - 1) * x->segment_stride + x->length) / channels + x->width - 1;
    plane = octo_plane(pixels);
    int8_t *panel = (int8_t *)(places + (lines + 7) / 8 * 8);
    uint8_t *planes = (uint8_t *)panel + all * 256;
    FN(transpose_s8)(pixels, c1 - c0, (const int8_t *)x->base + first + c0, channels, (int8_t *)planes, plane);
    for (int64_t i = 0; i < (c1 - c0) * plane; i += 64)
        _mm512_store_si512(planes + i, _mm512_xor_si512(_mm512_load_si512(planes + i), _mm512_set1_epi8((char)0x80)));
    int32_t starts[64], sums[48 * 64];
    for (int64_t f = 0; f < filters; f += 64) {
        int64_t cols = filters - f < 64 ? filters - f : 64;
        int vectors = (int)((cols + 15) / 16);
        if (x->width % 4 == 0) pack_adjacent(dy + f, filters, 4 * all, cols, all, panel);
        else
            for (int64_t l = 0; l < lines; l++)
                pack_adjacent(dy + f + l * x->width * filters, filters, x->width, cols, all, panel + l * groups * 64 * vectors);
        column_starts(panel, all, vectors, starts);
        for (int64_t s = 0; s < x->segments; s++)
            for (int64_t t = 0; t < taps; t++) {
                /* a tile's rows are channels, of a single channel its taps */
                int64_t end = channels > 1 ? c1 - c0 : taps, from = s * x->segment_stride / channels + (channels > 1 ? t : 0);
                struct left left = {.stride = channels > 1 ? plane : 1, .runs = lines, .groups = groups, .places = places};
                for (int64_t c = 0; c < end; c += 48) {
                    int64_t rows = end - c < 48 ? end - c : 48;
                    left.base = planes + from + c * left.stride;
                    tiles[vectors - 1](rows, &left, panel, starts, sums, 64, 64, 0);
                    for (int64_t i = 0; i < rows; i += 16)
                        add_transposed(rows - i < 16 ? rows - i : 16, cols, sums + i * 64,
                                       dw + f * k + s * x->length + (channels > 1 ? t * channels + c0 : 0) + c + i, k, accumulate);
                }
                if (channels == 1) break;
            }
    }
}

TARGET static void signs_f32_masks(int64_t n, const float *x, uint8_t *signs) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        uint16_t mask = (uint16_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_GT_OQ);
        memcpy(signs + i / 8, &mask, 2);
    }
    FN(signs_f32)(n - i, x + i, signs + i / 8);
}

void octo_init_avx512vnni(struct octo_kernels *table) {
    init_loops_avx512vnni(table);
    table->gemm_s8 = gemm_s8_avx512vnni;
    table->gemm_s8_accumulate = gemm_s8_accumulate_avx512vnni;
    table->signs_f32 = signs_f32_masks;
    table->weight_grad_s8 = weight_grad_s8_avx512vnni;
}
#endif
