/* The jobs of an OpenBLAS on the threads of the pool, by the callback that it offers for that.

   Jobs of one run may wait for each other, as those of its matrix products do, which read what the
   others have packed: each must get a thread, and all of them at once. The pool has them, as nobody
   else runs on it meanwhile. Where somebody does, the jobs get threads that are made for them.

   OpenBLAS keeps a buffer for each thread by its number, and does some work (factorisations) on
   threads of its own still, numbered from below. Ours are numbered from above, so that no two have
   one buffer; for the same reason there is one run of BLAS at a time. Nothing in here waits for
   the interpreter's lock. */

#ifndef FASTATTN_BLAS_H
#define FASTATTN_BLAS_H

#include <stdio.h>
#include <stdlib.h>

#include "pool.h"

typedef void blas_job(int thread, void *data, int what);
typedef void blas_threads(
    int synchronous, blas_job *job, int jobs, size_t size, void *data, int what);
typedef void set_blas_threads(blas_threads *callback);

static struct {
    pthread_mutex_t turn;  /* whose run of BLAS it is */
    set_blas_threads *set; /* how its callback is set; NULL: its jobs are not ours */
    int most;              /* how many threads it has numbers for */
} blas = {.turn = PTHREAD_MUTEX_INITIALIZER};

typedef struct {
    _Atomic int64_t next;
    int64_t jobs;
    blas_job *job;
    char *data;
    size_t size;
    int what;
    unsigned int environment; /* of floats: the caller's, as for a job of his own */
    _Atomic uint32_t gate;    /* for threads made for this run: wait, go, or go away */
} blas_run;

enum { WAIT, GO, GO_AWAY };

/* How long threads look for a run that have jobs of BLAS: about as long as OpenBLAS's own, in ns. A
   caller that waits for jobs of others cannot go on alone where they are slow to wake up. */
enum { LOOK_FOR_JOBS = 30000000 };

static void do_jobs(int64_t address, int64_t worker)
{
    (void)worker;
    blas_run *const run = (blas_run *)(intptr_t)address;
#if defined(__x86_64__)
    _mm_setcsr(run->environment);
#endif
    for (;;) {
        const int64_t job = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (job >= run->jobs) return;
        run->job(blas.most - 1 - (int)job, run->data + job * run->size, run->what);
    }
}

/* Do the jobs on the pool, if it has as many threads. */
static bool do_jobs_on_pool(blas_run *run)
{
    const int others = (int)run->jobs - 1;
    const bool enough = have_threads(others) == others;
    if (enough) {
        open_run(do_jobs, (int64_t)(intptr_t)run, others);
        enter_kernel(do_jobs, (int64_t)(intptr_t)run, 0);
        close_run();
    }
    return enough;
}

static void *wait_to_do_jobs(void *run_of_all)
{
    blas_run *const run = run_of_all;
    uint32_t gate;
    while ((gate = atomic_load(&run->gate)) == WAIT) sleep_on(&run->gate, WAIT);
    if (gate == GO) enter_kernel(do_jobs, (int64_t)(intptr_t)run, 0);
    return NULL;
}

/* Do the jobs on threads made for them; none is begun where there are not enough. */
static bool do_jobs_on_new_threads(blas_run *run)
{
    const int others = (int)run->jobs - 1;
    pthread_t threads[MOST_THREADS];
    int made = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (made < others && pthread_create(&threads[made], NULL, wait_to_do_jobs, run) == 0) made++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    atomic_store(&run->gate, made == others ? GO : GO_AWAY);
    wake(&run->gate, others);
    if (made == others) enter_kernel(do_jobs, (int64_t)(intptr_t)run, 0);
    for (int i = 0; i < made; i++) pthread_join(threads[i], NULL);
    return made == others;
}

/* What OpenBLAS calls with the jobs of a run. */
static void run_blas(int synchronous, blas_job *job, int jobs, size_t size, void *data, int what)
{
    (void)synchronous; /* it may come back later than asked for */
    blas_run run = {0, jobs, job, data, size, what, 0, WAIT};
#if defined(__x86_64__)
    run.environment = _mm_getcsr();
#endif
    pthread_mutex_lock(&blas.turn);
    bool done = jobs <= 1;
    if (done) {
        enter_kernel(do_jobs, (int64_t)(intptr_t)&run, 0);
    } else if (pthread_mutex_trylock(&pool.turn) == 0) {
        done = do_jobs_on_pool(&run);
        pthread_mutex_unlock(&pool.turn);
    }
    if (!done && jobs <= MOST_THREADS) done = do_jobs_on_new_threads(&run);
    if (!done) {
        pthread_mutex_lock(&pool.turn);
        done = do_jobs_on_pool(&run);
        pthread_mutex_unlock(&pool.turn);
    }
    if (!done) { /* as OpenBLAS ends where it gets no threads */
        fprintf(stderr, "fastattn: no %d threads for the jobs of OpenBLAS\n", jobs);
        abort();
    }
    pthread_mutex_unlock(&blas.turn);
}

/* A fork waits for the run at work: OpenBLAS gives its buffers back then. The child has none of the
   threads: its OpenBLAS starts its own. */
static void before_fork(void) { pthread_mutex_lock(&blas.turn); }
static void after_fork(void) { pthread_mutex_unlock(&blas.turn); }
static void after_fork_in_child(void)
{
    pthread_mutex_init(&blas.turn, NULL);
    if (blas.set != NULL) blas.set(NULL);
    blas.set = NULL;
    atomic_store(&pool.patience, LOOK_FOR_RUN);
}

/* Take the jobs of the OpenBLAS whose callback is set by a function, which has numbers for `most`
   threads, and uses `threads`; returns whether there are as many. */
static bool take_blas(int64_t set, int most, int threads)
{
    static bool forks_are_seen = false;
    if (!forks_are_seen)
        forks_are_seen = pthread_atfork(before_fork, after_fork, after_fork_in_child) == 0;
    pthread_mutex_lock(&pool.turn);
    const bool enough = forks_are_seen && have_threads(threads - 1) == threads - 1;
    pthread_mutex_unlock(&pool.turn);
    if (!enough) return false;
    pthread_mutex_lock(&blas.turn);
    blas.most = most;
    blas.set = (set_blas_threads *)(intptr_t)set;
    blas.set(run_blas);
    atomic_store(&pool.patience, LOOK_FOR_JOBS);
    pthread_mutex_unlock(&blas.turn);
    return true;
}

/* Leave them to OpenBLAS again. */
static void leave_blas(void)
{
    pthread_mutex_lock(&blas.turn);
    if (blas.set != NULL) blas.set(NULL);
    blas.set = NULL;
    atomic_store(&pool.patience, LOOK_FOR_RUN);
    pthread_mutex_unlock(&blas.turn);
}

static bool has_blas(void) { return blas.set != NULL; }

/* Whether somebody runs on the pool at the moment. */
static bool is_pool_busy(void)
{
    if (pthread_mutex_trylock(&pool.turn) != 0) return true;
    pthread_mutex_unlock(&pool.turn);
    return false;
}

#endif
