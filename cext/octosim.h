/* octosim: the whole C interface.  cffi parses what stands between the two marks, so nothing is declared twice.
 *
 * Conventions
 *   Every function returns a status; OCTO_OK is 0.  octo_error() is the sentence for the calling thread's last failure.
 *   Matrices are row-major; images are NHWC (channel last); convolution weights are [filter][kernel_h][kernel_w][channel].
 *   Outputs never overlap inputs unless the function says "in place".
 *   Results do not depend on the instruction set or on the number of threads, to the bit.
 *   float32: every operation is rounded to float32 (no contraction into FMA), reductions as written in loops.inc, in the
 *   floating-point environment of octo_float_enter: who has set another calls it before (Python's calls do).
 *   Threads may call at the same time.  A forked process computes with one thread.
 *   int32 sums are taken modulo 2^32; where the caller must exclude overflow the bound stands at the function. */
#ifndef OCTOSIM_H
#define OCTOSIM_H
#include <stdint.h>

/* Step of the codes of normalized values, in standard deviations: they reach to 127/16. */
#define OCTO_NORMALIZED_STEP 0.0625f

/* cffi: begin */
enum { OCTO_OK = 0, OCTO_EINVAL = 1, OCTO_ENOMEM = 2, OCTO_ENOTSUP = 3, OCTO_EFINITE = 4 };
const char *octo_error(void);

/* Instruction sets: rows 0 .. octo_isa_count()-1, slowest first; row 0 is "ref". */
int octo_isa_count(void);
const char *octo_isa_name(int row);
int octo_isa_supported(int row);
const char *octo_isa(void);
/* Of the instruction set in use: columns of an int8 product and of a float32 one (lanes) that it computes at once at least, narrower
 * ones taking as long; steps of an int8 reduction that tiles multiply at once, shorter ones being left to vectors, 0 without tiles; and
 * whether an int8 product reads windows that overlap in place, in lines that are long enough, and packs none. */
void octo_tiling(int *columns, int *lanes, int *depth, int *in_place);
int octo_set_isa(const char *name);
int octo_max_threads(void);
int octo_threads(void);
int octo_set_threads(int threads);
/* The calling thread's own count for its next calls, 0: that of octo_set_threads; returns what it was. */
int octo_use_threads(int threads);
/* Gives the scratch memory of the calling thread and of those that work for it back to the system: it has the size of the largest
 * call so far. */
void octo_trim(void);

/* Sets the calling thread's floating-point environment to the one that the results are defined in: rounded to the nearest, subnormal
 * numbers neither flushed to zero nor taken as zero, no traps.  Returns the one before, for octo_float_leave. */
uint64_t octo_float_enter(void);
void octo_float_leave(uint64_t before);

/* c[m][n] = sum over k of op(a)[m][k] * op(b)[k][n], op = transpose where the flag is set; lda, ldb, ldc count elements. */
int octo_gemm_s8(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, int64_t lda,
                 const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc);
int octo_gemm_f32(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float *c, int64_t ldc);

/* A register that sums products of codes.  Products are taken in ascending k; `group` consecutive ones are summed exactly, with
 * pair_bits first in pairs that saturate at so many bits (0: not); the sum is added to the accumulator of `bits` bits, which
 * then saturates or wraps.  The last group of a row may be shorter.  8 <= bits <= 32, 1 <= group <= 32768, even with pair_bits. */
typedef struct {
    int bits, saturate, group, pair_bits;
} octo_accumulator;
/* What happened in the accumulators of a product: `steps` additions, `narrowed` of them changed by saturating or wrapping;
 * needed[w]: outputs whose accumulator peaked at w bits before overflow (33: more than 32). */
typedef struct {
    int64_t steps, narrowed, needed[34];
} octo_overflow;
/* octo_gemm_s8 in the given accumulator; a_unsigned: a holds uint8.  counts may be NULL.  k <= 2^22. */
int octo_gemm_s8_accumulate(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, int64_t lda,
                            int a_unsigned, const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc,
                            const octo_accumulator *how, octo_overflow *counts);

/* A matrix of codes with a scale for each block of OCTO_SIDE x OCTO_SIDE of them, the last ones of a row or column smaller: q [rows][cols],
 * scales [ceil(rows / OCTO_SIDE)][ceil(cols / OCTO_SIDE)].  c[m][n] = sum over blocks of k, ascending from 0, of
 * ((float)(int32 sum of the block's products) * its scale of a) * its scale of b, where op(a) is m x k and op(b) k x n, scales and all. */
enum { OCTO_SIDE = 32 };
int octo_gemm_blocks_s8(int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const int8_t *a, const float *scales_a,
                        const int8_t *b, const float *scales_b, float *c);

/* A 2-D convolution's geometry.  pad_h, pad_w: above and left; pad_bottom, pad_right: below and right.  A kernel's taps lie dilation apart:
 * output height = (height + pad_h + pad_bottom - (kernel_h - 1) dilation_h - 1) / stride_h + 1, width likewise.  Of `groups`, each has its
 * own channels and filters, consecutive ones; w is [filters][kernel_h][kernel_w][channels / groups] then. */
typedef struct {
    int64_t batch, height, width, channels, filters;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int64_t pad_bottom, pad_right, dilation_h, dilation_w, groups;
} octo_conv;
/* The three passes.  x [batch][height][width][channels], w [filters][kernel_h][kernel_w][channels],
 * y and dy [batch][out_h][out_w][filters].  Padding holds x_zero, the code of the real value 0.  float32 with groups or dilation: sums as
 * octo_gemm_f32's over ascending (kernel_h, kernel_w, channel or filter), or for dw over the output pixels, zeros where no dy is included. */
int octo_conv_forward_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *w, int32_t *y);
int octo_conv_input_grad_s8(const octo_conv *g, const int8_t *dy, const int8_t *w, int32_t *dx);
int octo_conv_weight_grad_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int32_t *dw);
int octo_conv_forward_f32(const octo_conv *g, const float *x, const float *w, float *y);
int octo_conv_input_grad_f32(const octo_conv *g, const float *dy, const float *w, float *dx);
int octo_conv_weight_grad_f32(const octo_conv *g, const float *x, const float *dy, float *dw);
/* dw of int8 codes without overflow whatever the number of output pixels: in parts of at most 131,071 of them, whose sums are exact in
 * int32, added in int64. */
int octo_conv_weight_grad_s64(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int64_t *dw);

/* dx of a convolution from dy [batch out_h out_w][filters] and w [filters][kernel_h kernel_w channels] in blocks with scales: the gradients of
 * the windows' elements, by octo_gemm_blocks_s8, are added to their pixels in float32, from 0, in ascending (kernel_h, kernel_w). */
int octo_conv_input_grad_blocks_s8(const octo_conv *g, const int8_t *dy, const float *scales_dy, const int8_t *w, const float *scales_w,
                                   float *dx);

/* The same for a depthwise convolution, each channel with its own kernel: filters = channels, w [channels][kernel_h][kernel_w], at most
 * 225 taps.  float32: y and dx sum their taps in ascending (kernel_h, kernel_w), without those in the padding; dw sums the pixels of
 * about 16384 elements of dy (whole rows, ascending) in float32, and these sums in double, in ascending order. */
int octo_depthwise_forward_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *w, int32_t *y);
int octo_depthwise_input_grad_s8(const octo_conv *g, const int8_t *dy, const int8_t *w, int32_t *dx);
int octo_depthwise_weight_grad_s8(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int32_t *dw);
int octo_depthwise_forward_f32(const octo_conv *g, const float *x, const float *w, float *y);
int octo_depthwise_input_grad_f32(const octo_conv *g, const float *dy, const float *w, float *dx);
int octo_depthwise_weight_grad_s64(const octo_conv *g, const int8_t *x, int x_zero, const int8_t *dy, int64_t *dw);
int octo_depthwise_weight_grad_f32(const octo_conv *g, const float *x, const float *dy, float *dw);

/* Philox4x32-10 (Salmon et al., SC'11): word i of the stream (seed, step, tensor) is output i mod 4 of the block with
 * counter (low and high half of i / 4, tensor, step) and key (low and high half of seed). */
int octo_philox(int64_t n, uint64_t seed, uint32_t step, uint32_t tensor, uint32_t *out);
/* out[i] = mean + deviation * z, z standard normal: Wichura's AS 241 (PPND7) at (word i + 0.5) / 2^32. */
int octo_normal_f32(int64_t n, uint64_t seed, uint32_t step, uint32_t tensor, float mean, float deviation, float *out);
int octo_exp_f32(int64_t n, const float *x, float *y); /* |x| <= 87, at most 2 ulp off */
int octo_log_f32(int64_t n, const float *x, float *y); /* normal x > 0, at most 2 ulp off */

/* Smallest and largest value; OCTO_EFINITE where x holds a NaN or an infinity. */
int octo_range_f32(int64_t n, const float *x, float *min, float *max);
/* Mean and standard deviation (divided by n). */
int octo_moments_f32(int64_t n, const float *x, float *mean, float *deviation);
/* How a real number becomes an integer: to the nearest one, ties to the even one, away from zero or up; down; toward zero;
 * down or up by chance (floor(x + u), u uniform in [0, 1) from Philox: right on average).  Two are for integers only:
 * PSEUDO_STOCHASTIC (NITI: the lower half of the fraction's bits decides about the upper half) and GEMMLOWP (the doubled
 * product's high half, half up, then divided by 2^shift, half away from zero). */
enum { OCTO_HALF_EVEN, OCTO_HALF_AWAY, OCTO_HALF_UP, OCTO_FLOOR, OCTO_TOWARD_ZERO, OCTO_STOCHASTIC, OCTO_PSEUDO_STOCHASTIC,
       OCTO_GEMMLOWP };
int octo_range_s32(int64_t n, const int32_t *x, int32_t *min, int32_t *max);
/* q = clamp(round(x * inv_scale) + zero, lo, hi); the product is rounded to float32.  STOCHASTIC: u = (word i >> 8) / 2^24 of the
 * stream (seed, step, tensor), and the sum is rounded to float32; an integer product stays.  OCTO_EFINITE where inv_scale is NaN. */
int octo_quantize_s8(int64_t n, const float *x, float inv_scale, int rounding, int zero, int lo, int hi, uint64_t seed,
                     uint32_t step, uint32_t tensor, int8_t *q);
/* q[r][c] = clamp(round((acc[r][c] + add[c]) * scale of c) + zero, lo, hi); the sum is modulo 2^32.
 * s32: scale = multiplier / 2^shift, multiplier >= 0, 0 <= shift <= 62, exact until it is rounded; STOCHASTIC adds word / 2^32.
 *      PSEUDO_STOCHASTIC needs multiplier 1 and shift <= 31; GEMMLOWP means multiplier / 2^31 / 2^shift, shift <= 31.
 * f32: the sum as float32 times scale, then as octo_quantize_s8. */
int octo_requantize_s32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, const int32_t *multiplier,
                        const int32_t *shift, int rounding, int zero, int lo, int hi, uint64_t seed, uint32_t step,
                        uint32_t tensor, int8_t *q);
int octo_requantize_f32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, const float *scale, int rounding,
                        int zero, int lo, int hi, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *q);
int octo_dequantize_s8(int64_t n, const int8_t *q, float scale, int zero, float *x);

/* What octo_quantize_s8 takes, of a tensor's range, and what its codes then mean: r = scale (q - zero).  In double, then rounded to
 * float32; inverse = 1 / scale, or 0 where scale is at most 1e-38.
 * symmetric:  of `share` times the range: scale = max(|low|, |high|) / 127, zero = 0; lo, hi: the codes next to low and high, each
 *             rounded to float32, which the codes are clamped to.
 * A range with a NaN, or whose scale would be infinite, is refused (OCTO_EFINITE), and by asymmetric one whose low end is above its
 * high end.
 * asymmetric: the range is widened to hold 0; scale = (high - low) / 254, zero = round(-127 - low inverse); lo, hi = -127, 127. */
typedef struct {
    float scale, inverse;
    int32_t zero, lo, hi;
} octo_codes;
int octo_symmetric_codes(double low, double high, double share, octo_codes *codes);
int octo_asymmetric_codes(double low, double high, octo_codes *codes);
/* a b, rounded to float32. */
int octo_product_scale(double a, double b, float *scale);
/* running += weight (range - running), of both ends; a running range of zeros becomes the range. */
int octo_follow_range(float low, float high, float weight, float *running);
/* The range of `count` tensors, from theirs. */
int octo_join_ranges(int64_t count, const float *const *ranges, float *range);
/* What a zero point adds to the sums of products, from the sums of the other operand: out = -zero * sums, modulo 2^32. */
int octo_zero_term(int64_t n, const int32_t *sums, int zero, int32_t *out);

/* Block-wise quantization for octo_gemm_blocks_s8: scale = max |block| / 127 and q = round(x / scale) within +-127, rounded like
 * octo_quantize_s8.  half: the scale is rounded to float16, 65504 at most.  Scales up to 1e-38 become 0, and the codes then.  y = q scale;
 * q or y may be NULL, and y the memory of x.  OCTO_EFINITE where x holds a NaN or an infinity: the outputs are undefined then. */
int octo_quantize_blocks_s8(int64_t rows, int64_t cols, const float *x, int half, int rounding, uint64_t seed, uint32_t step, uint32_t tensor,
                            int8_t *q, float *scales, float *y);
/* The same, half even, of the matrix of a convolution's windows: [batch out_h out_w][kernel_h kernel_w channels], padding 0. */
int octo_quantize_windows_s8(const octo_conv *g, const float *x, int half, int8_t *q, float *scales);
int octo_dequantize_blocks_s8(int64_t rows, int64_t cols, const int8_t *q, const float *scales, float *y);
/* y[r][c] = (acc[r][c] + add[c]) * scale + rest[c]; the integer sum is modulo 2^32, then converted to float32.  y may be acc's memory.
 * rest: of octo_lac_fold_f32; NULL or with rest[cols] 0: nothing is added. */
int octo_dequantize_s32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, float scale, const float *rest, float *y);
/* y[r][c] = (acc[r][c] + add[r]) * scale, otherwise as the same without rest. */
int octo_dequantize_rows_s32(int64_t rows, int64_t cols, const int32_t *acc, const int32_t *add, float scale, float *y);
/* y[r][c] = (acc[r][c] - zero sums[r]) * scale: the integers exact, then rounded once to float32. */
int octo_dequantize_rows_s64(int64_t rows, int64_t cols, const int64_t *acc, const int32_t *sums, int zero, float scale, float *y);
int octo_images_f32(int64_t n, const uint8_t *x, float scale, float shift, float *y); /* x * scale + shift */
int octo_copy_f32(int64_t n, const float *x, float *y);

/* 8-bit codes with logarithmic steps: bit 7 the sign, bits 0 .. 6 the magnitude.  The tables decide which (mu-law: numerics.py).
 * encode: the largest magnitude whose threshold is at most |x| inv_bound; clipped counts |x| inv_bound > 1.
 * decode: level times bound. */
int octo_encode_mu8(int64_t n, const float *x, float inv_bound, const float *threshold, uint8_t *q, int64_t *clipped);
int octo_decode_mu8(int64_t n, const uint8_t *q, const float *level, float bound, float *x);
/* A matrix product whose accumulator is such a code.  decode: an operand's linear value, at most 8191 in magnitude.  After every
 * `group` products (1 .. 32), summed exactly and divided by 2^shift (half away from zero), the sum is added to the accumulator's
 * level and encoded again; encode_products: the group's sum is encoded by itself before.  threshold ascends from 0, level[127]
 * <= 2^30, and 32 * 8191^2 / 2^shift <= 2^30 where group > 16.  `saturated` counts magnitudes past level[127]. */
typedef struct {
    int16_t decode[256];
    int32_t level[128], threshold[128];
    int shift, group, encode_products;
} octo_mu8;
int octo_gemm_mu8(int64_t m, int64_t n, int64_t k, const uint8_t *a, const uint8_t *b, const octo_mu8 *mu, uint8_t *c,
                  int64_t *saturated);

/* Exact: refused where a sum is no int32. */
int octo_column_sums_s8(int64_t rows, int64_t cols, const int8_t *x, int32_t *sums);
int octo_row_sums_s8(int64_t rows, int64_t cols, const int8_t *x, int32_t *sums);
int octo_column_sums_f32(int64_t rows, int64_t cols, const float *x, float *sums);
/* y[r][c] = x[r][c] * scale[c] + shift[c], then max(., 0) where relu is set.  In place allowed. */
int octo_affine_f32(int64_t rows, int64_t cols, const float *x, const float *scale, const float *shift, int relu, float *y);

/* float32 values, or values = (sums + add[column]) * *scale + rest[column], as octo_dequantize_s32 makes them; the other pointer is
 * NULL, as rest may be. */
typedef struct {
    const float *values;
    const int32_t *sums, *add;
    const float *scale, *rest;
} octo_tensor;

/* Batch normalization over the rows, a column a channel.  forward: mean, variance / rows, inv_std = 1 / sqrt(var + eps),
 * y = x * (gamma inv_std) + (beta - mean gamma inv_std), then max(., 0) where relu is set; running = (1 - momentum) running +
 * momentum batch, with the unbiased variance, as in PyTorch.  y may lie in the place of x.  Each may be NULL:
 *   codes  xn = (x - mean) inv_std in steps of OCTO_NORMALIZED_STEP, nearest, within +-127 steps
 *   relu_mask  bit i % 8 of byte i / 8: y[i] > 0
 *   range  the least and the largest y, or dx; OCTO_EFINITE where one is NaN or infinite
 * backward: of dy where the sign is set (if relu_mask are given), with x or, from the codes, xn; dx may lie in the place of dy. */
int octo_batchnorm_forward(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                           float momentum, float *running_mean, float *running_var, float *mean, float *inv_std, int relu, float *y,
                           int8_t *codes, uint8_t *relu_mask, float *range);
int octo_batchnorm_inference(int64_t rows, int64_t cols, const octo_tensor *x, const float *gamma, const float *beta, float eps,
                             const float *running_mean, const float *running_var, int relu, float *y);
int octo_batchnorm_backward(int64_t rows, int64_t cols, const octo_tensor *dy, const float *x, const int8_t *codes, const uint8_t *relu_mask,
                            const float *gamma, const float *mean, const float *inv_std, float *dx, float *dgamma, float *dbeta,
                            float *range);

/* y = max(x, 0), in place allowed; relu_mask and range as above. */
int octo_relu_f32(int64_t n, const float *x, float *y, uint8_t *relu_mask, float *range);
/* y = a + b, then max(., 0) where relu is set; y may lie in the place of either; relu_mask and range as above. */
int octo_add(int64_t rows, int64_t cols, const octo_tensor *a, const octo_tensor *b, int relu, float *y, uint8_t *relu_mask, float *range);
/* The backward pass of a ReLU: dx = dy where the sign is set, else 0.  dy = a + b, or a where b is NULL; dx may lie in the place of
 * either. */
int octo_relu_backward(int64_t rows, int64_t cols, const uint8_t *relu_mask, const octo_tensor *a, const octo_tensor *b, float *dx);

/* ---- activations ---- */

/* CLIP: x within a .. b.  LEAKY: x where x > 0, else a x.  HARD_SIGMOID: a x + b within 0 .. 1.  HARD_SWISH: x times (x / 6 + 1/2 within
 * 0 .. 1).  SIGMOID 1 / (1 + e^-x), SILU x sigmoid(x), TANH, GELU x Phi(x), GELU_TANH x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2.
 * Errors: docs/numerics.md.  y may lie in the place of x; range as above. */
enum { OCTO_CLIP, OCTO_LEAKY, OCTO_HARD_SIGMOID, OCTO_HARD_SWISH, OCTO_SIGMOID, OCTO_SILU, OCTO_TANH, OCTO_GELU, OCTO_GELU_TANH };
/* gate, of the first three, may be NULL: bit i % 8 of byte i / 8: a < x[i] < b; x[i] > 0; 0 < a x[i] + b < 1. */
int octo_activation_f32(int64_t n, int kind, const float *x, float a, float b, float *y, uint8_t *gate, float *range);
/* dx = dy slope; in place of dy or kept.  kept: y of SIGMOID and TANH, else x. */
int octo_activation_backward_f32(int64_t n, int kind, const float *kept, const float *dy, float *dx);
/* dx = dy times `set` where the bit of the gate is set, else times `unset`; in place allowed. */
int octo_gate_backward_f32(int64_t n, const uint8_t *gate, const float *dy, float set, float unset, float *dx);

/* ---- windows, views, rows ---- */

/* Pooling windows.  pads: above, left, below and right; out_h, out_w: any with each window on the image.  Outside the image there is
 * nothing, in `include` windows a 0 for each element of the padding. */
typedef struct {
    int64_t batch, height, width, channels, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, pad_bottom, pad_right, out_h, out_w;
} octo_window;
/* argmax: position in the window, the first of equals; at most 256 positions. */
int octo_window_max_f32(const octo_window *g, const float *x, float *y, uint8_t *argmax);
int octo_window_max_backward_f32(const octo_window *g, const float *dy, const uint8_t *argmax, float *dx);
/* (sum in ascending order) / (elements); dx adds dy / (elements), in ascending order of the output. */
int octo_window_avg_f32(const octo_window *g, int include, const float *x, float *y);
int octo_window_avg_backward_f32(const octo_window *g, int include, const float *dy, float *dx);

/* y at i . y_strides = a at i . a_strides, plus or times b at i . b_strides, for all indices i below `size`, the last the fastest.  In dimensions
 * where y's stride is 0 its terms are added from the first on.  Strides count elements and are not negative. */
enum { OCTO_COPY, OCTO_PLUS, OCTO_TIMES };
typedef struct {
    int64_t size[6], a[6], b[6], y[6];
} octo_strided;
int octo_strided_f32(const octo_strided *g, int op, const float *a, const float *b, float *y);

/* Rows of their own: mean and inv_std = 1 / sqrt(var + eps) by rows, sums in 16 lanes; y = (x - mean) inv_std gamma + beta.  backward: dx, and
 * dy xn in `products`, whose columns' sums are dgamma. */
int octo_layernorm_f32(int64_t rows, int64_t cols, const float *x, const float *gamma, const float *beta, float eps, float *y, float *mean,
                       float *inv_std);
int octo_layernorm_backward_f32(int64_t rows, int64_t cols, const float *x, const float *dy, const float *gamma, const float *mean,
                                const float *inv_std, float *dx, float *products);
/* y = softmax(scale x) of each row, scale >= 0, in place allowed; backward: dx = scale y (dy - sum y dy), in place of dy. */
int octo_softmax_f32(int64_t rows, int64_t cols, const float *x, float scale, float *y);
int octo_softmax_backward_f32(int64_t rows, int64_t cols, const float *y, const float *dy, float scale, float *dx);

/* batch x heads products c = op(a) op(b), each as octo_gemm_s8 or octo_gemm_f32; operands of one lie `batch` and `head` strides apart. */
typedef struct {
    int64_t transpose_a, transpose_b, m, n, k, batch, heads;
    int64_t lda, a_batch, a_head, ldb, b_batch, b_head, ldc, c_batch, c_head;
} octo_batched;
int octo_gemm_batched_s8(const octo_batched *g, const int8_t *a, const int8_t *b, int32_t *c);
int octo_gemm_batched_f32(const octo_batched *g, const float *a, const float *b, float *c);

typedef struct {
    int64_t batch, height, width, channels, kernel, stride;
} octo_pool;
/* No padding; output height = (height - kernel) / stride + 1.  argmax: position in the window, the first of equals; kernel <= 15. */
int octo_maxpool_f32(const octo_pool *g, const float *x, float *y, uint8_t *argmax);
int octo_maxpool_backward_f32(const octo_pool *g, const float *dy, const uint8_t *argmax, float *dx);
/* Batch normalization with the ReLU and a max pooling, stride == kernel, behind it in the same passes: the rows are the pixels of images.
 * argmax as of octo_maxpool_f32, but kernel * kernel where no value is > 0; range: of the y that the pooling makes.  dy of those y; dx may
 * not lie in its place. */
int octo_batchnorm_maxpool_forward(const octo_pool *g, const octo_tensor *x, const float *gamma, const float *beta, float eps, float momentum,
                                   float *running_mean, float *running_var, float *mean, float *inv_std, float *y, uint8_t *argmax,
                                   int8_t *codes, float *range);
int octo_batchnorm_maxpool_backward(const octo_pool *g, const octo_tensor *dy, const uint8_t *argmax, const float *x, const int8_t *codes,
                                    const float *gamma, const float *mean, const float *inv_std, float *dx, float *dgamma, float *dbeta,
                                    float *range);
/* Global average pooling: y[image][c] = (sum over the image's pixels, ascending) * (1 / pixels); backward: dx = dy * (1 / pixels). */
int octo_avgpool_f32(int64_t images, int64_t pixels, int64_t cols, const float *x, float *y);
int octo_avgpool_backward_f32(int64_t images, int64_t pixels, int64_t cols, const float *dy, float *dx);
/* Keeps element i where philox word i >= rate 2^32 and scales it by 1 / (1 - rate), else 0.  The same call is the backward pass. */
int octo_dropout_f32(int64_t n, const float *x, float rate, uint64_t seed, uint32_t step, uint32_t tensor, float *y);
/* loss = mean over rows of -sum_c t_c log softmax(logits)_c; dlogits = (softmax - t) / rows; correct: rows whose first largest
 * logit is the label's.  t = (1 - smoothing) onehot + smoothing / cols (Szegedy et al. 2016), smoothing in [0, 1).  dlogits may
 * be NULL.  OCTO_EFINITE where a logit is not finite. */
int octo_softmax_cross_entropy_f32(int64_t rows, int64_t cols, const float *logits, const int32_t *labels, float smoothing,
                                   float *loss, float *dlogits, int64_t *correct);
/* loss = mean over n values of (y - target)^2: differences in float, squares in double, their sum rounded once; dy = (y - target)
 * times 2 / n rounded to float, may be NULL.  OCTO_EFINITE where a value is not finite. */
int octo_mean_squared_error_f32(int64_t n, const float *y, const float *target, float *loss, float *dy);

/* An optimizer's step on w [rows][cols], in place; of a gradient of sums, add belongs to the rows (octo_dequantize_rows_s32).
 * range: the least and the largest of w after it; OCTO_EFINITE where w then holds a NaN or an infinity; the step is done all the
 * same.
 * sgd: g += decay w; v = momentum v + g; w -= lr v */
int octo_sgd_f32(int64_t rows, int64_t cols, float *w, const octo_tensor *g, float *v, float lr, float momentum, float decay,
                 float *range);
/* adam: g += decay w; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g g; w -= lr (m / c1) / (sqrt(v / c2) + eps), c = 1 - b^t (Kingma & Ba) */
int octo_adam_f32(int64_t rows, int64_t cols, float *w, const octo_tensor *g, float *m, float *v, float lr, float b1, float b2,
                  float eps, float c1, float c2, float decay, float *range);

/* Octo's loss-aware compensation in the int32 domain, in units of `scale`.  fold: out[r][c] = clamp(round_half_even((bias[c] +
 * alpha mu + offset) * inverse), +-2^30) + zero_term[c] (modulo 2^32), inverse = min(1 / scale, 3e38), or 0 where scale is 0;
 * alpha, mu, offset [rows][cols] or all NULL.  rest [rows cols + 1], or NULL: what does not fit within +-2^30, and all of it where
 * 1 / scale is more than 3e38, goes there instead, as float32, and -0 elsewhere; rest[rows cols] is 1 where anything does, else 0, and the others are as
 * they were then.  backward, from sums = dL/d(compensation): dalpha = sums mu, dmu = sums alpha + decay mu, doffset = sums + decay offset. */
int octo_lac_fold_f32(int64_t rows, int64_t cols, const float *alpha, const float *mu, const float *offset, const float *bias,
                      const int32_t *zero_term, float scale, int32_t *out, float *rest);
int octo_lac_backward_f32(int64_t n, const float *sums, const float *alpha, const float *mu, const float *offset, float decay,
                          float *dalpha, float *dmu, float *doffset);

/* ---- few levels, masks, barriers: values of training methods ---- */

/* inside: 1 where low <= x <= high, else 0; y = x inside, in place allowed; y = a b, in place of either. */
int octo_within_f32(int64_t n, const float *x, float low, float high, uint8_t *inside);
int octo_mask_f32(int64_t n, const float *x, const uint8_t *inside, float *y);
/* inside: low <= x <= high of the column; side, if not NULL: 1 above high, -1 below low, else 0. */
int octo_within_columns_f32(int64_t rows, int64_t cols, const float *x, const float *low, const float *high, uint8_t *inside,
                            int8_t *side);
/* q kept within its column's codes low .. high, in place. */
int octo_clip_columns_s8(int64_t rows, int64_t cols, const int8_t *low, const int8_t *high, int8_t *q);
int octo_multiply_f32(int64_t n, const float *a, const float *b, float *y);
/* y = round(v levels) / levels, half to even, of v = x clipped to [0, 1]; inside: where it was not clipped.  1 <= levels <= 255.
 * OCTO_EFINITE, here and below, where x (w) holds a NaN or an infinity. */
int octo_levels_f32(int64_t n, const float *x, int levels, float *y, uint8_t *inside);
/* q = 2 round(v levels) / levels - 1 of v = t / (2 max |t|) + 1/2, t = tanh(w) = (1 - e^-2|w|) / (1 + e^-2|w|) with w's sign; slope =
 * (1 - t t) / max |t|.  Where all t are 0, q = 0 and slope = 1. */
int octo_level_weights_f32(int64_t n, const float *w, int levels, float *q, float *slope);
/* q = -m where w < 0, else m = mean |w|: the sum in double, 65536 elements one after the other, then their sums. */
int octo_binary_weights_f32(int64_t n, const float *w, float *q);
/* Of each sample: y = twice (round(v levels) / levels - 1/2), twice = 2 max |x|, v = x / twice + 1/2 + u / levels clipped to [0, 1], u =
 * (word i >> 8) / 2^24 - 1/2 of the stream; zeros where all are 0.  OCTO_EFINITE where twice is infinite too. */
int octo_level_errors_f32(int64_t samples, int64_t size, const float *x, int levels, uint64_t seed, uint32_t step, uint32_t tensor,
                          float *y);
/* sum of x side in double, 65536 products one after the other, then their sums. */
int octo_signed_sum_f32(int64_t n, const float *x, const int8_t *side, float *sum);
/* g = g where |x| <= bound, else g 0; then, unless weight is 0, g += weight sign(x) s, s = -1 / (tight z) for z = |x| - bound <=
 * -1 / tight^2, otherwise tight. */
int octo_barrier_f32(int64_t n, const float *x, float bound, float tight, float weight, float *g);
/* total += counts */
int octo_add_counts(int64_t n, const int64_t *counts, int64_t *total);
/* The means of the images' least and largest values: sums rounded once, divided in double, rounded. */
int octo_image_range(int64_t images, int64_t size, const float *x, float *range);
/* running = keep running + (1 - keep) latest; with from_zero, running values that are all 0 become the latest. */
int octo_average_f32(int64_t n, float keep, const float *latest, int from_zero, float *running);
/* range = running, then running = keep running + (1 - keep) (low, high); where it is zeros, both become the latter. */
int octo_earlier_range(float low, float high, float keep, float *running, float *range);
/* range = -m, m of the larger magnitude m. */
int octo_mirror_range(float low, float high, float *range);

/* ---- statistics and scales of channels ---- */

/* Range normalization (Banner et al. 2018), a column a channel: mean, deviation = factor (mean of the chunks' largest - of their least
 * values), scale = 1 / (deviation + eps); centered = x - mean, y = centered (scale' gamma') + beta', where v' is v as 255 codes between
 * its least and its largest value represent it; running = keep running + (1 - keep) batch.  chunks 0: with the running statistics.
 * columns [3][cols]: scale, scale', gamma'; extremes [2][chunks][cols]: rows of a chunk with its largest and its least value.
 * backward, of dy with the codes passed through; OCTO_EFINITE as above. */
int octo_range_norm_forward(int64_t rows, int64_t cols, int64_t chunks, const float *x, const float *gamma, const float *beta, float eps,
                            float factor, float keep, float *running_mean, float *running_deviation, float *columns, int32_t *extremes,
                            float *centered, float *y);
int octo_range_norm_backward(int64_t rows, int64_t cols, int64_t chunks, const float *dy, const float *centered, const float *columns,
                             float factor, const int32_t *extremes, float *dx, float *dgamma, float *dbeta);
/* Clipping values of the columns of dy, whose range is low .. high: m = the largest magnitude, where clip is 0 or more than most_beyond
 * values have a magnitude above the root mean square; otherwise keep clip + share m.  scales = clip / 127, inverses: see octo_codes. */
int octo_channel_clips(int64_t rows, int64_t cols, const float *dy, float low, float high, int64_t most_beyond, float keep, float share,
                       float *clip, float *scales, float *inverses);
/* y[r][c] = acc[r][c] * (scales[r] * factor) */
int octo_dequantize_channels_s32(int64_t rows, int64_t cols, const int32_t *acc, const float *scales, float factor, float *y);
/* Codes of each row with its own scale = max |x| / 127, nearest, and their values y = q scale. */
int octo_quantize_rows_s8(int64_t rows, int64_t cols, const float *x, float *scales, int8_t *q, float *y);
/* scales = weight_scales x_scale, `count` of them, one or one a channel; add = round(bias / scale) - zero weight_sums (modulo 2^32).  What
 * is beyond +-2^30, and all where the scale is 0, is not in add, but in rest.  rest [cols + 1] is as octo_lac_fold_f32's with
 * one scale: -0 where nothing is left, rest[cols] whether anything is; with several, 0 there. */
int octo_fold_bias(int64_t cols, int64_t count, const float *weight_scales, float x_scale, int zero, const float *bias,
                   const int32_t *weight_sums, float *scales, int32_t *add, float *rest);
/* The values of the codes -127 and 127. */
int octo_code_ends(float scale, int zero, float *range);
/* rate = lr max(exp(slope deviation kept within +-87), least) */
int octo_counteract(double lr, float deviation, float slope, double least, double *rate);

/* ---- integers alone: int8 codes q 2^exponent ---- */

int octo_copy_s8(int64_t n, const int8_t *x, int8_t *y);
int octo_images_s8(int64_t n, const uint8_t *x, int shift, int8_t *y); /* x >> shift, 1 <= shift <= 7 */
int octo_add_exponents(int a, int b, int32_t *sum);
int octo_power_of_two(int exponent, float *value); /* of -120 .. 120; beyond, of the nearer end */
/* Codes of sums: divided by 2^s and rounded (OCTO_HALF_AWAY, OCTO_PSEUDO_STOCHASTIC ...), kept within +-127; s is the least that leaves
 * the largest magnitude `bits` bits, 0 if it has no more; result = exponent + s. */
int octo_narrow_s32(int64_t n, const int32_t *acc, int bits, int rounding, int exponent, int8_t *q, int32_t *result);
/* a 2^exponent_a + b 2^exponent_b: in units of the lower exponent in acc, then narrowed to 7 bits, half away.  What is lower by more
 * than 22 is nothing. */
int octo_align_s8(int64_t n, const int8_t *a, int exponent_a, const int8_t *b, int exponent_b, int32_t *acc, int8_t *q, int32_t *result);
int octo_relu_s8(int64_t n, const int8_t *x, int8_t *y); /* max(x, 0); in place allowed */
int octo_relu_backward_s8(int64_t n, const int8_t *y, const int8_t *dy, int8_t *dx); /* dy where y > 0, else 0; in place allowed */
/* x[rows][cols] where the column's word is below 2^(32 - doublings), else 0; 1 .. 16 doublings; in place allowed.  The same call is the
 * backward pass. */
int octo_dropout_s8(int64_t rows, int64_t cols, const int8_t *x, int doublings, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *y);
/* As octo_maxpool_f32; dx are sums, to be narrowed where windows overlap. */
int octo_maxpool_s8(const octo_pool *g, const int8_t *x, int8_t *y, uint8_t *argmax);
int octo_maxpool_backward_s8(const octo_pool *g, const int8_t *dy, const uint8_t *argmax, int32_t *dx);
int octo_pixel_sums_s8(int64_t images, int64_t pixels, int64_t cols, const int8_t *x, int32_t *sums); /* over an image's pixels */
int octo_spread_s8(int64_t images, int64_t pixels, int64_t cols, const int8_t *dy, int8_t *dx); /* dx[image][pixel] = dy[image] */
/* The gradient of softmax cross-entropy of logits q 2^exponent: floor(2^11 p / sum p), at the label less the row's sum, then divided
 * by 2^4, rounded stochastically, within +-127.  p: see softmax_s8 in integers.inc. */
int octo_softmax_s8(int64_t rows, int64_t cols, const int8_t *q, int exponent, const int32_t *labels, uint64_t seed, uint32_t step,
                    uint32_t tensor, int8_t *dlogits);
/* loss = half the mean over rows of the squared distance to the label's unit vector: squares in double, their sum rounded once; dlogits =
 * logits - that vector, may be NULL; correct: rows whose first largest logit is the label's.  OCTO_EFINITE as above. */
int octo_squared_error(int64_t rows, int64_t cols, const float *logits, const int32_t *labels, double *loss, float *dlogits,
                       int64_t *correct);
int octo_subtract_s8(int64_t n, const int8_t *g, int limit, int8_t *w); /* w = w - g within +-limit, in place */
int octo_ternary_s8(int64_t n, const int8_t *x, int limit, int8_t *y);  /* (x > limit) - (x < -limit) */
/* scale = least 2^round(log2 m) of a range's larger magnitude m and its inverse, both 0 up to 1e-30; mantissas from sqrt(1/2) on go up. */
int octo_direction_scale(float low, float high, float least, float *inverse, float *scale);
/* w = w - sign(g) n within +-limit, in place; n = |g| rate / 2^round(log2 max |g|), rounded to 15 bits of a fraction (half to even), then
 * stochastically to integers by word i >> 17 of the stream.  0 < rate <= 128. */
int octo_walk_s8(int64_t n, const int32_t *g, double rate, int limit, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *w);

/* ---- weights of few levels, fitted in the metric of the curvature ---- */

/* An optimizer's step taken apart, w - lr direction / curvature, and its tensors after it; what is NULL is not wanted.
 * sgd: direction = momentum v + (g + decay w), curvature 1.  adam: m' = b1 m + (1-b1) g', v' = b2 v + (1-b2) (g' g') of g' = g + decay
 * w; direction = m' / c1, curvature = sqrt(v' / c2) + eps. */
int octo_newton_sgd_f32(int64_t n, const float *w, const float *g, const float *v, float momentum, float decay, float *direction,
                        float *curvature, float *v_after);
int octo_newton_adam_f32(int64_t n, const float *w, const float *g, const float *m, const float *v, float b1, float b2, float eps, float c1,
                         float c2, float decay, float *direction, float *curvature, float *m_after, float *v_after);
int octo_newton_move_f32(int64_t n, const float *from, const float *direction, const float *curvature, float lr, float *w);
int octo_blend_f32(int64_t n, const float *a, const float *b, float share, float rest, float *y); /* share a + rest b; in place allowed */
int octo_bias_correction(uint32_t step, uint32_t ahead, double base, double *correction); /* 1 - base^(step + ahead), by squaring */
/* Codes q and scale of weights that are q alpha / n with the least sum of d (w - alpha q / n)^2, n = 2^(bits-1) - 1, or of 1 bit 1.
 * 1 bit: q = -1 where w < 0, else 1; alpha = sum d |w| / sum d.  Else, from the q given, at most 10 times, until alpha changes by no
 * more than 1e-6: alpha = |sum d b w / sum d b b|, b = q / n, or where the latter is 0 max |w|; q = round(clip(w / alpha, -1, 1) n),
 * half to even.  2 bits, exact: with |w| descending, c_j = sum_{i<=j} d |w| / (2 sum_{i<=j} d), of the j with |w_j| > c_j > |w_j+1| the
 * one with the largest c_j^2 sum_{i<=j} d; alpha = 2 c_j, q = sign(w) of those up to it.  Products in float32, sums in double, 65536
 * elements one after the other, then their sums; exact: in double, one after the other.  changes += q that differ from those given. */
int octo_fit_levels_f32(int64_t n, const float *w, const float *d, int bits, int exact, int8_t *q, float *alpha, int64_t *changes);
/* w is kept within +-1, in place; turned += how many w - before are of the other sign than `sign`, which then is theirs where they are
 * not 0. */
int octo_turned_f32(int64_t n, const float *before, float *w, int8_t *sign, int64_t *turned);
int octo_level_values_f32(int64_t n, const int8_t *q, const float *alpha, float levels, float *y); /* y = q (alpha / levels) */

/* ---- codes 255 high + low within +-32512, in two int8 parts ---- */

/* Of x in least .. most, in double: v = x / scale + zero, scale = (most - least) / 510 or 1, zero = 255 - most / scale within +-255;
 * round(v), half to even, or floor(v + word / 2^32) of the stream.  OCTO_EFINITE where x holds a NaN or an infinity. */
int octo_forward_parts_f32(int64_t n, const float *x, int rounding, uint64_t seed, uint32_t step, uint32_t tensor, int8_t *low, int8_t *high,
                           double *scale);
/* round(clip(x, low, high) / scale), half to even, scale = (high - low) / 254 or 1: low = max(least, ratio least), high = min(most, ratio
 * most) of x's range, which with_zero widens to contain 0.  values: code scale, with ratio 1. */
int octo_backward_parts_f32(int64_t n, const float *x, double ratio, int with_zero, int8_t *low, int8_t *high, double *scale);
int octo_backward_values_f32(int64_t n, const float *x, float *y);
/* y = sum (scale_a scale_b) + bias of the sums of products of codes, from those of the parts; exact, then in double; bias [cols] or NULL. */
int octo_combine_parts_s32(int64_t rows, int64_t cols, const int32_t *low_low, const int32_t *low_high, const int32_t *high_low,
                           const int32_t *high_high, double scale_a, double scale_b, const float *bias, float *y);
/* y = y + (alpha mu + offset), alpha [cols] for all rows; y = x factor, in place allowed; most = max(most, value) */
int octo_compensate_f32(int64_t rows, int64_t cols, const float *alpha, const float *mu, const float *offset, float *y);
int octo_scale_f32(int64_t n, const float *x, float factor, float *y);
int octo_most_s32(int value, int32_t *most);

/* A call of one of the functions above, to be made again.  function: its number, by octo_function.  args: in its order; where bit i of
 * `indirect` is set args[i].p points to the number: a float for a parameter of type float or double, an int32_t or a uint32_t for one
 * of that type; where bit 16 + i is set too, a double for a parameter of type float or double. */
enum { OCTO_ARGUMENTS = 16 };
typedef union {
    int64_t i;
    double d;
    const void *p;
} octo_argument;
typedef struct {
    int32_t function;
    uint32_t indirect;
    octo_argument args[OCTO_ARGUMENTS];
} octo_call;
int octo_function(const char *name); /* -1 where there is none */
/* Makes the calls in their order until one fails, whose number is left in *at and whose status is returned.  seconds may be NULL; it
 * gets what each call took by clock_gettime's `clock`. */
int octo_replay(int64_t count, const octo_call *calls, int clock, double *seconds, int64_t *at);

/* The machine's limits, for benchmarks: int8 multiply-accumulates that the instruction set in use does in so many rounds on all
 * threads, from registers (`macs` says how many were done); and STREAM's triad a = b + scalar c. */
int octo_peak_s8(int64_t rounds, int64_t *macs);
int octo_stream_triad(int64_t n, float *a, const float *b, const float *c, float scalar);
/* cffi: end */
#endif
