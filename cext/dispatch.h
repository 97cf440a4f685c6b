/* What the files of the public interface share: the active table, statuses, threads, scratch memory. */
#ifndef OCTO_DISPATCH_H
#define OCTO_DISPATCH_H
#include "kernels.h"

extern struct octo_kernels octo_table;

/* Sets the calling thread's sentence and returns the status. */
int octo_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define OCTO_CHECK(condition, ...)                                         \
    do {                                                                   \
        if (!(condition)) return octo_fail(OCTO_EINVAL, __VA_ARGS__);      \
    } while (0)

/* Memory of the calling thread, aligned to 64 bytes, kept for its next call; NULL where there is none.  One buffer a slot. */
enum octo_slot { OCTO_SLOT_KERNEL, OCTO_SLOT_PADDED, OCTO_SLOT_LEFT, OCTO_SLOT_RIGHT, OCTO_SLOT_SUMS, OCTO_SLOTS };
void *octo_scratch(enum octo_slot slot, int64_t bytes);

/* The body runs for index = 0 .. count - 1, on the threads that octo_set_threads chose. */
#ifdef _OPENMP
#define OCTO_PRAGMA(text) _Pragma(#text)
#define OCTO_PARALLEL(index, count)                                                                             \
    OCTO_PRAGMA(omp parallel for schedule(static) num_threads(octo_threads()) if ((count) > 1 && octo_threads() > 1)) \
    for (int64_t index = 0; index < (count); index++)
#else
#define OCTO_PARALLEL(index, count) for (int64_t index = 0; index < (count); index++)
#endif

static inline int64_t octo_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t octo_max(int64_t a, int64_t b) { return a > b ? a : b; }
#endif
