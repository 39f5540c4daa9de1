// Sums, peaks and order statistics of a block. Included by interpreter.h inside its namespace.
//
// A sum has 32 float64 lanes; element i of its range goes to lane i % 32 and the lanes are folded in a fixed tree.
// So the result depends on the range alone - not on blocks, tiles, threads or the instruction set.

// Lanes are kept in vectors of the instruction set's own width: wider ones would be spilled to memory piece by piece.
typedef double __attribute__((vector_size(WS_WIDTH * 8), aligned(8), may_alias)) wide_double;
typedef float __attribute__((vector_size(WS_WIDTH * 4), aligned(4), may_alias)) wide_float;
template <class T>
using WideOf __attribute__((vector_size(WS_WIDTH * 8), may_alias)) = T;
constexpr int lane_vectors = int(lane_count) / WS_WIDTH;

// Through pointers, because copies by memcpy may go over the stack in halves.
static inline void load_wide(const double* x, wide_double& to) { to = *reinterpret_cast<const wide_double*>(x); }
static inline void load_wide(const float* x, wide_double& to) {
    to = __builtin_convertvector(*reinterpret_cast<const wide_float*>(x), wide_double);
}

struct Total {
    static constexpr double start = 0.0;
    template <class V>
    static inline V step(V lane, V x, V) { return lane + x; }
};

struct Dot {
    static constexpr double start = 0.0;
    template <class V>
    static inline V step(V lane, V x, V y) { return lane + x * y; }
};

// NaN wins, and once in a lane it stays: both comparisons with it are false for ordinary x.
struct Peak {
    static constexpr double start = -HUGE_VAL;
    template <class V>
    static inline V step(V lane, V x, V) { return (x > lane) | (x != x) ? x : lane; }
};

// The same numbers in float lanes, of which a vector holds twice as many: a largest float needs no double.
typedef float __attribute__((vector_size(WS_WIDTH * 8), aligned(4), may_alias)) full_float;
constexpr int float_width = 2 * WS_WIDTH, float_vectors = int(lane_count) / float_width;

static inline int64_t peaks_of_floats(double* lanes, const float* x, int64_t n, int64_t i) {
    float kept[lane_count];
    for (int64_t k = 0; k < lane_count; ++k) kept[k] = float(lanes[k]);
    full_float peak[float_vectors];
    WS_UNROLL
    for (int k = 0; k < float_vectors; ++k) peak[k] = *reinterpret_cast<const full_float*>(kept + float_width * k);
    for (; i + lane_count <= n; i += lane_count) {
        WS_UNROLL
        for (int k = 0; k < float_vectors; ++k) {
            const full_float a = *reinterpret_cast<const full_float*>(x + i + float_width * k);
            peak[k] = Peak::step<full_float>(peak[k], a, a);
        }
    }
    WS_UNROLL
    for (int k = 0; k < float_vectors; ++k) *reinterpret_cast<full_float*>(kept + float_width * k) = peak[k];
    for (int64_t k = 0; k < lane_count; ++k) lanes[k] = double(kept[k]);
    return i;
}

// Adds n elements to the lanes; the first goes to lane `phase`.
template <class Rule, class T>
static inline void accumulate(double* lanes, const T* x, const T* y, int64_t n, int64_t phase) {
    int64_t i = 0;
    for (; i < n && phase % lane_count; ++i, ++phase)
        lanes[phase % lane_count] = Rule::template step<double>(lanes[phase % lane_count], x[i], y[i]);
    if constexpr (std::is_same<Rule, Peak>::value && sizeof(T) == 4) {
        if (i + lane_count <= n) i = peaks_of_floats(lanes, x, n, i);
    } else if (i + lane_count <= n) {
        wide_double sum[lane_vectors], a, b;
        WS_UNROLL
        for (int k = 0; k < lane_vectors; ++k) load_wide(lanes + WS_WIDTH * k, sum[k]);
        for (; i + lane_count <= n; i += lane_count) {
            WS_UNROLL
            for (int k = 0; k < lane_vectors; ++k) {
                load_wide(x + i + WS_WIDTH * k, a);
                load_wide(y + i + WS_WIDTH * k, b);
                sum[k] = Rule::template step<wide_double>(sum[k], a, b);
            }
        }
        WS_UNROLL
        for (int k = 0; k < lane_vectors; ++k) *reinterpret_cast<wide_double*>(lanes + WS_WIDTH * k) = sum[k];
    }
    for (int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] = Rule::template step<double>(lanes[lane], x[i], y[i]);
}

template <class Rule>
static inline void reset(double* lanes) {
    for (int64_t i = 0; i < lane_count; ++i) lanes[i] = Rule::start;
}

// For sums the second operand is 1, so that a dot product's fold is the sum of its lanes.
template <class Rule>
static inline double fold(double* lanes) {
    for (int64_t half = lane_count / 2; half; half /= 2)
        for (int64_t i = 0; i < half; ++i)
            lanes[i] = Rule::template step<double>(lanes[i], lanes[i + half], 1.0);
    return lanes[0];
}

// One partial per piece of the tile. `at` is the block's offset in the tile, which starts a piece.
template <class Rule, class T>
static void reduce_pieces(double* lanes, const T* x, const T* y, int64_t n, int64_t at, const ws_tile& tile,
                          double* partials) {
    while (n > 0) {
        const int64_t inside = at % tile.piece;
        const int64_t left = tile.piece - inside;
        const int64_t take = n < left ? n : left;
        if (inside == 0) reset<Rule>(lanes);
        accumulate<Rule>(lanes, x, y, take, inside);
        if (take == left || at + take == tile.count) partials[at / tile.piece] = fold<Rule>(lanes);
        x += take, y += take, n -= take, at += take;
    }
}

// One number per row; the block is whole rows.
template <class Rule, class T>
static void reduce_rows(const T* x, const T* y, int64_t n, int64_t at, int64_t row_length, double* rows) {
    double lanes[lane_count];
    for (int64_t i = 0; i < n; i += row_length) {
        reset<Rule>(lanes);
        accumulate<Rule>(lanes, x + i, y + i, row_length, 0);
        rows[(at + i) / row_length] = fold<Rule>(lanes);
    }
}

template <class Rule, class T>
static inline void add_row(double* to, const T* x, const T* y, int64_t n) {
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) to[i] = Rule::template step<double>(to[i], double(x[i]), double(y[i]));
}

// A vector per run (see columns.py), its rows added one after the other; of a matrix with one column, a sum in lanes.
template <class Rule, class T>
static void reduce_columns(double* lanes, const T* x, const T* y, int64_t n, int64_t flat, const ws_tile& tile,
                           const int64_t* view, double* sums) {
    const int64_t elements = view[0], width = view[1], both = view[2], start = tile.start;
    while (n > 0) {
        const int64_t in_piece = flat % tile.piece, in_matrix = flat % elements;
        const int64_t to_piece = tile.piece - in_piece, to_matrix = elements - in_matrix;
        const int64_t left = to_piece < to_matrix ? to_piece : to_matrix;
        const int64_t take = n < left ? n : left;
        const int64_t run = flat / tile.piece - start / tile.piece + flat / elements - start / elements -
                            (flat / both - start / both);
        const int64_t inside = in_piece < in_matrix ? in_piece : in_matrix;
        double* to = sums + run * width;
        if (width == 1) {
            if (inside == 0) reset<Rule>(lanes);
            accumulate<Rule>(lanes, x, y, take, inside);
            if (take == left || flat + take == start + tile.count) *to = fold<Rule>(lanes);
        } else {
            if (inside == 0)
                for (int64_t i = 0; i < width; ++i) to[i] = Rule::start;
            int64_t column = in_matrix % width;
            for (int64_t i = 0; i < take;) {
                const int64_t step = take - i < width - column ? take - i : width - column;
                add_row<Rule>(to + column, x + i, y + i, step);
                i += step, column = 0;
            }
        }
        x += take, y += take, n -= take, flat += take;
    }
}

// Keys: the bits of |x| as a signed integer, which orders like the magnitudes.
template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
    typedef int32_t type;
    typedef bits32 bits;
};
template <>
struct KeyOf<double> {
    typedef int64_t type;
    typedef bits64 bits;
};

template <class T>
static inline typename KeyOf<T>::type key_at(const T* x, int64_t i) {
    typedef typename KeyOf<T>::type Key;
    const typename KeyOf<T>::bits* bits = reinterpret_cast<const typename KeyOf<T>::bits*>(x);
    return Key(bits[i] & (~typename KeyOf<T>::bits(0) >> 1));
}

// low < 0 stands for "above every key". Zeros and what lies outside, often most of a tensor, would wait for each other
// at one counter: they are counted aside, and what is left of them is spread over spare counters.
template <class T>
static void histogram(const T* x, int64_t n, int64_t low, int64_t shift, uint64_t* counts, uint32_t* bins) {
    typedef typename KeyOf<T>::type Key;
    if (low < 0) return;
    const Key first = Key(low), least = first > 0 ? first : 1;
    uint32_t below = 0, above = 0;
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
        const Key key = key_at(x, i);
        const Key bin = Key(key - first) >> shift;
        const bool is_below = key < least, is_above = bin >= Key(histogram_bins);
        below += is_below ? 1u : 0u;
        above += is_above ? 1u : 0u;
        const uint32_t spare = uint32_t(histogram_bins + 2) + (uint32_t(i) & uint32_t(histogram_spare - 1));
        bins[i] = pick(is_below | is_above, spare, uint32_t(bin));
    }
    for (int64_t i = 0; i < n; ++i) ++counts[bins[i]];
    counts[histogram_bins] += above;
    counts[first > 0 ? histogram_bins + 1 : 0] += below;
}

struct Bracket {
    int64_t low, high, limit;
};

// See equal_magnitudes.py.
static inline int64_t tie_rank(uint64_t key, int64_t index) {
    uint64_t x = key + uint64_t(index);
    x ^= x >> 30, x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27, x *= 0x94D049BB133111EBull;
    return int64_t((x ^ (x >> 31)) >> 1);
}

// Calls `act` with the elements of a block whose flag is 1, in order, until it says false. Few have one, so eight flags are
// looked at together, and what has any is listed first, without branches that no processor could predict.
// Behind the flags is room for eight more and for four bytes per group.
template <class Act>
static inline void each_raised(uint8_t* flags, int64_t n, Act act) {
    std::memset(flags + n, 0, 8);
    uint32_t* groups = reinterpret_cast<uint32_t*>(flags + (n + 15) / 8 * 8);
    int64_t found = 0;
    uint64_t word;
    for (int64_t group = 0; group < n; group += 8) {
        std::memcpy(&word, flags + group, 8);
        groups[found] = uint32_t(group);
        found += word != 0;
    }
    for (int64_t g = 0; g < found; ++g) {
        std::memcpy(&word, flags + groups[g], 8);
        do {
            if (!act(int64_t(groups[g]) + (__builtin_ctzll(word) >> 3))) return;
            word &= word - 1;
        } while (word);
    }
}

// `tally` has two numbers of each of the request's two slots: of the key, those with a rank inside the bracket and below
// it; larger keys; all of the key.
template <class T>
static void collect_equal(const T* x, int64_t n, int64_t flat, int64_t wanted, Bracket bracket, uint64_t rank_key,
                          uint64_t* ranks, int64_t* indices, int64_t* tally, uint8_t* flags) {
    typedef typename KeyOf<T>::type Key;
    const Key equal = Key(wanted);
    uint32_t larger = 0, equals = 0;
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
        const Key key = key_at(x, i);
        const uint8_t is_equal = key == equal ? 1 : 0;
        larger += key > equal ? 1u : 0u;
        equals += is_equal;
        flags[i] = is_equal;
    }
    tally[2] += larger;
    tally[3] += equals;
    if (equals == 0) return;
    int64_t inside = tally[0], below = 0;
    each_raised(flags, n, [&](int64_t i) {
        const int64_t rank = tie_rank(rank_key, flat + i);
        // Whether it lies inside cannot be foreseen: it is written in any case, and if outside over by the next.
        if (inside < bracket.limit) ranks[inside] = uint64_t(rank), indices[inside] = flat + i;
        inside += (rank >= bracket.low) & (rank <= bracket.high);
        below += rank < bracket.low;
        return true;
    });
    tally[0] = inside;
    tally[1] += below;
}

// `tally` has two numbers of each of the request's two slots: inside, above; nonzero, unused.
template <class T>
static void collect(const T* x, int64_t n, int64_t flat, Bracket bracket, uint64_t* keys, int64_t* indices,
                    int64_t* tally, uint8_t* flags) {
    typedef typename KeyOf<T>::type Key;
    const Key low = Key(bracket.low), high = Key(bracket.high);
    const bool none_inside = bracket.low < 0 || bracket.low > bracket.high;
    uint32_t above = 0, inside = 0, nonzero = 0;
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
        const Key key = key_at(x, i);
        above += key > high ? 1u : 0u;
        nonzero += key != 0 ? 1u : 0u;
        const uint8_t is_inside = (key >= low) & (key <= high) ? 1 : 0;
        inside += is_inside;
        flags[i] = is_inside;
    }
    tally[1] += above;
    tally[2] += nonzero;
    if (none_inside || inside == 0) return;
    int64_t taken = tally[0];
    tally[0] += inside;
    if (taken >= bracket.limit) return;
    each_raised(flags, n, [&](int64_t i) {
        keys[taken] = uint64_t(key_at(x, i));
        indices[taken] = flat + i;
        return ++taken < bracket.limit;
    });
}
