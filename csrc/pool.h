/* The thread team: some threads that wait for work, shared by the whole process.
 *
 *     int team = rnnfast_gather(threads, looks); the caller takes the team and invites threads - 1 members; 0: it works alone
 *     rnnfast_run(team, work, argument);        work(argument, k, n) for k = 0 .. n-1 at once; k = 0 is the caller
 *     rnnfast_run(team, more, argument);
 *     rnnfast_dismiss(team);
 *
 * n is chosen anew by every run: the caller, and those members that have come by then, on other processors than its own. So a call
 * never waits for a thread that has not got a processor; it begins alone, and who comes later takes part from the next run on.
 * Before the first, the caller looks so many times whether the members have come, a look taking some 15 ns.
 * One caller has the team at a time; another that gathers meanwhile works alone. Members are made when they are first needed, fewer
 * if the system gives no more; without work they spin for a short time, then sleep. A forked child makes a team of its own.
 *
 * Inside work, rnnfast_meet(first, n, k, stop) returns when all of members first .. first+n-1, of which k is one, have called it
 * as often as k has in this run, or at once when *stop is not 0: from then on nobody waits for anybody.
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

int rnnfast_gather(int threads, int looks);
void rnnfast_run(int team, void (*work)(void *argument, int k, int n), void *argument);
void rnnfast_dismiss(int team);
void rnnfast_meet(int first, int n, int k, const rnnfast_flag *stop);

#endif
