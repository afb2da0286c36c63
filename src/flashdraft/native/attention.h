// Softmax attention of a step's queries on cached keys and values, read where they lie.
//
// A query's result depends on the keys that it sees and on nothing else, bit for bit: keys go in groups of 16 from
// the first that its row sees, and what is hidden counts as zero. In a tree several keys have one position and lie side by side: a
// query sees those of its own path, and their scores and values are taken in the order of their positions.
#pragma once

#include <algorithm>
#include <vector>

#include "linear.h"

// Keys and values, bfloat16, with strides in elements: [layer][row][slot][kv_head][head_dim], or in pages,
// [layer][page][page_size][kv_head][head_dim], of which a row has pages[row], in the order of its slots.
struct KVStorage {
    uint16_t *keys, *values;
    int64_t layer, row, token, head;
    const int32_t* pages;  // null, or [rows][num_pages]
    int64_t num_pages, page_size;
};

// e^x for x <= 0, within 3e-6 of it, relatively: 2^n * p(f), |f| <= log(2) / 2.
inline __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    for (float c : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

class Attention {
   public:
    static constexpr int MAX_QUERIES = 24;  // of one task: heads of a group times tokens

    // What the queries see: query i the first ends[i] positions. Position p lies in slot p, but from `root` on, where
    // there is a tree, in paths[i][p - root], ascending with p.
    struct Sight {
        const int64_t* ends;
        const int64_t* const* paths;  // or null
        int64_t root;

        int64_t slot(int query, int64_t position) const {
            return paths && position >= root ? paths[query][position - root] : position;
        }
    };

    // queries [num_queries][head_dim] bfloat16; slot s of keys and values lies at(s) elements behind their start;
    // emit(query, dim, values of 16 dims).
    template <class At, class Emit>
    void operator()(const uint16_t* const* queries, const Sight& sight, int num_queries, const uint16_t* keys,
                    const uint16_t* values, const At& at, int64_t head_dim, const Emit& emit) {
        int64_t num_keys = 0;
        for (int q = 0; q < num_queries; ++q) num_keys = std::max(num_keys, sight.slot(q, sight.ends[q] - 1) + 1);
        width_ = (num_keys + LANES - 1) / LANES * LANES;
        scores_.resize(MAX_QUERIES * width_);
        probs_.resize(MAX_QUERIES * width_);
        for (int64_t first = 0; first < num_keys; first += LANES) {
            const int64_t last = std::min(first + LANES, num_keys);
            for (int64_t slot = first + 4 * LANES, end = std::min(slot + LANES, num_keys); slot < end; ++slot)
                fetch(keys + at(slot), head_dim);
            const uint16_t* group[LANES];
            for (int64_t slot = first; slot < last; ++slot) {
                const int64_t place = at(slot);
                group[slot - first] = keys + place;
                fetch(values + place, head_dim);
            }
            transpose(group, last - first, head_dim);
            by_sixes(num_queries, [&](int q, auto count) {
                score<count>(queries + q, head_dim, &scores_[q * width_ + first]);
            });
        }
        float inverse_sum[MAX_QUERIES];
        float scale = 1 / std::sqrt(float(head_dim));
        for (int q = 0; q < num_queries; ++q) {
            float* scores = &scores_[q * width_];
            for (int64_t p = sight.root; sight.paths && p < sight.ends[q]; ++p) scores[p] = scores[sight.slot(q, p)];
            inverse_sum[q] = softmax(q, sight.ends[q], scale);
        }
        by_sixes(num_queries, [&](int q, auto count) {
            int64_t dim = 0;
            for (; dim + 64 <= head_dim; dim += 64)
                weigh<count, 2>(q, values + dim, num_keys, sight, at, inverse_sum, dim, emit);
            if (dim < head_dim) weigh<count, 1>(q, values + dim, num_keys, sight, at, inverse_sum, dim, emit);
        });
    }

   private:
    // part(first query, their number as a constant): six at a time, then what is left.
    template <class Part>
    static void by_sixes(int num_queries, const Part& part) {
        int q = 0;
        for (; q + 6 <= num_queries; q += 6) part(q, std::integral_constant<int, 6>());
        switch (num_queries - q) {
            case 1: return part(q, std::integral_constant<int, 1>());
            case 2: return part(q, std::integral_constant<int, 2>());
            case 3: return part(q, std::integral_constant<int, 3>());
            case 4: return part(q, std::integral_constant<int, 4>());
            case 5: return part(q, std::integral_constant<int, 5>());
        }
    }

    // Have a head's dims on their way to the cache.
    static void fetch(const uint16_t* from, int64_t head_dim) {
        for (int64_t dim = 0; dim < head_dim; dim += 32) _mm_prefetch(from + dim, _MM_HINT_T1);
    }

    // kt_[pair of dims][key]: 16 keys, dims two by two.
    void transpose(const uint16_t* const* keys, int64_t count, int64_t head_dim) {
        kt_.resize(head_dim / 2 * LANES);
        for (int64_t dim = 0; dim < head_dim; dim += 32) {
            __m512i r[16], t[16];
            for (int i = 0; i < 16; ++i)
                r[i] = i < count ? _mm512_loadu_si512(keys[i] + dim) : _mm512_setzero_si512();
            for (int i = 0; i < 16; i += 2) {
                t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 16; i += 4) {
                r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
                r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
                r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
                r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
            }
            for (int i = 0; i < 4; ++i)
                for (int half = 0; half < 2; ++half) {
                    __m512i a = r[half * 8 + i], b = r[half * 8 + 4 + i];
                    t[half * 8 + i] = _mm512_shuffle_i32x4(a, b, 0x88);
                    t[half * 8 + 4 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
                }
            uint32_t* out = kt_.data() + dim / 2 * LANES;
            for (int i = 0; i < 8; ++i) {
                _mm512_storeu_si512(out + i * LANES, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
                _mm512_storeu_si512(out + (8 + i) * LANES, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
            }
        }
    }

    template <int COUNT>
    void score(const uint16_t* const* queries, int64_t head_dim, float* out) {
        __m512 acc[COUNT];
        for (auto& sum : acc) sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < head_dim / 2; ++i) {
            __m512bh key = (__m512bh)_mm512_loadu_si512(kt_.data() + i * LANES);
#pragma GCC unroll 6
            for (int q = 0; q < COUNT; ++q) {
                int32_t pair;
                std::memcpy(&pair, queries[q] + 2 * i, sizeof pair);
                acc[q] = _mm512_dpbf16_ps(acc[q], key, (__m512bh)_mm512_set1_epi32(pair));
            }
        }
        for (int q = 0; q < COUNT; ++q) _mm512_storeu_ps(out + q * width_, acc[q]);
    }

    // Weights e^(score - largest) of one query as bfloat16; returns 1 / their sum.
    float softmax(int query, int64_t end, float scale) {
        float* scores = &scores_[query * width_];
        uint16_t* probs = &probs_[query * width_];
        const __m512 hidden = _mm512_set1_ps(-INFINITY);
        __m512 largest = hidden, sum = _mm512_setzero_ps();
        auto seen = [&](int64_t key) {
            int64_t left = end - key;
            return left >= LANES ? __mmask16(0xffff) : left <= 0 ? __mmask16(0) : __mmask16((1 << left) - 1);
        };
        for (int64_t key = 0; key < end; key += LANES)
            largest = _mm512_mask_max_ps(largest, seen(key), largest, _mm512_loadu_ps(scores + key));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest)), factor = _mm512_set1_ps(scale);
        for (int64_t key = 0; key < width_; key += LANES) {
            __m512 below = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + key), top), factor);
            __m512 weight = _mm512_maskz_mov_ps(seen(key), exp_ps(below));
            sum = _mm512_add_ps(sum, weight);
            _mm256_storeu_si256((__m256i*)(probs + key), to_bf16(weight));
        }
        return 1 / _mm512_reduce_add_ps(sum);
    }

    // 32 dims of the weighted values, or 64: then more is done with each weight, and no sum waits for itself.
    template <int COUNT, int PARTS, class At, class Emit>
    void weigh(int first, const uint16_t* values, int64_t num_keys, const Sight& sight, const At& at,
               const float* inverse_sum, int64_t dim, const Emit& emit) {
        __m512 low[COUNT][PARTS], high[COUNT][PARTS];
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q)
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) low[q][part] = high[q][part] = _mm512_setzero_ps();
        const uint16_t* probs = &probs_[first * width_];
        // Two keys' values, side by side.
        auto load = [&](int64_t slot, int64_t next, bool has_next, __m512bh* even,
                        __m512bh* odd) __attribute__((always_inline)) {
            const uint16_t *one = values + at(slot), *two = has_next ? values + at(next) : nullptr;
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) {
                __m512i a = _mm512_loadu_si512(one + part * 32);
                __m512i b = two ? _mm512_loadu_si512(two + part * 32) : _mm512_setzero_si512();
                even[part] = (__m512bh)_mm512_unpacklo_epi16(a, b);
                odd[part] = (__m512bh)_mm512_unpackhi_epi16(a, b);
            }
        };
        auto add = [&](int q, int64_t key, const __m512bh* even, const __m512bh* odd) __attribute__((always_inline)) {
            int32_t pair;
            std::memcpy(&pair, probs + q * width_ + key, sizeof pair);
            const __m512bh weights = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) {
                low[q][part] = _mm512_dpbf16_ps(low[q][part], even[part], weights);
                high[q][part] = _mm512_dpbf16_ps(high[q][part], odd[part], weights);
            }
        };
        const int64_t shared = sight.paths ? sight.root / 2 * 2 : num_keys;
        for (int64_t key = 0; key < shared; key += 2) {
            __m512bh even[PARTS], odd[PARTS];
            load(key, key + 1, key + 1 < num_keys, even, odd);
#pragma GCC unroll 6
            for (int q = 0; q < COUNT; ++q) add(q, key, even, odd);
        }
        if (sight.paths) {
#pragma GCC unroll 6
            for (int q = 0; q < COUNT; ++q)
                for (int64_t key = shared, end = sight.ends[first + q]; key < end; key += 2) {
                    __m512bh even[PARTS], odd[PARTS];
                    const bool has_next = key + 1 < end;
                    const int64_t next = has_next ? sight.slot(first + q, key + 1) : 0;
                    load(sight.slot(first + q, key), next, has_next, even, odd);
                    add(q, key, even, odd);
                }
        }
        // unpack works within quarters: put the dims back in order.
        const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q) {
            const __m512 factor = _mm512_set1_ps(inverse_sum[first + q]);
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) {
                const __m512 one = low[q][part], two = high[q][part];
                const int64_t at_dim = dim + part * 32;
                emit(first + q, at_dim, _mm512_mul_ps(_mm512_permutex2var_ps(one, front, two), factor));
                emit(first + q, at_dim + LANES, _mm512_mul_ps(_mm512_permutex2var_ps(one, back, two), factor));
            }
        }
    }

    int64_t width_ = 0;
    std::vector<uint32_t> kt_;
    std::vector<float> scores_;   // [MAX_QUERIES][width_]
    std::vector<uint16_t> probs_;  // the same
};
