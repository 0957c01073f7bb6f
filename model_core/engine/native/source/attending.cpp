// SPDX-License-Identifier: Apache-2.0
// The attention of one layer: projections, what is kept in pages, queries in groups, and the residual behind it.

#include <algorithm>

#include "norms.hpp"
#include "step.hpp"

namespace experts {

// Cuts the rows into groups of queries that share passes over pages.
void Step::group_rows() {
    groups_.clear();
    const Shape &shape = model_.shape;
    const int64_t heads = shape.n_heads / shape.n_kv_heads, most = std::max<int64_t>(1, QUERIES / heads);
    for (int64_t row = 0; row < n_rows_;) {
        const int32_t piece = rows_[static_cast<size_t>(row)].piece;
        int64_t end = row + 1;
        while (end < n_rows_ && end < row + most && rows_[static_cast<size_t>(end)].piece == piece) ++end;
        for (int32_t head = 0; head < shape.n_kv_heads; ++head) {
            groups_.push_back({piece, static_cast<int32_t>(row), static_cast<int32_t>(end - row), head});
        }
        row = end;
    }
}

// Queries, keys and values of all rows; keys and values go into their pages.
void Step::project(const States &states, const Batch &batch, int64_t layer_index) {
    const Shape &shape = model_.shape;
    const Layer &layer = model_.layers[layer_index];
    const float *x = x_.data();
    if (shape.norm_before != 0) {
        over_rows(n_rows_, [&](int64_t row, int) {
            rms_norm(x + row * shape.d_model, layer.attn_norm, shape.norm_eps, shape.d_model,
                     normed_.data() + row * shape.d_model);
        });
        x = normed_.data();
    }
    const int64_t q_width = shape.n_heads * shape.head_dim, kv_width = shape.n_kv_heads * shape.head_dim;
    const int64_t width = q_width + 2 * kv_width;
    products_.clear();
    products_.push_back({layer.q, x, shape.d_model, n_rows_, qkv_.data(), width, false, {}});
    products_.push_back({layer.k, x, shape.d_model, n_rows_, qkv_.data() + q_width, width, false, {}});
    products_.push_back({layer.v, x, shape.d_model, n_rows_, qkv_.data() + q_width + kv_width, width, false, {}});
    issue();
    over_rows(n_rows_, [&](int64_t row, int) {
        const Row &own = rows_[static_cast<size_t>(row)];
        float *q = qkv_.data() + row * width, *k = q + q_width, *v = k + kv_width;
        if (layer.q_norm != nullptr) rms_norm(q, layer.q_norm, shape.norm_eps, q_width, q);
        if (layer.k_norm != nullptr) rms_norm(k, layer.k_norm, shape.norm_eps, kv_width, k);
        if (shape.clip > 0.0f) clip_row(q, shape.clip, width);
        const float *cosines = model_.rope_cos + own.position * shape.head_dim;
        const float *sines = model_.rope_sin + own.position * shape.head_dim;
        rotate(q, cosines, sines, shape.n_heads, shape.head_dim);
        rotate(k, cosines, sines, shape.n_kv_heads, shape.head_dim);
        const int64_t page = batch.pages[batch.pages_at[own.piece] + own.position / PAGE];
        store_position(states, layout_, page, layer_index, own.position % PAGE, k, v);
    });
}

void Step::attend_groups(const States &states, const Batch &batch, int64_t layer) {
    const Shape &shape = model_.shape;
    const int64_t width = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    const int64_t heads = shape.n_heads / shape.n_kv_heads;
    pool_.run(static_cast<int64_t>(groups_.size()), [&](int64_t index, int worker) {
        const Group &group = groups_[static_cast<size_t>(index)];
        const int32_t *pages = batch.pages + batch.pages_at[group.piece];
        Query queries[QUERIES];
        int64_t n = 0;
        const auto answer = [&] {
            attend(states, layout_, pages, layer, group.kv_head, queries, n, scores_[static_cast<size_t>(worker)]);
            n = 0;
        };
        for (int64_t row = group.first_row; row < group.first_row + group.n_rows; ++row) {
            for (int64_t head = group.kv_head * heads; head < (group.kv_head + 1) * heads; ++head) {
                if (n == QUERIES) answer();
                queries[n++] = {qkv_.data() + row * width + head * shape.head_dim,
                                attended_.data() + (row * shape.n_heads + head) * shape.head_dim,
                                rows_[static_cast<size_t>(row)].position};
            }
        }
        answer();
    });
}

// The residual between attention and mixture, and its norm where the mixture reads that.
void Step::after_attention(const Layer &layer) {
    const Shape &shape = model_.shape;
    const int64_t width = shape.n_heads * shape.head_dim;
    products_.clear();
    products_.push_back({layer.o, attended_.data(), width, n_rows_, added_.data(), shape.d_model, false, {}});
    issue();
    over_rows(n_rows_, [&](int64_t row, int) {
        float *x = x_.data() + row * shape.d_model, *added = added_.data() + row * shape.d_model;
        if (shape.norm_before == 0) rms_norm(added, layer.attn_norm, shape.norm_eps, shape.d_model, added);
        add_rows(x, added, shape.d_model, x);
        if (shape.norm_before != 0) {
            rms_norm(x, layer.ffn_norm, shape.norm_eps, shape.d_model, normed_.data() + row * shape.d_model);
        }
    });
}

}  // namespace experts
