/* Optimizer updates of contiguous elements, which rnnfast/_core.pyx calls for whole models.
 *
 * A function updates n elements of a parameter and of its moments in place, from the gradient g. Products and sums are
 * rounded one by one, as NumPy rounds them. The options, double for both types, are those of _core.optimize. Arrays may
 * alias as a whole only. */
#ifndef RNNFAST_OPTIMIZERS_H
#define RNNFAST_OPTIMIZERS_H

#include <stddef.h>

/* options: momentum, lr. buffer may be NULL. */
void rnnfast_sgd_f32(float *p, const float *g, float *buffer, ptrdiff_t n, const double *options);
void rnnfast_sgd_f64(double *p, const double *g, double *buffer, ptrdiff_t n, const double *options);

/* options: beta1, 1 - beta1, beta2, 1 - beta2, eps, lr. */
void rnnfast_adam_f32(float *p, const float *g, float *m, float *v, ptrdiff_t n, const double *options);
void rnnfast_adam_f64(double *p, const double *g, double *m, double *v, ptrdiff_t n, const double *options);

#endif
