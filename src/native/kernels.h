// The native register machine: what Python hands over, and the instructions it may use.
//
// A program is a short list of instructions over registers; a register holds one number (float or double, the
// work type) per element of a block of about a thousand elements, so that all registers of a program stay in the
// first cache levels. The machine knows no merge method: programs are compiled from the value graph in Python.
//
// Everything here is plain C: no torch, numpy or Python headers, no global state, no exceptions, and every buffer
// belongs to the caller. Calls from several threads are independent.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

// Operands `a`, `b`, `c`: a register (>= 0) or number ~operand of the tile's table of numbers, unless stated.
// `slot` is the first entry that the instruction uses in the tile's `outputs` and `tallies`.
#define WS_OPCODES(X)                                                                                          \
    /* out = source a, decoded, less register b if b >= 0 (not load_float64's);                                \
       tallies: non-finite elements of the source, flat index of the first */                                  \
    X(load_float64) X(load_float32) X(load_float16) X(load_bfloat16) X(load_float8_e4m3fn) X(load_float8_e5m2) \
    /* out = number a; out = row number a of the element's row; out = what this program wrote to outputs[a] for it */\
    X(fill) X(fill_rows) X(fill_row_results)                                                                   \
    /* out = the number of the element's column; source a is a table in the work type,                         \
       integers[b ...]: elements of a matrix, its width */                                                     \
    X(fill_columns)                                                                                            \
    X(add) X(sub) X(mul) X(div) X(minimum) X(maximum)                                                          \
    /* out = first(a, b) second c, with two roundings */                                                       \
    X(add_add) X(add_mul) X(mul_add) X(mul_sub) X(mul_mul) X(div_add) X(div_sub)                               \
    X(lt) X(le) X(gt) X(ge) X(eq) X(and) X(or)                                                                 \
    X(neg) X(abs) X(sign) X(sqrt) X(exp) X(log) X(not)                                                         \
    /* out = register a, encoded to a narrower dtype and decoded again */                                      \
    X(round_float32) X(round_float16) X(round_bfloat16) X(round_float8_e4m3fn) X(round_float8_e5m2)            \
    /* out = a (register) ? b : c */                                                                           \
    X(where)                                                                                                   \
    /* out = uniform number of the stream with key words integers[a], integers[a + 1] */                       \
    X(uniform)                                                                                                 \
    /* out = |a| is above key integers[b], or equal to it at flat index <= integers[b + 1]; where                \
       integers[b + 2] >= 0 it must be equal with a lower rank, or that rank at such an index; [b + 3]: rank key */\
    X(above)                                                                                                   \
    /* out = register a where `above` says so, number c elsewhere */                                           \
    X(keep)                                                                                                    \
    /* out = rank of |a| in its row */                                                                         \
    X(row_rank)                                                                                                \
    /* outputs[slot]: one float64 per piece of the tile; c is the ordinal of the reduction in the program */   \
    X(total) X(dot) X(peak)                                                                                    \
    /* out = register a as doubles in a float program, for use by dot_wide alone: where a value is in many     \
       dot products, widening it once saves most of the work */                                                \
    X(widen) X(dot_wide)                                                                                       \
    /* outputs[slot]: one float64 per row of the tile */                                                       \
    X(row_total) X(row_dot) X(row_peak)                                                                        \
    /* outputs[slot]: for each run of the tile (what a piece and a matrix share), one float64 per column;      \
       integers[c ...]: elements of a matrix, its width, their least common multiple with a piece;             \
       out is the ordinal of the reduction */                                                                  \
    X(column_total) X(column_dot) X(column_peak)                                                               \
    /* outputs[slot]: 65536 uint64 counts, those above and below, 16 spare; low, shift = integers[b], [b + 1] */\
    X(histogram)                                                                                               \
    /* outputs[slot], [slot + 1]: uint64 keys, int64 flat indices; low, high, limit = integers[b ...];         \
       tallies: keys inside, keys above */                                                                     \
    X(collect)                                                                                                 \
    /* as collect, of elements of one key, with ranks for keys; key, low, high, limit, rank key = integers[b ...]; \
       tallies: ranks inside, ranks below; larger keys, all of the key */                                      \
    X(equal)                                                                                                   \
    /* outputs[slot] = register a, encoded; tallies as for load */                                             \
    X(store_float64) X(store_float32) X(store_float16) X(store_bfloat16) X(store_float8_e4m3fn)                \
    X(store_float8_e5m2)

extern "C" {

struct ws_instruction {
    int32_t op, out, a, b, c, slot;
};

struct ws_program {
    const ws_instruction* code;
    int64_t length;
    int64_t registers;
    int64_t reductions;  // how many sums and peaks of pieces and columns it has
    int64_t is_double;   // work type: 0 float, 1 double
    int64_t block;       // elements per block; a multiple of 32
};

struct ws_tile {
    const void* const* sources;  // raw little-endian elements of this tile, at any alignment
    void* const* outputs;
    int64_t (*tallies)[2];  // zeroed by the caller
    const double* numbers;
    const double* const* row_numbers;  // per table, one number per row of the tile
    const int64_t* integers;
    int64_t start;       // flat index of the first element; starts a piece
    int64_t count;
    int64_t row_length;  // > 0: blocks are whole rows, and start and count are multiples of it; 0: rows do not matter
    int64_t piece;
};

// Runs a program over one tile. `level` is the instruction set, at most ws_best_level().
// Returns 0, or 1 when there is no memory for the registers.
int ws_run(int level, const ws_program* program, const ws_tile* tile);

// The best instruction set of this processor: 0 baseline, 1 AVX2, 2 AVX-512.
int ws_best_level(void);

// Names of the opcodes in order, separated by spaces; Python takes its numbers from here.
const char* ws_opcodes(void);

// Puts row rows[i] of `size` bytes, counted from byte `offset` of a file, at out + i * size; neighbours are read at once
// and negative rows are left as they are. Returns `count`, or the position of the first row that could not be read.
int64_t ws_read_rows(int descriptor, int64_t offset, int64_t size, const int64_t* rows, int64_t count, char* out);
}

namespace weightsmith {

enum Opcode : int32_t {
#define WS_ENUMERATE(name) op_##name,
    WS_OPCODES(WS_ENUMERATE)
#undef WS_ENUMERATE
};

constexpr int64_t lane_count = 32;     // accumulators of a sum: element i of a piece goes to lane i % 32
constexpr int64_t histogram_bins = 65536, histogram_spare = 16;

// The same interpreter, compiled once per instruction set (see interpreter.h).
namespace baseline {
int run(const ws_program& program, const ws_tile& tile);
}
namespace avx2 {
int run(const ws_program& program, const ws_tile& tile);
}
namespace avx512 {
int run(const ws_program& program, const ws_tile& tile);
}

}  // namespace weightsmith

// Several instruction sets in one library need GCC's pragma; elsewhere the baseline (on ARM: NEON) is all there is.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WS_HAS_LEVELS 1
#include <immintrin.h>
#else
#define WS_HAS_LEVELS 0
#endif

#if defined(__clang__)
#define WS_VECTOR_LOOP _Pragma("clang loop vectorize(assume_safety)")
#define WS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define WS_VECTOR_LOOP _Pragma("GCC ivdep")
#define WS_UNROLL _Pragma("GCC unroll 16")
#endif
