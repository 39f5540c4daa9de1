// The interpreter for processors with AVX2.
#include "kernels.h"

#if WS_HAS_LEVELS
#pragma GCC target("avx2")
#define WS_LEVEL avx2
#define WS_WIDTH 4
#include "interpreter.h"
#endif
