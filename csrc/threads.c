/* The thread group, as threads.h describes it, on POSIX threads and C11 atomics; a stub that runs alone elsewhere. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "threads.h"

#ifdef RNNFAST_NO_THREADS

int rnnfast_threads_watch_forks(void)
{
    return 1;
}

int rnnfast_threads_forks(void)
{
    return 0;
}

void rnnfast_use_openmp(const rnnfast_openmp *openmp)
{
    (void)openmp;
}

int rnnfast_threads_acquire(int limit, int threads, int spins)
{
    (void)limit, (void)threads, (void)spins;
    return 0;
}

void rnnfast_threads_run(int invited, void (*work)(void *, int, int), void *argument)
{
    (void)invited;
    work(argument, 0, 1);
}

void rnnfast_threads_release(int invited)
{
    (void)invited;
}

void rnnfast_threads_barrier(int first, int n, int k, const rnnfast_flag *stop)
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
    MOST = 256,        /* threads of a run, the caller among them */
    WAIT_SPINS = 4000, /* before a thread that waits for another yields its processor: about 60 us */
    IDLE_SPINS = 8000  /* before a worker without work sleeps: waking it costs the caller 20 us and more */
};

/* The state of a worker. The caller offers a place and takes it back, and gives work; the worker accepts, and does the work. */
enum { FREE, OFFERED, JOINED, WORKING };

typedef struct {
    atomic_int state;
    int k;                             /* in the current run */
    int processor;                     /* where the worker was when it joined or finished its work; -1: unknown */
    _Alignas(64) atomic_uint barriers; /* that it has reached in the current run; on a cache line of its own, because others spin on it */
    _Alignas(64) atomic_int asleep;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} worker;

static struct {
    atomic_int held;       /* by a caller */
    int forks, is_watched; /* whether forks are counted */
    int made;              /* workers that exist; workers[0] stands for the caller */
#if defined(__linux__)
    int bound;            /* workers that run on the processors below */
    int avoided;          /* the caller's processor when they were bound; -1: none */
    cpu_set_t processors; /* the caller's at that time */
#endif
    int n; /* threads of the current run */
    void (*work)(void *, int, int);
    void *argument;
    rnnfast_openmp openmp; /* its functions are NULL while no runtime is known */
    int on_openmp;         /* whether the current caller's runs are its parallel regions */
    worker workers[MOST];
    worker *running[MOST];
} group;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spins once more for another thread's write. */
static void spin(int *spins)
{
    if (++*spins < WAIT_SPINS) relax();
    else sched_yield();
}

static int current_processor(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

static void wait_for_offer(worker *self)
{
    for (int spins = 0; spins < IDLE_SPINS; spins++, relax())
        if (atomic_load(&self->state) != FREE) return;
    pthread_mutex_lock(&self->mutex);
    atomic_store(&self->asleep, 1);
    while (atomic_load(&self->state) == FREE) pthread_cond_wait(&self->wake, &self->mutex);
    atomic_store(&self->asleep, 0);
    pthread_mutex_unlock(&self->mutex);
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    for (;;) {
        wait_for_offer(self);
        int state = OFFERED, spins = 0;
        self->processor = current_processor();
        if (!atomic_compare_exchange_strong(&self->state, &state, JOINED)) continue;
        while ((state = atomic_load(&self->state)) == JOINED || state == WORKING) {
            if (state == JOINED) {
                spin(&spins);
                continue;
            }
            group.work(group.argument, self->k, group.n);
            self->processor = current_processor();
            atomic_store(&self->state, JOINED);
            spins = 0;
        }
    }
    return NULL;
}

/* Either the worker sees the offer before it sleeps, or the caller sees here that it is asleep: both write first and read then. The
 * caller does not wait for the lock: a worker that holds it and goes to sleep nevertheless is woken by the next offer. */
static void offer(worker *to)
{
    atomic_store(&to->state, OFFERED);
    if (!atomic_load(&to->asleep) || pthread_mutex_trylock(&to->mutex)) return;
    pthread_cond_signal(&to->wake);
    pthread_mutex_unlock(&to->mutex);
}

/* Makes workers for n threads, or as many as the system allows; returns the number of threads that there can be. Signals stay with the
 * caller. */
static int make_workers(int n)
{
    sigset_t all, before;
    if (n > MOST) n = MOST;
    if (group.made >= n) return n;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; group.made < n; group.made++) {
        worker *w = &group.workers[group.made];
        memset(w, 0, sizeof *w);
        pthread_mutex_init(&w->mutex, NULL);
        pthread_cond_init(&w->wake, NULL);
        if (group.made > 0) {
            if (pthread_create(&w->thread, NULL, worker_main, w)) break;
            pthread_detach(w->thread);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return group.made;
}

/* Linux in a virtual machine takes a sleeping virtual processor for one that cannot be had, and wakes a thread on the processor of the
 * one that wakes it: the two would take turns there while the other processor sleeps on. So workers are kept off the caller's processor
 * as long as there are as many processors as threads. Measured with two processors: without this 300 of 300 workers woke beside the
 * caller, with it none. The processors are those that the caller may use now: its affinity may have been widened or narrowed since its
 * last call. Cost: 0.1 us, and 1 us for each worker after a change. */
static void avoid_caller(int n)
{
#if defined(__linux__)
    int here = current_processor();
    cpu_set_t processors;
    CPU_ZERO(&processors);
    if (sched_getaffinity(0, sizeof processors, &processors)) return;
    int avoided = here >= 0 && here < CPU_SETSIZE && CPU_COUNT(&processors) >= n ? here : -1;
    if (group.bound == group.made && group.avoided == avoided && CPU_EQUAL(&group.processors, &processors)) return;
    group.bound = group.made;
    group.avoided = avoided;
    group.processors = processors;
    if (avoided >= 0) CPU_CLR(avoided, &processors);
    for (int i = 1; i < group.made; i++) pthread_setaffinity_np(group.workers[i].thread, sizeof processors, &processors);
#else
    (void)n;
#endif
}

/* In the child after a fork, which has none of the workers. Their states end the waiting of a run that a poll has forked. */
static void forget_workers(void)
{
    for (int i = 1; i < group.made; i++) atomic_store(&group.workers[i].state, FREE);
    group.forks++;
    group.made = 0;
    group.openmp = (rnnfast_openmp){0};
#if defined(__linux__)
    group.bound = 0;
#endif
    atomic_store(&group.held, 0);
}

int rnnfast_threads_watch_forks(void)
{
    if (!group.is_watched) group.is_watched = !pthread_atfork(NULL, NULL, forget_workers);
    return group.is_watched;
}

int rnnfast_threads_forks(void)
{
    return group.forks;
}

void rnnfast_use_openmp(const rnnfast_openmp *openmp)
{
    int free = 0;
    while (!atomic_compare_exchange_strong(&group.held, &free, 1)) free = 0, sched_yield();
    group.openmp = *openmp;
    atomic_store(&group.held, 0);
}

/* The size of the OpenMP runtime's team, which is 1 if the host wants no more; 0 if the team cannot be used now. A part of a team is
 * never used: the runtime would end its other threads and create new ones for the host's next region. */
static int openmp_team(int limit)
{
    if (!group.openmp.parallel || group.openmp.in_parallel()) return 0;
    int team = group.openmp.max_threads();
    return team <= limit && team <= MOST ? team : 0;
}

int rnnfast_threads_acquire(int limit, int threads, int spins)
{
    int free = 0, on_openmp = limit & RNNFAST_OPENMP;
    if (threads <= 1 || !atomic_compare_exchange_strong(&group.held, &free, 1)) return 0;
    int n = on_openmp ? openmp_team(limit - RNNFAST_OPENMP) : 0;
    if (n == 1 || !rnnfast_threads_watch_forks()) {
        atomic_store(&group.held, 0);
        return 0;
    }
    group.on_openmp = n;
    if (n) return n;
    n = make_workers(threads);
    avoid_caller(n);
    for (int i = 1; i < n; i++) offer(&group.workers[i]);
    for (int i = 1; i < n; i++)
        while (atomic_load(&group.workers[i].state) == OFFERED && spins-- > 0) relax();
    return n;
}

static void work_in_region(void *unused)
{
    static const char message[] = "rnnfast: a signal handler forked this process during a call on OpenMP's threads: it ends here\n";
    const float_mode host = enter_float_mode();
    const int forks = group.forks;
    (void)unused;
    group.work(group.argument, group.openmp.thread_num(), group.openmp.num_threads());
    leave_float_mode(host);
    if (forks == group.forks) return;
    (void)!write(STDERR_FILENO, message, sizeof message - 1);
    _exit(1); /* the runtime would wait for ever */
}

/* Chooses the workers of a run, which begin with the caller. */
static int ready_workers(int invited)
{
    int n = 1, here = invited ? current_processor() : -1;
    for (int i = 1; i < invited; i++) {
        worker *w = &group.workers[i];
        int ready = group.on_openmp || (atomic_load(&w->state) == JOINED && (here < 0 || w->processor != here));
        if (ready) group.running[n++] = w;
    }
    return n;
}

void rnnfast_threads_run(int invited, void (*work)(void *, int, int), void *argument)
{
    int n = ready_workers(invited), spins = 0;
    if (n == 1) {
        work(argument, 0, 1);
        return;
    }
    group.n = n;
    group.work = work;
    group.argument = argument;
    group.running[0] = &group.workers[0];
    for (int k = 0; k < n; k++) {
        group.running[k]->k = k;
        atomic_store_explicit(&group.running[k]->barriers, 0, memory_order_relaxed);
    }
    if (group.on_openmp) {
        group.openmp.parallel(work_in_region, NULL, (unsigned)n, 0);
        return;
    }
    for (int k = 1; k < n; k++) atomic_store(&group.running[k]->state, WORKING);
    work(argument, 0, n);
    for (int k = 1; k < n; k++)
        while (atomic_load(&group.running[k]->state) == WORKING) spin(&spins);
}

void rnnfast_threads_release(int invited)
{
    for (int i = 1; i < invited && !group.on_openmp; i++) atomic_store(&group.workers[i].state, FREE);
    if (invited) atomic_store(&group.held, 0);
}

void rnnfast_threads_barrier(int first, int n, int k, const rnnfast_flag *stop)
{
    int spins = 0;
    if (n == 1) return;
    atomic_uint *own = &group.running[k]->barriers;
    unsigned reached = atomic_load_explicit(own, memory_order_relaxed) + 1;
    atomic_store(own, reached);
    for (int i = first; i < first + n; i++)
        while ((int)(atomic_load(&group.running[i]->barriers) - reached) < 0 && !atomic_load(stop)) spin(&spins);
}

#endif
