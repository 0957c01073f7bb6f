// SPDX-License-Identifier: Apache-2.0
// Scores page by page, a softmax per query, and values position by position.

#include "attention.hpp"

#include <algorithm>
#include <limits>

#include "rowmath.hpp"

namespace experts {
namespace {

inline void put(float *to, float x) { *to = x; }
inline void put(uint16_t *to, float x) { *to = to_bf16(x); }

template <class Number>
void store_as(Number *base, const PageLayout &layout, int64_t page, int64_t layer, int64_t place, const float *keys,
              const float *values) {
    for (int64_t head = 0; head < layout.n_kv_heads; ++head) {
        Number *key = base + layout.keys(page, layer, head) + place;
        Number *value = base + layout.values(page, layer, head) + place * layout.padded();
        for (int64_t i = 0; i < layout.head_dim; ++i) put(key + i * PAGE, keys[head * layout.head_dim + i]);
        for (int64_t i = 0; i < layout.head_dim; ++i) put(value + i, values[head * layout.head_dim + i]);
        for (int64_t i = layout.head_dim; i < layout.padded(); ++i) put(value + i, 0.0f);
    }
}

// Scores of N queries for P pages at once; every score is one chain of multiply-adds over the head's width.
template <class Number, int N, int P>
void score(const Number *base, const int64_t *keys, const Query *queries, int64_t head_dim, float scale, float *scores,
           int64_t stride) {
    Lanes sums[N][P] = {};
    const Number *rows[P];
    for (int page = 0; page < P; ++page) rows[page] = base + keys[page];
    for (int64_t i = 0; i < head_dim; ++i) {
        Lanes key[P];
        for (int page = 0; page < P; ++page) key[page] = load(rows[page] + i * PAGE);
        for (int query = 0; query < N; ++query) {
            const Lanes x = splat(queries[query].query[i]);
            for (int page = 0; page < P; ++page) sums[query][page] = fused(x, key[page], sums[query][page]);
        }
    }
    for (int query = 0; query < N; ++query) {
        for (int page = 0; page < P; ++page) {
            store(scores + query * stride + page * PAGE, sums[query][page] * splat(scale));
        }
    }
}

// Scores groups of N queries. As many pages at once as chains are needed to keep the processor busy, and fewer of what
// is left; pages are scored for all groups while they are near.
template <class Number, int N, int P>
void score_pages(const Number *base, const int64_t *keys, int64_t n_pages, const Query *queries, int64_t groups,
                 int64_t head_dim, float scale, float *scores, int64_t stride) {
    int64_t page = 0;
    for (; page + P <= n_pages; page += P) {
        for (int64_t first = 0; first < groups * N; first += N) {
            score<Number, N, P>(base, keys + page, queries + first, head_dim, scale,
                                scores + first * stride + page * PAGE, stride);
        }
    }
    if constexpr (P > 1) {
        score_pages<Number, N, P / 2>(base, keys + page, n_pages - page, queries, groups, head_dim, scale,
                                      scores + page * PAGE, stride);
    }
}

// Turns scores of positions 0 to last into weights; those of the rest of the last page into 0. Pages' exponentials are
// added lane by lane in order of pages.
void soften(float *scores, int64_t last) {
    const int64_t n_pages = last / PAGE + 1;
    for (int64_t at = last + 1; at < n_pages * PAGE; ++at) scores[at] = -std::numeric_limits<float>::infinity();
    Lanes tops = load(scores);
    for (int64_t page = 1; page < n_pages; ++page) tops = larger(load(scores + page * PAGE), tops);
    const Lanes top = splat(largest(tops));
    Lanes totals = {};
    for (int64_t page = 0; page < n_pages; ++page) {
        const Lanes x = exp_lanes(load(scores + page * PAGE) - top);
        totals = totals + x;
        store(scores + page * PAGE, x);
    }
    const Lanes share = splat(1.0f / sum(totals));
    for (int64_t page = 0; page < n_pages; ++page) store(scores + page * PAGE, load(scores + page * PAGE) * share);
}

// Adds the values of positions from to below end in their order, for N queries and V vectors of the head's width.
template <class Number, int N, int V>
void add_values(const Number *base, const int64_t *values, int64_t width, int64_t from, int64_t end,
                const float *weights, int64_t stride, Lanes (&sums)[N][V]) {
    // The compiler keeps sums in registers only where it sees no address of them in the loop.
    Lanes own[N][V];
#pragma GCC unroll 8
    for (int query = 0; query < N; ++query) {
#pragma GCC unroll 4
        for (int part = 0; part < V; ++part) own[query][part] = sums[query][part];
    }
    for (int64_t at = from; at < end; ++at) {
        const Number *row = base + values[at / PAGE] + at % PAGE * width;
        Lanes value[V];
#pragma GCC unroll 4
        for (int part = 0; part < V; ++part) value[part] = load(row + 16 * part);
#pragma GCC unroll 8
        for (int query = 0; query < N; ++query) {
            const Lanes weight = splat(weights[query * stride + at]);
#pragma GCC unroll 4
            for (int part = 0; part < V; ++part) own[query][part] = fused(weight, value[part], own[query][part]);
        }
    }
#pragma GCC unroll 8
    for (int query = 0; query < N; ++query) {
#pragma GCC unroll 4
        for (int part = 0; part < V; ++part) sums[query][part] = own[query][part];
    }
}

// Mixes values for N queries: what all of them see together, then the rest of each alone.
template <class Number, int N, int V>
void mix_values(const Number *base, const int64_t *values, const PageLayout &layout, int64_t first,
                const Query *queries, const float *weights, int64_t stride) {
    const Number *shifted = base + first;
    const int64_t together = queries[0].last + 1, width = layout.padded();
    Lanes sums[N][V] = {};
    add_values<Number, N, V>(shifted, values, width, 0, together, weights, stride, sums);
    for (int query = 0; query < N; ++query) {
        Lanes own[1][V];
        std::copy(sums[query], sums[query] + V, own[0]);
        add_values<Number, 1, V>(shifted, values, width, together, queries[query].last + 1, weights + query * stride,
                                 stride, own);
        for (int part = 0; part < V; ++part) {
            const int64_t from = first + 16 * part, left = layout.head_dim - from;
            if (left > 0) store_first(queries[query].out + from, own[0][part], std::min<int64_t>(left, 16));
        }
    }
}

template <class Number, int N, int V>
void mix_head(const Number *base, const int64_t *values, const PageLayout &layout, const Query *queries,
              const float *weights, int64_t stride) {
    int64_t first = 0;
    for (; first + 16 * V <= layout.padded(); first += 16 * V) {
        mix_values<Number, N, V>(base, values, layout, first, queries, weights, stride);
    }
    for (; first < layout.padded(); first += 16) {
        mix_values<Number, N, 1>(base, values, layout, first, queries, weights, stride);
    }
}

// Scores, weights and mixed values, as many queries at once as there are.
template <class Number>
void attend_as(const Number *base, const PageLayout &layout, const int32_t *pages, int64_t layer, int64_t kv_head,
               const Query *queries, int64_t n, std::vector<float> &room) {
    static thread_local std::vector<int64_t> keys, values;
    const int64_t n_pages = queries[n - 1].last / PAGE + 1, stride = n_pages * PAGE;
    keys.resize(static_cast<size_t>(n_pages));
    values.resize(static_cast<size_t>(n_pages));
    for (int64_t page = 0; page < n_pages; ++page) {
        keys[static_cast<size_t>(page)] = layout.keys(pages[page], layer, kv_head);
        values[static_cast<size_t>(page)] = layout.values(pages[page], layer, kv_head);
    }
    if (room.size() < static_cast<size_t>(stride * QUERIES)) room.resize(static_cast<size_t>(stride * QUERIES));
    float *scores = room.data();
    const float scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim));
    const int64_t fours = n / 4, rest = 4 * fours;
    score_pages<Number, 4, 4>(base, keys.data(), n_pages, queries, fours, layout.head_dim, scale, scores, stride);
    score_pages<Number, 1, 8>(base, keys.data(), n_pages, queries + rest, n - rest, layout.head_dim, scale,
                              scores + rest * stride, stride);
    for (int64_t query = 0; query < n; ++query) soften(scores + query * stride, queries[query].last);
    int64_t done = 0;
    for (; done + 8 <= n; done += 8) {
        mix_head<Number, 8, 2>(base, values.data(), layout, queries + done, scores + done * stride, stride);
    }
    for (; done + 4 <= n; done += 4) {
        mix_head<Number, 4, 4>(base, values.data(), layout, queries + done, scores + done * stride, stride);
    }
    for (; done < n; ++done) {
        mix_head<Number, 1, 4>(base, values.data(), layout, queries + done, scores + done * stride, stride);
    }
}

}  // namespace

void store_position(const States &states, const PageLayout &layout, int64_t page, int64_t layer, int64_t place,
                    const float *keys, const float *values) {
    if (states.kind == BF16) {
        store_as(static_cast<uint16_t *>(states.keys_values), layout, page, layer, place, keys, values);
    } else {
        store_as(static_cast<float *>(states.keys_values), layout, page, layer, place, keys, values);
    }
}

void attend(const States &states, const PageLayout &layout, const int32_t *pages, int64_t layer, int64_t kv_head,
            const Query *queries, int64_t n, std::vector<float> &scores) {
    if (states.kind == BF16) {
        attend_as(static_cast<const uint16_t *>(states.keys_values), layout, pages, layer, kv_head, queries, n, scores);
    } else {
        attend_as(static_cast<const float *>(states.keys_values), layout, pages, layer, kv_head, queries, n, scores);
    }
}

}  // namespace experts
