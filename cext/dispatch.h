/* What the files of the public interface share: the active table, statuses, threads, scratch memory. */
#ifndef OCTO_DISPATCH_H
#define OCTO_DISPATCH_H
#include "kernels.h"

/* The active table of kernels.  octo_set_isa may exchange it at any time, so a call that asks it twice may meet two of them: kernels
 * agree on every layout that goes from one to another. */
extern const struct octo_kernels *octo_active;
#define octo_table (*__atomic_load_n(&octo_active, __ATOMIC_ACQUIRE))

/* Sets the calling thread's sentence and returns the status. */
int octo_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define OCTO_CHECK(condition, ...)                                         \
    do {                                                                   \
        if (!(condition)) return octo_fail(OCTO_EINVAL, __VA_ARGS__);      \
    } while (0)

/* Memory of the calling thread, aligned to 64 bytes, kept for its next call; NULL where there is none.  One buffer a slot. */
enum octo_slot { OCTO_SLOT_KERNEL, OCTO_SLOT_PADDED, OCTO_SLOT_LEFT, OCTO_SLOT_RIGHT, OCTO_SLOT_SUMS, OCTO_SLOT_PART, OCTO_SLOT_SLICE, OCTO_SLOT_RESULT, OCTO_SLOTS };
void *octo_scratch(enum octo_slot slot, int64_t bytes);

/* The body runs for index = 0 .. count - 1, on the threads that octo_set_threads chose, each in the floating-point environment of
 * octo_float_enter: a library that sets flush-to-zero before the threads start would leave it to them.  Each thread takes its own
 * share one by one, then what is left of the others': a thread that another program keeps from its core holds up one index, not a
 * share.  So nothing may depend on which thread takes an index. */
#ifdef _OPENMP
#define OCTO_PRAGMA(text) _Pragma(#text)
#define OCTO_PARALLEL(index, count)                                                                                  \
    for (struct octo_work work_, *once_ = octo_divide(&work_, count); once_; once_ = NULL)                           \
        OCTO_PRAGMA(omp parallel num_threads(work_.threads) if (work_.threads > 1))                                  \
        for (uint64_t float_ = octo_float_enter(), again_ = 1; again_; octo_float_leave(float_), again_ = 0)         \
            for (int64_t index, tried_ = 0; (index = octo_take(&work_, &tried_)) >= 0;)
#if defined(__linux__) && defined(__LP64__) && defined(__GNUC__) && !defined(__clang__)
#define OCTO_POOL
#endif
#else
#define OCTO_PARALLEL(index, count) for (int64_t index = 0; index < (count); index++)
#endif

/* The indices of a parallel region. */
enum { OCTO_SHARES = 64 };
struct octo_work {
    int64_t count;
    int threads, shares;
    struct {
        _Alignas(64) int64_t next; /* of a share, the next index */
    } share[OCTO_SHARES];
};
struct octo_work *octo_divide(struct octo_work *work, int64_t count);
/* An index that no thread has taken yet, or -1; tried: shares that the calling thread has left empty. */
int64_t octo_take(struct octo_work *work, int64_t *tried);

#ifdef OCTO_POOL /* pool.c */
int octo_member(void); /* the calling thread's number in the region */
void octo_on_each_thread(void (*body)(void *), void *data);
void octo_start_pools(void);
#endif

static inline double octo_least(double a, double b) { return a < b ? a : b; }
static inline double octo_most(double a, double b) { return a > b ? a : b; }

/* The status of a matrix product's sizes and row strides, m = n = k = 0 allowed. */
int octo_check_sizes(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc);

int octo_check_conv(const octo_conv *g);
int octo_check_depthwise(const octo_conv *g);
int octo_check_pool(const octo_pool *g);
#define CHECK_CODE(zero) OCTO_CHECK((zero) >= -128 && (zero) <= 127, "convolution: zero point %d is not an int8", zero)
/* The rows of im2col(x), one for each output pixel; of a copy of x, in OCTO_SLOT_PADDED, where there is padding: bytes `fill`. */
int octo_window_rows(const octo_conv *g, const void *x, int fill, int elem_size, struct octo_rows *rows);

/* y[c][r] = x[r][c] */
void octo_transpose(int64_t rows, int64_t cols, const void *x, int64_t ldx, void *y, int64_t ldy, int elem_size);

/* A convolution with groups or dilation, after octo_check_conv; elem_size: bytes of an operand's element. */
static inline int octo_is_grouped(const octo_conv *g) { return g->groups > 1 || g->dilation_h > 1 || g->dilation_w > 1; }
int octo_grouped_forward(const octo_conv *g, const void *x, int x_zero, const void *w, void *y, int elem_size);
int octo_grouped_input_grad(const octo_conv *g, const void *dy, const void *w, void *dx, int elem_size);
int octo_grouped_weight_grad(const octo_conv *g, const void *x, int x_zero, const void *dy, void *dw, int elem_size);

/* out[c] = sum over blocks, in double and ascending order, of partial[block][c]. */
void octo_add_blocks(int64_t blocks, int64_t cols, const float *partial, float *out);

/* A sum of finite doubles that is rounded once, whatever their order (Shewchuk 1997): parts that do not overlap, the smallest first. */
typedef struct {
    double parts[64]; /* a double's exponents span 2,098 bits, which 40 parts of 53 bits hold */
    int count;
} octo_sum;
void octo_sum_add(octo_sum *sum, double x);
double octo_sum_total(const octo_sum *sum);

/* Rows of a block of a column sum, part of its definition: about 64 to a lane; a multiple of 8. */
static inline int64_t octo_block_rows(int64_t cols) { return 64 * (cols <= 16 ? 512 / cols : cols <= 128 ? 16 : cols < 512 ? 4 : 1); }

/* y[r][c] += rest[c], where rest is given and holds anything, which is rare (octo_lac_fold_f32). */
static inline void octo_add_rest(int64_t rows, int64_t cols, const float *rest, float *y) {
    if (!rest || rest[cols] == 0) return;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) y[r * cols + c] = y[r * cols + c] + rest[c];
}

/* Back from the ordered int32 of range_f32, over `slices` pairs; OCTO_EFINITE where there is a NaN or an infinity. */
int octo_fold_range(int64_t slices, const int32_t *keys, float *min, float *max);

/* Elements of a slice; a multiple of 64, so that Philox blocks and lanes never straddle a border. */
enum { CHUNK = 16384 };

#define CHECK_COUNT(name, n) OCTO_CHECK((n) >= 0 && (n) <= (int64_t)1 << 40, name ": bad element count %lld", (long long)(n))

/* The call runs for slices [first, first + count) of 0 .. n - 1. */
#define FOR_EACH_CHUNK(n, call)                                                   \
    do {                                                                      \
        int64_t slices_ = ((n) + CHUNK - 1) / CHUNK;                          \
        OCTO_PARALLEL(slice_, slices_) {                                      \
            int64_t first = slice_ * CHUNK, count = octo_min(CHUNK, (n) - first); \
            call;                                                             \
        }                                                                     \
    } while (0)

/* The same for rows, about CHUNK elements at a time. */
#define EACH_ROWS(rows, cols, call)                                                   \
    do {                                                                              \
        int64_t step_ = octo_max(1, CHUNK / (cols)), slices_ = ((rows) + step_ - 1) / step_; \
        OCTO_PARALLEL(slice_, slices_) {                                              \
            int64_t first = slice_ * step_, count = octo_min(step_, (rows) - first);  \
            call;                                                                     \
        }                                                                             \
    } while (0)

/* Words for one slice of a random kernel, made where they are used. */
#define WITH_WORDS(call)                                                                                    \
    do {                                                                                                    \
        for (int64_t part_ = 0; part_ < count; part_ += 1024) {                                             \
            uint32_t words[1024];                                                                           \
            int64_t at = first + part_, some = octo_min(1024, count - part_);                               \
            octo_table.philox(some, at, seed, step, tensor, words);                                         \
            call;                                                                                           \
        }                                                                                                   \
    } while (0)

#define CHECK_TENSOR(name, t)                                                                                  \
    OCTO_CHECK(!(t)->values != !(t)->sums && (!(t)->sums || ((t)->add && (t)->scale)), name ": values, or sums with addend and scale")

#define CHECK_MATRIX(name, rows, cols)                                                                                   \
    OCTO_CHECK((rows) >= 1 && (cols) >= 1 && (rows) <= ((int64_t)1 << 40) / (cols), name ": bad size %lld x %lld", \
               (long long)(rows), (long long)(cols))
#endif
