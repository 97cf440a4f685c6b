/* Instruction sets, the floating-point environment, threads, errors, scratch memory.  The public functions themselves are in the
 * files api_*.c. */
#include "dispatch.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#if defined(OCTO_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(OCTO_ARM_EXTENSIONS) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(OCTO_ARM_EXTENSIONS) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static _Thread_local char error_text[256] = "no error";

const char *octo_error(void) { return error_text; }

int octo_fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return status;
}

/* ---- instruction sets: a row each, slowest first; a row's kernels go over those of the rows before it --------------------- */

static int always(void) { return 1; }
#if defined(__x86_64__)
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int has_avx512bw(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}
static int has_avx512vnni(void) { return has_avx512bw() && __builtin_cpu_supports("avx512vnni"); }
int octo_halves_512(void) { /* Zen 4: AMD's family 25 with AVX-512 */
#ifdef OCTO_HALVES_512 /* a build for tests */
    return OCTO_HALVES_512;
#endif
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 25;
}
#if defined(OCTO_AVXVNNI)
int octo_has_avxvnni(void) { /* leaf 7, sub-leaf 1, EAX bit 4: older compilers have no name for it */
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1) return 1;
    return has_avx512vnni() ? 2 : 0;
}
#endif
#if defined(OCTO_AMX)
static int has_amx(void) { /* leaf 7, EDX bits 24 and 25: AMX-TILE and AMX-INT8; then Linux's leave to use the tiles' 8 KiB (ARCH_REQ_XCOMP_PERM) */
#ifdef OCTO_EMULATED
    return 1;
#endif
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 && !syscall(SYS_arch_prctl, 0x1023, 18);
}
#endif
#elif defined(OCTO_ARM_EXTENSIONS)
/* Linux tells what the CPU has (bits of arch/arm64/include/uapi/asm/hwcap.h), macOS too; elsewhere plain NEON must do. */
#if defined(__linux__)
static int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
static int has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__) /* by name: a Mac has no HWCAP */
static int has(const char *feature) {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(feature, &value, &size, NULL, 0) && value;
}
static int has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has("hw.optional.arm.FEAT_I8MM"); }
#else
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif
#endif

static const struct {
    const char *name;
    int (*supported)(void);
    void (*init)(struct octo_kernels *);
} isas[] = {
    {"ref", always, octo_init_ref},
#if defined(__x86_64__)
    {"avx2", has_avx2, octo_init_avx2},
#if defined(OCTO_AVXVNNI)
    {"avxvnni", octo_has_avxvnni, octo_init_avxvnni},
#endif
    {"avx512bw", has_avx512bw, octo_init_avx512bw},
    {"avx512vnni", has_avx512vnni, octo_init_avx512vnni},
#if defined(OCTO_AMX)
    {"amx", has_amx, octo_init_amx},
#endif
#elif defined(__aarch64__)
    {"neon", always, octo_init_neon},
#if defined(OCTO_ARM_EXTENSIONS)
    {"dotprod", has_dotprod, octo_init_dotprod},
    {"i8mm", has_i8mm, octo_init_i8mm},
#endif
#endif
};
enum { ISAS = sizeof isas / sizeof isas[0] };
static struct octo_kernels tables[ISAS]; /* one a row, complete before it is used */
const struct octo_kernels *octo_active = tables;

int octo_isa_count(void) { return ISAS; }
const char *octo_isa_name(int row) { return row >= 0 && row < ISAS ? isas[row].name : ""; }
int octo_isa_supported(int row) { return row >= 0 && row < ISAS && isas[row].supported(); }
const char *octo_isa(void) { return isas[&octo_table - tables].name; }
void octo_tiling(int *columns, int *lanes, int *depth, int *in_place) {
    const struct octo_kernels *table = &octo_table;
    *columns = table->columns, *lanes = table->lanes, *depth = table->depth, *in_place = table->in_place;
}

int octo_isa_table(int row, struct octo_kernels *table) {
    OCTO_CHECK(row >= 0 && row < ISAS && isas[row].supported(), "instruction set %d is not here", row);
    for (int i = 0; i <= row; i++)
        if (isas[i].supported()) isas[i].init(table);
    return OCTO_OK;
}

static void activate(int row) { __atomic_store_n(&octo_active, tables + row, __ATOMIC_RELEASE); }

int octo_set_isa(const char *name) {
    for (int i = 0; i < ISAS; i++)
        if (!strcmp(isas[i].name, name)) {
            if (!isas[i].supported())
                return octo_fail(OCTO_ENOTSUP, "instruction set '%s' is not supported by this CPU", name);
            activate(i);
            return OCTO_OK;
        }
    char known[128] = "";
    for (int i = 0; i < ISAS; i++) {
        if (i) strncat(known, ", ", sizeof known - strlen(known) - 1);
        strncat(known, isas[i].name, sizeof known - strlen(known) - 1);
    }
    return octo_fail(OCTO_EINVAL, "unknown instruction set '%.40s' (known here: %s)", name, known);
}

static void start_threads(void);

__attribute__((constructor)) static void start(void) {
    int best = 0;
    for (int i = 0; i < ISAS; i++)
        if (isas[i].supported()) octo_isa_table(i, tables + (best = i));
    activate(best);
    start_threads();
}

/* ---- the floating-point environment ------------------------------------------------------------------------------------------ */

#if defined(__x86_64__) /* MXCSR: all exceptions masked, to the nearest, no flush-to-zero, subnormal operands kept; bits 0 .. 5 are flags */
enum { DEFINED = 0x1f80, CONTROL = 0xffc0 };
static uint64_t get_control(void) { return _mm_getcsr(); }
static void set_control(uint64_t value) { _mm_setcsr((unsigned)value); }
#elif defined(__aarch64__) /* FPCR: nothing but its defaults */
enum { DEFINED = 0 };
#define CONTROL UINT64_MAX
static uint64_t get_control(void) {
    uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
static void set_control(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
#else
enum { DEFINED = 0, CONTROL = 0 };
static uint64_t get_control(void) { return 0; }
static void set_control(uint64_t value) { (void)value; }
#endif

uint64_t octo_float_enter(void) {
    uint64_t before = get_control();
    if ((before & CONTROL) != DEFINED) set_control(DEFINED);
    return before;
}

void octo_float_leave(uint64_t before) {
    if ((before & CONTROL) != DEFINED) set_control(before);
}

/* ---- threads --------------------------------------------------------------------------------------------------------------- */

static int threads;                      /* 0: not chosen yet */
static _Thread_local int threads_here;   /* the calling thread's own choice, 0: none */
static int forked;                       /* this process was forked: OpenMP's threads are the parent's */

int octo_max_threads(void) {
#ifdef _OPENMP
    return (int)octo_min(omp_get_max_threads(), omp_get_thread_limit());
#else
    return 1;
#endif
}

int octo_threads(void) {
    int chosen = threads_here ? threads_here : __atomic_load_n(&threads, __ATOMIC_RELAXED);
    return forked ? 1 : chosen ? chosen : octo_max_threads();
}

/* A count that was asked for, as this build has it. */
static int available(int count) {
#ifdef _OPENMP
    return count;
#else
    return count ? 1 : 0;
#endif
}

int octo_set_threads(int count) {
    OCTO_CHECK(count >= 1 && count <= 1024, "threads must be in 1 .. 1024, not %d", count);
    __atomic_store_n(&threads, available(count), __ATOMIC_RELAXED);
    return OCTO_OK;
}

int octo_use_threads(int count) {
    int before = threads_here;
    threads_here = available((int)octo_max(0, octo_min(1024, count)));
    return before;
}

struct octo_work *octo_divide(struct octo_work *work, int64_t count) {
    work->count = count;
    work->threads = (int)octo_max(1, octo_min(count, octo_threads()));
    work->shares = (int)octo_min(work->threads, OCTO_SHARES);
    for (int64_t s = 0; s < work->shares; s++) work->share[s].next = count * s / work->shares;
    return work;
}

int64_t octo_take(struct octo_work *work, int64_t *tried) {
#if defined(OCTO_POOL)
    int64_t own = octo_member();
#elif defined(_OPENMP)
    int64_t own = omp_get_thread_num();
#else
    int64_t own = 0;
#endif
    for (; *tried < work->shares; ++*tried) {
        int64_t s = (own + *tried) % work->shares, end = work->count * (s + 1) / work->shares;
        if (__atomic_load_n(&work->share[s].next, __ATOMIC_RELAXED) >= end) continue;
        int64_t index = __atomic_fetch_add(&work->share[s].next, 1, __ATOMIC_RELAXED);
        if (index < end) return index;
    }
    return -1;
}

/* ---- scratch memory -------------------------------------------------------------------------------------------------------- */

struct scratch {
    void *memory;
    int64_t bytes;
};

static _Thread_local struct scratch buffers[OCTO_SLOTS];

static void free_scratch(void *of_thread) {
    for (struct scratch *each = of_thread, *end = each + OCTO_SLOTS; each < end; each++) {
        free(each->memory);
        *each = (struct scratch){0};
    }
}

#ifndef _WIN32
static pthread_key_t at_exit; /* of a thread: its scratch memory goes with it */

static void after_fork(void) { forked = 1; }

static void start_threads(void) {
    pthread_key_create(&at_exit, free_scratch);
    pthread_atfork(NULL, NULL, after_fork);
#ifdef OCTO_POOL
    octo_start_pools();
#endif
}
#else
static void start_threads(void) {}
#endif

void *octo_scratch(enum octo_slot slot, int64_t bytes) {
    bytes = octo_max(bytes, 1); /* NULL means no memory, not nothing to hold */
    if (buffers[slot].bytes < bytes) {
        free(buffers[slot].memory);
        bytes = (bytes + 4095) / 4096 * 4096;
        buffers[slot].memory = aligned_alloc(64, (size_t)bytes);
        buffers[slot].bytes = buffers[slot].memory ? bytes : 0;
#ifndef _WIN32
        pthread_setspecific(at_exit, buffers);
#endif
    }
    return buffers[slot].memory;
}

static void trim(void *nothing) {
    (void)nothing;
    free_scratch(buffers);
}

void octo_trim(void) {
#if defined(OCTO_POOL)
    octo_on_each_thread(trim, NULL);
#elif defined(_OPENMP)
#pragma omp parallel num_threads(octo_threads())
    trim(NULL);
#else
    trim(NULL);
#endif
}
