// Stored number formats to float and back, on bits, without branches, so that loops over them vectorise everywhere.
// Included by interpreter.h inside its namespace.

typedef uint32_t __attribute__((may_alias)) bits32;
typedef uint64_t __attribute__((may_alias)) bits64;
typedef uint8_t stored8;
typedef uint16_t __attribute__((may_alias, aligned(1))) stored16;
typedef uint32_t __attribute__((may_alias, aligned(1))) stored32;
typedef uint64_t __attribute__((may_alias, aligned(1))) stored64;

constexpr uint32_t infinity32 = 0x7F800000u;
constexpr uint32_t nan32 = 0x7FC00000u;
constexpr uint64_t infinity64 = 0x7FF0000000000000u;
constexpr uint64_t nan64 = 0x7FF8000000000000u;

inline uint32_t to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
inline uint64_t to_bits(double x) { return __builtin_bit_cast(uint64_t, x); }
inline float from_bits(uint32_t x) { return __builtin_bit_cast(float, x); }
inline double from_bits(uint64_t x) { return __builtin_bit_cast(double, x); }

// Chosen by masking: given a choice, the compiler would skip the other side's arithmetic by a jump, and not vectorise.
inline uint32_t pick(bool condition, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - uint32_t(condition);
    return (yes & mask) | (no & ~mask);
}

// A small float with E exponent and M mantissa bits. With `finite_only` the all-ones code is NaN, there is no
// infinity, and overflow saturates (float8_e4m3fn); otherwise the format is IEEE's and overflow gives infinity.
template <int E, int M, bool finite_only>
struct SmallFloat {
    static constexpr int bias = (1 << (E - 1)) - 1;
    static constexpr int drop = 23 - M;  // mantissa bits that float32 has more
    static constexpr uint32_t magnitude_mask = (1u << (E + M)) - 1;
    static constexpr uint32_t infinity = ((1u << E) - 1) << M;
    static constexpr uint32_t nan = finite_only ? magnitude_mask : infinity | (M == 2 ? 3u : 1u << (M - 1));

    static inline uint32_t decode(uint32_t code) {
        const uint32_t magnitude = code & magnitude_mask;
        const uint32_t sign = (code >> (E + M)) << 31;
        const uint32_t normal = (magnitude << drop) + (uint32_t(127 - bias) << 23);
        // Subnormals are counts of the smallest one: exact in float32, and no float32 subnormal is touched.
        const uint32_t subnormal =
            to_bits(float(int32_t(magnitude)) * from_bits(uint32_t(128 - bias - M) << 23));
        const uint32_t special = finite_only ? nan32 : infinity32 | (magnitude << drop);
        const bool is_special = finite_only ? magnitude == magnitude_mask : magnitude >= infinity;
        return pick(is_special, special, pick(magnitude < (1u << M), subnormal, normal)) | sign;
    }

    static inline uint32_t encode(uint32_t bits) {
        const uint32_t magnitude = bits & 0x7FFFFFFFu;
        const uint32_t sign = (bits >> 31) << (E + M);
        const uint32_t odd = (magnitude >> drop) & 1;  // round half to even
        const uint32_t normal =
            ((magnitude + ((1u << (drop - 1)) - 1) + odd) >> drop) - (uint32_t(127 - bias) << M);
        // Adding a number whose last place is the smallest subnormal makes the adder do the rounding.
        const uint32_t magic = uint32_t(128 - bias + drop) << 23;
        const uint32_t subnormal = to_bits(from_bits(magnitude) + from_bits(magic)) - magic;
        const uint32_t code = pick(magnitude < (uint32_t(128 - bias) << 23), subnormal, normal);
        const uint32_t top = finite_only ? magnitude_mask - 1 : infinity;
        return pick(magnitude > infinity32, nan, pick(code > top, top, code) | sign);
    }

    static inline bool is_finite(uint32_t code) {
        const uint32_t magnitude = code & magnitude_mask;
        return finite_only ? magnitude != magnitude_mask : magnitude < infinity;
    }
};

struct Float16 : SmallFloat<5, 10, false> {
    typedef stored16 stored;
};
struct Float8E4M3 : SmallFloat<4, 3, true> {
    typedef stored8 stored;
};
struct Float8E5M2 : SmallFloat<5, 2, false> {
    typedef stored8 stored;
};

struct BFloat16 {
    typedef stored16 stored;
    static inline uint32_t decode(uint32_t code) { return code << 16; }
    static inline uint32_t encode(uint32_t bits) {
        const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
        return (bits & 0x7FFFFFFFu) > infinity32 ? 0x7FC0u : rounded;
    }
    static inline bool is_finite(uint32_t code) { return (code & 0x7F80u) != 0x7F80u; }
};

struct Float32 {
    typedef stored32 stored;
    static inline uint32_t decode(uint32_t code) { return code; }
    // One NaN for all, because which operand's NaN survives depends on how a compiler orders them.
    static inline uint32_t encode(uint32_t bits) {
        return (bits & 0x7FFFFFFFu) > infinity32 ? nan32 : bits;
    }
    static inline bool is_finite(uint32_t code) { return (code & infinity32) != infinity32; }
};

// What is done with a decoded element before it is stored.
struct Itself {
    inline float operator()(float x, int64_t) const { return x; }
};
struct Minus {
    const float* base;
    inline float operator()(float x, int64_t i) const { return x - base[i]; }
};

// Decodes n elements; returns whether all stored ones are finite.
template <class Format, class Then>
static inline bool decode(const void* from, float* to, int64_t n, Then then) {
    const typename Format::stored* code = static_cast<const typename Format::stored*>(from);
    uint32_t bad = 0;
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
        to[i] = then(from_bits(Format::decode(code[i])), i);
        bad |= Format::is_finite(code[i]) ? 0u : 1u;
    }
    return bad == 0;
}

template <class Format>
static inline bool encode(const float* from, void* to, int64_t n) {
    const bits32* bits = reinterpret_cast<const bits32*>(from);
    typename Format::stored* out = static_cast<typename Format::stored*>(to);
    uint32_t bad = 0;
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t code = Format::encode(bits[i]);
        out[i] = typename Format::stored(code);
        bad |= Format::is_finite(code) ? 0u : 1u;
    }
    return bad == 0;
}

template <class Format>
static inline void round_to(const float* from, float* to, int64_t n) {
    const bits32* bits = reinterpret_cast<const bits32*>(from);
    bits32* out = reinterpret_cast<bits32*>(to);
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) out[i] = Format::decode(Format::encode(bits[i]));
}

// Counts the elements that are not finite; `tally` is (count, flat index of the first).
template <class Format>
static void tally_nonfinite(const void* from, int64_t n, int64_t flat, int64_t* tally) {
    const typename Format::stored* code = static_cast<const typename Format::stored*>(from);
    for (int64_t i = 0; i < n; ++i) {
        if (Format::is_finite(code[i])) continue;
        if (tally[0]++ == 0) tally[1] = flat + i;
    }
}

struct Float64 {
    typedef stored64 stored;
    static inline bool is_finite(uint64_t code) { return (code & infinity64) != infinity64; }
};

static inline bool encode64(const double* from, void* to, int64_t n) {
    const bits64* bits = reinterpret_cast<const bits64*>(from);
    stored64* out = static_cast<stored64*>(to);
    uint64_t bad = 0;
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t magnitude = bits[i] & 0x7FFFFFFFFFFFFFFFu;
        out[i] = magnitude > infinity64 ? nan64 : bits[i];
        bad |= magnitude >= infinity64 ? 1u : 0u;
    }
    return bad == 0;
}

static inline void widen(const float* from, double* to, int64_t n) {
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) to[i] = double(from[i]);
}

static inline void narrow(const double* from, float* to, int64_t n) {
    WS_VECTOR_LOOP
    for (int64_t i = 0; i < n; ++i) to[i] = float(from[i]);
}
