#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "pool.h"

#ifdef RNNFAST_NO_THREADS

int rnnfast_gather(int threads, int looks)
{
    (void)threads, (void)looks;
    return 0;
}

void rnnfast_run(int team, void (*work)(void *, int, int), void *argument)
{
    (void)team;
    work(argument, 0, 1);
}

void rnnfast_dismiss(int team)
{
    (void)team;
}

void rnnfast_meet(int first, int n, int k, const rnnfast_flag *stop)
{
    (void)first, (void)n, (void)k, (void)stop;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum {
    MOST = 256,   /* threads at work, the caller among them */
    SPINS = 4000, /* looks before one who waits for others gives its processor away: some 60 us */
    IDLE = 8000   /* looks before a member without work goes to sleep: to wake it costs the caller 20 us and more */
};

/* A member's seat. The caller offers it, takes it back, and gives work; the member takes it, and does the work. */
enum { FREE, OFFERED, TAKEN, WORK };

typedef struct {
    atomic_int seat;
    int k;         /* in the run at hand */
    int processor; /* where it was when it took the seat, or took it again; -1: unknown */
    char apart[64 - sizeof(atomic_int) - 2 * sizeof(int)];
    atomic_uint met; /* how often, in the run at hand; on a cache line of its own, as others spin on it */
    char apart_too[64 - sizeof(atomic_uint)];
    atomic_int asleep;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} member;

static struct {
    atomic_long owner; /* the process that holds the team, 0 for none: in a forked child the parent's hold counts for nothing */
    long process;      /* the one to which the members belong */
    int made;          /* members there are; members[0] stands for the caller */
    int processor;     /* from which the members are kept away, -1 for none */
    int n;             /* at work in the run at hand */
    void (*work)(void *, int, int);
    void *argument;
    member members[MOST];
    member *at_work[MOST];
} team;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* One more look at what others are to write. */
static void look_again(int *looks)
{
    if (++*looks < SPINS) relax();
    else sched_yield();
}

static int processor(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

static void wait_for_offer(member *self)
{
    for (int look = 0; look < IDLE; look++, relax())
        if (atomic_load(&self->seat) != FREE) return;
    pthread_mutex_lock(&self->mutex);
    atomic_store(&self->asleep, 1);
    while (atomic_load(&self->seat) == FREE) pthread_cond_wait(&self->wake, &self->mutex);
    atomic_store(&self->asleep, 0);
    pthread_mutex_unlock(&self->mutex);
}

static void *live(void *argument)
{
    member *self = argument;
    for (;;) {
        wait_for_offer(self);
        int seat = OFFERED, looks = 0;
        self->processor = processor();
        if (!atomic_compare_exchange_strong(&self->seat, &seat, TAKEN)) continue;
        while ((seat = atomic_load(&self->seat)) == TAKEN || seat == WORK) {
            if (seat == TAKEN) {
                look_again(&looks);
                continue;
            }
            team.work(team.argument, self->k, team.n);
            self->processor = processor();
            atomic_store(&self->seat, TAKEN);
            looks = 0;
        }
    }
    return NULL;
}

/* Either the member sees the offer before it sleeps, or it is seen asleep here: both sides write first and read then. The caller
 * waits for no lock: where a member holds it and goes to sleep nevertheless, it is woken by the next offer. */
static void offer(member *to)
{
    atomic_store(&to->seat, OFFERED);
    if (!atomic_load(&to->asleep) || pthread_mutex_trylock(&to->mutex)) return;
    pthread_cond_signal(&to->wake);
    pthread_mutex_unlock(&to->mutex);
}

/* Members for n threads, or as many as the system gives; the number of threads that there can be. Signals stay with the caller. */
static int make_members(int n)
{
    sigset_t all, before;
    if (n > MOST) n = MOST;
    if (team.made >= n) return n;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; team.made < n; team.made++) {
        member *m = &team.members[team.made];
        memset(m, 0, sizeof *m);
        pthread_mutex_init(&m->mutex, NULL);
        pthread_cond_init(&m->wake, NULL);
        if (team.made > 0) {
            if (pthread_create(&m->thread, NULL, live, m)) break;
            pthread_detach(m->thread);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    team.processor = -1;
    return team.made;
}

/* Linux in a virtual machine takes a processor that sleeps for one that is not to be had, and wakes a thread on the processor of the
 * one that wakes it: there the two would take turns, while the other processor sleeps on. So the members are kept away from the
 * caller's, as long as there are as many processors as threads. Measured with two processors: without this 300 of 300 members
 * woke beside the caller, with it none. */
static void keep_away(int n)
{
#if defined(__linux__)
    int here = processor();
    cpu_set_t processors;
    if (here == team.processor || sched_getaffinity(0, sizeof processors, &processors)) return;
    team.processor = here;
    if (CPU_COUNT(&processors) >= n) CPU_CLR(here, &processors);
    for (int i = 1; i < team.made; i++) pthread_setaffinity_np(team.members[i].thread, sizeof processors, &processors);
#else
    (void)n;
#endif
}

static int take_team(long process)
{
    long owner = atomic_load(&team.owner);
    return owner != process && atomic_compare_exchange_strong(&team.owner, &owner, process);
}

int rnnfast_gather(int threads, int looks)
{
    long process = threads > 1 ? (long)getpid() : 0;
    int n;
    if (threads <= 1 || !take_team(process)) return 0;
    if (team.process != process) {
        team.process = process;
        team.made = 0;
    }
    n = make_members(threads);
    keep_away(n);
    for (int i = 1; i < n; i++) offer(&team.members[i]);
    for (int i = 1; i < n; i++)
        while (atomic_load(&team.members[i].seat) == OFFERED && looks-- > 0) relax();
    return n;
}

void rnnfast_run(int invited, void (*work)(void *, int, int), void *argument)
{
    int n = 1, looks = 0, here = invited ? processor() : -1;
    for (int i = 1; i < invited; i++) {
        member *m = &team.members[i];
        if (atomic_load(&m->seat) == TAKEN && (here < 0 || m->processor != here)) team.at_work[n++] = m;
    }
    if (n == 1) {
        work(argument, 0, 1);
        return;
    }
    team.n = n;
    team.work = work;
    team.argument = argument;
    team.at_work[0] = &team.members[0];
    for (int k = 0; k < n; k++) {
        team.at_work[k]->k = k;
        atomic_store_explicit(&team.at_work[k]->met, 0, memory_order_relaxed);
    }
    for (int k = 1; k < n; k++) atomic_store(&team.at_work[k]->seat, WORK);
    work(argument, 0, n);
    for (int k = 1; k < n; k++)
        while (atomic_load(&team.at_work[k]->seat) == WORK) look_again(&looks);
}

void rnnfast_dismiss(int invited)
{
    for (int i = 1; i < invited; i++) atomic_store(&team.members[i].seat, FREE);
    if (invited) atomic_store(&team.owner, 0);
}

void rnnfast_meet(int first, int n, int k, const rnnfast_flag *stop)
{
    int looks = 0;
    if (n == 1) return;
    atomic_uint *own = &team.at_work[k]->met;
    unsigned met = atomic_load_explicit(own, memory_order_relaxed) + 1;
    atomic_store(own, met);
    for (int i = first; i < first + n; i++)
        while ((int)(atomic_load(&team.at_work[i]->met) - met) < 0 && !atomic_load(stop)) look_again(&looks);
}

#endif
