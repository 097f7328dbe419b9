/* SPDX-License-Identifier: Apache-2.0 */
/* workers.c - threads that share out the parts of a call, and wait a little for the next one before they sleep. */
#include "CProjections.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

struct lm_workers {
    int others;
    pthread_t *threads;
    /* The number of the call (24 bits), its parts (20) and the next of them (20): a part is claimed by exchanging all of it,
       which fails for a thread that still has an earlier call in mind. */
    _Atomic uint64_t state;
    _Atomic int done, sleeping, stop;
    void (*_Atomic body)(void *, int);
    void *_Atomic context;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

enum { most_parts = (1 << 20) - 1 };

/* Pauses, then offers of the processor, before a thread sleeps: waking it takes some 45 microseconds. */
enum { BUSY_SPINS = 1000, MOST_SPINS = 1500 };

static uint64_t call_of(uint64_t state) { return state >> 40; }
static int parts_of(uint64_t state) { return (int)(state >> 20 & most_parts); }
static int next_of(uint64_t state) { return (int)(state & most_parts); }

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Runs parts of the present call until none is left. */
static void take_parts(lm_workers *w) {
    for (;;) {
        uint64_t state = atomic_load(&w->state);
        void (*body)(void *, int) = atomic_load(&w->body);
        void *context = atomic_load(&w->context);
        if (next_of(state) >= parts_of(state)) {
            return;
        }
        if (atomic_compare_exchange_weak(&w->state, &state, state + 1)) {
            body(context, next_of(state));
            atomic_fetch_add(&w->done, 1);
        }
    }
}

static void *work(void *argument) {
    lm_workers *w = argument;
    uint64_t seen = 0;
    while (!atomic_load(&w->stop)) {
        /* About 25 microseconds, longer than what lies between most products; then for as long as attention takes between two,
           while nobody else wants the processor: attention has threads of its own. */
        for (int spins = 0; call_of(atomic_load(&w->state)) == seen && spins < MOST_SPINS; spins++) {
            if (spins < BUSY_SPINS) {
                pause_briefly();
            } else {
                sched_yield();
            }
        }
        if (call_of(atomic_load(&w->state)) == seen) {
            pthread_mutex_lock(&w->mutex);
            atomic_fetch_add(&w->sleeping, 1);
            while (call_of(atomic_load(&w->state)) == seen && !atomic_load(&w->stop)) {
                pthread_cond_wait(&w->wake, &w->mutex);
            }
            atomic_fetch_sub(&w->sleeping, 1);
            pthread_mutex_unlock(&w->mutex);
        }
        seen = call_of(atomic_load(&w->state));
        take_parts(w);
    }
    return NULL;
}

lm_workers *lm_workers_create(int threads) {
    lm_workers *w = calloc(1, sizeof *w);
    pthread_t *handles = calloc(threads > 1 ? (size_t)threads - 1 : 1, sizeof *handles);
    if (!w || !handles) {
        free(w);
        free(handles);
        return NULL;
    }
    w->threads = handles;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    for (int i = 0; i < threads - 1; i++) {
        if (pthread_create(handles + i, NULL, work, w) != 0) {
            break;
        }
        w->others++;
    }
    return w;
}

void lm_workers_run(lm_workers *w, int parts, void (*body)(void *context, int part), void *context) {
    if (w->others == 0 || parts <= 1 || parts > most_parts) {
        for (int part = 0; part < parts; part++) {
            body(context, part);
        }
        return;
    }
    /* No part is left, so nobody claims one while the call is described: the number of the call goes last. */
    atomic_store(&w->done, 0);
    atomic_store(&w->body, body);
    atomic_store(&w->context, context);
    uint64_t call = call_of(atomic_load(&w->state)) + 1;
    atomic_store(&w->state, call << 40 | (uint64_t)parts << 20);
    if (atomic_load(&w->sleeping) > 0) {
        pthread_mutex_lock(&w->mutex);
        pthread_cond_broadcast(&w->wake);
        pthread_mutex_unlock(&w->mutex);
    }
    take_parts(w);
    while (atomic_load(&w->done) < parts) {
        pause_briefly();
    }
}

void lm_workers_destroy(lm_workers *w) {
    pthread_mutex_lock(&w->mutex);
    atomic_store(&w->stop, 1);
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    for (int i = 0; i < w->others; i++) {
        pthread_join(w->threads[i], NULL);
    }
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->wake);
    free(w->threads);
    free(w);
}
