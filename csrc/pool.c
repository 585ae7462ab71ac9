#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "pool.h"

#ifdef RNNFAST_NO_THREADS

void rnnfast_run(int threads, void (*work)(void *, int, int), void *argument)
{
    (void)threads;
    work(argument, 0, 1);
}

void rnnfast_wait(rnnfast_barrier *barrier, int n)
{
    (void)barrier;
    (void)n;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum {
    MOST = 256,   /* threads at work, the caller among them */
    SPINS = 4000, /* looks before one who waits for others gives its core away */
    IDLE = 1000   /* looks before a member without work goes to sleep */
};

typedef struct {
    atomic_uint jobs; /* posted to this member so far */
    atomic_int asleep;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int k;
    char apart[64]; /* a member spins on a cache line of its own */
} member;

static struct {
    atomic_long owner; /* the process that holds the team, 0 for none: in a forked child the parent's hold counts for nothing */
    long process;      /* the one to which the members belong */
    int made;          /* members there are; member k is members[k], members[0] stands for the caller */
    int n;
    void (*work)(void *, int, int);
    void *argument;
    atomic_int unfinished;
    member members[MOST];
} team;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_for_job(member *self, unsigned seen)
{
    for (int look = 0; look < IDLE; look++, relax())
        if (atomic_load(&self->jobs) != seen) return;
    pthread_mutex_lock(&self->mutex);
    atomic_store(&self->asleep, 1);
    while (atomic_load(&self->jobs) == seen) pthread_cond_wait(&self->wake, &self->mutex);
    atomic_store(&self->asleep, 0);
    pthread_mutex_unlock(&self->mutex);
}

static void *live(void *argument)
{
    member *self = argument;
    for (unsigned seen = 0;; seen++) {
        wait_for_job(self, seen);
        team.work(team.argument, self->k, team.n);
        atomic_fetch_sub(&team.unfinished, 1);
    }
    return NULL;
}

/* Either the member sees the new job before it sleeps, or it is seen asleep here: both sides write first and read then. */
static void post(member *to)
{
    atomic_fetch_add(&to->jobs, 1);
    if (atomic_load(&to->asleep)) {
        pthread_mutex_lock(&to->mutex);
        pthread_cond_signal(&to->wake);
        pthread_mutex_unlock(&to->mutex);
    }
}

/* Members for n threads, or as many as the system gives; the number of threads that there can be. Signals stay with the caller. */
static int gather(int n)
{
    sigset_t all, before;
    if (n > MOST) n = MOST;
    if (team.made >= n) return n;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; team.made < n; team.made++) {
        member *m = &team.members[team.made];
        pthread_t thread;
        memset(m, 0, sizeof *m);
        m->k = team.made;
        pthread_mutex_init(&m->mutex, NULL);
        pthread_cond_init(&m->wake, NULL);
        if (team.made > 0) {
            if (pthread_create(&thread, NULL, live, m)) break;
            pthread_detach(thread);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return team.made;
}

static int take_team(long process)
{
    long owner = atomic_load(&team.owner);
    return owner != process && atomic_compare_exchange_strong(&team.owner, &owner, process);
}

void rnnfast_run(int threads, void (*work)(void *, int, int), void *argument)
{
    long process = threads > 1 ? (long)getpid() : 0;
    if (threads <= 1 || !take_team(process)) {
        work(argument, 0, 1);
        return;
    }
    if (team.process != process) {
        team.process = process;
        team.made = 0;
    }
    team.n = gather(threads);
    team.work = work;
    team.argument = argument;
    atomic_store(&team.unfinished, team.n - 1);
    for (int k = 1; k < team.n; k++) post(&team.members[k]);
    work(argument, 0, team.n);
    for (int look = 0; atomic_load(&team.unfinished); look++) {
        if (look < SPINS) relax();
        else sched_yield();
    }
    atomic_store(&team.owner, 0);
}

void rnnfast_wait(rnnfast_barrier *barrier, int n)
{
    if (n == 1) return;
    int phase = atomic_load(&barrier->phase);
    if (atomic_fetch_add(&barrier->arrived, 1) == n - 1) {
        atomic_store(&barrier->arrived, 0);
        atomic_store(&barrier->phase, phase + 1);
        return;
    }
    for (int look = 0; atomic_load(&barrier->phase) == phase && !atomic_load(barrier->stop); look++) {
        if (look < SPINS) relax();
        else sched_yield();
    }
}

#endif
