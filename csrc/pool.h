/* The thread team: some threads that wait for work, shared by the whole process, and a barrier for those at work.
 *
 * rnnfast_run(threads, work, argument) calls work(argument, k, n) for k in 0..n-1 at once and returns when all have returned;
 * k = 0 on the calling thread. n is threads or less: 1 if the team is busy with another caller's work, fewer if the system gives no
 * more threads. The team is made at the first call that needs it and grows when more are asked for; waiting members spin for a short
 * time, then sleep. A forked child makes a team of its own.
 *
 * Inside work, rnnfast_wait(barrier, n) returns when n threads have called it, or at once when *stop is not 0: from then on nobody
 * waits for anybody. The barrier must start as zeros with stop set.
 */
#ifndef RNNFAST_POOL_H
#define RNNFAST_POOL_H

#if defined(_WIN32) || defined(__STDC_NO_ATOMICS__)
#define RNNFAST_NO_THREADS 1
typedef int rnnfast_flag;
#else
#include <stdatomic.h>
typedef atomic_int rnnfast_flag;
#endif

typedef struct {
    rnnfast_flag arrived;
    char apart[64 - sizeof(rnnfast_flag)]; /* those who spin read another cache line than those who arrive write */
    rnnfast_flag phase;
    rnnfast_flag *stop;
} rnnfast_barrier;

void rnnfast_run(int threads, void (*work)(void *argument, int k, int n), void *argument);
void rnnfast_wait(rnnfast_barrier *barrier, int n);

#endif
