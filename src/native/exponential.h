// exp and log of floats, in double and rounded once, without branches or calls, so that loops over them vectorise.
// Their doubles are within two units in the last place, so that floats are the ones that any good library's double
// would round to. No fused operations: every instruction set gives the same bits. Included by interpreter.h inside its namespace.

constexpr double shifter = 0x1.8p52;  // adding it leaves a whole number in the lowest bits of the sum
constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;

inline float exponential(float given) {
    // Beyond these the float is infinite, or 0; NaN passes.
    const uint32_t bounded = pick(given > 100.0f, to_bits(100.0f), to_bits(given));
    const double x = from_bits(pick(given < -120.0f, to_bits(-120.0f), bounded));
    const double shifted = x * 0x1.71547652b82fep0 + shifter;
    const double k = shifted - shifter;
    const double r = (x - k * ln2_high) - k * ln2_low;  // within ln(2) / 2 of 0
    double tail = 1.0 / 6227020800.0;                   // the series of (e^r - 1 - r) / r^2
    tail = tail * r + 1.0 / 479001600.0;
    tail = tail * r + 1.0 / 39916800.0;
    tail = tail * r + 1.0 / 3628800.0;
    tail = tail * r + 1.0 / 362880.0;
    tail = tail * r + 1.0 / 40320.0;
    tail = tail * r + 1.0 / 5040.0;
    tail = tail * r + 1.0 / 720.0;
    tail = tail * r + 1.0 / 120.0;
    tail = tail * r + 1.0 / 24.0;
    tail = tail * r + 1.0 / 6.0;
    tail = tail * r + 0.5;
    const double power = from_bits((to_bits(shifted) + 1023u) << 52);  // 2^k
    return float((1.0 + (r + r * r * tail)) * power);
}

inline float logarithm(float given) {
    const uint64_t half_root = 0x3FE6A09E667F3BCDu;  // sqrt(1/2)
    const uint64_t bits = to_bits(double(given));
    // x = 2^k m with m between sqrt(1/2) and sqrt(2)
    const uint64_t raised = ((bits - half_root + (uint64_t(1024) << 52)) >> 52);
    const double k = from_bits(raised + 0x4338000000000000u) - (shifter + 1024.0);
    const double f = from_bits(bits - ((raised - 1024u) << 52)) - 1.0;
    const double s = f / (2.0 + f), z = s * s;
    double tail = 1.0 / 21.0;  // the series of (artanh(s) / s - 1) / s^2
    tail = tail * z + 1.0 / 19.0;
    tail = tail * z + 1.0 / 17.0;
    tail = tail * z + 1.0 / 15.0;
    tail = tail * z + 1.0 / 13.0;
    tail = tail * z + 1.0 / 11.0;
    tail = tail * z + 1.0 / 9.0;
    tail = tail * z + 1.0 / 7.0;
    tail = tail * z + 1.0 / 5.0;
    tail = tail * z + 1.0 / 3.0;
    const double finite = k * ln2_high + (2.0 * s + (2.0 * s * z * tail + k * ln2_low));
    const uint32_t special = pick(given == 0.0f, infinity32 | 0x80000000u, pick(given > 0.0f, infinity32, nan32));
    const bool is_usual = (given > 0.0f) & (to_bits(given) < infinity32);
    return from_bits(pick(is_usual, to_bits(float(finite)), special));
}

// In double the last bits are the library's.
inline double exponential(double x) { return std::exp(x); }
inline double logarithm(double x) { return std::log(x); }
