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

    // queries [num_queries][head_dim]; slot s of keys and values lies at(s) elements behind their start;
    // emit(query, dim, values of 16 dims).
    template <class At, class Emit>
    void operator()(const Operand* const* queries, const Sight& sight, int num_queries, const uint16_t* keys,
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
            constexpr int64_t widest = VALUE_PARTS * VALUE_DIMS;
            int64_t dim = 0;
            for (; dim + widest <= head_dim; dim += widest)
                weigh<count, VALUE_PARTS>(q, values + dim, num_keys, sight, at, inverse_sum, dim, emit);
            for (; dim < head_dim; dim += VALUE_DIMS)
                weigh<count, 1>(q, values + dim, num_keys, sight, at, inverse_sum, dim, emit);
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
        for (int64_t dim = 0; dim < head_dim; dim += 32) prefetch(from + dim);
    }

    // kt_[pair of dims][key]: 16 keys, dims two by two.
    void transpose(const uint16_t* const* keys, int64_t count, int64_t head_dim) {
        kt_.resize(head_dim / 2 * LANES);
        for (int64_t dim = 0; dim < head_dim; dim += 32)
            transpose_pairs(keys, count, dim, kt_.data() + dim / 2 * LANES);
    }

    template <int COUNT>
    void score(const Operand* const* queries, int64_t head_dim, float* out) {
        Floats acc[COUNT];
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q) acc[q] = zeros();
        for (int64_t i = 0; i < head_dim / 2; ++i)
#pragma GCC unroll 2
            for (int step = 0; step < PAIR_STEPS; ++step) {
                const Weights key = weights_of(kt_.data() + i * LANES, step);
#pragma GCC unroll 6
                for (int q = 0; q < COUNT; ++q) acc[q] = dot(acc[q], key, queries[q] + 2 * i + step);
            }
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q) put(out + q * width_, acc[q]);
    }

    // Weights e^(score - largest) of one query; returns 1 / their sum.
    float softmax(int query, int64_t end, float scale) {
        float* scores = &scores_[query * width_];
        Operand* probs = &probs_[query * width_];
        const Floats hidden = all(-INFINITY);
        Floats largest = hidden, sum = zeros();
        for (int64_t key = 0; key < end; key += LANES)
            largest = max(largest, first_lanes(end - key, load(scores + key), hidden));
        const Floats top = all(max_of(largest)), factor = all(scale);
        for (int64_t key = 0; key < width_; key += LANES) {
            const Floats below = (load(scores + key) - top) * factor;
            const Floats weight = first_lanes(end - key, exp_of(below), zeros());
            sum = sum + weight;
            put(probs + key, weight);
        }
        return 1 / sum_of(sum);
    }

    // PARTS times VALUE_DIMS dims of the weighted values: in several more is done with each weight, and no sum waits for
    // itself.
    template <int COUNT, int PARTS, class At, class Emit>
    void weigh(int first, const uint16_t* values, int64_t num_keys, const Sight& sight, const At& at,
               const float* inverse_sum, int64_t dim, const Emit& emit) {
        ValueSums sums[COUNT][PARTS];
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q)
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) sums[q][part] = ValueSums{};
        const Operand* probs = &probs_[first * width_];
        // The values of VALUE_KEYS keys.
        auto read = [&](int64_t slot, int64_t next, bool has_next, Values* found) __attribute__((always_inline)) {
            const uint16_t *one = values + at(slot), *two = has_next ? values + at(next) : nullptr;
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part)
                found[part] = values_of(one + part * VALUE_DIMS, two ? two + part * VALUE_DIMS : nullptr);
        };
        auto add = [&](int q, int64_t key, const Values* found) __attribute__((always_inline)) {
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) add_values(sums[q][part], found[part], probs + q * width_ + key);
        };
        const int64_t shared = sight.paths ? sight.root / VALUE_KEYS * VALUE_KEYS : num_keys;
        for (int64_t key = 0; key < shared; key += VALUE_KEYS) {
            Values found[PARTS];
            read(key, key + 1, key + 1 < num_keys, found);
#pragma GCC unroll 6
            for (int q = 0; q < COUNT; ++q) add(q, key, found);
        }
        if (sight.paths) {
#pragma GCC unroll 6
            for (int q = 0; q < COUNT; ++q)
                for (int64_t key = shared, end = sight.ends[first + q]; key < end; key += VALUE_KEYS) {
                    Values found[PARTS];
                    const bool has_next = key + 1 < end;
                    const int64_t next = has_next ? sight.slot(first + q, key + 1) : 0;
                    read(sight.slot(first + q, key), next, has_next, found);
                    add(q, key, found);
                }
        }
#pragma GCC unroll 6
        for (int q = 0; q < COUNT; ++q) {
            const Floats factor = all(inverse_sum[first + q]);
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part)
                emit_values(sums[q][part], [&](int64_t i, const Floats& v) __attribute__((always_inline)) {
                    emit(first + q, dim + part * VALUE_DIMS + i, v * factor);
                });
        }
    }

    int64_t width_ = 0;
    std::vector<uint32_t> kt_;
    std::vector<float> scores_;   // [MAX_QUERIES][width_]
    std::vector<Operand> probs_;  // the same
};
