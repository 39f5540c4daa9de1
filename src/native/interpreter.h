// The interpreter: runs a program block by block. Compiled once per instruction set, in the namespace
// WS_LEVEL, with vectors of WS_WIDTH float64 numbers.
//
// Each instruction is one tight loop over a block, which the compiler turns into vector code; deciding which loop
// comes next costs a few nanoseconds per thousand elements. Multiply and add are never fused (-ffp-contract=off).

namespace weightsmith {
namespace WS_LEVEL {

#include "convert.h"
#include "exponential.h"
#include "reduce.h"

#include "rank.h"

// One call: its registers and the memory for steps inside an instruction.
template <class T>
class Machine {
   public:
    Machine(const ws_program& program, const ws_tile& tile) : program_(program), tile_(tile) {
        block_ = program.block;
        if (tile.row_length > 0) {
            const int64_t rows = block_ / tile.row_length;
            block_ = (rows > 0 ? rows : 1) * tile.row_length;
        }
        if (block_ > tile.count) block_ = tile.count;
    }

    ~Machine() { std::free(memory_); }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    bool allocate() {
        // Registers that lie exactly 4 KiB apart would look alike to the processor's store buffer.
        const int64_t size = has(op_widen) ? 8 : int64_t(sizeof(T));
        stride_ = (block_ * size + 63) / 64 * 64 + 64;
        const int64_t staging = (block_ * 8 + 63) / 64 * 64 + 64;
        const int64_t lanes = program_.reductions * lane_count * int64_t(sizeof(double));
        const int64_t ranks = has(op_row_rank) ? (2 * tile_.row_length + 16) * int64_t(sizeof(RankItem<T>)) : 0;
        memory_ = std::malloc(size_t(program_.registers * stride_ + staging + lanes + ranks + 64));
        if (!memory_) return false;
        char* at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_) + 63) & ~uintptr_t(63));
        registers_ = at;
        staging_ = at += program_.registers * stride_;
        lanes_ = reinterpret_cast<double*>(at += staging);
        ranks_ = reinterpret_cast<RankItem<T>*>(at += lanes);
        return true;
    }

    void run() {
        for (at_ = 0; at_ < tile_.count; at_ += block_) {
            n_ = tile_.count - at_ < block_ ? tile_.count - at_ : block_;
            for (int64_t i = 0; i < program_.length; ++i) execute(program_.code[i]);
        }
    }

   private:
    typedef const ws_instruction& I;
    typedef WideOf<T> V;
    typedef const V& W;

    bool has(int32_t op) const {
        for (int64_t i = 0; i < program_.length; ++i)
            if (program_.code[i].op == op) return true;
        return false;
    }

    T* reg(int32_t index) const { return reinterpret_cast<T*>(registers_ + index * stride_); }
    T number(int32_t operand) const { return T(tile_.numbers[~operand]); }
    double* lanes(int32_t ordinal) const { return lanes_ + ordinal * lane_count; }
    template <class P>
    P* output(int32_t slot) const {
        return static_cast<P*>(tile_.outputs[slot]);
    }

    // Elementwise -------------------------------------------------------------------------------------------

    template <class F>
    inline void unary(I in, F f) const {
        T* out = reg(in.out);
        const T* a = reg(in.a);
        WS_VECTOR_LOOP
        for (int64_t i = 0; i < n_; ++i) out[i] = f(a[i]);
    }

    template <class F>
    inline void binary(I in, F f) const {
        T* out = reg(in.out);
        if (in.b < 0) {
            const T* a = reg(in.a);
            const T b = number(in.b);
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) out[i] = f(a[i], b);
        } else if (in.a < 0) {
            const T a = number(in.a);
            const T* b = reg(in.b);
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) out[i] = f(a, b[i]);
        } else {
            const T* a = reg(in.a);
            const T* b = reg(in.b);
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) out[i] = f(a[i], b[i]);
        }
    }

    // Where an operand's vectors are: those of a register one after the other, or a number's one, spread, again and again.
    const V* vectors(int32_t operand, V& spread) const {
        if (operand >= 0) return reinterpret_cast<const V*>(reg(operand));
        spread = number(operand) - V{};  // less zero, because -0.0 stays -0.0
        return &spread;
    }

    // Registers end with room for a whole vector.
    template <class F>
    inline void ternary(I in, F f) const {
        V spread[3];
        V* out = reinterpret_cast<V*>(reg(in.out));
        const V *a = vectors(in.a, spread[0]), *b = vectors(in.b, spread[1]), *c = vectors(in.c, spread[2]);
        const int64_t step_a = in.a >= 0, step_b = in.b >= 0, step_c = in.c >= 0;
        const int64_t count = (n_ * int64_t(sizeof(T)) + int64_t(sizeof(V)) - 1) / int64_t(sizeof(V));
        WS_UNROLL
        for (int64_t i = 0; i < count; ++i) f(out[i], a[i * step_a], b[i * step_b], c[i * step_c]);
    }

    void choose(I in) const {
        T* out = reg(in.out);
        const T* mask = reg(in.a);
        const T* yes = in.b < 0 ? nullptr : reg(in.b);
        const T* no = in.c < 0 ? nullptr : reg(in.c);
        const T one = yes ? T(0) : number(in.b);
        const T other = no ? T(0) : number(in.c);
        if (yes && no) {
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) {
                const T y = yes[i], z = no[i];
                out[i] = mask[i] != 0 ? y : z;
            }
        } else if (yes) {
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) {
                const T y = yes[i];
                out[i] = mask[i] != 0 ? y : other;
            }
        } else if (no) {
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) {
                const T z = no[i];
                out[i] = mask[i] != 0 ? one : z;
            }
        } else {
            WS_VECTOR_LOOP
            for (int64_t i = 0; i < n_; ++i) out[i] = mask[i] != 0 ? one : other;
        }
    }

    void fill(I in) const {
        T* out = reg(in.out);
        const T x = number(in.a);
        for (int64_t i = 0; i < n_; ++i) out[i] = x;
    }

    void fill_rows(I in) const {
        T* out = reg(in.out);
        const double* rows = tile_.row_numbers[in.a] + at_ / tile_.row_length;
        for (int64_t i = 0; i < n_; i += tile_.row_length) {
            const T x = T(*rows++);
            for (int64_t j = 0; j < tile_.row_length; ++j) out[i + j] = x;
        }
    }

    void fill_row_results(I in) const {
        T* out = reg(in.out);
        const double* rows = output<double>(in.a) + at_ / tile_.row_length;
        for (int64_t i = 0; i < n_; i += tile_.row_length) {
            const T x = T(*rows++);
            for (int64_t j = 0; j < tile_.row_length; ++j) out[i + j] = x;
        }
    }

    void fill_columns(I in) const {
        T* out = reg(in.out);
        const T* table = static_cast<const T*>(tile_.sources[in.a]);
        const int64_t elements = tile_.integers[in.b], width = tile_.integers[in.b + 1];
        for (int64_t i = 0; i < n_;) {
            const int64_t flat = tile_.start + at_ + i;
            const int64_t inside = flat % elements, column = inside % width;
            const T* numbers = table + flat / elements * width + column;
            const int64_t left = width == 1 ? elements - inside : width - column;
            const int64_t take = n_ - i < left ? n_ - i : left;
            if (width == 1) {
                for (int64_t j = 0; j < take; ++j) out[i + j] = *numbers;
            } else {
                std::memcpy(out + i, numbers, size_t(take) * sizeof(T));
            }
            i += take;
        }
    }

    // See random.py for the generator.
    void uniform(I in) const {
        T* out = reg(in.out);
        const uint32_t key0 = uint32_t(tile_.integers[in.a]);
        const uint32_t key1 = uint32_t(tile_.integers[in.a + 1]);
        const uint64_t first = uint64_t(tile_.start + at_);
        int64_t i = 0;
        while (i < n_) {  // a second turn only where the block crosses a multiple of 2^32
            const uint32_t low = uint32_t(first + uint64_t(i));
            const uint32_t second = key1 + uint32_t((first + uint64_t(i)) >> 32) * 0x9E3779B9u;
            const int64_t to_wrap = int64_t((uint64_t(1) << 32) - low);
            const int64_t stop = n_ - i < to_wrap ? n_ : i + to_wrap;
            const uint32_t origin = low - uint32_t(i) + key0;
            WS_VECTOR_LOOP
            for (int64_t j = i; j < stop; ++j) {
                uint32_t x = origin + uint32_t(j);
                x ^= x >> 17, x *= 0xED5AD4BBu, x ^= x >> 11;
                x += second;
                x *= 0xAC4C1B51u, x ^= x >> 15, x *= 0x31848BABu, x ^= x >> 14;
                out[j] = T(int32_t(x >> 8)) * T(1.0 / (1 << 24));
            }
            i = stop;
        }
    }

    void above(I in) const {
        select(in, T(0), [](T) { return T(1); });
    }

    void keep(I in) const {
        select(in, number(in.c), [](T x) { return x; });
    }

    // What `yes` makes of the elements that a threshold selects, and `no` elsewhere. The registers may be one.
    template <class Yes>
    void select(I in, T no, Yes yes) const {
        const T* x = reg(in.a);
        T* out = reg(in.out);
        const int64_t* cut = tile_.integers + in.b;
        const int64_t key = cut[0], last = cut[1], rank = cut[2];
        const int64_t first = tile_.start + at_;
        if (rank >= 0) return select_ranked(x, out, key, Ranked{uint64_t(cut[3]), rank, last}, no, yes);
        const int64_t tied = last < first ? 0 : last - first + 1 < n_ ? last - first + 1 : n_;
        select_loop(x, out, 0, tied, key - 1, no, yes);
        select_loop(x, out, tied, n_, key, no, yes);
    }

    // A threshold of -1 lets every key pass, so `>=` needs no loop of its own.
    template <class Yes>
    void select_loop(const T* x, T* out, int64_t from, int64_t to, int64_t threshold, T no, Yes yes) const {
        typedef typename KeyOf<T>::type Key;
        const Key bound = Key(threshold);
        WS_VECTOR_LOOP
        for (int64_t i = from; i < to; ++i) {
            const T chosen = yes(x[i]);
            out[i] = key_at(x, i) > bound ? chosen : no;
        }
    }

    struct Ranked {
        uint64_t rank_key;
        int64_t rank, last;
    };

    // Ranks are worked out for equals alone.
    template <class Yes>
    void select_ranked(const T* x, T* out, int64_t key, Ranked bound, T no, Yes yes) const {
        typedef typename KeyOf<T>::type Key;
        const Key equal = Key(key);
        // A member could be what a flag is written to, and no loop whose end may change is vectorised.
        const int64_t n = n_;
        uint8_t* flags = reinterpret_cast<uint8_t*>(staging_);
        WS_VECTOR_LOOP
        for (int64_t i = 0; i < n; ++i) {
            const Key own = key_at(x, i);
            const T chosen = yes(x[i]);
            flags[i] = own == equal ? 1 : 0;
            out[i] = own >= equal ? chosen : no;
        }
        const int64_t first = tile_.start + at_;
        each_raised(flags, n, [&](int64_t i) {
            const int64_t rank = tie_rank(bound.rank_key, first + i);
            const bool is_taken = (rank < bound.rank) | ((rank == bound.rank) & (first + i <= bound.last));
            // A choice would be a jump that cannot be foreseen.
            const T either[2] = {no, out[i]};
            out[i] = either[is_taken];
            return true;
        });
    }

    void row_rank(I in) const {
        const T* x = reg(in.a);
        T* out = reg(in.out);
        for (int64_t i = 0; i < n_; i += tile_.row_length) rank_row<T>(x + i, out + i, tile_.row_length, ranks_);
    }

    // Stored formats ----------------------------------------------------------------------------------------

    // A float register is decoded into directly; doubles go through a float block.
    float* floats(T* values) const {
        return sizeof(T) == 4 ? reinterpret_cast<float*>(values) : reinterpret_cast<float*>(staging_);
    }

    // This block of a source. The next one is asked for now, because a tile is larger than the caches that answer fast.
    const char* encoded(int32_t source, int64_t size) const {
        const char* from = static_cast<const char*>(tile_.sources[source]) + at_ * size;
        for (int64_t line = 0; line < n_ * size; line += 64) __builtin_prefetch(from + n_ * size + line);
        return from;
    }

    template <class Format>
    inline void load(I in) const {
        const char* from = encoded(in.a, int64_t(sizeof(typename Format::stored)));
        T* out = reg(in.out);
        float* block = floats(out);
        const T* less = in.b < 0 ? nullptr : reg(in.b);
        const bool is_finite = less && sizeof(T) == 4 ? decode<Format>(from, block, n_, Minus{floats(reg(in.b))})
                                                      : decode<Format>(from, block, n_, Itself{});
        if (!is_finite) tally_nonfinite<Format>(from, n_, tile_.start + at_, tile_.tallies[in.slot]);
        if (sizeof(T) == 4) return;
        WS_VECTOR_LOOP
        for (int64_t i = 0; i < n_; ++i) out[i] = less ? T(block[i]) - less[i] : T(block[i]);
    }

    void load_float64(I in) const {
        if (sizeof(T) != 8) return;  // a float64 source makes the work type double
        const char* from = encoded(in.a, 8);
        std::memcpy(reg(in.out), from, size_t(n_) * 8);
        if (!encode64(reinterpret_cast<const double*>(reg(in.out)), staging_, n_))
            tally_nonfinite<Float64>(from, n_, tile_.start + at_, tile_.tallies[in.slot]);
    }

    const float* narrowed(int32_t index) const {
        float* block = floats(reg(index));
        if (sizeof(T) == 8) narrow(reinterpret_cast<const double*>(reg(index)), block, n_);
        return block;
    }

    template <class Format>
    inline void round(I in) const {
        const float* from = narrowed(in.a);
        float* block = floats(reg(in.out));
        round_to<Format>(from, block, n_);
        if (sizeof(T) == 8) widen(block, reinterpret_cast<double*>(reg(in.out)), n_);
    }

    template <class Format>
    inline void store(I in) const {
        char* to = output<char>(in.slot) + at_ * int64_t(sizeof(typename Format::stored));
        if (!encode<Format>(narrowed(in.a), to, n_))
            tally_nonfinite<Format>(to, n_, tile_.start + at_, tile_.tallies[in.slot]);
    }

    void store_float64(I in) const {
        char* to = output<char>(in.slot) + at_ * 8;
        const double* from = reinterpret_cast<const double*>(reg(in.a));
        if (sizeof(T) == 4) {
            widen(reinterpret_cast<const float*>(reg(in.a)), reinterpret_cast<double*>(staging_), n_);
            from = reinterpret_cast<const double*>(staging_);
        }
        if (!encode64(from, to, n_)) tally_nonfinite<Float64>(to, n_, tile_.start + at_, tile_.tallies[in.slot]);
    }

    // Reductions --------------------------------------------------------------------------------------------

    template <class Rule>
    inline void reduce(I in, int32_t second) const {
        reduce_pieces<Rule>(lanes(in.c), reg(in.a), reg(second), n_, at_, tile_, output<double>(in.slot));
    }

    // An output register that is not the input's: doubles take twice the room.
    void widen_register(I in) const {
        widen(reinterpret_cast<const float*>(reg(in.a)), reinterpret_cast<double*>(reg(in.out)), n_);
    }

    void dot_wide(I in) const {
        reduce_pieces<Dot>(lanes(in.c), reinterpret_cast<const double*>(reg(in.a)),
                           reinterpret_cast<const double*>(reg(in.b)), n_, at_, tile_, output<double>(in.slot));
    }

    template <class Rule>
    inline void reduce_row(I in, int32_t second) const {
        reduce_rows<Rule>(reg(in.a), reg(second), n_, at_, tile_.row_length, output<double>(in.slot));
    }

    template <class Rule>
    inline void reduce_column(I in, int32_t second) const {
        reduce_columns<Rule>(lanes(in.out), reg(in.a), reg(second), n_, tile_.start + at_, tile_,
                             tile_.integers + in.c, output<double>(in.slot));
    }

    void count_bins(I in) const {
        const int64_t* request = tile_.integers + in.b;
        histogram(reg(in.a), n_, request[0], request[1], output<uint64_t>(in.slot),
                  reinterpret_cast<uint32_t*>(staging_));
    }

    void collect_keys(I in) const {
        const int64_t* request = tile_.integers + in.b;
        collect(reg(in.a), n_, tile_.start + at_, Bracket{request[0], request[1], request[2]},
                output<uint64_t>(in.slot), output<int64_t>(in.slot + 1), tile_.tallies[in.slot],
                reinterpret_cast<uint8_t*>(staging_));
    }

    void collect_equal_keys(I in) const {
        const int64_t* request = tile_.integers + in.b;
        collect_equal(reg(in.a), n_, tile_.start + at_, request[0], Bracket{request[1], request[2], request[3]},
                      uint64_t(request[4]), output<uint64_t>(in.slot), output<int64_t>(in.slot + 1),
                      tile_.tallies[in.slot], reinterpret_cast<uint8_t*>(staging_));
    }

    void execute(I in) const {
        switch (in.op) {
            case op_load_float64: return load_float64(in);
            case op_load_float32: return load<Float32>(in);
            case op_load_float16: return load<Float16>(in);
            case op_load_bfloat16: return load<BFloat16>(in);
            case op_load_float8_e4m3fn: return load<Float8E4M3>(in);
            case op_load_float8_e5m2: return load<Float8E5M2>(in);
            case op_fill: return fill(in);
            case op_fill_rows: return fill_rows(in);
            case op_fill_row_results: return fill_row_results(in);
            case op_fill_columns: return fill_columns(in);
            case op_add: return binary(in, [](T x, T y) { return x + y; });
            case op_sub: return binary(in, [](T x, T y) { return x - y; });
            case op_mul: return binary(in, [](T x, T y) { return x * y; });
            case op_div: return binary(in, [](T x, T y) { return x / y; });
            // Both operations round: nothing is fused into one rounding.
            case op_add_add: return ternary(in, [](V& to, W x, W y, W z) { to = (x + y) + z; });
            case op_add_mul: return ternary(in, [](V& to, W x, W y, W z) { to = (x + y) * z; });
            case op_mul_add: return ternary(in, [](V& to, W x, W y, W z) { to = (x * y) + z; });
            case op_mul_sub: return ternary(in, [](V& to, W x, W y, W z) { to = (x * y) - z; });
            case op_mul_mul: return ternary(in, [](V& to, W x, W y, W z) { to = (x * y) * z; });
            case op_div_add: return ternary(in, [](V& to, W x, W y, W z) { to = (x / y) + z; });
            case op_div_sub: return ternary(in, [](V& to, W x, W y, W z) { to = (x / y) - z; });
            // NaN wins: a comparison with NaN fails, and x != x picks it.
            case op_minimum: return binary(in, [](T x, T y) { return (x < y) | (x != x) ? x : y; });
            case op_maximum: return binary(in, [](T x, T y) { return (x > y) | (x != x) ? x : y; });
            case op_lt: return binary(in, [](T x, T y) { return x < y ? T(1) : T(0); });
            case op_le: return binary(in, [](T x, T y) { return x <= y ? T(1) : T(0); });
            case op_gt: return binary(in, [](T x, T y) { return x > y ? T(1) : T(0); });
            case op_ge: return binary(in, [](T x, T y) { return x >= y ? T(1) : T(0); });
            case op_eq: return binary(in, [](T x, T y) { return x == y ? T(1) : T(0); });
            case op_and: return binary(in, [](T x, T y) { return (x != 0) & (y != 0) ? T(1) : T(0); });
            case op_or: return binary(in, [](T x, T y) { return (x != 0) | (y != 0) ? T(1) : T(0); });
            case op_neg: return unary(in, [](T x) { return -x; });
            case op_abs: return unary(in, [](T x) { return std::fabs(x); });
            case op_sign: return unary(in, [](T x) { return (x > 0 ? T(1) : T(0)) - (x < 0 ? T(1) : T(0)); });
            case op_sqrt: return unary(in, [](T x) { return std::sqrt(x); });
            // In double and rounded once, so that float results do not depend on whose library computes them.
            case op_exp: return exponential(reg(in.a), reg(in.out), n_);
            case op_log: return logarithm(reg(in.a), reg(in.out), n_);
            case op_not: return unary(in, [](T x) { return x != 0 ? T(0) : T(1); });
            case op_round_float32: return round<Float32>(in);
            case op_round_float16: return round<Float16>(in);
            case op_round_bfloat16: return round<BFloat16>(in);
            case op_round_float8_e4m3fn: return round<Float8E4M3>(in);
            case op_round_float8_e5m2: return round<Float8E5M2>(in);
            case op_where: return choose(in);
            case op_uniform: return uniform(in);
            case op_above: return above(in);
            case op_keep: return keep(in);
            case op_row_rank: return row_rank(in);
            case op_total: return reduce<Total>(in, in.a);
            case op_dot: return reduce<Dot>(in, in.b);
            case op_peak: return reduce<Peak>(in, in.a);
            case op_widen: return widen_register(in);
            case op_dot_wide: return dot_wide(in);
            case op_row_total: return reduce_row<Total>(in, in.a);
            case op_row_dot: return reduce_row<Dot>(in, in.b);
            case op_row_peak: return reduce_row<Peak>(in, in.a);
            case op_column_total: return reduce_column<Total>(in, in.a);
            case op_column_dot: return reduce_column<Dot>(in, in.b);
            case op_column_peak: return reduce_column<Peak>(in, in.a);
            case op_histogram: return count_bins(in);
            case op_collect: return collect_keys(in);
            case op_equal: return collect_equal_keys(in);
            case op_store_float64: return store_float64(in);
            case op_store_float32: return store<Float32>(in);
            case op_store_float16: return store<Float16>(in);
            case op_store_bfloat16: return store<BFloat16>(in);
            case op_store_float8_e4m3fn: return store<Float8E4M3>(in);
            case op_store_float8_e5m2: return store<Float8E5M2>(in);
        }
    }

    const ws_program& program_;
    const ws_tile& tile_;
    int64_t block_ = 0, stride_ = 0, at_ = 0, n_ = 0;
    void* memory_ = nullptr;
    char* registers_ = nullptr;
    char* staging_ = nullptr;
    double* lanes_ = nullptr;
    RankItem<T>* ranks_ = nullptr;
};

template <class T>
static int run_as(const ws_program& program, const ws_tile& tile) {
    if (tile.count <= 0) return 0;
    Machine<T> machine(program, tile);
    if (!machine.allocate()) return 1;
    machine.run();
    return 0;
}

int run(const ws_program& program, const ws_tile& tile) {
    return program.is_double ? run_as<double>(program, tile) : run_as<float>(program, tile);
}

}  // namespace WS_LEVEL
}  // namespace weightsmith
