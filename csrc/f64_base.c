#define REAL_BITS 64
#define LANES 2
#define TILE_VECS 2
#define ISA "base"
#define TABLE rnnfast_f64_base
#include "engine.h"
