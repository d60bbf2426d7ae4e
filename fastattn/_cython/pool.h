/* Threads that take the tasks of a call together with the one that calls.

   The first parallel run starts as many as it needs, and they stay. Between two runs a thread looks
   out for the next one for a while, then sleeps; so does the caller, waiting for those at work.
   One run at a time: `pool.turn` is held for its length. A forked child has none of the threads; its
   first parallel run starts its own.

   A run ends when its tasks have ended, and waits for nobody who has not come. Everything about who
   takes part stands in one word, `pool.run`:

       number of the run | closed? | how many may join the caller | how many have joined
             43 bits         1               10 bits                      10 bits

   - A thread joins by compare-and-swap of a word that is not closed and has room to the same word
     plus one. The number it finds there makes it worker 1, 2, ... of the run; the caller is 0.
   - The caller takes tasks too. When it finds none it closes the run, with one atomic `or`, which
     also tells it how many have joined: for those it waits, until `pool.left` is as many.
   - After that nobody can join: whoever read the word before finds another one and fails. The
     number, which grows from run to run, keeps a later word from being mistaken for an earlier.
   - Kernel and call are written before the word of their run is (release), read by those alone who
     have joined it (acquire), and written again only when all of them have left (release, acquire).
     So no late thread sees a kernel, a call or a record of another run than the one it joined.
   - Whoever joins claims a task or leaves: the caller waits for work, or for the few instructions
     between.
   - Nobody sleeps through a run: a thread counts itself among the sleepers, then reads the word; the
     caller writes the word, then reads the count, all in one order (seq_cst). One of them sees the
     other. A bell that rings between the thread's look and its sleep makes the sleep end at once.
     The same between the last thread that leaves and a caller that sleeps (`pool.waits`). */

#ifndef FASTATTN_POOL_H
#define FASTATTN_POOL_H

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "levels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { COUNT_BITS = 10, MOST_THREADS = (1 << COUNT_BITS) - 1 };
enum { CLOSED = 1 << 2 * COUNT_BITS, NUMBER_AT = 2 * COUNT_BITS + 1 };

/* How long to look before sleeping, in ns. For a run: longer than Python takes between two steps of
   a decoder, where waking up costs more than a second thread gives. For the end of one: somebody is
   at work, on whatever core he gets. */
enum { LOOK_FOR_RUN = 1000000, LOOK_FOR_END = 100000, LOOKS_AT_ONCE = 64 };

static struct {
    _Alignas(64) _Atomic uint64_t run; /* see above; number 0 is no run */
    kernel_entry *kernel;
    int64_t call;
    _Alignas(64) _Atomic uint32_t left; /* how many of those who joined the run have left it */
    _Atomic uint32_t waits;             /* whether the caller sleeps until all have */
    _Alignas(64) _Atomic uint32_t bell; /* what threads without work sleep on */
    _Atomic uint32_t sleepers;
    _Atomic int64_t patience; /* how long they look for a run before they sleep */
    pthread_mutex_t turn;     /* whose run it is */
    int started;              /* threads of the pool; no caller is one of them */
} pool = {.run = CLOSED, .patience = LOOK_FOR_RUN, .turn = PTHREAD_MUTEX_INITIALIZER};

static inline uint64_t number_of(uint64_t run) { return run >> NUMBER_AT; }
static inline uint64_t joined(uint64_t run) { return run & MOST_THREADS; }

static inline bool has_room(uint64_t run)
{
    return !(run & CLOSED) && joined(run) < (run >> COUNT_BITS & MOST_THREADS);
}

static inline void pause_a_moment(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Sleep while a word is as told, or less; wake as many as told, or more. */
#if defined(__linux__)

static void sleep_on(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

#else

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t awake = PTHREAD_COND_INITIALIZER;

static void sleep_on(_Atomic uint32_t *word, uint32_t value)
{
    pthread_mutex_lock(&sleep_lock);
    if (atomic_load(word) == value) pthread_cond_wait(&awake, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}

static void wake(_Atomic uint32_t *word, int count)
{
    (void)word, (void)count;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&awake);
    pthread_mutex_unlock(&sleep_lock);
}

#endif

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

/* Pause between two looks; returns whether to look again. */
static inline bool look_again(unsigned *looks, int64_t stop)
{
    pause_a_moment();
    return ++*looks % LOOKS_AT_ONCE != 0 || nanoseconds() < stop;
}

/* Wait for another run than the one seen: look for a while, then sleep. */
static uint64_t wait_for_run(uint64_t seen)
{
    const int64_t stop = nanoseconds() + atomic_load(&pool.patience);
    unsigned looks = 0;
    uint64_t run;
    do {
        run = atomic_load_explicit(&pool.run, memory_order_acquire);
        if (number_of(run) != seen) return run;
    } while (look_again(&looks, stop));
    for (;;) {
        const uint32_t bell = atomic_load(&pool.bell);
        atomic_fetch_add(&pool.sleepers, 1);
        run = atomic_load(&pool.run);
        if (number_of(run) == seen) sleep_on(&pool.bell, bell);
        atomic_fetch_sub(&pool.sleepers, 1);
        if (number_of(run) != seen) return run;
    }
}

/* Wait for another run than the one seen and join it; returns which worker this thread is there, or
   0 where it came too late. */
static int64_t join_run(uint64_t *seen)
{
    uint64_t run = wait_for_run(*seen);
    for (;;) {
        *seen = number_of(run);
        if (!has_room(run)) return 0;
        if (atomic_compare_exchange_weak_explicit(
                &pool.run, &run, run + 1, memory_order_acquire, memory_order_acquire))
            return (int64_t)joined(run) + 1;
    }
}

static void leave_run(void)
{
    atomic_fetch_add(&pool.left, 1);
    if (atomic_load(&pool.waits)) wake(&pool.left, 1);
}

/* One thread of the pool. */
static void *work_for_ever(void *nothing)
{
    uint64_t seen = 0;
    for (;;) {
        const int64_t worker = join_run(&seen);
        if (worker == 0) continue;
        enter_kernel(pool.kernel, pool.call, worker);
        leave_run();
    }
    return nothing;
}

/* Let up to so many threads join a run of this kernel and call. */
static void open_run(kernel_entry *kernel, int64_t call, int others)
{
    pool.kernel = kernel;
    pool.call = call;
    atomic_store_explicit(&pool.left, 0, memory_order_relaxed);
    const uint64_t last = atomic_load_explicit(&pool.run, memory_order_relaxed);
    atomic_store(&pool.run, (number_of(last) + 1) << NUMBER_AT | (uint64_t)others << COUNT_BITS);
    if (atomic_load(&pool.sleepers) > 0) {
        atomic_fetch_add(&pool.bell, 1);
        wake(&pool.bell, others);
    }
}

/* Let nobody join any more, and wait for those who have. */
static void close_run(void)
{
    const uint64_t run = atomic_fetch_or_explicit(&pool.run, CLOSED, memory_order_acq_rel);
    const uint32_t all = (uint32_t)joined(run);
    if (all == 0) return;
    const int64_t stop = nanoseconds() + LOOK_FOR_END;
    unsigned looks = 0;
    do {
        if (atomic_load_explicit(&pool.left, memory_order_acquire) == all) return;
    } while (look_again(&looks, stop));
    atomic_store(&pool.waits, 1);
    uint32_t left;
    while ((left = atomic_load(&pool.left)) != all) sleep_on(&pool.left, left);
    atomic_store(&pool.waits, 0);
}

/* A forked child has one thread, and perhaps what another one held. */
static void forget_threads(void)
{
    pthread_mutex_init(&pool.turn, NULL);
    pool.started = 0;
    atomic_fetch_or(&pool.run, CLOSED);
    atomic_store(&pool.waits, 0);
    atomic_store(&pool.sleepers, 0);
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
        if (pthread_create(&thread, &attributes, work_for_ever, NULL) != 0) break;
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

/* Run tasks `first` to `stop` on this thread and others, `workers` in all at most. */
static void run_on_threads(
    int64_t kernel, int64_t call, int64_t first, int64_t stop, int64_t workers)
{
    pthread_mutex_lock(&pool.turn);
    const int others = have_threads((int)workers - 1);
    assign_tasks(call, first, stop, others + 1);
    open_run((kernel_entry *)(intptr_t)kernel, call, others);
    enter_kernel(pool.kernel, call, 0);
    close_run();
    pthread_mutex_unlock(&pool.turn);
}

#endif
