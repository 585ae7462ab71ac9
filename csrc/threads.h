/* The thread group: threads that wait for work, shared by the whole process.
 *
 *     int invited = rnnfast_threads_acquire(limit, threads, spins); the caller holds the group and invites workers; 0: it runs alone
 *     rnnfast_threads_run(invited, work, argument);                 work(argument, k, n) for k = 0 .. n-1 at once; k = 0 is the caller
 *     rnnfast_threads_run(invited, more, argument);
 *     rnnfast_threads_release(invited);
 *
 * Each run uses the caller and the workers that are ready by then, on other cores than the caller's. A call therefore never waits for a
 * thread that is not running: it starts alone, and a late worker joins at the next run. Before the first run the caller spins at most
 * `spins` times for workers to become ready, about 15 ns each.
 * One caller holds the group at a time; meanwhile other callers run alone. Workers are created when first needed, or fewer if the
 * system cannot create more threads. Without work they spin for a short time and then sleep.
 *
 * With RNNFAST_OPENMP in `limit`, a run is a parallel region of an OpenMP runtime with its whole team, and waits for all of it.
 *
 * A forked child has none of its parent's threads and creates its own. If a poll forks, it must stop the call in the child.
 *
 * A call that computes begins with start_poller(), and then runs in the floating-point environment of the kernels (float_mode.h) until
 * finish_poller(). Workers inherit that environment from the caller that creates them, as POSIX requires, and keep it.
 *
 * Inside work, rnnfast_threads_barrier(first, n, k, stop) is a barrier among workers first .. first+n-1; k is the caller's index. Once
 * *stop is set, it no longer waits.
 *
 * A long call checks should_stop() to end early. Only the calling thread calls the caller's rnnfast_poll; all threads read the result
 * in *stopped. Threads count their multiply-adds to space the checks, so the cost is not measurable. Once *stopped is set it stays set,
 * and every loop of the call ends soon.
 */
#pragma once

#include "float_mode.h"
#include "rnnfast.h"

#if defined(_WIN32) || defined(__STDC_NO_ATOMICS__)
#define RNNFAST_NO_THREADS 1
typedef int rnnfast_flag;
#else
#include <stdatomic.h>
typedef atomic_int rnnfast_flag;
#endif

int rnnfast_threads_watch_forks(void); /* counts forks from now on; 0 if the system refuses. Not from two threads at once */
int rnnfast_threads_forks(void);       /* of this process's ancestors, since they were first counted */
int rnnfast_threads_acquire(int limit, int threads, int spins); /* at most `limit` threads; `threads` are worth their cost */
void rnnfast_threads_run(int invited, void (*work)(void *argument, int k, int n), void *argument);
void rnnfast_threads_release(int invited);
void rnnfast_threads_barrier(int first, int n, int k, const rnnfast_flag *stop);

enum { POLL_WORK = 1 << 24 }; /* multiply-adds between two polls: a few milliseconds at the slowest */

typedef struct {
    rnnfast_flag *stopped;
    const rnnfast_poll *poll; /* NULL on all threads but the caller's */
    ptrdiff_t left;           /* multiply-adds until the next poll */
    float_mode caller;        /* the caller's, in which polls run */
} poller;

/* The calling thread's poller. It computes in the environment of the kernels until finish_poller(). */
static inline poller start_poller(rnnfast_flag *stopped, const rnnfast_poll *poll)
{
    return (poller){stopped, poll, POLL_WORK, enter_float_mode()};
}

static inline void finish_poller(const poller *p)
{
    leave_float_mode(p->caller);
}

/* A poll may change the caller's environment. */
static inline int is_stop_requested(poller *p)
{
    if (!p->poll || !p->poll->stop) return 0;
    leave_float_mode(p->caller);
    int stop = p->poll->stop(p->poll->context);
    p->caller = enter_float_mode();
    return stop;
}

/* Counts some multiply-adds; returns nonzero if the call should stop. */
static inline int should_stop(poller *p, ptrdiff_t work)
{
    p->left -= work;
    if (p->left > 0) return 0;
    if (!*p->stopped && is_stop_requested(p)) *p->stopped = 1;
    p->left = *p->stopped ? 0 : POLL_WORK;
    return *p->stopped;
}
