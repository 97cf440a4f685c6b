/* The scalar definition of every kernel; always compiled.  Loops without a better form are in loops.inc. */
#include "kernels.h"

#define FN(name) name##_ref
#define TARGET
#define VECTOR_BYTES 16
#include "loops.inc"

/* Products of two int8 codes are at most 2^14 in magnitude.  The sum is taken modulo 2^32 (unsigned, so defined), hence exact
 * for k <= 131,071 with codes down to -128 and for k <= 133,144 with codes in +-127: 133,144 * 127^2 = 2,147,479,576 < 2^31. */
static void gemm_s8_ref(const struct octo_job *job) {
    for (int64_t i = 0; i < job->m; i++) {
        const int8_t *row = (const int8_t *)job->a.base + octo_row_offset(&job->a, job->first + i);
        int32_t *c = (int32_t *)job->c + i * job->ldc;
        for (int64_t j = 0; j < job->n; j++) {
            const int8_t *b = (const int8_t *)job->b + j * job->b_n;
            uint32_t sum = job->accumulate ? (uint32_t)c[j] : 0;
            for (int64_t s = 0; s < job->a.segments; s++)
                for (int64_t p = 0; p < job->a.length; p++, b += job->b_k)
                    sum += (uint32_t)(row[s * job->a.segment_stride + p] * *b);
            c[j] = (int32_t)sum;
        }
    }
}

void octo_init_ref(struct octo_kernels *table) {
    init_loops_ref(table);
    table->gemm_s8 = gemm_s8_ref;
}
