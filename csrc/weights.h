/* Packing the parameters of a stack: all weights in the order in which products read them, and the biases summed.
 *
 * Layout: lay_out_packed() and lay_out_packed_back() of layout.h. Gates go into the order of the cell's columns.
 * Error: one rounding, in bias_ih + bias_hh.
 */
#ifndef RNNFAST_WEIGHTS_H
#define RNNFAST_WEIGHTS_H

#include "schedule.h"

/* Part k of n of a layer and direction. The members of a form that is not wanted are NULL. */
static void pack_direction(const shape *s, ptrdiff_t K, const void *const *parameters, const weights *packed, const weights *back, int k,
                           int n, poller *w)
{
    const REAL *w_ih = parameters[0], *w_hh = parameters[1], *b_ih = parameters[2], *b_hh = parameters[3], *w_hr = parameters[4];
    const cell *cell = s->cell;
    ptrdiff_t H = s->H, columns = s->gates * H;
    size_t extra_bytes = (size_t)s->extra * sizeof(REAL);
    if (packed->w_ih && k == 0) pack_padding(packed->w_ih, K, columns);
    for (int b = 0; b < s->gates; b++) pack_weight(packed->w_ih, back->w_ih, K, columns, b * H, H, w_ih + cell->ih[b] * H * K, k, n, w);
    for (int i = 0; i < s->stages; i++) {
        const stage *g = &cell->stage[i];
        ptrdiff_t source = stage_source(s, g), count = stage_columns(s, g);
        const REAL *from = g->count ? w_hh + cell->hh[g->first] * H * source : w_hr;
        if (packed->w[i] && k == 0) pack_padding(packed->w[i], source, count);
        pack_weight(packed->w[i], back->w[i], source, count, 0, count, from, k, n, w);
    }
    for (ptrdiff_t j = 0; packed->bias && k == 0 && j < s->gates_row; j++) {
        int b = (int)(j / H);
        int ih = b < s->columns && b_ih ? cell->ih[b] : -1, hh = b < s->columns && b_hh ? cell->hh[b] : -1;
        packed->bias[j] = (ih < 0 ? 0 : b_ih[ih * H + j % H]) + (hh < 0 ? 0 : b_hh[hh * H + j % H]);
    }
    if (packed->extra && k == 0) memcpy(packed->extra, parameters[5], extra_bytes);
    if (back->extra && k == 0) memcpy(back->extra, parameters[5], extra_bytes);
}

static void pack_run(void *argument, int k, int n)
{
    call *c = argument;
    const shape *s = &c->s;
    worker w;
    join(&w, c, k, n);
    for (ptrdiff_t layer = 0; layer < s->L; layer++)
        for (ptrdiff_t d = 0; d < s->D; d++) {
            weights packed = {0}, back = {0};
            if (c->packed.base) packed = place_packed(&c->packed, s, layer, d, lay_out_packed);
            if (c->packed_back.base) back = place_packed(&c->packed_back, s, layer, d, lay_out_packed_back);
            pack_direction(s, input_width(s, layer), c->parameters + RNNFAST_KINDS * (layer * s->D + d), &packed, &back, k, n, w.poller);
        }
}

static void pack(const rnnfast_stack *stack, const void *const *parameters, void *packed, void *packed_back, int threads, rnnfast_poll poll)
{
    call c;
    c.s = shape_of(stack);
    c.stopped = 0;
    c.parameters = parameters;
    c.packed = count_packed(&c.s, packed, lay_out_packed);
    c.packed_back = count_packed(&c.s, packed_back, lay_out_packed_back);
    ptrdiff_t elements = packed_offset(&c.packed, &c.s, c.s.L, 0);
    start(&c, threads, (double)MOVE_WORK * elements, &poll);
    run(&c, pack_run);
    finish(&c);
    remove_red_zones(packed, elements);
    remove_red_zones(packed_back, packed_offset(&c.packed_back, &c.s, c.s.L, 0));
}

#endif
