#define REAL_BITS 64
#define LANES 1
#define TILE_VECS 2
#define ISA "scalar"
#define TABLE rnnfast_f64_scalar
#include "engine.h"
