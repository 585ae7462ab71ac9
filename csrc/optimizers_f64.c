#define REAL_BITS 64
#define LANES 1
#define TABLE rnnfast_optimizers_f64
#define ADD_SCALED rnnfast_add_scaled_f64
#include "optimizers.h"
#include "traces.h"
