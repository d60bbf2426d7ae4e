/* Threads that take the tasks of a call together with the one that calls.

   The first parallel run starts as many as it needs, and they stay. Between two runs a thread looks
   out for the next one for a while, then sleeps; so does the caller, waiting for the last thread.
   One run at a time: whoever calls sees to that. A forked child has none of the threads; its first
   parallel run starts its own. */

#ifndef FASTATTN_POOL_H
#define FASTATTN_POOL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "levels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MOST_THREADS = 1023 };

/* How long to look before sleeping, in ns. For a run: longer than Python takes between two steps of
   a decoder, where waking up costs more than a second thread gives. For the end of one: somebody is
   at work, on whatever core he gets. */
enum { LOOK_FOR_RUN = 1000000, LOOK_FOR_END = 100000, LOOKS_AT_ONCE = 64 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    int started;          /* threads of the pool; the caller is not one of them */
    _Atomic int64_t run;  /* which run, times 1024, plus how many threads take part in it */
    _Atomic int64_t busy; /* how many of them have not ended yet */
    kernel_entry *kernel;
    int64_t call;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .begin = PTHREAD_COND_INITIALIZER,
          .end = PTHREAD_COND_INITIALIZER};

static inline void pause_a_moment(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The kernel in the default float environment: with flush-to-zero or another rounding mode, set by
   somebody else on this thread, the same call would give other bits. */
static void enter_kernel(kernel_entry *kernel, int64_t call, int64_t worker)
{
#if defined(__x86_64__)
    const unsigned int saved = _mm_getcsr();
    _mm_setcsr(0x1F80); /* round to nearest, subnormals kept, every exception masked */
    kernel(call, worker);
    _mm_setcsr(saved);
#else
    kernel(call, worker);
#endif
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Look for a while until a number is `other`, or until it is not; returns whether that came. */
static bool look_out(_Atomic int64_t *number, int64_t other, bool equal, int64_t duration)
{
    const int64_t stop = nanoseconds() + duration;
    do {
        for (int look = 0; look < LOOKS_AT_ONCE; look++) {
            if ((atomic_load_explicit(number, memory_order_acquire) == other) == equal) return true;
            pause_a_moment();
        }
    } while (nanoseconds() < stop);
    return false;
}

/* Wait for another run than the one seen: look for a while, then sleep. */
static int64_t wait_for_run(int64_t seen)
{
    if (look_out(&pool.run, seen, false, LOOK_FOR_RUN))
        return atomic_load_explicit(&pool.run, memory_order_acquire);
    pthread_mutex_lock(&pool.lock);
    int64_t run;
    while ((run = atomic_load_explicit(&pool.run, memory_order_acquire)) == seen)
        pthread_cond_wait(&pool.begin, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    return run;
}

/* Wait for the last thread of a run. */
static void wait_for_end(void)
{
    if (look_out(&pool.busy, 0, true, LOOK_FOR_END)) return;
    pthread_mutex_lock(&pool.lock);
    while (atomic_load_explicit(&pool.busy, memory_order_acquire) != 0)
        pthread_cond_wait(&pool.end, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

/* One thread of the pool: worker 1, 2, ...; worker 0 is the caller.

   What a run is stands in one word, so that a thread which takes no part, and comes late, cannot
   mistake one run for another. Whoever takes part finds kernel and call unchanged: the caller waits. */
static void *work_for_ever(void *number)
{
    const int64_t worker = (int64_t)(intptr_t)number;
    int64_t run = -1; /* no run: a new thread takes part in the one it was started for */
    for (;;) {
        run = wait_for_run(run);
        if (worker > run % (MOST_THREADS + 1)) continue;
        enter_kernel(pool.kernel, pool.call, worker);
        if (atomic_fetch_sub_explicit(&pool.busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.end);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

/* A forked child has one thread, and perhaps a lock that another one held. */
static void forget_threads(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.begin, NULL);
    pthread_cond_init(&pool.end, NULL);
    pool.started = 0;
    atomic_store(&pool.busy, 0);
    atomic_store(&pool.run, 0);
}

/* Have `threads` threads, or as many as the system gives; returns how many there are. */
static int have_threads(int threads)
{
    static bool forks_are_seen = false;
    if (!forks_are_seen) forks_are_seen = pthread_atfork(NULL, NULL, forget_threads) == 0;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (pool.started >= threads) return threads;
    /* Signals are for the threads that Python knows. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.started < threads) {
        pthread_t thread;
        void *const number = (void *)(intptr_t)(pool.started + 1);
        if (pthread_create(&thread, &attributes, work_for_ever, number) != 0) break;
        pool.started++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool.started;
}

/* Which tasks of a call are to be done: the three words in front of its record. */
static void assign_tasks(int64_t call, int64_t first, int64_t stop, int64_t workers)
{
    int64_t *const words = (int64_t *)(intptr_t)call;
    words[0] = first;
    words[1] = stop;
    words[2] = workers;
}

/* Run tasks `first` to `stop` on this thread. */
static void run_on_this_thread(int64_t kernel, int64_t call, int64_t first, int64_t stop)
{
    assign_tasks(call, first, stop, 1);
    enter_kernel((kernel_entry *)(intptr_t)kernel, call, 0);
}

/* Run tasks `first` to `stop` on this thread and others, `workers` in all. */
static void run_on_threads(
    int64_t kernel, int64_t call, int64_t first, int64_t stop, int64_t workers)
{
    const int threads = have_threads((int)workers - 1);
    assign_tasks(call, first, stop, threads + 1);
    pool.kernel = (kernel_entry *)(intptr_t)kernel;
    pool.call = call;
    atomic_store_explicit(&pool.busy, threads, memory_order_release);
    pthread_mutex_lock(&pool.lock);
    const int64_t last = atomic_load_explicit(&pool.run, memory_order_relaxed);
    const int64_t next = (last / (MOST_THREADS + 1) + 1) * (MOST_THREADS + 1) + threads;
    atomic_store_explicit(&pool.run, next, memory_order_release);
    pthread_cond_broadcast(&pool.begin);
    pthread_mutex_unlock(&pool.lock);
    enter_kernel(pool.kernel, call, 0);
    wait_for_end();
}

#endif
