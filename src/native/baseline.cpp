// The interpreter for the compiler's own target: SSE2 on x86-64, NEON on 64-bit ARM.
#include "kernels.h"

#define WS_LEVEL baseline
#define WS_WIDTH 2
#include "interpreter.h"
