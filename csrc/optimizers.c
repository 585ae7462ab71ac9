#include "optimizers.h"

#include <math.h>

void rnnfast_sgd_f32(float *p, const float *g, float *buffer, ptrdiff_t n, const double *options)
{
    const float momentum = (float)options[0], lr = (float)options[1];
    for (ptrdiff_t i = 0; i < n; i++) {
        float change = g[i];
        if (buffer) {
            change += buffer[i] * momentum;
            buffer[i] = change;
        }
        p[i] -= change * lr;
    }
}

void rnnfast_sgd_f64(double *p, const double *g, double *buffer, ptrdiff_t n, const double *options)
{
    const double momentum = options[0], lr = options[1];
    for (ptrdiff_t i = 0; i < n; i++) {
        double change = g[i];
        if (buffer) {
            change += buffer[i] * momentum;
            buffer[i] = change;
        }
        p[i] -= change * lr;
    }
}

void rnnfast_adam_f32(float *p, const float *g, float *m, float *v, ptrdiff_t n, const double *options)
{
    const float beta1 = (float)options[0], rest1 = (float)options[1], beta2 = (float)options[2];
    const float rest2 = (float)options[3], eps = (float)options[4], lr = (float)options[5];
    for (ptrdiff_t i = 0; i < n; i++) {
        m[i] = m[i] * beta1 + g[i] * rest1;
        v[i] = v[i] * beta2 + g[i] * rest2 * g[i];
        p[i] -= m[i] / (sqrtf(v[i]) + eps) * lr;
    }
}

void rnnfast_adam_f64(double *p, const double *g, double *m, double *v, ptrdiff_t n, const double *options)
{
    const double beta1 = options[0], rest1 = options[1], beta2 = options[2];
    const double rest2 = options[3], eps = options[4], lr = options[5];
    for (ptrdiff_t i = 0; i < n; i++) {
        m[i] = m[i] * beta1 + g[i] * rest1;
        v[i] = v[i] * beta2 + g[i] * rest2 * g[i];
        p[i] -= m[i] / (sqrt(v[i]) + eps) * lr;
    }
}
