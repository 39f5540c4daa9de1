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
constexpr int64_t wide_digit_from = 1024;  // shorter rows would spend their time on wide tables
constexpr int narrow_digit = 9, wide_digit = 11;

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

// Only bits in which the keys differ are sorted by, in as few digits as tables of `widest` bits allow: task vectors of
// weights in 16 bits differ in about as many.
template <class T>
static void rank_many(RankItem<T>* items, RankItem<T>* spare, int64_t n, int64_t first_rank, T* ranks, int widest) {
    uint64_t varying = 0;
    const uint64_t first_key = items[0].key();
    for (int64_t i = 1; i < n; ++i) varying |= items[i].key() ^ first_key;
    if (varying == 0) {
        for (int64_t i = 0; i < n; ++i) ranks[items[i].index()] = T(first_rank + i);
        return;
    }
    const int low = __builtin_ctzll(varying), span = 64 - __builtin_clzll(varying) - low;
    const int digits = (span + widest - 1) / widest, bits = (span + digits - 1) / digits;
    const uint64_t mask = (uint64_t(1) << bits) - 1;
    uint32_t counts[(RankItem<T>::key_bits + narrow_digit - 1) / narrow_digit][1 << wide_digit];
    for (int d = 0; d < digits; ++d) std::memset(counts[d], 0, size_t(mask + 1) * sizeof counts[d][0]);
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t key = items[i].key() >> low;
        for (int d = 0; d < digits; ++d) ++counts[d][(key >> (d * bits)) & mask];
    }
    for (int d = 0; d < digits; ++d) {
        const int shift = low + d * bits;
        uint32_t next = 0;
        for (uint64_t value = 0; value <= mask; ++value) {
            const uint32_t here = counts[d][value];
            counts[d][value] = next;
            next += here;
        }
        if (d + 1 == digits) {  // places of the last digit are the ranks: no need to move the items
            for (int64_t i = 0; i < n; ++i)
                ranks[items[i].index()] = T(first_rank + counts[d][(items[i].key() >> shift) & mask]++);
            return;
        }
        for (int64_t i = 0; i < n; ++i) spare[counts[d][(items[i].key() >> shift) & mask]++] = items[i];
        RankItem<T>* const swapped = items;
        items = spare;
        spare = swapped;
    }
}

// Zeros (unchanged weights) are often most of a row: their ranks are known at once. The others are put into `items`,
// which has room for a few more than the row; returns how many. `x` and `ranks` may be one register.
template <class T>
static inline int64_t rank_zeros(const T* x, T* ranks, int64_t n, RankItem<T>* items) {
    int64_t nonzeros = 0;
    for (int64_t i = 0; i < n; ++i) {
        const auto key = key_at(x, i);
        items[nonzeros] = RankItem<T>::make(uint64_t(key), uint32_t(i));
        ranks[i] = T(i - nonzeros);
        nonzeros += key != 0;
    }
    return nonzeros;
}

#if WS_WIDTH == 8
// The same for sixteen at a time, in a quarter of the time: compilers do not find these instructions by themselves.
static inline int64_t rank_zeros(const float* x, float* ranks, int64_t n, RankItem<float>* items) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t nonzeros = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 row = n - i < 16 ? __mmask16((1u << (n - i)) - 1) : __mmask16(0xFFFF);
        const __m512i keys = _mm512_and_epi32(_mm512_maskz_loadu_epi32(row, x + i), _mm512_set1_epi32(0x7FFFFFFF));
        const __mmask16 taken = _mm512_test_epi32_mask(keys, keys);
        const __m512i next_ranks = _mm512_add_epi32(lanes, _mm512_set1_epi32(int32_t(i - nonzeros)));
        const __m512i zero_ranks = _mm512_maskz_expand_epi32(__mmask16(~taken), next_ranks);
        _mm512_mask_storeu_ps(ranks + i, row, _mm512_cvtepi32_ps(zero_ranks));
        const __m512i indices = _mm512_add_epi32(lanes, _mm512_set1_epi32(int32_t(i)));
        for (int half = 0; half < 2; ++half) {
            const __m256i key = half ? _mm512_extracti64x4_epi64(keys, 1) : _mm512_castsi512_si256(keys);
            const __m256i index = half ? _mm512_extracti64x4_epi64(indices, 1) : _mm512_castsi512_si256(indices);
            const __m512i packed =
                _mm512_or_epi64(_mm512_slli_epi64(_mm512_cvtepu32_epi64(key), 32), _mm512_cvtepu32_epi64(index));
            const __mmask8 some = __mmask8(taken >> (8 * half));
            _mm512_storeu_si512(items + nonzeros, _mm512_maskz_compress_epi64(some, packed));
            nonzeros += __builtin_popcount(some);
        }
    }
    return nonzeros;
}
#endif

// `scratch` holds two rows of items and 16 more.
template <class T>
static void rank_row(const T* x, T* ranks, int64_t n, RankItem<T>* scratch) {
    const int64_t nonzeros = rank_zeros(x, ranks, n, scratch), zeros = n - nonzeros;
    if (nonzeros == 0) return;
    if (nonzeros <= insertion_limit)
        rank_few<T>(scratch, nonzeros, zeros, ranks);
    else
        rank_many<T>(scratch, scratch + n, nonzeros, zeros, ranks,
                     nonzeros < wide_digit_from ? narrow_digit : wide_digit);
}
