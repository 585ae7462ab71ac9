/* The order in which the sequences of a ragged batch take their steps (rnnfast_order), from lengths, masks and resets.
 *
 * A row is a series of sequences, cut at its resets. A masked step is in no sequence; the sequence continues at the next step that is.
 * Cost: two visits of each step of each row, and about 40 bytes of result for each step. Nothing here depends on the element type.
 */
#include "threads.h"

#include <string.h>

enum { STEP_WORK = 32 }; /* visiting a step costs at most as much as this many multiply-adds */

static int is_valid(const rnnfast_pattern *p, ptrdiff_t t, ptrdiff_t n)
{
    return !p->mask || p->mask[t * p->mask_step + n * p->mask_row];
}

static int is_reset(const rnnfast_pattern *p, ptrdiff_t t, ptrdiff_t n)
{
    return p->reset && p->reset[t * p->reset_step + n * p->reset_row];
}

static ptrdiff_t length_of(const rnnfast_pattern *p, ptrdiff_t n)
{
    return p->lengths ? p->lengths[n] : p->T;
}

/* A sequence: steps begin .. end-1 of row n, of which `steps` are valid. */
typedef struct {
    ptrdiff_t n, begin, end, steps;
} sequence;

static const sequence before_first = {.n = -1};

/* Goes to the next sequence, row by row and in order of time. Returns 0 after the last one, or if the call should stop. */
static int next_sequence(const rnnfast_pattern *p, sequence *q, poller *w)
{
    if (q->n < 0 || q->end >= length_of(p, q->n)) q->n++, q->end = 0;
    if (q->n == p->N || should_stop(w, STEP_WORK)) return 0;
    ptrdiff_t t = q->end, length = length_of(p, q->n);
    *q = (sequence){.n = q->n, .begin = t};
    if (!p->mask && !p->reset) q->steps = length - t, t = length;
    while (t < length && (t == q->begin || !is_reset(p, t, q->n)) && !should_stop(w, STEP_WORK)) q->steps += is_valid(p, t++, q->n);
    q->end = t;
    return !*w->stopped;
}

ptrdiff_t rnnfast_count(const rnnfast_pattern *p, rnnfast_order *o)
{
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, &p->poll);
    ptrdiff_t entries = 0;
    memset(o, 0, sizeof *o);
    for (sequence q = before_first; next_sequence(p, &q, &w); o->sequences++) {
        entries += q.steps;
        if (q.steps > o->steps) o->steps = q.steps;
    }
    finish_poller(&w);
    o->masked_count = p->T * p->N - entries;
    return entries;
}

/* Enters sequence k: its positions in both directions, and its masked steps; the last one of a row also the steps past the row's length.
 * The next masked step at time t becomes masked[next[t]]. */
static void enter_sequence(const rnnfast_pattern *p, const rnnfast_order *o, const sequence *q, ptrdiff_t k, ptrdiff_t *next, poller *w)
{
    rnnfast_position *forward = (rnnfast_position *)o->positions[0], *reverse = (rnnfast_position *)o->positions[1];
    rnnfast_masked_step *masked = (rnnfast_masked_step *)o->masked;
    ptrdiff_t before = -1, after = -1, s = 0;
    for (ptrdiff_t t = q->begin; t < q->end && !should_stop(w, STEP_WORK); t++) {
        rnnfast_position position = {t, q->n};
        if (is_valid(p, t, q->n)) {
            forward[o->begin[s] + k] = reverse[o->begin[q->steps - 1 - s] + k] = position;
            s++;
            before = t;
        } else {
            masked[next[t]++] = (rnnfast_masked_step){position, before, -1};
        }
    }
    for (ptrdiff_t t = q->end - 1; p->mask && t >= q->begin && !should_stop(w, STEP_WORK); t--) {
        if (is_valid(p, t, q->n)) after = t;
        else masked[next[t] - 1].after = after;
    }
    if (q->end < length_of(p, q->n)) return;
    for (ptrdiff_t t = q->end; t < p->T && !should_stop(w, STEP_WORK); t++) masked[next[t]++] = (rnnfast_masked_step){{t, q->n}, -1, -1};
}

/* Masked steps are listed in order of time, as memory mostly is: writing them takes a fifth of the time. */
static void count_masked(const rnnfast_pattern *p, ptrdiff_t *next, poller *w)
{
    ptrdiff_t count = 0;
    for (ptrdiff_t t = 0; t < p->T; t++) {
        next[t] = count;
        for (ptrdiff_t n = 0; n < p->N && !should_stop(w, STEP_WORK); n++) count += t >= length_of(p, n) || !is_valid(p, t, n);
    }
}

static void arrange(const rnnfast_pattern *p, rnnfast_order *o, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch, poller *w)
{
    ptrdiff_t *begin = (ptrdiff_t *)o->begin, *edges = (ptrdiff_t *)o->edges, *longer = scratch, *steps_of = scratch + o->steps + 2;
    ptrdiff_t count = 0, i = 0;
    memset(longer, 0, (size_t)(o->steps + 2) * sizeof *longer);
    for (sequence q = before_first; next_sequence(p, &q, w); count++) {
        if (q.begin == 0) rows[q.n] = count;
        steps_of[count] = q.steps;
        longer[q.steps]++;
    }
    if (*w->stopped) return;
    rows[p->N] = count;
    /* longer[s] goes from the number of sequences of s steps to that of longer ones, which is the first number of those of s steps. */
    for (ptrdiff_t s = o->steps, more = 0; s >= 0; s--) {
        ptrdiff_t same = longer[s];
        longer[s] = more;
        more += same;
    }
    begin[0] = 0;
    for (ptrdiff_t s = 0; s < o->steps && !should_stop(w, STEP_WORK); s++) begin[s + 1] = begin[s] + longer[s];
    o->blocks = 0;
    if (*w->stopped) return;
    for (ptrdiff_t s = 0; s < o->steps; o->blocks++) {
        edges[o->blocks] = s;
        ptrdiff_t first = s++;
        while (s < o->steps && begin[s + 1] - begin[first] <= RNNFAST_SUM_ROWS) s++;
    }
    edges[o->blocks] = o->steps;
    for (i = 0; i < count && !should_stop(w, STEP_WORK); i++) sequences_of[i] = longer[steps_of[i]]++;

    ptrdiff_t *next = steps_of + count;
    count_masked(p, next, w);
    if (*w->stopped) return;
    i = 0;
    for (sequence q = before_first; next_sequence(p, &q, w); i++) enter_sequence(p, o, &q, sequences_of[i], next, w);
}

void rnnfast_arrange(const rnnfast_pattern *p, rnnfast_order *o, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch)
{
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, &p->poll);
    arrange(p, o, sequences_of, rows, scratch, &w);
    finish_poller(&w);
}

void rnnfast_fill(const rnnfast_order *o, int from, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row, rnnfast_poll poll)
{
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, &poll);
    for (ptrdiff_t i = 0; i < o->masked_count && !should_stop(&w, STEP_WORK + (ptrdiff_t)bytes); i++) {
        const rnnfast_masked_step *m = &o->masked[i];
        char *of_row = (char *)array + m->position.row * row, *to = of_row + m->position.step * step;
        ptrdiff_t source = from < 0 ? m->before : from > 0 ? m->after : -1;
        if (source < 0) memset(to, 0, bytes);
        else memcpy(to, of_row + source * step, bytes);
    }
    finish_poller(&w);
}
