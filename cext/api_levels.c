/* Loss-aware weights of few levels: an optimizer's step taken apart, the fit, what it counts; and codes in two int8 parts.  The arithmetic is
 * in levels.inc. */
#include "dispatch.h"

/* ---- an optimizer's step taken apart ------------------------------------------------------------------------------------------------ */

int octo_newton_sgd_f32(int64_t n, const float *w, const float *g, const float *v, float momentum, float decay, float *direction,
                        float *curvature, float *v_after) {
    CHECK_COUNT("Newton step", n);
    float *to = direction ? direction : v_after;
    if (to) FOR_EACH_CHUNK(n, octo_table.newton_sgd_f32(count, w + first, g + first, v + first, momentum, decay, to + first));
    if (direction && v_after) memcpy(v_after, direction, (size_t)n * 4);
    for (int64_t i = 0; curvature && i < n; i++) curvature[i] = 1;
    return OCTO_OK;
}

int octo_newton_adam_f32(int64_t n, const float *w, const float *g, const float *m, const float *v, float b1, float b2, float eps, float c1,
                         float c2, float decay, float *direction, float *curvature, float *m_after, float *v_after) {
    CHECK_COUNT("Newton step", n);
    int failed = 0;
    float *const to[4] = {direction, curvature, m_after, v_after};
    OCTO_PARALLEL(s, (n + CHUNK - 1) / CHUNK) {
        int64_t first = s * CHUNK, count = octo_min(CHUNK, n - first);
        float *spare = octo_scratch(OCTO_SLOT_KERNEL, 4 * CHUNK * 4), *each[4];
        for (int i = 0; spare && i < 4; i++) each[i] = to[i] ? to[i] + first : spare + i * CHUNK;
        if (!spare) failed = 1;
        else octo_table.newton_adam_f32(count, w + first, g + first, m + first, v + first, b1, b2, eps, c1, c2, decay, each);
    }
    return failed ? octo_fail(OCTO_ENOMEM, "out of memory in a Newton step") : OCTO_OK;
}

int octo_newton_move_f32(int64_t n, const float *from, const float *direction, const float *curvature, float lr, float *w) {
    CHECK_COUNT("Newton step", n);
    FOR_EACH_CHUNK(n, octo_table.newton_move_f32(count, from + first, direction + first, curvature + first, lr, w + first));
    return OCTO_OK;
}

int octo_blend_f32(int64_t n, const float *a, const float *b, float share, float rest, float *y) {
    CHECK_COUNT("blend", n);
    FOR_EACH_CHUNK(n, octo_table.blend_f32(count, a + first, b + first, share, rest, y + first));
    return OCTO_OK;
}

int octo_bias_correction(uint32_t step, uint32_t ahead, double base, double *correction) {
    double power = 1;
    for (uint64_t left = (uint64_t)step + ahead; left; left >>= 1) {
        if (left & 1) power *= base;
        base *= base;
    }
    *correction = 1.0 - power;
    return OCTO_OK;
}

/* ---- the fit ------------------------------------------------------------------------------------------------------------------------- */

/* Elements that are summed one after the other before their sum is added to the others'. */
enum { PIECE = 65536, ROUNDS = 10 };

/* Both sums of all pieces; 0 where there is no memory. */
static int sums_of(int64_t n, const float *w, const float *d, const int8_t *q, float levels, double total[2]) {
    int64_t pieces = (n + PIECE - 1) / PIECE;
    double *sums = octo_scratch(OCTO_SLOT_SUMS, pieces * 16);
    if (!sums) return 0;
    OCTO_PARALLEL(p, pieces) {
        int64_t first = p * PIECE, count = octo_min(PIECE, n - first);
        if (q) octo_table.level_sums_f32(count, w + first, d + first, q + first, levels, sums + 2 * p);
        else octo_table.side_sums_f32(count, w + first, d + first, sums + 2 * p);
    }
    total[0] = total[1] = 0;
    for (int64_t p = 0; p < pieces; p++) total[0] += sums[2 * p], total[1] += sums[2 * p + 1];
    return 1;
}

/* m bits: alpha = ||beta D w|| / ||beta D beta|| and beta = the nearest level to w / alpha in turn, from the codes q. */
static int iterated(int64_t n, const float *w, const float *d, float levels, double largest, int8_t *q, double *alpha) {
    double now = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double sums[2], before = now;
        if (!sums_of(n, w, d, q, levels, sums)) return 0;
        if (sums[1] > 0) {
            now = sums[0] / sums[1];
            now = now < 0 ? -now : now;
        } else now = largest;
        if (now == 0) {
            memset(q, 0, (size_t)n);
            break;
        }
        FOR_EACH_CHUNK(n, octo_table.nearest_levels_f32(count, w + first, (float)now, levels, q + first));
        double change = now - before;
        if (change <= 1e-6 && change >= -1e-6) break;
    }
    *alpha = now;
    return 1;
}

static uint32_t magnitude_key(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return ~bits & 0x7fffffffu; /* descending */
}

/* The elements from the largest magnitude down, those of equal magnitude in their order: by 11 bits of the key at a time.  The result
 * is in one half of `order`, which has room for two. */
static const int64_t *by_magnitude(int64_t n, const float *w, int64_t *order) {
    int64_t *from = order, *to = order + n;
    for (int64_t i = 0; i < n; i++) from[i] = i;
    for (int shift = 0; shift < 33; shift += 11) {
        int64_t at[2048] = {0}, sum = 0;
        for (int64_t i = 0; i < n; i++) at[magnitude_key(w[i]) >> shift & 2047]++;
        for (int bin = 0; bin < 2048; bin++) {
            int64_t some = at[bin];
            at[bin] = sum, sum += some;
        }
        for (int64_t i = 0; i < n; i++) to[at[magnitude_key(w[from[i]]) >> shift & 2047]++] = from[i];
        int64_t *swap = from;
        from = to, to = swap;
    }
    return from;
}

/* Ternary: of all thresholds the one with the least error, see octosim.h. */
static int exact_ternary(int64_t n, const float *w, const float *d, int8_t *q, double *alpha) {
    int64_t *memory = octo_scratch(OCTO_SLOT_LEFT, 2 * n * 8), most = -1;
    if (!memory) return 0;
    const int64_t *order = by_magnitude(n, w, memory);
    double mass = 0, moment = 0, best = 0;
    *alpha = 0;
    for (int64_t j = 0; j < n; j++) {
        double size = (double)w[order[j]], weight = (double)d[order[j]];
        size = size < 0 ? -size : size;
        mass = j ? mass + weight : weight;
        moment = j ? moment + weight * size : weight * size;
        double c = moment / mass / 2, next = j + 1 < n ? (double)w[order[j + 1]] : -1;
        if (j + 1 < n && next < 0) next = -next;
        double value = c * c * mass;
        if (size > c && c > next && (most < 0 || value > best)) best = value, most = j, *alpha = 2 * c;
    }
    memset(q, 0, (size_t)n);
    for (int64_t j = 0; j <= most; j++) q[order[j]] = (int8_t)((w[order[j]] > 0) - (w[order[j]] < 0));
    return 1;
}

int octo_fit_levels_f32(int64_t n, const float *w, const float *d, int bits, int exact, int8_t *q, float *alpha, int64_t *changes) {
    OCTO_CHECK(n >= 1 && n <= (int64_t)1 << 40, "levels: bad element count %lld", (long long)n);
    OCTO_CHECK(bits >= 1 && bits <= 8, "levels: %d bits are not 1 .. 8", bits);
    float low, high;
    int status = octo_range_f32(n, w, &low, &high);
    if (status) return status;
    int8_t *made = octo_scratch(OCTO_SLOT_RIGHT, n);
    int done = made != NULL;
    double scale = 0, sums[2];
    if (made && bits == 1) {
        done = sums_of(n, w, d, NULL, 1, sums);
        scale = sums[0] / sums[1];
        FOR_EACH_CHUNK(n, octo_table.sides_f32(count, w + first, made + first));
    } else if (made && bits == 2 && exact) {
        done = exact_ternary(n, w, d, made, &scale);
    } else if (made) {
        memcpy(made, q, (size_t)n);
        done = iterated(n, w, d, (float)((1 << (bits - 1)) - 1), (double)octo_most(-low, high), made, &scale);
    }
    if (!done) return octo_fail(OCTO_ENOMEM, "out of memory in levels");
    int64_t changed;
    octo_table.replace_s8(n, made, q, &changed);
    *changes += changed;
    *alpha = (float)scale;
    return OCTO_OK;
}

int octo_turned_f32(int64_t n, const float *before, float *w, int8_t *sign, int64_t *turned) {
    CHECK_COUNT("turned", n);
    int64_t slices = (n + CHUNK - 1) / CHUNK, *counts = octo_scratch(OCTO_SLOT_SUMS, octo_max(1, slices) * 8);
    if (!counts) return octo_fail(OCTO_ENOMEM, "out of memory in turned");
    FOR_EACH_CHUNK(n, octo_table.turn_f32(count, before + first, w + first, sign + first, counts + first / CHUNK));
    for (int64_t s = 0; s < slices; s++) *turned += counts[s];
    return OCTO_OK;
}

int octo_level_values_f32(int64_t n, const int8_t *q, const float *alpha, float levels, float *y) {
    CHECK_COUNT("levels", n);
    float scale = *alpha / levels;
    FOR_EACH_CHUNK(n, octo_table.dequantize_s8(count, q + first, scale, 0, y + first));
    return OCTO_OK;
}

/* ---- codes in two parts -------------------------------------------------------------------------------------------------------------- */

int octo_forward_parts_f32(int64_t n, const float *x, int rounding, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *low, int8_t *high,
                           double *scale) {
    float least, most;
    OCTO_CHECK(rounding == OCTO_HALF_EVEN || rounding == OCTO_STOCHASTIC, "parts: rounding %d is neither half to even nor stochastic", rounding);
    int status = octo_range_f32(n, x, &least, &most);
    if (status) return status;
    double unit = ((double)most - (double)least) / 510, zero = 0;
    if (unit != 0) zero = octo_least(octo_most(255.0 - (double)most / unit, -255.0), 255.0);
    *scale = unit = unit != 0 ? unit : 1.0;
    if (rounding == OCTO_STOCHASTIC)
        FOR_EACH_CHUNK(n, WITH_WORDS(octo_table.forward_parts_f32(some, x + at, words, unit, zero, low + at, high + at)));
    else
        FOR_EACH_CHUNK(n, octo_table.forward_parts_f32(count, x + first, NULL, unit, zero, low + first, high + first));
    return OCTO_OK;
}

/* The clip and the scale of octo_backward_parts_f32. */
static double backward_scale(double *least, double *most, double ratio) {
    double low = octo_most(*least, ratio * *least), high = octo_least(*most, ratio * *most), scale = (high - low) / 254;
    *least = low, *most = high;
    return scale != 0 ? scale : 1.0;
}

int octo_backward_parts_f32(int64_t n, const float *x, double ratio, int with_zero, int8_t *low, int8_t *high, double *scale) {
    float least, most;
    int status = octo_range_f32(n, x, &least, &most);
    if (status) return status;
    double from = (double)least, to = (double)most;
    if (with_zero) from = octo_least(from, 0), to = octo_most(to, 0);
    double unit = *scale = backward_scale(&from, &to, ratio);
    FOR_EACH_CHUNK(n, octo_table.backward_parts_f32(count, x + first, from, to, unit, low + first, high + first));
    return OCTO_OK;
}

int octo_backward_values_f32(int64_t n, const float *x, float *y) {
    float least, most;
    int status = octo_range_f32(n, x, &least, &most);
    if (status) return status;
    double from = (double)least, to = (double)most, unit = backward_scale(&from, &to, 1.0);
    for (int64_t i = 0; i < n; i++) {
        int8_t low, high;
        octo_table.backward_parts_f32(1, x + i, from, to, unit, &low, &high);
        y[i] = (float)((double)(255 * high + low) * unit);
    }
    return OCTO_OK;
}

int octo_combine_parts_s32(int64_t rows, int64_t cols, const int32_t *low_low, const int32_t *low_high, const int32_t *high_low,
                           const int32_t *high_high, double scale_a, double scale_b, const float *bias, float *y) {
    CHECK_MATRIX("parts", rows, cols);
    int64_t step = octo_max(1, CHUNK / cols);
    OCTO_PARALLEL(s, (rows + step - 1) / step) {
        int64_t first = s * step, count = octo_min(step, rows - first), at = first * cols;
        const int32_t *const sums[4] = {low_low + at, low_high + at, high_low + at, high_high + at};
        octo_table.combine_parts_s32(count, cols, sums, scale_a * scale_b, bias, y + at);
    }
    return OCTO_OK;
}

int octo_compensate_f32(int64_t rows, int64_t cols, const float *alpha, const float *mu, const float *offset, float *y) {
    CHECK_MATRIX("compensation", rows, cols);
    EACH_ROWS(rows, cols, octo_table.compensate_f32(count, cols, alpha, mu + first * cols, offset + first * cols, y + first * cols));
    return OCTO_OK;
}

int octo_scale_f32(int64_t n, const float *x, float factor, float *y) {
    CHECK_COUNT("scale", n);
    FOR_EACH_CHUNK(n, octo_table.scale_columns_f32(count, 1, x + first, &factor, y + first));
    return OCTO_OK;
}

int octo_most_s32(int value, int32_t *most) {
    if (value > *most) *most = value;
    return OCTO_OK;
}
