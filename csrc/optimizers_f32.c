#define REAL_BITS 32
#define LANES 1
#define TABLE rnnfast_optimizers_f32
#include "optimizers.h"
