/* Takes training steps on the batches of a file, and prints each loss and at the end the digest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "training.h"

/* SHA-256 (FIPS 180-4). */
typedef struct {
    uint32_t h[8];
    uint8_t block[64];
    uint64_t bytes;
} sha256;

static uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void sha256_block(sha256 *s) {
    static const uint32_t k[64] = {
        0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u, 0xd807aa98u, 0x12835b01u,
        0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u, 0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu,
        0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau, 0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u,
        0x06ca6351u, 0x14292967u, 0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
        0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u, 0x19a4c116u, 0x1e376c08u,
        0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u, 0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u,
        0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};
    uint32_t w[64], v[8];
    int i;
    for (i = 0; i < 16; i++)
        w[i] = (uint32_t)s->block[4 * i] << 24 | (uint32_t)s->block[4 * i + 1] << 16 | (uint32_t)s->block[4 * i + 2] << 8 | s->block[4 * i + 3];
    for (i = 16; i < 64; i++)
        w[i] = w[i - 16] + (rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
               (rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, s->h, sizeof v);
    for (i = 0; i < 64; i++) {
        uint32_t first = v[7] + (rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
        uint32_t second = (rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += first, v[0] = first + second;
    }
    for (i = 0; i < 8; i++) s->h[i] += v[i];
}

static void sha256_add(sha256 *s, const void *data, size_t bytes) {
    const uint8_t *from = data;
    for (size_t i = 0; i < bytes; i++) {
        s->block[s->bytes++ % 64] = from[i];
        if (s->bytes % 64 == 0) sha256_block(s);
    }
}

/* Prints what `octosim train` prints: the SHA-256 over names, types, shapes and little-endian bytes of all tensors. */
static void print_digest(void) {
    static const uint8_t end = 0x80, zero = 0;
    sha256 s = {{0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au, 0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u}, {0}, 0};
    uint8_t length[8];
    for (size_t i = 0; i < OCTOSIM_TENSORS; i++) {
        sha256_add(&s, octosim_tensors[i].name, strlen(octosim_tensors[i].name));
        sha256_add(&s, octosim_tensors[i].values, octosim_tensors[i].bytes);
    }
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(s.bytes * 8 >> (56 - 8 * i));
    sha256_add(&s, &end, 1);
    while (s.bytes % 64 != 56) sha256_add(&s, &zero, 1);
    sha256_add(&s, length, 8);
    printf("sha256:");
    for (int i = 0; i < 8; i++) printf("%08lx", (unsigned long)s.h[i]);
    printf("\n");
}

/* training BATCHES [STEPS]: takes steps on the batches of a file, images and then labels of each, until it ends. */
int main(int count, char **arguments) {
    static octosim_pixel images[OCTOSIM_BATCH * OCTOSIM_PIXELS];
    static octosim_label labels[OCTOSIM_BATCH];
    FILE *file = count > 1 ? fopen(arguments[1], "rb") : NULL;
    long steps = count > 2 ? atol(arguments[2]) : -1;
    if (!file) {
        fprintf(stderr, "usage: training BATCHES [STEPS]\n");
        return 2;
    }
    octosim_init();
    for (long step = 1; steps < 0 || step <= steps; step++) {
        size_t size = (size_t)octosim_images();
        float loss;
        if (fread(images, OCTOSIM_PIXELS * sizeof *images, size, file) != size || fread(labels, sizeof *labels, size, file) != size) break;
        if (octosim_step(images, labels, &loss)) {
            fprintf(stderr, "step %ld: %s\n", step, octosim_error());
            return 1;
        }
        printf("step %ld loss %.9g\n", step, (double)loss);
    }
    fclose(file);
    print_digest();
    return 0;
}
