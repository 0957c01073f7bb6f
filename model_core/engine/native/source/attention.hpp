// SPDX-License-Identifier: Apache-2.0
// Attention over paged keys and values.
//
// One query's result is a fixed sequence of operations over positions 0, 1, 2, ...: how many queries share a pass over
// the pages, which pages those are, and what lies beyond a query's own position changes no bit.
#pragma once

#include <cstdint>
#include <vector>

#include "model.hpp"

namespace experts {

constexpr int64_t PAGE = 16;         // positions in a page
constexpr int64_t QUERIES = 8;       // at most so many share a pass

// Where a key head's keys and values of a page begin, in elements.
struct PageLayout {
    int64_t n_layers, n_kv_heads, head_dim;

    int64_t padded() const { return (head_dim + 15) / 16 * 16; }
    int64_t head_size() const { return PAGE * (head_dim + padded()); }
    int64_t keys(int64_t page, int64_t layer, int64_t head) const {
        return ((page * n_layers + layer) * n_kv_heads + head) * head_size();
    }
    int64_t values(int64_t page, int64_t layer, int64_t head) const {
        return keys(page, layer, head) + PAGE * head_dim;
    }
};

// Writes one position's keys and values [n_kv_heads, head_dim] into its page.
void store_position(const States &states, const PageLayout &layout, int64_t page, int64_t layer, int64_t place,
                    const float *keys, const float *values);

// A query and where its result goes, both [head_dim]; it sees positions 0 to last.
struct Query {
    const float *query;
    float *out;
    int64_t last;
};

// Answers n <= QUERIES queries of one key head over the same pages, ascending in last. scores: room, grown as needed.
void attend(const States &states, const PageLayout &layout, const int32_t *pages, int64_t layer, int64_t kv_head,
            const Query *queries, int64_t n, std::vector<float> &scores);

}  // namespace experts
