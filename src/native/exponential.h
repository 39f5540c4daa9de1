// exp and log of floats, in double and rounded once, without branches or calls, so that loops over them vectorise.
// Compared over all floats with the correctly rounded ones: exp is always right, and log but for five numbers, whose
// double lies midway between two floats. No fused operations: every instruction set gives the same bits.
// Included by interpreter.h inside its namespace.

constexpr double shifter = 0x1.8p52;  // adding it leaves a whole number in the lowest bits of the sum
constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;

struct Exponential {
    // x = k ln(2) + rest, with the rest within ln(2) / 2 of 0; k is left in the lowest bits of `whole`.
    static inline void reduce(float given, double& rest, double& whole) {
        const double x = given;
        whole = x * 0x1.71547652b82fep0 + shifter;
        const double k = whole - shifter;
        rest = (x - k * ln2_high) - k * ln2_low;
    }

    static inline float finish(float given, double r, double whole) {
        // (e^r - 1 - r) / r^2 by a polynomial of the least error, in pairs that do not wait for each other
        const double r2 = r * r, r4 = r2 * r2;
        const double low = (0.5 + 0x1.555555555060ap-3 * r) + r2 * (0x1.555555554eca7p-5 + 0x1.1111112600c90p-7 * r);
        const double high = (0x1.6c16c18a53fa8p-10 + 0x1.a0198c5978a83p-13 * r) +
                            r2 * (0x1.a01989aa1c993p-16 + 0x1.72ea205ef5db7p-19 * r);
        const double tail = low + r4 * (high + r4 * 0x1.28bc1b5092e1cp-22);
        const double mantissa = 1.0 + (r + r2 * tail);
        const float usual = float(from_bits(to_bits(mantissa) + (to_bits(whole) << 52)));  // times 2^k; NaN passes
        const uint32_t bounded = pick(given > 100.0f, infinity32, to_bits(usual));
        return from_bits(pick(given < -120.0f, 0u, bounded));
    }
};

struct Logarithm {
    // x = 2^k m with m between sqrt(1/2) and sqrt(2); s = (m - 1) / (m + 1)
    static inline void reduce(float given, double& s, double& k) {
        const uint64_t half_root = 0x3FE6A09E667F3BCDu;  // sqrt(1/2)
        const uint64_t bits = to_bits(double(given));
        const uint64_t raised = ((bits - half_root + (uint64_t(1024) << 52)) >> 52);
        k = from_bits(raised + 0x4338000000000000u) - (shifter + 1024.0);
        const double f = from_bits(bits - ((raised - 1024u) << 52)) - 1.0;
        s = f / (2.0 + f);
    }

    static inline float finish(float given, double s, double k) {
        // (artanh(s) / s - 1) / s^2, as above
        const double z = s * s, z2 = z * z;
        const double low = (0x1.5555555555592p-2 + 0x1.999999997fdbap-3 * z) +
                           z2 * (0x1.24924941f1120p-3 + 0x1.c71c520963ad3p-4 * z);
        const double high = (0x1.74663ee861cf1p-4 + 0x1.39a1ba9f86aeap-4 * z) + z2 * 0x1.2f0565386b56bp-4;
        const double tail = low + z2 * z2 * high;
        const double finite = k * ln2_high + (2.0 * s + (2.0 * s * z * tail + k * ln2_low));
        const uint32_t special = pick(given == 0.0f, infinity32 | 0x80000000u, pick(given > 0.0f, infinity32, nan32));
        const bool is_usual = (given > 0.0f) & (to_bits(given) < infinity32);
        return from_bits(pick(is_usual, to_bits(float(finite)), special));
    }
};

// In two short loops: of one long one a processor would not hold enough turns at once to fill its pipes.
template <class Function>
static inline void in_two_steps(const float* x, float* out, int64_t n) {
    constexpr int64_t most = 128;
    double rest[most], whole[most];
    for (int64_t at = 0; at < n; at += most, x += most, out += most) {
        const int64_t here = n - at < most ? n - at : most;
        WS_VECTOR_LOOP
        for (int64_t i = 0; i < here; ++i) Function::reduce(x[i], rest[i], whole[i]);
        WS_VECTOR_LOOP
        for (int64_t i = 0; i < here; ++i) out[i] = Function::finish(x[i], rest[i], whole[i]);
    }
}

static inline void exponential(const float* x, float* out, int64_t n) { in_two_steps<Exponential>(x, out, n); }
static inline void logarithm(const float* x, float* out, int64_t n) { in_two_steps<Logarithm>(x, out, n); }

// In double the last bits are the library's.
static inline void exponential(const double* x, double* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = std::exp(x[i]);
}
static inline void logarithm(const double* x, double* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = std::log(x[i]);
}
