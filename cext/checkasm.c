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

enum { GUARD = 128, MOST = 96 };
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

/* ---- the checks, by the file of their kernels ------------------------------------------------------------------------------------------ */

#include "checks_layers.inc"
#include "checks_windows.inc"
#include "checks_codes.inc"
#include "checks_methods.inc"
#include "checks_public.inc"

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
static void (*const public_checks[])(void) = {check_products, check_convolutions, check_depthwise, check_views, check_slices,
                                               check_pooled_normalization};
enum { PUBLIC_CHECKS = sizeof public_checks / sizeof public_checks[0] };

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
            if (!pointers[0]) {
                fprintf(stderr, "%s: no reference\n", list[k].name);
                return 1;
            }
            if (!pointers[1]) continue; /* taken out of the table on purpose */
            own += pointers[0] != pointers[1];
            repeat(list[k].check, list[k].name, k, seed, benching ? 1 : rounds);
        }
        for (int p = 0; p < PUBLIC_CHECKS && !benching; p++) repeat(public_checks[p], "public", KERNELS + p, seed, rounds);
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
