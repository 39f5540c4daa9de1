// The interpreter for processors with AVX-512 (as in x86-64-v4).
#include "kernels.h"

#if WS_HAS_LEVELS
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define WS_LEVEL avx512
#define WS_WIDTH 8
#include "interpreter.h"
#endif
