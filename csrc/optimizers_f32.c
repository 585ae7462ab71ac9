#define REAL_BITS 32
#define LANES 1
#define TABLE rnnfast_optimizers_f32
#define ADD_SCALED rnnfast_add_scaled_f32
#include "optimizers.h"
#include "traces.h"
