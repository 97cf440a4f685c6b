/* One function of the core for tools/schedule.py: called once cold and once between two marks, or TIMES times with the clock running.
 *     schedule FUNCTION SIZE [TIMES] */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "octosim.h"

enum { COLS = 64, MOST = 1 << 14, SIDE = 8, CHANNELS = 16 };

static float f[4][MOST], columns[8][COLS], range[2];
static int32_t s[2][MOST], added[COLS], factors[COLS], shifts[COLS];
static int8_t q[3][MOST];
static uint8_t bytes[2][MOST];
static const float scale = 0.01f;

__attribute__((noinline)) void begin_marked(void) { __asm__ volatile(""); }
__attribute__((noinline)) void end_marked(void) { __asm__ volatile(""); }

/* Sizes of the elementwise functions in rows of COLS, of images of SIDE x SIDE pixels, and of products in images. */
#define N (size * COLS)
#define IMAGES (size / (SIDE * SIDE))
#define POOL(kernel) {IMAGES, SIDE, SIDE, COLS, kernel, kernel}
#define CONV(channels) {size, SIDE, SIDE, channels, channels, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}

static int call(const char *name, int64_t size) {
    const octo_tensor sums = {NULL, s[0], added, &scale, NULL}, values = {f[1], NULL, NULL, NULL, NULL};
    const octo_pool pool = POOL(2);
    const octo_conv conv = CONV(CHANNELS), depthwise = CONV(COLS);
#define IS(function, ...) \
    if (!strcmp(name, #function)) return function(__VA_ARGS__)
    IS(octo_images_f32, N, bytes[0], scale, 0, f[1]);
    IS(octo_range_f32, N, f[0], range, range + 1);
    IS(octo_quantize_s8, N, f[0], 10, OCTO_HALF_EVEN, 0, -127, 127, 0, 0, 0, q[0]);
    IS(octo_requantize_s32, size, COLS, s[0], added, factors, shifts, OCTO_GEMMLOWP, 0, -127, 127, 0, 0, 0, q[0]);
    IS(octo_dequantize_s32, size, COLS, s[0], added, scale, NULL, f[1]);
    IS(octo_column_sums_s8, size, COLS, q[1], s[1]);
    IS(octo_row_sums_s8, size, COLS, q[1], s[1]);
    IS(octo_batchnorm_forward, size, COLS, &sums, columns[0], columns[1], 1e-5f, 0.1f, columns[2], columns[3], columns[4], columns[5], 1, f[2],
       q[0], bytes[1], range);
    IS(octo_batchnorm_backward, size, COLS, &values, NULL, q[1], bytes[0], columns[0], columns[4], columns[5], f[2], columns[6], columns[7],
       range);
    IS(octo_batchnorm_maxpool_forward, &pool, &sums, columns[0], columns[1], 1e-5f, 0.1f, columns[2], columns[3], columns[4], columns[5], f[2],
       bytes[1], q[0], range);
    IS(octo_batchnorm_maxpool_backward, &pool, &values, bytes[1], NULL, q[1], columns[0], columns[4], columns[5], f[2], columns[6], columns[7],
       range);
    IS(octo_maxpool_f32, &pool, f[0], f[2], bytes[1]);
    IS(octo_maxpool_backward_f32, &pool, f[0], bytes[1], f[2]);
    IS(octo_relu_f32, N, f[0], f[2], bytes[1], range);
    IS(octo_relu_backward, size, COLS, bytes[0], &values, NULL, f[2]);
    IS(octo_add, size, COLS, &values, &values, 1, f[2], bytes[1], range);
    IS(octo_sgd_f32, size, COLS, f[2], &sums, f[3], 0.1f, 0.9f, 1e-4f, range);
    IS(octo_adam_f32, size, COLS, f[2], &sums, f[3], f[1], 0.1f, 0.9f, 0.999f, 1e-8f, 0.1f, 0.1f, 0, range);
    IS(octo_gemm_s8, 0, 1, 16 * size, COLS, 128, q[0], 128, q[1], 128, s[1], COLS);
    IS(octo_conv_forward_s8, &conv, q[0], 0, q[1], s[1]);
    IS(octo_conv_input_grad_s8, &conv, q[0], q[1], s[1]);
    IS(octo_conv_weight_grad_s8, &conv, q[0], 0, q[1], s[1]);
    IS(octo_depthwise_forward_s8, &depthwise, q[0], 0, q[1], s[1]);
    IS(octo_depthwise_input_grad_s8, &depthwise, q[0], q[1], s[1]);
    IS(octo_depthwise_weight_grad_s8, &depthwise, q[0], 0, q[1], s[1]);
    fprintf(stderr, "unknown function %s\n", name);
    exit(2);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Additions that wait for each other take a clock each. */
static double gigahertz(void) {
    double best = 0;
    for (int turn = 0; turn < 100; turn++) {
        uint64_t sum = 0;
        double before = now();
        for (int i = 0; i < 10000; i++)
            for (int j = 0; j < 16; j++) {
                sum += 1;
                __asm__ volatile("" : "+r"(sum));
            }
        double rate = 160000e-9 / (now() - before);
        if (rate > best) best = rate;
    }
    return best;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) return 2;
    uint32_t word = 1;
    for (int64_t i = 0; i < MOST; i++) {
        word = word * 1664525u + 1013904223u; /* Numerical Recipes' generator */
        int32_t code = (int32_t)(word >> 24) % 128;
        for (int j = 0; j < 4; j++) f[j][i] = (float)((int32_t)(word >> 8 & 0xffff) - 0x8000) / 0x1000;
        f[1][i] = f[0][i] < 0 ? -f[0][i] : f[0][i]; /* Adam's squares, too */
        for (int j = 0; j < 2; j++) s[j][i] = code * 37, bytes[j][i] = (uint8_t)(word >> 16);
        for (int j = 0; j < 3; j++) q[j][i] = (int8_t)(word & 1 ? code : -code); /* no -128: its products take longer on NEON */
    }
    for (int c = 0; c < COLS; c++) {
        for (int j = 0; j < 8; j++) columns[j][c] = 1;
        factors[c] = 1 << 30, shifts[c] = 4;
    }
    octo_set_threads(1);
    int64_t size = atoll(argv[2]);
    int status = call(argv[1], size);
    if (argc == 4) {
        double best = 1;
        for (int64_t times = atoll(argv[3]); times > 0; times--) {
            double before = now();
            status |= call(argv[1], size);
            double took = now() - before;
            if (took < best) best = took;
        }
        printf("%.9g %.4g\n", best, gigahertz());
    } else {
        begin_marked();
        status |= call(argv[1], size);
        end_marked();
    }
    if (status) fprintf(stderr, "%s: %s\n", argv[1], octo_error());
    return status;
}
