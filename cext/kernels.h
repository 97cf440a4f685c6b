/* The table of kernels and what the files of kernels share.  See kernels.def for the list. */
#ifndef OCTO_KERNELS_H
#define OCTO_KERNELS_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "octosim.h"

/* float32 results are equal to the bit on every instruction set, so a*b+c must stay two roundings.  A build with a bare
 * `cc -O2` gets the rule from here. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math") /* the latter changes no result: comparisons become masks */
#endif
#define OCTO_INLINE static inline __attribute__((always_inline))
#ifndef OCTO_EMULATED /* a build for tests, whose intrinsics are C functions */
#define OCTO_TARGET(features) __attribute__((target(features)))
#define OCTO_OPAQUE(operand) __asm__ volatile("" : operand) /* keeps a value unknown to the compiler, so that a loop is run as it is written */
#else
#define OCTO_TARGET(features)
#define OCTO_OPAQUE(operand)
#define __builtin_cpu_supports(feature) 1
#endif
/* gcc names an Arm extension with the architecture that it extends, clang alone.  Before version 16 clang has an extension's
 * intrinsics only where a flag turns it on for the whole file; its builds end at plain NEON. */
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
#define OCTO_ARM_EXTENSIONS
#endif
#if defined(__x86_64__)
int octo_halves_512(void); /* whether the core executes 512 bits as two halves */
#endif
/* The VEX encoding of VPDPBUSD. */
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define OCTO_AVXVNNI
int octo_has_avxvnni(void); /* 1: VEX; 2: EVEX only; 0: neither */
#endif
/* Tiles, which Linux gives to a process that asks for them. */
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define OCTO_AMX
#endif
#if defined(__clang__)
#define OCTO_TARGET_ARM(extension) OCTO_TARGET(extension)
#else
#define OCTO_TARGET_ARM(extension) OCTO_TARGET("arch=armv8.2-a+" extension)
#endif

/* A correctly rounded square root.  Unless errno is switched off (-fno-math-errno), compilers call libm for negative numbers;
 * a build with a bare `cc -O2` should need no libm. */
#if defined(__NO_MATH_ERRNO__)
static inline float octo_sqrt(float x) { return __builtin_sqrtf(x); }
#elif defined(__SSE2__)
#include <emmintrin.h>
static inline float octo_sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
#elif defined(__aarch64__)
#include <arm_neon.h>
static inline float octo_sqrt(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
#else
static inline float octo_sqrt(float x) { return __builtin_sqrtf(x); }
#endif

/* Loop hints: unrolling keeps arrays of vectors in registers; two turns at once spare counters where a core decodes no more instructions
 * than its units execute, as with two threads a core; independence allows vectorizing where memory is the same on
 * purpose (an output in the place of its input, element by element). */
#if defined(__clang__)
#define OCTO_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define OCTO_UNROLL _Pragma("clang loop unroll(full)")
#define OCTO_TWICE _Pragma("clang loop unroll_count(2)")
#else
#define OCTO_INDEPENDENT _Pragma("GCC ivdep")
#define OCTO_UNROLL _Pragma("GCC unroll 16")
#define OCTO_TWICE _Pragma("GCC unroll 2")
#endif

static inline int64_t octo_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t octo_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* The rows of a matrix that may be an image seen through a convolution window (implicit im2col).  Row m is
 * (image, y, x) = digits of m in base (height, width); it holds `segments` runs of `length` consecutive elements, and starts at
 * base + image * image_stride + y * y_stride + x * x_stride.  A plain matrix has width = its row count and one segment.
 * Memory up to `end` is readable.  Strides count elements. */
struct octo_rows {
    const void *base, *end;
    int64_t width, height, x_stride, y_stride, image_stride, segments, length, segment_stride;
};

static inline int64_t octo_out_height(const octo_conv *g) {
    return (g->height + g->pad_h + g->pad_bottom - (g->kernel_h - 1) * g->dilation_h - 1) / g->stride_h + 1;
}
static inline int64_t octo_out_width(const octo_conv *g) {
    return (g->width + g->pad_w + g->pad_right - (g->kernel_w - 1) * g->dilation_w - 1) / g->stride_w + 1;
}

static inline struct octo_rows octo_plain_rows(const void *base, int64_t rows, int64_t cols, int64_t ld, int elem_size) {
    return (struct octo_rows){.base = base, .end = (const char *)base + ((rows - 1) * ld + cols) * elem_size,
                              .width = rows, .height = 1, .x_stride = ld, .segments = 1, .length = cols};
}

/* Offsets of consecutive rows: divisions only where a line of the image ends. */
struct octo_walk {
    const struct octo_rows *rows;
    int64_t line, x, start; /* start: offset of the line's first row */
};

static inline int64_t octo_line_offset(const struct octo_rows *rows, int64_t line) {
    return line ? line / rows->height * rows->image_stride + line % rows->height * rows->y_stride : 0;
}

static inline struct octo_walk octo_walk_from(const struct octo_rows *rows, int64_t m) {
    int64_t line = m < rows->width ? 0 : m / rows->width;
    return (struct octo_walk){rows, line, m - line * rows->width, octo_line_offset(rows, line)};
}

static inline int64_t octo_walk_next(struct octo_walk *walk) {
    if (walk->x == walk->rows->width) {
        walk->x = 0, walk->line++;
        walk->start = octo_line_offset(walk->rows, walk->line);
    }
    return walk->start + walk->x++ * walk->rows->x_stride;
}

static inline int64_t octo_row_offset(const struct octo_rows *rows, int64_t m) {
    int64_t line = m / rows->width;
    return line / rows->height * rows->image_stride + line % rows->height * rows->y_stride + m % rows->width * rows->x_stride;
}

/* One slice of a matrix product: c[i][j] (+)= sum over k of a[first + i][k] * b[k * b_k + j * b_n], 0 <= i < m, 0 <= j < n,
 * k = a.segments * a.length.  `scratch` is OCTO_SCRATCH bytes, aligned to 64, for the packed operands.
 * float32: each block of OCTO_BLOCK_F32 consecutive k is summed in ascending order from 0, and the blocks' sums are added to
 * c in ascending order (the first block's sum is stored where `accumulate` is 0). */
struct octo_job {
    struct octo_rows a;
    int64_t first, m, n, b_k, b_n, ldc;
    const void *b;
    void *c, *scratch;
    int accumulate;
};
/* weight_grad_f32: rows of a call, and filters of which it holds copies: 4 MiB of them. */
enum { OCTO_BLOCK_F32 = 256, OCTO_GRAD_ROWS = 1024, OCTO_GRAD_FILTERS = 1024 };
/* Longest reduction of one job.  float32 needs 48 rows and a panel of 32 columns in the scratch memory:
 * 80 * 24,576 * 4 bytes = 7.5 MiB; int8 (AVX2, 16-bit copies) 24 rows and 16 columns: 40 * 24,576 * 2 = 1.9 MiB. */
#define OCTO_MAX_DEPTH 24576
#define OCTO_SCRATCH ((int64_t)8 << 20)

/* Scratch memory of gemm_s8_accumulate: packed pairs of up to 4 rows and 32 columns. */
static inline int64_t octo_accumulate_scratch(int64_t k, int group) {
    return ((k + group - 1) / group * ((group + 1) / 2) + 32) * 36 * 4;
}

/* Planes of weight_grad_s8 for channels c0 .. c1 - 1: one for each channel, or one for each element of a window's run where these are no
 * more than are transposed at a time anyway: a tile of few channels has too few rows.  Codes of a plane with so many pixels, an odd
 * number of 64s, with room for reading 3 pixels too far. */
static inline int64_t octo_planes(const struct octo_rows *x, int64_t channels, int64_t c0, int64_t c1) {
    return channels > 1 && c1 - c0 == channels && x->length <= 16 ? x->length : c1 - c0;
}
static inline int64_t octo_plane(int64_t pixels) { return ((pixels + 3 + 63) / 64 | 1) * 64; }

enum { OCTO_GRAD_PANELS = 1 << 19 };
/* Bytes of its scratch memory for `lines` lines of windows: planes as int16 with two pixels to a step; with tiles (x86_amx_grad.inc) dY by
 * filters, 16 at a time, and as many of im2col's columns, 64 at a time, as OCTO_GRAD_PANELS bytes have room for. */
static inline int64_t octo_grad_scratch(const struct octo_rows *x, int64_t channels, int64_t c0, int64_t c1, int64_t line, int64_t lines,
                                        int64_t filters) {
    int64_t pixels = (octo_line_offset(x, line + lines - 1) - octo_line_offset(x, line) + (x->segments - 1) * x->segment_stride + x->length) / channels;
    int64_t planes = (lines + 7) / 8 * 64 + lines * ((x->width + 1) / 2) * 256 + 512 + 2 * octo_planes(x, channels, c0, c1) * octo_plane(pixels + x->width - 1);
    int64_t plane = octo_plane(lines * x->width);
    return octo_max(planes, (filters + 15) / 16 * 16 * plane + octo_max(OCTO_GRAD_PANELS, 64 * plane)) + 64;
}

/* Rows that are laid side by side in a reduction or a broadcast over columns, so that short rows fill vectors too.  Part of
 * the definition of every column sum: lane (r mod lane rows, column).  8 divides them, or they divide 8. */
#define LANE_ROWS(cols) ((cols) <= 128 ? 16 * ((cols) <= 16 ? 32 / (cols) : 1) : (cols) < 512 ? 4 : 1)
#define MAX_LANES 2048 /* max over cols < 512 of LANE_ROWS * cols: 16 * 128 and 4 * 511 */

/* Values of columns laid out: one for each lane, and the first ones again behind the last lane, where a vector may end. */
static inline int64_t octo_laid(int64_t cols) { return LANE_ROWS(cols) * cols + 16; }

/* x[count] -> to[all], of 32 bits, over and over; in place allowed.  Each copy doubles what there is. */
static inline void octo_repeat(int64_t count, int64_t all, const void *x, void *to) {
    if (to != x) memcpy(to, x, 4 * (size_t)count);
    for (int64_t done = count, some; done < all; done += some) {
        some = octo_min(done, all - done);
        memcpy((char *)to + 4 * done, to, 4 * (size_t)some);
    }
}

/* x[cols] -> to[octo_laid(cols)], of 32 bits; in place allowed. */
static inline void octo_lay(int64_t cols, const void *x, void *to) { octo_repeat(cols, octo_laid(cols), x, to); }

/* y = x scale + shift, with relu max(., 0); codes of x to_code + from_zero, where there are any.  Laid out. */
struct octo_normalization {
    const float *scale, *shift, *to_code, *from_zero;
    int relu;
};

/* What the backward pass of a normalization reads: x with center (laid out), or codes; relu_mask or NULL. */
struct octo_gradient {
    const float *x, *center;
    const int8_t *codes;
    octo_tensor dy;
    const uint8_t *relu_mask;
};

/* Most taps of a depthwise convolution's kernel.  Scratch memory of an int8 one: three times so many and 3 taps, in 4 vectors of 64 bytes. */
enum { OCTO_DEPTHWISE_TAPS = 225, OCTO_DEPTHWISE_SCRATCH = 3 * (OCTO_DEPTHWISE_TAPS + 3) * 4 * 64 };

/* What requantization does to each column.  x is kept within -limit - 1 .. limit and shifted left by `lift`; the fixed-point scale is
 * multiplier / 2^(32 + shift).  plain: no column has a limit or a lift. */
struct octo_columns {
    const int32_t *add, *multiplier, *shift, *limit, *lift;
    const float *scale;
    int plain;
};

/* Windows to be gathered.  Element (y, x) of the grid sees through tap (i, j) the pixel ((y times_h + i step_h + first_h) / over_h, ...) of the
 * images [batch][height][width][pixel], where that is a whole number and on the image, else bytes `fill`; of each pixel `some` bytes
 * from `from` on. */
struct octo_view {
    const char *images;
    int64_t height, width, pixel, from, some, grid_h, grid_w, kernel_w;
    int64_t times_h, step_h, first_h, over_h, times_w, step_w, first_w, over_w;
    int fill;
};

/* A table: the kernels; what the instruction set can do at most, measured: peak_s8 runs `rounds` rounds of int8 multiply-accumulates from
 * registers alone and returns how many these were; of how many columns gemm_s8 and gemm_f32 (lanes) compute whole multiples; of how many
 * steps of a run, where tiles multiply so many at once, else 0; and whether gemm_s8 reads windows that overlap in place. */
struct octo_kernels {
#define KERNEL(name, arguments) void(*name) arguments;
#include "kernels.def"
#undef KERNEL
    int64_t (*peak_s8)(int64_t rounds);
    int columns, lanes, depth, in_place;
};

/* The table of an instruction set's row in dispatch.c; a status. */
int octo_isa_table(int row, struct octo_kernels *table);

/* Each file of kernels has one of these; it overwrites what it improves. */
void octo_init_ref(struct octo_kernels *table);
void octo_init_avx2(struct octo_kernels *table);
void octo_init_avxvnni(struct octo_kernels *table);
void octo_init_avx512bw(struct octo_kernels *table);
void octo_init_avx512vnni(struct octo_kernels *table);
void octo_init_amx(struct octo_kernels *table);
void octo_init_neon(struct octo_kernels *table);
void octo_init_dotprod(struct octo_kernels *table);
void octo_init_i8mm(struct octo_kernels *table);
#endif
