// DFlash 2's candidate selector (models/dflash2.py): scores of a slot's candidates behind those of the slot before it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

struct Selector {
    const float *predecessors, *successors;  // [vocab_size][rank]
    const float* projection;                 // [hidden_size][rank]
    int64_t hidden_size, rank;
};

// pairs [rows][slots][count][count] of `hidden` [rows][slots][hidden_size] bfloat16 and `candidates` [rows][slots][count]:
// <A[before] * W h, B[candidate]>, `before` a candidate of the slot before, in the first slot the row's anchor. Sums run
// over no inner loop, so that the compiler needs no leave to reorder them, and a slot's bits are its own.
inline void score_pairs(const Selector& s, const uint16_t* hidden, const int64_t* anchors, const int64_t* candidates,
                        int64_t rows, int64_t slots, int64_t count, float* pairs) {
    std::vector<float> wanted(s.rank), successors(s.rank * count);
    for (int64_t slot = 0; slot < rows * slots; ++slot) {
        const int64_t* own = candidates + slot * count;
        std::fill(wanted.begin(), wanted.end(), 0.0f);
        for (int64_t k = 0; k < s.hidden_size; ++k) {
            const float value = std::bit_cast<float>(uint32_t(hidden[slot * s.hidden_size + k]) << 16);
            const float* column = s.projection + k * s.rank;
            for (int64_t r = 0; r < s.rank; ++r) wanted[r] += value * column[r];
        }
        for (int64_t c = 0; c < count; ++c)
            for (int64_t r = 0; r < s.rank; ++r) successors[r * count + c] = s.successors[own[c] * s.rank + r];
        const bool is_first = slot % slots == 0;
        for (int64_t b = 0; b < count; ++b) {
            float* to = pairs + (slot * count + b) * count;
            if (is_first && b > 0) {
                std::copy_n(to - count, count, to);
                continue;
            }
            const int64_t before = is_first ? anchors[slot / slots] : own[b - count];
            const float* predecessor = s.predecessors + before * s.rank;
            std::fill_n(to, count, 0.0f);
            for (int64_t r = 0; r < s.rank; ++r) {
                const float weight = predecessor[r] * wanted[r];
                for (int64_t c = 0; c < count; ++c) to[c] += weight * successors[r * count + c];
            }
        }
    }
}
