/* The threads of OCTO_PARALLEL, where gcc compiles for Linux.  gcc makes a function of each `omp parallel` and calls it through
 * GOMP_parallel, which this file defines for octosim's own calls.  libgomp waits at the end of a region for every thread, also for
 * those that have not begun: beside another program each region can take a slice of the scheduler's time, milliseconds.  Here the
 * calling thread waits for nobody who has not begun.  It computes their part too (octo_take), so a region ends at the latest when
 * one thread could have ended it, and what a thread is in the middle of.  Who waits spins a moment, then sleeps. */
#define _GNU_SOURCE
#include "dispatch.h"
#ifdef OCTO_POOL
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* About what it costs to wake a sleeping thread: spinning takes at most twice the time of the better choice. */
enum { SPIN_NS = 50000, MOST = 1024, STACK = 1 << 20 };

/* The state of a pool: the region's number, places for threads that may still join in, threads that are in it. */
#define NUMBER(state) ((uint32_t)((state) >> 32))
#define PLACES(state) ((uint32_t)(state) >> 16)
#define PLACE ((uint64_t)1 << 16)

/* The workers of one calling thread. */
struct pool {
    uint64_t state;
    void (*body)(void *); /* of the region, while there are places or threads inside; NULL ends the workers */
    void *data;
    uint32_t sleepers;    /* workers that wait for the next region's number */
    uint32_t waiting;     /* 1: the calling thread sleeps until the last worker has left */
    int workers;
    pthread_t threads[MOST];
};

static _Thread_local struct pool *pool;
static pthread_key_t at_exit; /* of a calling thread: its workers end with it */
static _Thread_local int member; /* of the calling thread in its pool: 0, of workers 1 .. */
static _Thread_local int inside; /* a region inside a region is the calling thread's alone */

int octo_member(void) { return member; }

static void sleep_while(uint32_t *address, uint32_t value) { syscall(SYS_futex, address, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); }
static void wake(uint32_t *address, int count) { syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0); }

static uint32_t *number_of(struct pool *p) { return (uint32_t *)&p->state + (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__); }

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pause_briefly(void) {
    for (int i = 0; i < 8; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield" ::: "memory");
#else
        __asm__ volatile("" ::: "memory");
#endif
    }
}

/* The state of the first region after number `seen`. */
static uint64_t next_region(struct pool *p, uint32_t seen) {
    uint64_t state = __atomic_load_n(&p->state, __ATOMIC_ACQUIRE);
    for (int64_t end = NUMBER(state) == seen ? now() + SPIN_NS : 0; NUMBER(state) == seen && now() < end;) {
        pause_briefly();
        state = __atomic_load_n(&p->state, __ATOMIC_ACQUIRE);
    }
    if (NUMBER(state) != seen) return state;
    __atomic_add_fetch(&p->sleepers, 1, __ATOMIC_SEQ_CST);
    while (NUMBER(state = __atomic_load_n(&p->state, __ATOMIC_SEQ_CST)) == seen) sleep_while(number_of(p), seen);
    __atomic_sub_fetch(&p->sleepers, 1, __ATOMIC_SEQ_CST);
    return state;
}

struct start {
    struct pool *pool;
    int member;
};

static void *work(void *argument) {
    struct pool *p = ((struct start *)argument)->pool;
    member = ((struct start *)argument)->member;
    free(argument);
    inside = 1;
    for (uint32_t seen = 0;;) {
        uint64_t state = next_region(p, seen);
        while (PLACES(state) && !__atomic_compare_exchange_n(&p->state, &state, state - PLACE + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)) {}
        seen = NUMBER(state);
        if (!PLACES(state)) continue;
        if (!p->body) return NULL; /* still inside: nobody waits for that */
        p->body(p->data);
        if (!(uint32_t)__atomic_sub_fetch(&p->state, 1, __ATOMIC_SEQ_CST) && __atomic_load_n(&p->waiting, __ATOMIC_SEQ_CST))
            if (__atomic_exchange_n(&p->waiting, 0, __ATOMIC_SEQ_CST)) wake(&p->waiting, 1);
    }
}

/* Opens a region to `places` workers. */
static void begin(struct pool *p, void (*body)(void *), void *data, int places) {
    p->body = body, p->data = data;
    __atomic_store_n(&p->state, (uint64_t)(NUMBER(__atomic_load_n(&p->state, __ATOMIC_RELAXED)) + 1) << 32 | PLACE * (uint64_t)places, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&p->sleepers, __ATOMIC_SEQ_CST)) wake(number_of(p), places);
}

/* Waits until no thread is in the region, nor has a place left in it. */
static void end(struct pool *p) {
    int64_t until = 0;
    while ((uint32_t)__atomic_load_n(&p->state, __ATOMIC_ACQUIRE)) {
        if (!until) until = now() + SPIN_NS;
        if (now() < until) {
            pause_briefly();
            continue;
        }
        __atomic_store_n(&p->waiting, 1, __ATOMIC_SEQ_CST);
        if ((uint32_t)__atomic_load_n(&p->state, __ATOMIC_SEQ_CST)) sleep_while(&p->waiting, 1);
    }
    __atomic_store_n(&p->waiting, 0, __ATOMIC_SEQ_CST);
}

/* As many workers as it can have, up to `count`. */
static int hire(struct pool *p, int count) {
    pthread_attr_t attributes;
    if (p->workers >= count || pthread_attr_init(&attributes)) return (int)octo_min(p->workers, count);
    pthread_attr_setstacksize(&attributes, STACK);
    while (p->workers < count) {
        struct start *start = malloc(sizeof *start);
        if (start) *start = (struct start){p, p->workers + 1};
        if (!start || pthread_create(p->threads + p->workers, &attributes, work, start)) {
            free(start);
            break;
        }
        p->workers++;
    }
    pthread_attr_destroy(&attributes);
    return (int)octo_min(p->workers, count);
}

static void run(void (*body)(void *), void *data, unsigned threads, int everyone) {
    int places = 0;
    if (threads > 1 && !inside && !pool) pthread_setspecific(at_exit, pool = calloc(1, sizeof *pool));
    if (threads > 1 && !inside && pool) places = hire(pool, (int)octo_min(threads, MOST) - 1);
    if (!places) {
        body(data);
        return;
    }
    begin(pool, body, data, places);
    inside = 1;
    body(data);
    inside = 0;
    if (!everyone) __atomic_and_fetch(&pool->state, ~(0xffff * PLACE), __ATOMIC_SEQ_CST);
    end(pool);
}

/* gcc's call of a parallel region. */
__attribute__((visibility("hidden"))) void octo_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) __asm__("GOMP_parallel");
void octo_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
    (void)flags;
    run(body, data, threads, 0);
}

void octo_on_each_thread(void (*body)(void *), void *data) { run(body, data, pool ? (unsigned)pool->workers + 1 : 1, 1); }

static void dismiss(void *of_thread) {
    struct pool *p = of_thread;
    begin(p, NULL, NULL, p->workers);
    for (int i = 0; i < p->workers; i++) pthread_join(p->threads[i], NULL);
    pool = NULL;
    free(p);
}

/* A forked process has the calling thread alone. */
static void forget(void) { pthread_setspecific(at_exit, pool = NULL); }

void octo_start_pools(void) {
    pthread_key_create(&at_exit, dismiss);
    pthread_atfork(NULL, NULL, forget);
}
#endif
