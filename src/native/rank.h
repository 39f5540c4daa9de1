// Ranks of the magnitudes within a row: a stable least-significant-digit radix sort of (key, index) pairs.
// Included by interpreter.h inside its namespace.

template <class T>
struct RankItem;
template <>
struct RankItem<float> {
    uint64_t packed;
    static constexpr int key_bits = 31;
    static inline RankItem make(uint64_t key, uint32_t index) { return {key << 32 | index}; }
    inline uint64_t key() const { return packed >> 32; }
    inline uint32_t index() const { return uint32_t(packed); }
};
template <>
struct RankItem<double> {
    uint64_t key_;
    uint64_t index_;
    static constexpr int key_bits = 63;
    static inline RankItem make(uint64_t key, uint32_t index) { return {key, index}; }
    inline uint64_t key() const { return key_; }
    inline uint32_t index() const { return uint32_t(index_); }
};

constexpr int64_t insertion_limit = 32;
constexpr int64_t wide_digit_from = 1024;  // shorter rows would spend their time on clearing wide tables

template <class T>
static void rank_few(RankItem<T>* items, int64_t n, int64_t first_rank, T* ranks) {
    for (int64_t i = 1; i < n; ++i) {
        const RankItem<T> item = items[i];
        int64_t j = i;
        for (; j > 0 && items[j - 1].key() > item.key(); --j) items[j] = items[j - 1];
        items[j] = item;
    }
    for (int64_t i = 0; i < n; ++i) ranks[items[i].index()] = T(first_rank + i);
}

template <int digit_bits, class T>
static void rank_many(RankItem<T>* items, RankItem<T>* spare, int64_t n, int64_t first_rank, T* ranks) {
    constexpr int digits = (RankItem<T>::key_bits + digit_bits - 1) / digit_bits;
    constexpr uint64_t mask = (1u << digit_bits) - 1;
    uint32_t counts[digits][mask + 1];
    std::memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t key = items[i].key();
        for (int d = 0; d < digits; ++d) ++counts[d][(key >> (d * digit_bits)) & mask];
    }
    int last = -1;
    bool is_constant[digits];
    for (int d = 0; d < digits; ++d) {
        is_constant[d] = int64_t(counts[d][(items[0].key() >> (d * digit_bits)) & mask]) == n;
        if (!is_constant[d]) last = d;
    }
    if (last < 0) {
        for (int64_t i = 0; i < n; ++i) ranks[items[i].index()] = T(first_rank + i);
        return;
    }
    for (int d = 0; d <= last; ++d) {
        if (is_constant[d]) continue;
        uint32_t next = 0;
        for (uint64_t value = 0; value <= mask; ++value) {
            const uint32_t here = counts[d][value];
            counts[d][value] = next;
            next += here;
        }
        if (d == last) {  // places of the last digit are the ranks: no need to move the items
            for (int64_t i = 0; i < n; ++i)
                ranks[items[i].index()] = T(first_rank + counts[d][(items[i].key() >> (d * digit_bits)) & mask]++);
            return;
        }
        for (int64_t i = 0; i < n; ++i) spare[counts[d][(items[i].key() >> (d * digit_bits)) & mask]++] = items[i];
        RankItem<T>* const swapped = items;
        items = spare;
        spare = swapped;
    }
}

// `scratch` holds two rows of items; `x` and `ranks` may be one register.
template <class T>
static void rank_row(const T* x, T* ranks, int64_t n, RankItem<T>* scratch) {
    int64_t zeros = 0, nonzeros = 0;
    // Zeros (unchanged weights) are often most of a row: their ranks are known at once.
    for (int64_t i = 0; i < n; ++i) {
        const auto key = key_at(x, i);
        scratch[nonzeros] = RankItem<T>::make(uint64_t(key), uint32_t(i));
        ranks[i] = T(zeros);
        zeros += key == 0;
        nonzeros += key != 0;
    }
    if (nonzeros == 0) return;
    if (nonzeros <= insertion_limit)
        rank_few<T>(scratch, nonzeros, zeros, ranks);
    else if (nonzeros < wide_digit_from)
        rank_many<8, T>(scratch, scratch + n, nonzeros, zeros, ranks);
    else
        rank_many<11, T>(scratch, scratch + n, nonzeros, zeros, ranks);
}
