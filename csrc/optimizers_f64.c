#define REAL_BITS 64
#define LANES 1
#define TABLE rnnfast_optimizers_f64
#include "optimizers.h"
