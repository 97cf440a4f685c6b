/* checkasm: every kernel of every instruction set against ref.c, to the bit.
 *
 * Each check runs the reference and the variant on the same random, extreme and unaligned input; outputs start from the same
 * junk and are compared whole, and the guard bytes around them must stay as they were.  Inputs end where their memory ends, so
 * that sanitizers and valgrind see what is read too far.  A kernel of kernels.def without a check does not compile.
 * Then the public functions, whose scratch memory and slices no kernel's check reaches: with each instruction set and three
 * threads against ref with one.
 *
 *     cc -O2 cext/[a-z]*.c -o checkasm && ./checkasm [--seed N] [--isa NAME] [--rounds N] [--bench]
 */
#include "kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* ---- random input ---------------------------------------------------------------------------------------------------------- */

static uint64_t state;

static uint32_t rnd(void) { /* splitmix64 (Vigna), upper half */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static int64_t below(int64_t n) { return (int64_t)(rnd() % (uint64_t)n); }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- memory: an input, or an output twice (for the reference and for the variant) ------------------------------------------------ */

enum { GUARD = 128, MOST = 64 };
static void *blocks[MOST];
static int used;

static unsigned char junk(size_t i) { return (unsigned char)(i * 37 + 11); }

static unsigned char *block(size_t bytes) {
    unsigned char *memory = malloc(bytes ? bytes : 1);
    if (!memory || used == MOST) {
        fprintf(stderr, "checkasm: out of memory\n");
        exit(3);
    }
    for (size_t i = 0; i < bytes; i++) memory[i] = junk(i);
    return blocks[used++] = memory;
}

typedef struct {
    void *p[2];
    size_t bytes, before; /* before: from the start of the memory to p */
} output;

static int misalignment; /* in elements, the same for all operands of a call */

static size_t offset(size_t size) { return (size_t)misalignment % (16 / size) * size; }

static void *input(int64_t count, size_t size) { return block(offset(size) + (size_t)count * size) + offset(size); }

static output outputs(int64_t count, size_t size) {
    output o = {.bytes = (size_t)count * size, .before = GUARD + offset(size)};
    for (int i = 0; i < 2; i++) o.p[i] = block(o.before + o.bytes + GUARD) + o.before;
    return o;
}

static void release(void) {
    while (used) free(blocks[--used]);
}

static const char *isa, *kernel;
static long checks, failures;
static int turn;

static void compare(output o, size_t size) {
    checks++;
    for (int i = 0; i < 2; i++) {
        const unsigned char *memory = (const unsigned char *)o.p[i] - o.before;
        for (size_t at = 0; at < o.before + o.bytes + GUARD; at++) {
            if (at == o.before) at += o.bytes;
            if (memory[at] == junk(at)) continue;
            failures++;
            fprintf(stderr, "%s %s: byte %lld outside the output of %lld bytes was written (turn %d)\n", i ? isa : "ref", kernel,
                    (long long)at - (long long)o.before, (long long)o.bytes, turn);
            return;
        }
    }
    for (size_t at = 0; at < o.bytes; at += size) {
        uint64_t got = 0, expected = 0;
        memcpy(&expected, (char *)o.p[0] + at, size);
        memcpy(&got, (char *)o.p[1] + at, size);
        if (got == expected) continue;
        failures++;
        fprintf(stderr, "%s %s: element %lld is 0x%llx, expected 0x%llx (turn %d)\n", isa, kernel, (long long)(at / size),
                (unsigned long long)got, (unsigned long long)expected, turn);
        return;
    }
}

/* ---- kinds of values --------------------------------------------------------------------------------------------------------------- */

static float power_of_two(int exponent) {
    uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* NOT_NUMBERS only where the result for NaN and infinity is one of the operands or a code. */
enum { SPECIAL = 3, DENORMAL = 4, NOT_NUMBERS = 5 };

static float *floats(int64_t n, int kind) {
    static const float special[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 1.17549435e-38f, 0.5f, -0.5f, 1.5f, 2.5f, -126.5f, 127.5f, 1e30f, -1e30f,
                                    3.4e38f, -3.4e38f};
    const float not_numbers[] = {__builtin_nanf(""), -__builtin_nanf(""), __builtin_inff(), -__builtin_inff()};
    float *x = input(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        float unit = (float)(int32_t)rnd() * (1.0f / 2147483648.0f);
        switch (kind) {
        case 0: x[i] = unit * 3; break;
        case 1: x[i] = unit * power_of_two((int)below(60) - 40); break;              /* many magnitudes */
        case 2: x[i] = (float)((int)below(600) - 300) * 0.5f; break;                /* ties */
        case DENORMAL: x[i] = unit * (rnd() & 1 ? power_of_two(-126) : 1.0f); break;
        case NOT_NUMBERS:
            if (rnd() & 1) {
                x[i] = not_numbers[below(4)];
                break;
            } /* fall through */
        default: x[i] = special[below(sizeof special / sizeof *special)]; break;
        }
    }
    return x;
}

static float *positive(int64_t n) {
    float *x = floats(n, 1);
    for (int64_t i = 0; i < n; i++) x[i] = (x[i] < 0 ? -x[i] : x[i]) + 1e-30f;
    return x;
}

static int8_t *codes(int64_t n, int kind) {
    int8_t *x = input(n, 1);
    for (int64_t i = 0; i < n; i++) x[i] = (int8_t)(kind == 1 ? -128 : kind == 2 ? 127 : kind == 3 ? (rnd() & 1 ? -128 : 127) : (int)(rnd() & 255));
    return x;
}

static int32_t *sums32(int64_t n) {
    int32_t *x = input(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = rnd() % 4 ? (int32_t)rnd() >> below(31) : rnd() & 1 ? INT32_MAX : INT32_MIN;
    return x;
}

static uint32_t *words(int64_t n) {
    uint32_t *x = input(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = rnd() % 16 ? rnd() : rnd() & 1 ? UINT32_MAX : 0;
    return x;
}

static uint8_t *bytes(int64_t n) {
    uint8_t *x = input(n, 1);
    for (int64_t i = 0; i < n; i++) x[i] = (uint8_t)rnd();
    return x;
}

/* ---- running a pair of calls -------------------------------------------------------------------------------------------------------- */

static int benching;
static const struct octo_kernels *tables[2]; /* reference, variant */

static double seconds(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Calls the kernel for i = 0 (reference) and i = 1 (variant); with --bench, times both. */
#define RUN(name, ...)                                                                              \
    do {                                                                                            \
        double took_[2] = {0};                                                                      \
        for (int i = 0; i < 2; i++) {                                                               \
            long calls_ = 0;                                                                        \
            double start_ = seconds();                                                              \
            do {                                                                                    \
                tables[i]->name(__VA_ARGS__);                                                       \
                calls_++;                                                                           \
            } while (benching && seconds() - start_ < 0.05);                                        \
            took_[i] = (seconds() - start_) / (double)calls_;                                       \
        }                                                                                           \
        if (benching) printf("%-12s %-26s %12.0f ns  %6.2f x ref\n", isa, kernel, took_[1] * 1e9, took_[0] / took_[1]); \
    } while (0)

/* Sizes: edges first, then random; the benchmark's is 1 << 16. */
static int64_t size(void) {
    static const int64_t edges[] = {1, 2, 15, 16, 17, 63, 64, 65, 255, 1024, 0};
    if (benching) return 1 << 16;
    return turn < (int)(sizeof edges / sizeof *edges) ? edges[turn] : 1 + below(3000);
}

static int64_t columns(void) {
    static const int64_t edges[] = {1, 3, 6, 10, 16, 17, 30, 64, 100, 127, 128, 129, 400, 511, 512, 513, 1000};
    if (benching) return 30;
    return turn < (int)(sizeof edges / sizeof *edges) ? edges[turn] : 1 + below(700);
}

static int64_t rows(int64_t cols) { return benching ? 2000 : 1 + below(cols < 20 ? 500 : 60); }

/* ---- the checks, in the order of kernels.def ------------------------------------------------------------------------------------------ */

/* A random slice of a product: a plain matrix or windows of an image, either order of b, any row strides. */
static void product(int element) {
    int64_t m = benching ? 480 : 1 + below(70), n = benching ? 64 : 1 + below(turn % 5 ? 40 : 150), images = 1;
    struct octo_rows a = {.segments = 1, .length = benching ? 512 : 1 + below(turn % 7 ? 80 : 700)};
    if (benching || turn % 2) { /* plain, rows further apart than they are long */
        a.width = m + below(3), a.height = 1, a.x_stride = a.length + (benching ? 0 : below(5));
    } else {
        int64_t channels = 1 + below(9), kernel_h = 1 + below(4), kernel_w = 1 + below(4), step = 1 + below(2);
        a.width = 1 + below(9), a.height = 1 + below(9);
        int64_t line = ((a.width - 1) * step + kernel_w) * channels;
        a.x_stride = step * channels, a.y_stride = step * line, a.segments = kernel_h, a.length = kernel_w * channels, a.segment_stride = line;
        a.image_stride = ((a.height - 1) * step + kernel_h) * line;
        images = 1 + below(4);
        m = 1 + below(images * a.width * a.height);
    }
    if (turn % 60 == 13) { /* the longest reduction that scratch memory holds, in more columns than it holds at a time */
        m = 5, n = 70;
        a = (struct octo_rows){.width = m, .height = 1, .segments = 1, .length = OCTO_MAX_DEPTH, .x_stride = OCTO_MAX_DEPTH};
        images = 1;
    }
    int64_t first = images > 1 || a.height > 1 ? below(images * a.width * a.height - m + 1) : below(a.width - m + 1);
    int64_t k = a.segments * a.length;
    int64_t held = images > 1 || a.height > 1 || a.segments > 1 ? images * a.image_stride : (a.width - 1) * a.x_stride + a.length;
    int kind = turn % 4;
    a.base = element == 1 ? (void *)codes(held, kind) : (void *)floats(held, kind == 2 ? DENORMAL : kind % 2);
    a.end = (const char *)a.base + held * element;
    struct octo_job job = {.a = a, .first = first, .m = m, .n = n, .accumulate = benching ? 0 : (int)below(2), .ldc = n + (benching ? 0 : below(4))};
    int64_t spare = benching ? 0 : below(4);
    if (turn % 3) job.b_k = 1, job.b_n = k + spare;
    else job.b_k = n + spare, job.b_n = 1;
    int64_t held_b = (k - 1) * job.b_k + (n - 1) * job.b_n + 1;
    job.b = element == 1 ? (void *)codes(held_b, (kind + turn / 4) % 4) : (void *)floats(held_b, kind % 2);
    output c = outputs((m - 1) * job.ldc + n, 4);
    job.scratch = aligned_alloc(64, (size_t)OCTO_SCRATCH);
    if (element == 1) RUN(gemm_s8, (job.c = c.p[i], &job));
    else {
        /* junk to accumulate on must be numbers */
        float *start = floats((m - 1) * job.ldc + n, 0);
        for (int i = 0; i < 2; i++) memcpy(c.p[i], start, c.bytes);
        RUN(gemm_f32, (job.c = c.p[i], &job));
    }
    free(job.scratch);
    compare(c, 4);
}

static void check_gemm_s8(void) { product(1); }
static void check_gemm_f32(void) { product(4); }

static void check_gemm_s8_accumulate(void) {
    static const int widths[] = {8, 12, 16, 17, 24, 31, 32};
    octo_accumulator how = {.bits = widths[below(7)], .saturate = (int)below(2), .group = turn % 3 ? 1 + (int)below(5) : 1 + (int)below(40)};
    if (benching) how = (octo_accumulator){.bits = 16, .saturate = 1, .group = 1};
    if (turn % 4 == 3) how.group += how.group % 2, how.pair_bits = turn % 8 == 3 ? 16 : 10;
    int64_t m = benching ? 256 : 1 + below(11), n = benching ? 256 : 1 + below(70), k = benching ? 512 : 1 + below(150), spare = below(3);
    /* long sums of extremes overflow 32 bits */
    if (turn % 10 == 9) m = 1, n = 3, k = 140000, how.bits = 32;
    int kind = turn % 10 == 9 ? 3 - (int)below(3) : turn % 4, a_unsigned = turn % 2;
    int8_t *a = codes(m * (k + spare), kind), *b = codes(n * (k + spare), turn % 10 == 9 ? 1 : (kind + turn / 4) % 4);
    struct octo_job job = {.a = {.base = a, .end = a + m * (k + spare), .width = m, .height = 1, .x_stride = k + spare, .segments = 1, .length = k},
                           .m = m, .n = n, .ldc = n + spare, .b = b};
    if (turn % 2) job.b_k = 1, job.b_n = k + spare;
    else job.b_k = n, job.b_n = 1;
    output c = outputs((m - 1) * job.ldc + n, 4), counts = outputs(sizeof(octo_overflow) / 8, 8);
    job.scratch = aligned_alloc(64, (size_t)(octo_accumulate_scratch(k, how.group) + 63) / 64 * 64);
    for (int i = 0; i < 2; i++) memset(counts.p[i], 0, counts.bytes);
    RUN(gemm_s8_accumulate, (job.c = c.p[i], &job), &how, a_unsigned, turn % 5 == 4 ? NULL : (octo_overflow *)counts.p[i]);
    free(job.scratch);
    if (benching) return;
    compare(c, 4);
    compare(counts, 8);
}

static void check_gather_rows(void) {
    int64_t channels = 1 + below(20), k = 1 + below(4), width = 1 + below(8), height = 1 + below(8), line = (width + k - 1) * channels;
    int64_t images = 1 + below(3), element = turn % 2 ? 1 : 4, count = 1 + below(images * width * height);
    struct octo_rows r = {.width = width, .height = height, .x_stride = channels, .y_stride = line, .image_stride = (height + k - 1) * line,
                          .segments = k, .length = k * channels, .segment_stride = line};
    r.base = bytes(images * r.image_stride * element);
    r.end = (const char *)r.base + images * r.image_stride * element;
    int64_t first = below(images * width * height - count + 1), ld = k * k * channels;
    output o = outputs(count * ld, (size_t)element);
    RUN(gather_rows, &r, first, count, element, o.p[i], ld);
    compare(o, (size_t)element);
}

static void check_transpose_s8(void) {
    int64_t r = benching ? 2048 : 1 + below(90), c = benching ? 30 : 1 + below(90), ldx = c + below(5), ldy = r + below(5);
    int8_t *x = codes(r * ldx, 0);
    output o = outputs((c - 1) * ldy + r, 1);
    RUN(transpose_s8, r, c, x, ldx, o.p[i], ldy);
    compare(o, 1);
}

static void check_philox(void) {
    int64_t n = size(), first = 4 * (below(1000) + (turn % 3 ? 0 : (int64_t)1 << 33));
    uint64_t seed = (uint64_t)rnd() << 32 | rnd();
    uint32_t step = rnd(), tensor = rnd();
    output o = outputs(n, 4);
    RUN(philox, n, first, seed, step, tensor, o.p[i]);
    compare(o, 4);
}

static void check_normal_f32(void) {
    int64_t n = size();
    uint32_t *w = words(n);
    output o = outputs(n, 4);
    RUN(normal_f32, n, w, 0.25f, 1.5f, o.p[i]);
    compare(o, 4);
}

static void check_exp_f32(void) {
    int64_t n = size();
    float *x = floats(n, 0);
    for (int64_t i = 0; i < n; i++) x[i] *= 29;
    output o = outputs(n, 4);
    RUN(exp_f32, n, x, o.p[i]);
    compare(o, 4);
}

static void check_log_f32(void) {
    int64_t n = size();
    float *x = positive(n);
    output o = outputs(n, 4);
    RUN(log_f32, n, x, o.p[i]);
    compare(o, 4);
}

static void check_range_f32(void) {
    int64_t n = size();
    float *x = floats(n, turn % 4);
    if (turn % 5 == 0 && n) x[below(n)] = rnd() & 1 ? __builtin_nanf("") : -__builtin_inff();
    output o = outputs(2, 4);
    RUN(range_f32, n, x, (int32_t *)o.p[i], (int32_t *)o.p[i] + 1);
    compare(o, 4);
}

static void check_moments_f32(void) {
    int64_t n = size();
    float *x = floats(n, turn % 3);
    output o = outputs(2, 4);
    RUN(moments_f32, n, x, n ? x[0] : 0, (float *)o.p[i], (float *)o.p[i] + 1);
    compare(o, 4);
}

static void check_quantize_s8(void) {
    int64_t n = size();
    float *x = floats(n, turn % 6);
    int lo = turn % 2 ? -127 : -128 + (int)below(100), hi = lo + (int)below(128 - lo), zero = (int)below(256) - 128;
    output o = outputs(n, 1);
    RUN(quantize_s8, n, x, turn % 6 == 2 ? 1.0f : 37.5f, zero, lo, hi, o.p[i]);
    compare(o, 1);
}

static void check_quantize_s8_stochastic(void) {
    int64_t n = size();
    float *x = floats(n, turn % 6);
    uint32_t *w = words(n);
    int zero = (int)below(256) - 128;
    output o = outputs(n, 1);
    RUN(quantize_s8_stochastic, n, x, w, turn % 6 == 2 ? 1.0f : 37.5f, zero, -127, 127, o.p[i]);
    compare(o, 1);
}

static void check_dequantize_s8(void) {
    int64_t n = size();
    int8_t *q = codes(n, turn % 4);
    output o = outputs(n, 4);
    int zero = (int)below(256) - 128;
    RUN(dequantize_s8, n, q, 0.037f, zero, o.p[i]);
    compare(o, 4);
}

static void check_dequantize_s32(void) {
    int64_t c = columns(), r = rows(c);
    int32_t *acc = sums32(r * c), *add = sums32(c);
    output o = outputs(r * c, 4);
    RUN(dequantize_s32, r, c, acc, add, 1e-4f, o.p[i]);
    compare(o, 4);
}

static void check_dequantize_row_s32(void) {
    int64_t n = size();
    int32_t *acc = sums32(n), add = *sums32(1);
    output o = outputs(n, 4);
    RUN(dequantize_row_s32, n, acc, add, 1e-4f, o.p[i]);
    compare(o, 4);
}

static void check_images_f32(void) {
    int64_t n = size();
    uint8_t *x = bytes(n);
    output o = outputs(n, 4);
    RUN(images_f32, n, x, 1.0f / 255, -0.5f, o.p[i]);
    compare(o, 4);
}

static void check_column_sums_s8(void) {
    int64_t c = columns(), r = rows(c);
    int8_t *x = codes(r * c, turn % 4);
    output o = outputs(c, 4);
    RUN(column_sums_s8, r, c, x, o.p[i]);
    compare(o, 4);
}

static void check_row_sums_s8(void) {
    int64_t c = columns(), r = rows(c);
    int8_t *x = codes(r * c, turn % 4);
    output o = outputs(r, 4);
    RUN(row_sums_s8, r, c, x, o.p[i]);
    compare(o, 4);
}

static void check_column_sums_f32(void) {
    int64_t c = columns(), r = rows(c);
    float *x = floats(r * c, turn % 3);
    output o = outputs(c, 4);
    RUN(column_sums_f32, r, c, x, o.p[i]);
    compare(o, 4);
}

static void check_column_moments_f32(void) {
    int64_t c = columns(), r = rows(c);
    float *x = floats(r * c, turn % 3);
    output s = outputs(c, 4), q = outputs(c, 4);
    RUN(column_moments_f32, r, c, x, x, s.p[i], q.p[i]);
    compare(s, 4);
    compare(q, 4);
}

static void check_column_dots_f32(void) {
    int64_t c = columns(), r = rows(c);
    float *x = floats(r * c, turn % 3), *dy = floats(r * c, 0), *mean = floats(c, 0);
    output s = outputs(c, 4), q = outputs(c, 4);
    RUN(column_dots_f32, r, c, x, mean, dy, s.p[i], q.p[i]);
    compare(s, 4);
    compare(q, 4);
}

static void check_affine_f32(void) {
    int64_t c = columns(), r = rows(c);
    float *x = floats(r * c, turn % 4), *a = floats(c, 0), *b = floats(c, 0);
    output o = outputs(r * c, 4);
    RUN(affine_f32, r, c, x, a, b, turn % 2, o.p[i]);
    compare(o, 4);
    output place = outputs(r * c, 4);
    for (int i = 0; i < 2; i++) memcpy(place.p[i], x, place.bytes);
    if (!benching) RUN(affine_f32, r, c, place.p[i], a, b, turn % 2, place.p[i]);
    compare(place, 4);
}

static void check_batchnorm_grad_f32(void) {
    int64_t c = columns(), r = rows(c);
    float *x = floats(r * c, 0), *dy = floats(r * c, turn % 3), *v[4];
    for (int j = 0; j < 4; j++) v[j] = floats(c, 0);
    output o = outputs(r * c, 4);
    RUN(batchnorm_grad_f32, r, c, x, dy, v[0], v[1], v[2], v[3], o.p[i]);
    compare(o, 4);
    output place = outputs(r * c, 4);
    for (int i = 0; i < 2; i++) memcpy(place.p[i], dy, place.bytes);
    if (!benching) RUN(batchnorm_grad_f32, r, c, x, place.p[i], v[0], v[1], v[2], v[3], place.p[i]);
    compare(place, 4);
}

static void check_relu_f32(void) {
    int64_t n = size();
    float *x = floats(n, turn % 6);
    output o = outputs(n, 4);
    RUN(relu_f32, n, x, o.p[i]);
    compare(o, 4);
}

static void check_relu_backward_f32(void) {
    int64_t n = size();
    float *y = floats(n, turn % 6), *dy = floats(n, turn % 5);
    output o = outputs(n, 4);
    RUN(relu_backward_f32, n, y, dy, o.p[i]);
    compare(o, 4);
}

/* A pooling geometry with few distinct values, so that windows have equals. */
static octo_pool pooling(float **x, int64_t *out_rows, int64_t *out_size) {
    octo_pool g = {.batch = 1 + below(3), .kernel = benching ? 2 : 1 + below(4), .channels = benching ? 30 : 1 + below(50)};
    g.stride = benching ? 2 : 1 + below(4);
    g.height = benching ? 24 : g.kernel + below(12), g.width = benching ? 24 : g.kernel + below(12);
    *x = floats(g.batch * g.height * g.width * g.channels, turn % 8 == 4 ? NOT_NUMBERS : 2);
    if (turn % 2) /* few values, many equals */
        for (int64_t i = 0; i < g.batch * g.height * g.width * g.channels; i++) (*x)[i] = (float)below(3);
    *out_rows = g.batch * ((g.height - g.kernel) / g.stride + 1);
    *out_size = *out_rows * ((g.width - g.kernel) / g.stride + 1) * g.channels;
    return g;
}

static void check_maxpool_f32(void) {
    float *x;
    int64_t out_rows, out_size;
    octo_pool g = pooling(&x, &out_rows, &out_size);
    int64_t first = benching ? 0 : below(out_rows), count = benching ? out_rows : 1 + below(out_rows - first);
    output y = outputs(out_size, 4), where = outputs(out_size, 1);
    RUN(maxpool_f32, &g, first, count, x, y.p[i], where.p[i]);
    compare(y, 4);
    compare(where, 1);
}

static void check_maxpool_backward_f32(void) {
    float *x;
    int64_t out_rows, out_size;
    octo_pool g = pooling(&x, &out_rows, &out_size);
    float *dy = floats(out_size, 0);
    uint8_t *where = bytes(out_size);
    for (int64_t i = 0; i < out_size; i++) where[i] = (uint8_t)(where[i] % (g.kernel * g.kernel));
    int64_t in_rows = g.batch * g.height, first = benching ? 0 : below(in_rows), count = benching ? in_rows : 1 + below(in_rows - first);
    output dx = outputs(in_rows * g.width * g.channels, 4);
    RUN(maxpool_backward_f32, &g, first, count, dy, where, dx.p[i]);
    compare(dx, 4);
}

static void check_dropout_f32(void) {
    int64_t n = size();
    float *x = floats(n, turn % 6);
    uint32_t *w = words(n), threshold = *words(1);
    output o = outputs(n, 4);
    RUN(dropout_f32, n, x, w, threshold, 1.25f, o.p[i]);
    compare(o, 4);
}

static void check_softmax_f32(void) {
    int64_t r = benching ? 1000 : 1 + below(40), c = benching ? 10 : 1 + below(30);
    float *x = floats(r * c, turn % 2 ? 0 : 2);
    int32_t *labels = input(r, 4);
    for (int64_t i = 0; i < r; i++) labels[i] = (int32_t)below(c);
    output loss = outputs(r, 4), grad = outputs(r * c, 4);
    RUN(softmax_f32, r, c, x, labels, 1.0f / (float)r, loss.p[i], turn % 3 ? grad.p[i] : NULL);
    compare(loss, 4);
    compare(grad, 4);
}

/* Optimizers update in place: both copies start from the same numbers. */
static output numbers(int64_t n, int kind) {
    output o = outputs(n, 4);
    float *x = kind < 0 ? positive(n) : floats(n, kind);
    for (int i = 0; i < 2; i++) memcpy(o.p[i], x, o.bytes);
    return o;
}

static void check_sgd_f32(void) {
    int64_t n = size();
    float *g = floats(n, 1);
    output w = numbers(n, 0), v = numbers(n, 1);
    RUN(sgd_f32, n, w.p[i], g, v.p[i], 0.05f, 0.9f, 1e-4f);
    if (benching) return;
    compare(w, 4);
    compare(v, 4);
}

static void check_adam_f32(void) {
    int64_t n = size();
    float *g = floats(n, 1);
    output w = numbers(n, 0), m = numbers(n, 1), v = numbers(n, -1);
    RUN(adam_f32, n, w.p[i], g, m.p[i], v.p[i], 1e-3f, 0.9f, 0.999f, 1e-7f, 0.1f, 0.001f, 1e-4f);
    if (benching) return;
    compare(w, 4);
    compare(m, 4);
    compare(v, 4);
}

static void check_lac_fold_f32(void) {
    int64_t n = size();
    float *p[4];
    for (int j = 0; j < 4; j++) p[j] = floats(n, turn % 7 == 6 && j == 3 ? NOT_NUMBERS : turn % 2);
    int32_t *term = sums32(n);
    output o = outputs(n, 4);
    float inverse = turn % 3 ? 12345.0f : 3e9f;
    int off = turn % 4 == 0;
    RUN(lac_fold_f32, n, off ? NULL : p[0], p[1], p[2], p[3], term, inverse, o.p[i]);
    compare(o, 4);
}

static void check_lac_backward_f32(void) {
    int64_t n = size();
    float *p[4];
    for (int j = 0; j < 4; j++) p[j] = floats(n, 1);
    output a = outputs(n, 4), m = outputs(n, 4), o = outputs(n, 4);
    RUN(lac_backward_f32, n, p[0], p[1], p[2], p[3], 0.1f, a.p[i], m.p[i], o.p[i]);
    compare(a, 4);
    compare(m, 4);
    compare(o, 4);
}

/* ---- the public functions: with the instruction set and three threads against ref and one ------------------------------------------ */

#define PUBLIC(name, ...)                                                                                          \
    do {                                                                                                           \
        kernel = #name;                                                                                            \
        for (int i = 0; i < 2; i++) {                                                                              \
            int status_ = octo_set_isa(i ? isa : "ref") || octo_set_threads(i ? 3 : 1) || octo_##name(__VA_ARGS__); \
            if (!status_) continue;                                                                                \
            failures++;                                                                                            \
            fprintf(stderr, "%s %s: %s (turn %d)\n", isa, kernel, octo_error(), turn);                             \
        }                                                                                                          \
    } while (0)

static void check_products(void) {
    static const int64_t sizes[] = {0, 1, 47, 48, 49, 64, 65, 97, 130};
    int64_t m = sizes[below(9)], n = sizes[below(9)], k = turn % 5 ? below(90) : 1020 + below(10);
    int ta = turn & 1, tb = turn >> 1 & 1;
    int64_t lda = (ta ? m : k) + below(4), ldb = (tb ? k : n) + below(4), ldc = n + below(4);
    int64_t held_a = (ta ? k : m) * lda, held_b = (tb ? n : k) * ldb, held_c = m ? (m - 1) * ldc + n : 0;
    int8_t *a = codes(held_a, turn % 4), *b = codes(held_b, 0);
    output c = outputs(held_c, 4), counted = outputs(held_c, 4), counts = outputs(sizeof(octo_overflow) / 8, 8), f = outputs(held_c, 4);
    PUBLIC(gemm_s8, ta, tb, m, n, k, a, lda, b, ldb, c.p[i], ldc);
    compare(c, 4);
    octo_accumulator how = {.bits = 12, .saturate = turn & 1, .group = 1 + (int)below(4)};
    PUBLIC(gemm_s8_accumulate, ta, tb, m, n, k, a, lda, turn >> 2 & 1, b, ldb, counted.p[i], ldc, &how, counts.p[i]);
    compare(counted, 4);
    compare(counts, 8);
    float *fa = floats(held_a, turn % 2), *fb = floats(held_b, 0);
    PUBLIC(gemm_f32, ta, tb, m, n, k, fa, lda, fb, ldb, f.p[i], ldc);
    compare(f, 4);
}

static void check_convolutions(void) {
    octo_conv g = {.batch = 1 + below(4), .height = 1 + below(12), .width = 1 + below(12), .channels = 1 + below(20), .filters = 1 + below(20),
                   .stride_h = 1 + below(3), .stride_w = 1 + below(3), .pad_h = below(3), .pad_w = below(3)};
    g.kernel_h = g.pad_h + 1 + below(least(3, g.height + g.pad_h)), g.kernel_w = g.pad_w + 1 + below(least(3, g.width + g.pad_w));
    int64_t out_h = (g.height + 2 * g.pad_h - g.kernel_h) / g.stride_h + 1, out_w = (g.width + 2 * g.pad_w - g.kernel_w) / g.stride_w + 1;
    int64_t nx = g.batch * g.height * g.width * g.channels, nw = g.filters * g.kernel_h * g.kernel_w * g.channels;
    int64_t ny = g.batch * out_h * out_w * g.filters;
    int zero = (int)below(256) - 128;
    int8_t *x = codes(nx, turn % 4), *w = codes(nw, 0), *dy = codes(ny, turn / 4 % 4);
    float *fx = floats(nx, turn % 2), *fw = floats(nw, 0), *fdy = floats(ny, 0);
    output y = outputs(ny, 4), dx = outputs(nx, 4), dw = outputs(nw, 4), fy = outputs(ny, 4), fdx = outputs(nx, 4), fdw = outputs(nw, 4);
    PUBLIC(conv_forward_s8, &g, x, zero, w, y.p[i]);
    compare(y, 4);
    PUBLIC(conv_input_grad_s8, &g, dy, w, dx.p[i]);
    compare(dx, 4);
    PUBLIC(conv_weight_grad_s8, &g, x, zero, dy, dw.p[i]);
    compare(dw, 4);
    PUBLIC(conv_forward_f32, &g, fx, fw, fy.p[i]);
    compare(fy, 4);
    PUBLIC(conv_input_grad_f32, &g, fdy, fw, fdx.p[i]);
    compare(fdx, 4);
    PUBLIC(conv_weight_grad_f32, &g, fx, fdy, fdw.p[i]);
    compare(fdw, 4);
}

/* Reductions over more than one slice, and what makes its own random words. */
static void check_slices(void) {
    int64_t c = columns(), r = turn % 4 ? 1 + below(200) : 1 + 40000 / c, n = r * c;
    float *x = floats(n, 0), *dy = floats(n, 0), *v[3];
    int8_t *q = codes(n, turn % 4);
    for (int j = 0; j < 3; j++) v[j] = floats(c, 0);
    output pair = outputs(2, 4), sums = outputs(c, 4), sums8 = outputs(c, 4), y = outputs(n, 4), dx = outputs(n, 4), q8 = outputs(n, 1);
    PUBLIC(range_f32, n, x, pair.p[i], (float *)pair.p[i] + 1);
    compare(pair, 4);
    PUBLIC(moments_f32, n, x, pair.p[i], (float *)pair.p[i] + 1);
    compare(pair, 4);
    PUBLIC(column_sums_f32, r, c, x, sums.p[i]);
    compare(sums, 4);
    PUBLIC(column_sums_s8, r, c, q, sums8.p[i]);
    compare(sums8, 4);
    PUBLIC(quantize_s8_stochastic, n, x, 40.0f, 3, -127, 127, 7, 8, 9, q8.p[i]);
    compare(q8, 1);
    PUBLIC(normal_f32, n, 7, 8, 9, 0.5f, 2.0f, y.p[i]);
    compare(y, 4);
    output running[4];
    for (int j = 0; j < 4; j++) {
        running[j] = outputs(c, 4);
        for (int i = 0; i < 2; i++) memset(running[j].p[i], 0, running[j].bytes);
    }
    PUBLIC(batchnorm_forward_f32, r, c, x, v[0], v[1], 1e-5f, 0.1f, running[0].p[i], running[1].p[i], running[2].p[i], running[3].p[i], y.p[i]);
    for (int j = 0; j < 4; j++) compare(running[j], 4);
    compare(y, 4);
    output dgamma = outputs(c, 4), dbeta = outputs(c, 4);
    PUBLIC(batchnorm_backward_f32, r, c, x, dy, v[0], v[1], v[2], dx.p[i], dgamma.p[i], dbeta.p[i]);
    compare(dx, 4);
    compare(dgamma, 4);
    compare(dbeta, 4);
}

/* ---- the list ---------------------------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*check)(void);
    size_t offset;
} list[] = {
#define KERNEL(name, arguments) {#name, check_##name, offsetof(struct octo_kernels, name)},
#include "kernels.def"
#undef KERNEL
};
enum { KERNELS = sizeof list / sizeof list[0] };
static void (*const public_checks[])(void) = {check_products, check_convolutions, check_slices};

/* Turns of one check; a failure repeats alone. */
static void repeat(void (*check)(void), const char *name, int number, uint64_t seed, int rounds) {
    for (turn = 0; turn < rounds; turn++) {
        kernel = name;
        state = seed * 1000003 + (uint64_t)number * 1009 + (uint64_t)turn;
        misalignment = turn % 16;
        check();
        release();
    }
}

int main(int argc, char **argv) {
    static struct octo_kernels ref, variant;
    uint64_t seed = 1;
    const char *only = NULL;
    int rounds = 60, tested = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) benching = 1;
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--isa") && i + 1 < argc) only = argv[++i];
        else if (!strcmp(argv[i], "--rounds") && i + 1 < argc) rounds = atoi(argv[++i]);
        else {
            fprintf(stderr, "usage: %s [--seed N] [--isa NAME] [--rounds N] [--bench]\n", argv[0]);
            return 2;
        }
    }
    printf("checkasm: seed %llu, this CPU uses %s\n", (unsigned long long)seed, octo_isa());
    for (int row = 0; row < octo_isa_count(); row++) {
        isa = octo_isa_name(row);
        if (!octo_isa_supported(row) || (only && strcmp(only, isa))) continue;
        if (octo_isa_table(0, &ref) || octo_isa_table(row, &variant)) return 3;
        tables[0] = &ref, tables[1] = &variant;
        int own = 0;
        long before = checks;
        for (int k = 0; k < KERNELS; k++) {
            void (*pointers[2])(void);
            memcpy(&pointers[0], (char *)&ref + list[k].offset, sizeof pointers[0]);
            memcpy(&pointers[1], (char *)&variant + list[k].offset, sizeof pointers[1]);
            if (!pointers[1]) {
                fprintf(stderr, "%s %s: no kernel\n", isa, list[k].name);
                return 1;
            }
            own += pointers[0] != pointers[1];
            repeat(list[k].check, list[k].name, k, seed, benching ? 1 : rounds);
        }
        for (int p = 0; p < 3 && !benching; p++) repeat(public_checks[p], "public", KERNELS + p, seed, rounds);
        printf("%-12s %d of %d kernels of its own, %ld checks\n", isa, own, KERNELS, checks - before);
        tested += row > 0;
    }
    if (only && checks == 0) fprintf(stderr, "instruction set '%s' is not here\n", only);
    if (!tested && !only) {
        printf("no instruction set beyond ref on this CPU: only ref against itself\n");
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2")) {
            fprintf(stderr, "this CPU has AVX2, and no variant was tested\n");
            failures++;
        }
#endif
    }
    printf("checkasm: %ld checks, %ld failed\n", checks, failures);
    return failures || !checks;
}
