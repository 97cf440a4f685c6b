/* Matrix products and convolutions: argument checks, the cut into jobs, threads.  One driver serves int8 and float32; `elem_size`
 * is the size of an operand's element in bytes and tells the two apart. */
#include "dispatch.h"

/* Largest count of elements of a matrix: byte offsets stay far inside int64_t and size_t. */
#define MAX_ELEMENTS ((int64_t)1 << 40)

static void run(const struct octo_job *job, int elem_size) {
    if (elem_size == 1) octo_table.gemm_s8(job);
    else octo_table.gemm_f32(job);
}

/* The status of a call some of whose threads may have found no memory. */
static int packing_status(int failed, const char *what) {
    return failed ? octo_fail(OCTO_ENOMEM, "out of memory for the packed operands of a %s", what) : OCTO_OK;
}

/* Computes the product of windows described by `job` (m, n set, scratch not) in slices: of rows where m >= n, else of columns.
 * Slices of rows are multiples of 48 rows, of columns multiples of 64, what the kernels take at a time. */
static int run_sliced(const struct octo_job *job, int elem_size) {
    int by_rows = job->m >= job->n, failed = 0;
    int64_t extent = by_rows ? job->m : job->n, unit = by_rows ? 48 : 64;
    int64_t units = (extent + unit - 1) / unit, slices = octo_min(units, octo_threads());
    OCTO_PARALLEL(i, slices) {
        int64_t first = units * i / slices * unit, last = octo_min(units * (i + 1) / slices * unit, extent);
        struct octo_job slice = *job;
        slice.scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH);
        if (by_rows) {
            slice.first += first, slice.m = last - first;
            slice.c = (char *)job->c + first * job->ldc * 4;
        } else {
            slice.n = last - first;
            slice.b = (const char *)job->b + first * job->b_n * elem_size;
            slice.c = (char *)job->c + first * 4;
        }
        if (slice.scratch) run(&slice, elem_size);
        else failed = 1;
    }
    return packing_status(failed, "matrix product");
}

void octo_transpose(int64_t rows, int64_t cols, const void *x, int64_t ldx, void *y, int64_t ldy, int elem_size) {
    if (elem_size == 1) {
        octo_table.transpose_s8(rows, cols, x, ldx, y, ldy);
        return;
    }
    for (int64_t r0 = 0; r0 < rows; r0 += 16)
        for (int64_t c = 0; c < cols; c++)
            for (int64_t r = r0; r < octo_min(r0 + 16, rows); r++) ((float *)y)[c * ldy + r] = ((const float *)x)[r * ldx + c];
}

int octo_check_sizes(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc) {
    OCTO_CHECK(m >= 0 && n >= 0 && k >= 0, "gemm: negative size (m %lld, n %lld, k %lld)", (long long)m, (long long)n, (long long)k);
    OCTO_CHECK(lda >= (transpose_a ? m : k) && ldb >= (transpose_b ? k : n) && ldc >= n, "gemm: a row stride is shorter than its row");
    int64_t rows_a = transpose_a ? k : m, rows_b = transpose_b ? n : k;
    OCTO_CHECK((!lda || rows_a <= MAX_ELEMENTS / lda) && (!ldb || rows_b <= MAX_ELEMENTS / ldb) && (!ldc || m <= MAX_ELEMENTS / ldc),
               "gemm: a matrix has more than 2^40 elements");
    return OCTO_OK;
}

/* How many neighbouring pixels of a line of `width` make one row of an int8 product of `columns` each and sums of `kernel` x `deep`, where
 * the product would be narrower than what the instruction set computes at once: the reduction grows by a `step` of the kernel for each
 * further one, by taps that are zero.  What takes least by pixel; a row costs as much as ROW more products. */
static int64_t neighbours(int64_t columns, int64_t kernel, int64_t deep, int64_t step, int64_t width, int elem_size) {
    enum { ROW = 192, WIDEST = 16 };
    int64_t best = 1, least = 0, unit = octo_table.columns;
    for (int64_t b = 1; elem_size == 1 && b * columns <= WIDEST; b++) {
        int64_t taps = kernel + (b - 1) * step, cost = (b * columns + unit - 1) / unit * unit * taps * deep + ROW;
        if (b == 1) least = cost;
        else if (width % b == 0 && taps * deep <= OCTO_MAX_DEPTH && cost * best < least * b) best = b, least = cost;
    }
    return best;
}

/* A product of op(a) and op(b), op = transpose where the flag is set. */
struct product {
    int transpose_a, transpose_b;
    const char *a, *b;
    int64_t lda, ldb;
    int elem_size;
};

/* Rows row0 .. row1 - 1 and columns col0 .. col1 - 1 of it into c, whose first row and column are 0; of the sums steps k0 .. k1 - 1.  k is cut so
 * that wide pieces of b stay in the cache; the cuts are multiples of OCTO_BLOCK_F32, so float32 sums do not depend on them.  A
 * transposed a is turned piece by piece. */
static int product_part(const struct product *of, int64_t row0, int64_t row1, int64_t col0, int64_t col1, int64_t k0, int64_t k1, int64_t most,
                        char *c, int64_t ldc) {
    const int64_t size = of->elem_size, k = k1 - k0, chunks = (k + most - 1) / most;
    int64_t chunk = chunks > 1 ? (k + chunks * OCTO_BLOCK_F32 - 1) / (chunks * OCTO_BLOCK_F32) * OCTO_BLOCK_F32 : k; /* even shares */
    int64_t some = of->transpose_a ? 1920 : row1 - row0; /* rows at a time, a multiple of 48 */
    struct octo_job job = {.n = col1 - col0, .b_k = of->transpose_b ? 1 : of->ldb, .b_n = of->transpose_b ? of->ldb : 1, .ldc = ldc,
                           .scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH)};
    char *left = of->transpose_a ? octo_scratch(OCTO_SLOT_LEFT, octo_min(some, row1 - row0) * octo_min(k, chunk) * size) : NULL;
    if (!job.scratch || (of->transpose_a && !left)) return OCTO_ENOMEM;
    for (int64_t r = row0; r < row1; r += some)
        for (int64_t p = k0; p < k1; p += chunk) {
            int64_t depth = octo_min(k1 - p, chunk);
            job.m = octo_min(some, row1 - r);
            if (of->transpose_a) {
                octo_transpose(depth, job.m, of->a + (p * of->lda + r) * size, of->lda, left, depth, of->elem_size);
                job.a = octo_plain_rows(left, job.m, depth, depth, size);
            } else
                job.a = octo_plain_rows(of->a + (r * of->lda + p) * size, job.m, depth, of->lda, size);
            job.b = of->b + (p * job.b_k + col0 * job.b_n) * size;
            job.c = c + (r * ldc + col0) * 4;
            job.accumulate = p > k0;
            run(&job, of->elem_size);
        }
    return OCTO_OK;
}

/* c[m][n] += each of `shares` arrays of as many sums, modulo 2^32. */
static void add_shares(int64_t shares, int64_t m, int64_t n, const uint32_t *sums, uint32_t *c, int64_t ldc) {
    for (int64_t s = 0; s < shares; s++)
        for (int64_t i = 0; i < m; i++, sums += n)
            for (int64_t j = 0; j < n; j++) c[i * ldc + j] += sums[j];
}

/* Each thread takes its rows, or its columns, of c.  Of a small int8 product of long sums, whose order does not matter, they share the
 * steps of the sums too. */
static int gemm(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                int64_t ldb, void *c, int64_t ldc, int elem_size) {
    enum { LONG = 2048 };
    if (!m || !n) return OCTO_OK;
    if (!k)
        for (int64_t i = 0; i < m; i++) memset((char *)c + i * ldc * 4, 0, (size_t)n * 4);
    const struct product of = {transpose_a, transpose_b, a, b, lda, ldb, elem_size};
    const int64_t most = elem_size == 4 || m <= 256 ? 1024 : 4096;
    int by_rows = m >= n, failed = 0;
    int64_t extent = by_rows ? m : n, unit = by_rows ? 48 : 64, units = (extent + unit - 1) / unit, slices = octo_min(units, octo_threads());
    int64_t shares = elem_size == 1 ? octo_max(1, octo_min(octo_threads() / slices, k / LONG)) : 1;
    uint32_t *sums = shares > 1 ? octo_scratch(OCTO_SLOT_SUMS, (shares - 1) * m * n * 4) : NULL; /* the shares' own, after the first */
    if (shares > 1 && !sums) return packing_status(1, "matrix product");
    OCTO_PARALLEL(i, slices * shares) {
        int64_t slice = i / shares, share = i % shares;
        int64_t from = units * slice / slices * unit, to = octo_min(units * (slice + 1) / slices * unit, extent);
        if (product_part(&of, by_rows ? from : 0, by_rows ? to : m, by_rows ? 0 : from, by_rows ? n : to, k * share / shares,
                         k * (share + 1) / shares, most, share ? (char *)(sums + (share - 1) * m * n) : c, share ? n : ldc)) failed = 1;
    }
    if (!failed) add_shares(shares - 1, m, n, sums, c, ldc);
    return packing_status(failed, "matrix product");
}

/* The same of few columns, rows lying side by side: `together` rows are one, whose columns are those of b with zeros for the other rows. */
static int narrow_gemm(int64_t together, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, const int8_t *b, int64_t ldb, int32_t *c) {
    const int64_t deep = together * k, wide = together * n;
    int8_t *spread = octo_scratch(OCTO_SLOT_RIGHT, wide * deep);
    if (!spread) return packing_status(1, "matrix product");
    memset(spread, 0, (size_t)(wide * deep));
    for (int64_t i = 0; i < wide; i++)
        for (int64_t p = 0; p < k; p++) spread[i * deep + i / n * k + p] = transpose_b ? b[i % n * ldb + p] : b[p * ldb + i % n];
    return gemm(0, 1, m / together, wide, deep, a, deep, spread, deep, c, wide, 1);
}

int octo_gemm_s8(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, int64_t lda,
                 const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc) {
    int status = octo_check_sizes(transpose_a, transpose_b, m, n, k, lda, ldb, ldc);
    if (status) return status;
    if (!transpose_a && lda == k && ldc == n && n && k) {
        int64_t together = neighbours(n, 1, k, 1, m, 1);
        if (together > 1 && m >= 64 * together) return narrow_gemm(together, transpose_b, m, n, k, a, b, ldb, c); /* the copy of b is worth it */
    }
    return gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, 1);
}

int octo_gemm_f32(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float *c, int64_t ldc) {
    int status = octo_check_sizes(transpose_a, transpose_b, m, n, k, lda, ldb, ldc);
    return status ? status : gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, 4);
}

int octo_gemm_s8_accumulate(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, int64_t lda,
                            int a_unsigned, const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc, const octo_accumulator *how,
                            octo_overflow *counts) {
    OCTO_CHECK(how->bits >= 8 && how->bits <= 32 && how->group >= 1 && how->group <= 32768, "accumulator: %d bits in groups of %d",
               how->bits, how->group);
    OCTO_CHECK(!how->pair_bits || (how->pair_bits >= 8 && how->pair_bits <= 31 && how->group % 2 == 0),
               "accumulator: pairs of %d bits in groups of %d", how->pair_bits, how->group);
    int status = octo_check_sizes(transpose_a, transpose_b, m, n, k, lda, ldb, ldc);
    if (status) return status;
    OCTO_CHECK(k <= 1 << 22, "accumulator: sums of %lld products are longer than 2^22", (long long)k);
    int64_t slices = octo_min((m + 3) / 4, octo_threads());
    octo_overflow *slice_counts = counts && m && n ? octo_scratch(OCTO_SLOT_SUMS, slices * (int64_t)sizeof *slice_counts) : NULL;
    char *left = transpose_a ? octo_scratch(OCTO_SLOT_LEFT, m * k) : NULL;
    int failed = (counts && m && n && !slice_counts) || (transpose_a && !left);
    if (counts) memset(counts, 0, sizeof *counts);
    if (slice_counts) memset(slice_counts, 0, (size_t)slices * sizeof *slice_counts);
    if (left && !failed) octo_transpose(k, m, a, lda, left, k, 1);
    if (!failed && m && n) {
        struct octo_rows rows = octo_plain_rows(left ? left : (const char *)a, m, k, left ? k : lda, 1);
        OCTO_PARALLEL(i, slices) {
            int64_t first = (m + 3) / 4 * i / slices * 4, last = octo_min((m + 3) / 4 * (i + 1) / slices * 4, m);
            struct octo_job job = {.a = rows, .first = first, .m = last - first, .n = n, .b_k = transpose_b ? 1 : ldb,
                                   .b_n = transpose_b ? ldb : 1, .ldc = ldc, .b = b, .c = c + first * ldc,
                                   .scratch = octo_scratch(OCTO_SLOT_KERNEL, octo_accumulate_scratch(k, how->group))};
            if (job.scratch) octo_table.gemm_s8_accumulate(&job, how, a_unsigned, slice_counts ? slice_counts + i : NULL);
            else failed = 1;
        }
    }
    if (failed) return packing_status(failed, "matrix product");
    for (int64_t i = 0; slice_counts && i < slices; i++) {
        counts->steps += slice_counts[i].steps, counts->narrowed += slice_counts[i].narrowed;
        for (int w = 0; w < 34; w++) counts->needed[w] += slice_counts[i].needed[w];
    }
    return OCTO_OK;
}

/* ---- convolutions ------------------------------------------------------------------------------------------------------------ */

int octo_check_conv(const octo_conv *g) {
    const int64_t limit = 1 << 20;
    OCTO_CHECK(g->batch >= 1 && g->height >= 1 && g->width >= 1 && g->channels >= 1 && g->filters >= 1 && g->kernel_h >= 1 &&
                   g->kernel_w >= 1 && g->stride_h >= 1 && g->stride_w >= 1 && g->pad_h >= 0 && g->pad_w >= 0 && g->pad_bottom >= 0 &&
                   g->pad_right >= 0 && g->dilation_h >= 1 && g->dilation_w >= 1 && g->groups >= 1,
               "convolution: sizes and strides must be positive");
    OCTO_CHECK(g->batch <= limit && g->height <= limit && g->width <= limit && g->channels <= limit && g->filters <= limit,
               "convolution: a size is larger than 2^20");
    OCTO_CHECK(g->stride_h <= INT32_MAX && g->stride_w <= INT32_MAX, "convolution: a stride is larger than 2^31 - 1");
    OCTO_CHECK(g->channels % g->groups == 0 && g->filters % g->groups == 0, "convolution: %lld channels and %lld filters in %lld groups",
               (long long)g->channels, (long long)g->filters, (long long)g->groups);
    OCTO_CHECK(g->kernel_h <= 1024 && g->kernel_w <= 1024 && g->dilation_h <= limit && g->dilation_w <= limit, "convolution: the kernel is too large");
    int64_t tall = (g->kernel_h - 1) * g->dilation_h + 1, wide = (g->kernel_w - 1) * g->dilation_w + 1;
    OCTO_CHECK(octo_max(g->pad_h, g->pad_bottom) < tall && octo_max(g->pad_w, g->pad_right) < wide,
               "convolution: the padding must be smaller than the kernel");
    OCTO_CHECK(g->height + g->pad_h + g->pad_bottom >= tall && g->width + g->pad_w + g->pad_right >= wide,
               "convolution: the %lld x %lld kernel is larger than the padded image", (long long)g->kernel_h, (long long)g->kernel_w);
    OCTO_CHECK(g->kernel_h * g->kernel_w <= 1024 && g->kernel_h * g->kernel_w * octo_max(g->channels, g->filters) / g->groups <= OCTO_MAX_DEPTH,
               "convolution: kernel height x width x channels must be at most %d", OCTO_MAX_DEPTH);
    double images = (double)g->batch * (double)(g->height + 2 * tall) * (double)(g->width + 2 * wide);
    OCTO_CHECK(images * (double)octo_max(g->channels, g->filters) < (double)MAX_ELEMENTS, "convolution: a tensor has more than 2^40 elements");
    return OCTO_OK;
}

/* Copies images into the middle of larger ones filled with `fill` bytes. */
static const void *pad_copy(int64_t batch, int64_t height, int64_t width, int64_t pixel, const void *x, int64_t out_h, int64_t out_w,
                          int64_t top, int64_t left, int fill) {
    char *out = octo_scratch(OCTO_SLOT_PADDED, batch * out_h * out_w * pixel + 64);
    if (!out) return NULL;
    OCTO_PARALLEL(n, batch) {
        char *row = out + n * out_h * out_w * pixel;
        const char *from = (const char *)x + n * height * width * pixel;
        size_t before = (size_t)((top * out_w + left) * pixel), between = (size_t)((out_w - width) * pixel), some = (size_t)(width * pixel);
        memset(row, fill, before);
        row += before;
        for (int64_t y = 0; y < height; y++, from += some, row += some + between) {
            memcpy(row, from, some);
            if (y + 1 < height) memset(row + some, fill, between);
        }
        row -= between;
        memset(row, fill, (size_t)(out + (n + 1) * out_h * out_w * pixel - row));
    }
    return out;
}

int octo_window_rows(const octo_conv *g, const void *x, int fill, int elem_size, struct octo_rows *rows) {
    int64_t height = g->height + g->pad_h + g->pad_bottom, width = g->width + g->pad_w + g->pad_right;
    if (height > g->height || width > g->width) {
        x = pad_copy(g->batch, g->height, g->width, g->channels * elem_size, x, height, width, g->pad_h, g->pad_w, fill);
        if (!x) return octo_fail(OCTO_ENOMEM, "out of memory for a padded copy of the input");
    }
    *rows = (struct octo_rows){.base = x, .end = (const char *)x + g->batch * height * width * g->channels * elem_size,
                               .width = octo_out_width(g), .height = octo_out_height(g), .x_stride = g->stride_w * g->channels,
                               .y_stride = g->stride_h * width * g->channels, .image_stride = height * width * g->channels,
                               .segments = g->kernel_h, .length = g->kernel_w * g->channels, .segment_stride = width * g->channels};
    return OCTO_OK;
}

static int conv_forward(const octo_conv *g, const void *x, int x_zero, const void *w, void *y, int elem_size) {
    int status = octo_check_conv(g);
    if (status) return status;
    if (octo_is_grouped(g)) return octo_grouped_forward(g, x, x_zero, w, y, elem_size);
    int64_t run = g->kernel_w * g->channels, k = g->kernel_h * run, m = g->batch * octo_out_height(g) * octo_out_width(g);
    struct octo_job job = {.m = m, .n = g->filters, .b_k = 1, .b_n = k, .ldc = g->filters, .b = w, .c = y};
    status = octo_window_rows(g, x, x_zero, elem_size, &job.a);
    int64_t block = neighbours(g->filters, g->kernel_w, g->kernel_h * g->channels, g->stride_w, octo_out_width(g), elem_size);
    if (!status && block > 1) { /* column (i, f): the filter moved by i windows */
        int64_t step = g->stride_w * g->channels, length = run + (block - 1) * step;
        char *moved = octo_scratch(OCTO_SLOT_RIGHT, block * g->filters * g->kernel_h * length);
        if (!moved) return packing_status(1, "matrix product");
        memset(moved, 0, (size_t)(block * g->filters * g->kernel_h * length));
        for (int64_t c = 0; c < block * g->filters; c++)
            for (int64_t s = 0; s < g->kernel_h; s++)
                memcpy(moved + (c * g->kernel_h + s) * length + c / g->filters * step,
                       (const char *)w + (c % g->filters * g->kernel_h + s) * run, (size_t)run);
        job.m /= block, job.n *= block, job.ldc = job.n, job.b_n = g->kernel_h * length, job.b = moved;
        job.a.width /= block, job.a.x_stride *= block, job.a.length = length;
    }
    return status ? status : run_sliced(&job, elem_size);
}

/* Kernel taps that contribute to input pixels congruent to `residue` modulo the stride: first, first + stride, ..., `count` of
 * them.  For pixel o * stride + residue the t-th tap takes dY[o + high - t], so all take dY[o + low .. o + high]. */
struct tap_range {
    int64_t first, count, low, high;
};

static struct tap_range tap_range(int64_t residue, int64_t kernel, int64_t stride, int64_t pad) {
    int64_t first = (residue + pad) % stride, count = first < kernel ? (kernel - 1 - first) / stride + 1 : 0, high = (residue + pad) / stride;
    return (struct tap_range){first, count, high - count + 1, high};
}

/* The union of all residues' ranges; without a stride, of pixels 0 .. count - 1.  A stride may be far larger than an image, so the
 * residues are found by the tap that each meets first. */
static struct tap_range tap_range_of_all(int64_t count, int64_t kernel, int64_t stride, int64_t pad) {
    struct tap_range all = {.low = kernel, .high = -kernel};
    for (int64_t i = 0, end = stride > 1 ? octo_min(kernel, stride) : count; i < end; i++) {
        struct tap_range one = tap_range(stride > 1 ? ((i - pad) % stride + stride) % stride : i, kernel, stride, pad);
        if (one.count) all.low = octo_min(all.low, one.low), all.high = octo_max(all.high, one.high);
    }
    return all;
}

/* The product of windows of images, `width` pixels of `n` columns each line, laid out at dx: line y of it becomes line
 * y * stride + residue of an image of `lines` lines of `row` elements.  Some images at a time, through memory that stays in the
 * cache, but rows enough to be worth the packing of b. */
static int scatter_lines(const struct octo_job *job, int64_t batch, int64_t residue, int64_t stride, int64_t lines, int64_t row, char *dx,
                         int elem_size) {
    int64_t pixels = job->a.width * job->a.height, slices = octo_min(batch, octo_threads());
    int64_t some = octo_max(1, octo_max(65536 / (pixels * job->n), 384 / pixels));
    int failed = 0;
    OCTO_PARALLEL(i, slices) {
        struct octo_job part = *job;
        char *out = octo_scratch(OCTO_SLOT_LEFT, some * pixels * job->n * 4);
        part.scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH), part.c = out;
        if (!out || !part.scratch) failed = 1;
        else
            for (int64_t n = batch * i / slices, end = batch * (i + 1) / slices; n < end; n += some) {
                int64_t images = octo_min(some, end - n);
                part.first = n * pixels, part.m = images * pixels;
                run(&part, elem_size);
                for (int64_t l = 0; l < images * job->a.height; l++) {
                    int64_t y = l % job->a.height * stride + residue;
                    if (y < lines)
                        memcpy(dx + ((n + l / job->a.height) * lines + y) * row * 4, out + l * job->a.width * job->n * 4, (size_t)row * 4);
                }
            }
    }
    return packing_status(failed, "matrix product");
}

/* Number of consecutive dX rows starting at `first` that use the same range of dY rows, o + low .. o + high within 0 .. lines - 1:
 * all interior rows at once, border rows one by one.  seen: the range of the first of them. */
static int64_t identical_rows(int64_t first, int64_t rows, int64_t low, int64_t high, int64_t lines, int64_t seen[2]) {
    seen[0] = octo_max(first + low, 0), seen[1] = octo_min(first + high, lines - 1);
    return first + low >= 0 && first + high < lines ? octo_min(rows - first, lines - high - first) : 1;
}

/* Whether skipping the rows of padding saves an eighth of the products; float32: only if K is a multiple of its blocks. */
static int skip_padding_pays(int64_t rows, int64_t low, int64_t high, int64_t lines, int64_t length, int elem_size) {
    int64_t all = rows * (high - low + 1), seen[2], needed = 0;
    for (int64_t o = 0; o < rows; o++) {
        identical_rows(o, rows, low, high, lines, seen);
        needed += octo_max(0, seen[1] - seen[0] + 1);
    }
    return needed * 8 <= all * 7 && (elem_size == 1 || length % OCTO_BLOCK_F32 == 0);
}

/* dX is a stride-1 convolution of dY, padded, with the kernel turned by 180 degrees and filters and channels exchanged.  With a
 * stride, pixels of dX that have the same residues modulo the stride see the same taps: for each residue of rows one product,
 * whose columns are the channels of `stride_w` neighbours (or more), with zeros for the taps that one of them sees and another not.
 * float32: k counts these taps, zeros included.  Lines of dX near the border see lines of padding; where that is much, they have
 * products of their own without it, which adds no more than zeros. */
static int conv_input_grad(const octo_conv *g, const void *dy, const void *w, void *dx, int elem_size) {
    int status = octo_check_conv(g);
    if (status) return status;
    if (octo_is_grouped(g)) return octo_grouped_input_grad(g, dy, w, dx, elem_size);
    int64_t steps = g->stride_w > 1 ? 1
                                    : neighbours(g->channels, g->kernel_w, g->kernel_h * g->filters, 1, g->width, elem_size);
    int64_t block = g->stride_w > 1 ? octo_min(g->stride_w, g->width) : steps;
    int64_t rows = (g->height + g->stride_h - 1) / g->stride_h, cols = (g->width + block - 1) / block;
    struct tap_range down = tap_range_of_all(1, g->kernel_h, g->stride_h, g->pad_h);
    struct tap_range across = tap_range_of_all(steps, g->kernel_w, g->stride_w, g->pad_w);
    int64_t top = octo_max(0, -down.low), height = top + octo_max(octo_out_height(g), rows + down.high);
    int64_t left = octo_max(0, -across.low), width = left + octo_max(octo_out_width(g), (cols - 1) * steps + 1 + across.high), span = across.high - across.low + 1;
    if (height > octo_out_height(g) || width > octo_out_width(g))
        dy = pad_copy(g->batch, octo_out_height(g), octo_out_width(g), g->filters * elem_size, dy, height, width, top, left, 0);
    size_t pixel = (size_t)(g->channels * elem_size);
    int64_t n = block * g->channels, line = g->width * g->channels;
    char *rotated = octo_scratch(OCTO_SLOT_RIGHT, (g->kernel_h + g->stride_h - 1) / g->stride_h * span * g->filters * n * elem_size);
    if (!rotated || !dy) return octo_fail(OCTO_ENOMEM, "out of memory for a padded copy of the gradient");
    for (int64_t r = 0; r < octo_min(g->stride_h, g->height) && !status; r++) {
        struct tap_range of = tap_range(r, g->kernel_h, g->stride_h, g->pad_h);
        OCTO_PARALLEL(t, of.count * span) {
            int64_t kh = of.first + (of.count - 1 - t / span) * g->stride_h;
            for (int64_t c = 0; c < block; c++) {
                struct tap_range to = tap_range(c, g->kernel_w, g->stride_w, g->pad_w);
                int64_t back = to.high - across.low - t % span, tap = kh * g->kernel_w + to.first + back * g->stride_w;
                for (int64_t f = 0; f < g->filters; f++) {
                    char *cell = rotated + ((t * g->filters + f) * block + c) * (int64_t)pixel;
                    if (back >= 0 && back < to.count)
                        memcpy(cell, (const char *)w + (f * g->kernel_h * g->kernel_w + tap) * (int64_t)pixel, pixel);
                    else memset(cell, 0, pixel);
                }
            }
        }
        int64_t lines = octo_out_height(g), length = span * g->filters, seen[2] = {of.low, of.high};
        int cut = skip_padding_pays(rows, of.low, of.high, lines, length, elem_size);
        for (int64_t o = 0, some = rows; o < rows && !status; o += some) {
            if (cut) some = identical_rows(o, rows, of.low, of.high, lines, seen);
            if (seen[0] > seen[1]) { /* no tap reaches them */
                for (int64_t i = 0; i < g->batch; i++)
                    for (int64_t y = o * g->stride_h + r; y < octo_min((o + some) * g->stride_h, g->height); y += g->stride_h)
                        memset((char *)dx + (i * g->height + y) * line * 4, 0, (size_t)line * 4);
                continue;
            }
            struct octo_job job = {.m = g->batch * some * cols, .n = n, .b_k = n, .b_n = 1, .ldc = n, .c = dx,
                                   .b = rotated + (seen[0] - o - of.low) * length * n * elem_size};
            job.a = (struct octo_rows){.base = (const char *)dy + ((seen[0] + top) * width + across.low + left) * g->filters * elem_size,
                                       .end = (const char *)dy + g->batch * height * width * g->filters * elem_size,
                                       .width = cols, .height = some, .x_stride = steps * g->filters, .y_stride = width * g->filters,
                                       .image_stride = height * width * g->filters, .segments = seen[1] - seen[0] + 1,
                                       .length = length, .segment_stride = width * g->filters};
            if (g->stride_h == 1 && g->width % block == 0 && !cut) status = run_sliced(&job, elem_size);
            else status = scatter_lines(&job, g->batch, o * g->stride_h + r, g->stride_h, g->height, line, dx, elem_size);
        }
    }
    return status;
}

/* dW[f][k] = sum over output pixels m of dY[m][f] im2col(x)[m][k].
 *
 * int8: in chunks of m that stay in the cache; the chunk's dY is transposed, its part of im2col made, and their product added
 * up.  Sums are exact modulo 2^32, so each of `slices` threads takes its own chunks. */
static int weight_grad_slice(const octo_conv *g, const struct octo_rows *x, const int8_t *dy, int32_t *dw, int64_t slice, int64_t slices) {
    int64_t m = g->batch * octo_out_height(g) * octo_out_width(g), k = x->segments * x->length;
    int64_t chunk = octo_max(octo_min(((int64_t)1 << 18) / k / 256 * 256, 4096), 256);
    int64_t chunks = (m + chunk - 1) / chunk, from = chunks * slice / slices, to = chunks * (slice + 1) / slices;
    int8_t *left = octo_scratch(OCTO_SLOT_LEFT, g->filters * chunk), *right = octo_scratch(OCTO_SLOT_RIGHT, chunk * k + 64);
    struct octo_job job = {.m = g->filters, .n = k, .b_k = k, .b_n = 1, .ldc = k, .b = right, .c = dw,
                           .scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH)};
    if (!left || !right || !job.scratch) return OCTO_ENOMEM;
    if (from == to) memset(dw, 0, (size_t)(g->filters * k) * 4);
    for (int64_t i = from; i < to; i++) {
        int64_t depth = octo_min(chunk, m - i * chunk);
        octo_table.transpose_s8(depth, g->filters, dy + i * chunk * g->filters, g->filters, left, depth);
        octo_table.gather_rows(x, i * chunk, depth, 1, right, k);
        job.a = octo_plain_rows(left, g->filters, depth, depth, 1);
        job.accumulate = i > from;
        octo_table.gemm_s8(&job);
    }
    return OCTO_OK;
}

typedef __typeof__(*((struct octo_kernels *)NULL)->weight_grad_s8) weight_grad_kernel;

/* The same by weight_grad_s8: all lines of channels c0 .. c1 - 1, or all channels of some lines, as many lines at a time as keep planes
 * and groups in the cache: 384 KiB of planes, but 768 pixels at least, so that adding a call's sums to dw costs little.  Tiles take 1 MiB of dY. */
static int weight_grad_lines(weight_grad_kernel *kernel, const octo_conv *g, const struct octo_rows *x, const int8_t *dy, int32_t *dw,
                             int64_t c0, int64_t c1, int64_t from, int64_t to) {
    int64_t pixels = octo_max(x->y_stride, x->width * g->channels) / g->channels, some;
    if (octo_table.depth) some = (1 << 20) / (g->filters * x->width);
    else some = octo_max(768 / x->width, 393216 / (pixels * octo_planes(x, g->channels, c0, c1)));
    some = octo_max(1, octo_min(4096 / x->width, some));
    if (from == to) memset(dw, 0, (size_t)(g->filters * x->segments * x->length) * 4);
    for (int64_t line = from; line < to; line += some) {
        int64_t lines = octo_min(some, to - line);
        void *scratch = octo_scratch(OCTO_SLOT_LEFT, octo_grad_scratch(x, g->channels, c0, c1, line, lines, g->filters));
        if (!scratch) return OCTO_ENOMEM;
        kernel(x, g->channels, c0, c1, line, lines, g->filters, dy + line * x->width * g->filters, scratch, line > from, dw);
    }
    return OCTO_OK;
}

/* The kernel by lines, where the instruction set has one and the lines of windows are long enough for groups of four, a third of their work
 * wasted at most.  Tiles take any windows, of more channels than one. */
static weight_grad_kernel *line_kernel(const octo_conv *g, struct octo_rows *x) {
    int64_t rows = g->batch * x->width * x->height;
    int tiles = octo_table.depth && g->channels > 1, adjacent = x->x_stride == g->channels;
    if (adjacent && x->length == g->channels && x->segments == 1 && x->image_stride == x->width * x->height * g->channels && rows % 64 == 0)
        x->width = 64, x->height = rows / 64, x->y_stride = 64 * g->channels; /* no windows: any lines will do */
    return tiles || (adjacent && (x->width + 3) / 4 * 4 * 3 <= x->width * 4) ? octo_table.weight_grad_s8 : NULL;
}

static int weight_grad_s8(const octo_conv *g, struct octo_rows *x, const int8_t *dy, int32_t *dw) {
    int64_t size = g->filters * x->segments * x->length, slices = octo_threads(), failed = 0;
    weight_grad_kernel *in_lines = line_kernel(g, x);
    int64_t lines = g->batch * octo_out_height(g) * octo_out_width(g) / x->width, units = (g->channels + 3) / 4;
    if (in_lines && size > 1 << 18 && units >= slices) {
        OCTO_PARALLEL(i, slices) {
            if (weight_grad_lines(in_lines, g, x, dy, dw, units * i / slices * 4, octo_min(units * (i + 1) / slices * 4, g->channels), 0, lines)) failed = 1;
        }
        return packing_status(failed, "weight gradient");
    }
    uint32_t *sums = slices > 1 ? octo_scratch(OCTO_SLOT_SUMS, (slices - 1) * size * 4) : NULL; /* the slices' own, after the first */
    if (slices > 1 && !sums) return octo_fail(OCTO_ENOMEM, "out of memory for the threads' sums of a weight gradient");
    OCTO_PARALLEL(i, slices) {
        int32_t *out = i ? (int32_t *)sums + (i - 1) * size : dw;
        if (in_lines ? weight_grad_lines(in_lines, g, x, dy, out, 0, g->channels, lines * i / slices, lines * (i + 1) / slices)
                     : weight_grad_slice(g, x, dy, out, i, slices)) failed = 1;
    }
    if (failed) return packing_status(failed, "weight gradient");
    add_shares(slices - 1, 1, size, sums, (uint32_t *)dw, size);
    return OCTO_OK;
}

/* float32 must add the rows in order, so each thread takes its own part of k. */
static int weight_grad_f32(const octo_conv *g, const struct octo_rows *x, const float *dy, float *dw) {
    int64_t m = g->batch * octo_out_height(g) * octo_out_width(g), k = x->segments * x->length, units = (k + 3) / 4, slices = octo_min(units, octo_threads());
    int64_t chunk = octo_max(256, octo_min(((int64_t)1 << 18) / g->filters / 256 * 256, OCTO_GRAD_ROWS)), failed = 0;
    OCTO_PARALLEL(i, slices) {
        void *scratch = octo_scratch(OCTO_SLOT_KERNEL, OCTO_SCRATCH);
        int64_t k0 = units * i / slices * 4, k1 = octo_min(units * (i + 1) / slices * 4, k);
        if (!scratch) failed = 1;
        else
            for (int64_t r = 0; r < m; r += chunk)
                octo_table.weight_grad_f32(x, r, octo_min(chunk, m - r), g->filters, dy + r * g->filters, k0, k1, scratch, r > 0, dw);
    }
    return packing_status(failed, "weight gradient");
}

static int conv_weight_grad(const octo_conv *g, const void *x, int x_zero, const void *dy, void *dw, int elem_size) {
    struct octo_rows rows;
    int status = octo_check_conv(g);
    if (!status && octo_is_grouped(g)) return octo_grouped_weight_grad(g, x, x_zero, dy, dw, elem_size);
    if (!status) status = octo_window_rows(g, x, x_zero, elem_size, &rows);
    return status ? status : elem_size == 1 ? weight_grad_s8(g, &rows, dy, dw) : weight_grad_f32(g, &rows, dy, dw);
}

int octo_conv_forward_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *w, int32_t *y) {
    CHECK_CODE(x_zero);
    return conv_forward(g, x, x_zero, w, y, 1);
}

int octo_conv_input_grad_s8(const octo_conv *g, const int8_t *dy, const int8_t *w, int32_t *dx) {
    return conv_input_grad(g, dy, w, dx, 1);
}

int octo_conv_weight_grad_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int32_t *dw) {
    CHECK_CODE(x_zero);
    return conv_weight_grad(g, x, x_zero, dy, dw, 1);
}

int octo_conv_forward_f32(const octo_conv *g, const float *x, const float *w, float *y) { return conv_forward(g, x, 0, w, y, 4); }

int octo_conv_input_grad_f32(const octo_conv *g, const float *dy, const float *w, float *dx) {
    return conv_input_grad(g, dy, w, dx, 4);
}

int octo_conv_weight_grad_f32(const octo_conv *g, const float *x, const float *dy, float *dw) {
    return conv_weight_grad(g, x, 0, dy, dw, 4);
}
