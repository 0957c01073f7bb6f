// SPDX-License-Identifier: Apache-2.0
// The order of a step, and everything in it but the mixture: embedding, attention, norms, logits.

#include "step.hpp"

#include <algorithm>

#include "rowmath.hpp"
#include "norms.hpp"

namespace experts {

Step::Step(int threads) : pool_(threads) {
    scores_.resize(static_cast<size_t>(threads));
    routing_.resize(static_cast<size_t>(threads));
}

void Step::set_model(const Model &model) {
    const Shape &shape = model.shape;
    layers_.assign(model.layers, model.layers + shape.n_layers);
    columns_.assign(model.columns, model.columns + shape.n_layers * shape.n_columns);
    model_ = model;
    model_.layers = layers_.data();
    model_.columns = columns_.data();
    layout_ = {shape.n_layers, shape.n_kv_heads, shape.head_dim};
}

bool Step::run(const States &states, const Batch &batch) {
    const Shape &shape = model_.shape;
    if (!sound(states, batch)) return false;
    prepare(batch);
    take_room();
    embed(batch);
    for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
        // Of the last layer only the last position of each piece is read; earlier ones leave their keys, their values
        // and, where gates look at them, what enters the mixture.
        const bool last = layer + 1 == shape.n_layers;
        project(states, batch, layer);
        if (last && !any_gated_) keep_last_rows();
        attend_groups(states, batch, layer);
        after_attention(model_.layers[layer]);
        if (any_gated_) sum_prefixes(states, batch, layer);
        if (last && any_gated_) keep_last_rows();
        mixture(batch, layer);
    }
    finish(batch);
    return true;
}

// A wrong number would reach into foreign memory.
bool Step::sound(const States &states, const Batch &batch) const {
    const Shape &shape = model_.shape;
    const auto within = [](int64_t x, int64_t end) { return 0 <= x && x < end; };
    int64_t rows = 0;
    for (int64_t piece = 0; piece < batch.n_pieces; ++piece) {
        const int64_t start = batch.starts[piece], length = batch.lengths[piece];
        rows += length;
        if (start < 0 || length < 1 || start + length > shape.n_positions) return false;
        if (!within(batch.tails[piece], states.n_tails) || batch.top_k[piece] < 1) return false;
        if ((batch.pages_at[piece + 1] - batch.pages_at[piece]) * PAGE < start + length) return false;
        if (batch.columns_at[piece + 1] <= batch.columns_at[piece]) return false;
    }
    const auto all_within = [&](const int32_t *numbers, int64_t n, int64_t end) {
        return std::all_of(numbers, numbers + n, [&](int32_t number) { return within(number, end); });
    };
    return rows == batch.n_rows && all_within(batch.ids, rows, shape.vocab_size) &&
           all_within(batch.pages, batch.pages_at[batch.n_pieces], states.n_pages) &&
           all_within(batch.columns, batch.columns_at[batch.n_pieces], shape.n_columns);
}

void Step::prepare(const Batch &batch) {
    rows_.clear();
    last_rows_.clear();
    first_rows_.clear();
    gated_.assign(static_cast<size_t>(batch.n_pieces), 0);
    any_gated_ = false;
    top_k_ = 1;
    for (int32_t piece = 0; piece < batch.n_pieces; ++piece) {
        first_rows_.push_back(static_cast<int32_t>(rows_.size()));
        for (int32_t at = 0; at < batch.lengths[piece]; ++at) rows_.push_back({piece, batch.starts[piece] + at});
        last_rows_.push_back(static_cast<int32_t>(rows_.size()) - 1);
        const int32_t begin = batch.columns_at[piece], end = batch.columns_at[piece + 1];
        top_k_ = std::max<int64_t>(top_k_, std::min(batch.top_k[piece], end - begin));
        for (int32_t at = begin; at < end; ++at) {
            if (model_.columns[batch.columns[at]].gate_row != nullptr) gated_[static_cast<size_t>(piece)] = 1;
        }
        any_gated_ = any_gated_ || gated_[static_cast<size_t>(piece)] != 0;
    }
    n_rows_ = batch.n_rows;
    compacted_ = false;
    group_rows();
    recorded_.clear();
    std::fill_n(batch.touched, model_.shape.n_columns, 0);
    std::fill_n(batch.shares, batch.n_pieces * model_.shape.n_columns, 0.0);
}

void Step::take_room() {
    const Shape &shape = model_.shape;
    x_.need(n_rows_ * shape.d_model);
    normed_.need(n_rows_ * shape.d_model);
    added_.need(n_rows_ * shape.d_model);
    qkv_.need(n_rows_ * (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim);
    attended_.need(n_rows_ * shape.n_heads * shape.head_dim);
    if (any_gated_) sums_.need(n_rows_ * shape.d_model);
}

void Step::embed(const Batch &batch) {
    const int64_t width = model_.shape.d_model;
    over_rows(n_rows_, [&](int64_t row, int) {
        const int64_t token = batch.ids[row];
        float *to = x_.data() + row * width;
        if (model_.embedding == nullptr) {
            read_row(model_.head, token, to);
        } else if (model_.embedding_kind == BF16) {
            const auto *from = static_cast<const uint16_t *>(model_.embedding) + token * width;
            for (int64_t i = 0; i < width; ++i) to[i] = from_bf16(from[i]);
        } else {
            std::memcpy(to, static_cast<const float *>(model_.embedding) + token * width,
                        static_cast<size_t>(width) * sizeof(float));
        }
    });
}

// One row of a matrix out of its panels.
void Step::read_row(const Matrix &matrix, int64_t output, float *to) {
    const int64_t panel = output / LANES, width = band_of(matrix, panel) * LANES;
    const int64_t first = panel / BAND * BAND * LANES, lane = output - first;
    if (matrix.kind == BF16) {
        const int64_t pairs = (matrix.n_in + 1) / 2;
        const auto *from = static_cast<const uint16_t *>(matrix.data) + first * pairs * 2;
        for (int64_t i = 0; i < matrix.n_in; ++i) to[i] = from_bf16(from[(i / 2 * width + lane) * 2 + i % 2]);
        return;
    }
    const auto *from = static_cast<const float *>(matrix.data) + first * matrix.n_in + lane;
    for (int64_t i = 0; i < matrix.n_in; ++i) to[i] = from[i * width];
}

const float *Step::mixture_input() const { return model_.shape.norm_before != 0 ? normed_.data() : x_.data(); }

// Prefix sums of every position of gated pieces; those at the end of full pages are kept with the page.
void Step::sum_prefixes(const States &states, const Batch &batch, int64_t layer) {
    const Shape &shape = model_.shape;
    const int64_t width = shape.d_model, block = 64, per_state = shape.n_layers * width;
    pool_.run((width + block - 1) / block, [&](int64_t index, int) {
        const int64_t from = index * block, end = std::min(width, from + block);
        for (int64_t piece = 0; piece < batch.n_pieces; ++piece) {
            if (gated_[static_cast<size_t>(piece)] == 0) continue;
            const int64_t first = first_rows_[static_cast<size_t>(piece)], n = batch.lengths[piece];
            double *sums = sums_.data() + first * width;
            const double *carry = states.tails + batch.tails[piece] * per_state + layer * width;
            running_sums(mixture_input() + first * width, width, n, from, end, carry, sums);
            std::copy(sums + (n - 1) * width + from, sums + (n - 1) * width + end,
                      batch.new_tails + piece * per_state + layer * width + from);
            const int64_t start = batch.starts[piece];
            for (int64_t at = PAGE - 1 - start % PAGE; at < n; at += PAGE) {
                const int64_t page = batch.pages[batch.pages_at[piece] + (start + at) / PAGE];
                std::copy(sums + at * width + from, sums + at * width + end,
                          states.page_sums + page * per_state + layer * width + from);
            }
        }
    });
}

// Goes on with the last row of each piece alone.
void Step::keep_last_rows() {
    const Shape &shape = model_.shape;
    const int64_t width = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    const auto move = [&](auto *rows, int64_t size) {
        for (size_t piece = 0; piece < last_rows_.size(); ++piece) {
            const auto row = static_cast<int64_t>(last_rows_[piece]);
            std::copy_n(rows + row * size, size, rows + static_cast<int64_t>(piece) * size);
        }
    };
    if (n_rows_ != static_cast<int64_t>(last_rows_.size())) {
        move(x_.data(), shape.d_model);
        move(normed_.data(), shape.d_model);
        if (any_gated_) {
            move(sums_.data(), shape.d_model);
        } else {
            move(qkv_.data(), width);
        }
        for (size_t piece = 0; piece < last_rows_.size(); ++piece) {
            rows_[piece] = rows_[static_cast<size_t>(last_rows_[piece])];
        }
    }
    n_rows_ = static_cast<int64_t>(last_rows_.size());
    compacted_ = true;
    group_rows();
}

void Step::finish(const Batch &batch) {
    const Shape &shape = model_.shape;
    over_rows(n_rows_, [&](int64_t row, int) {
        rms_norm(x_.data() + row * shape.d_model, model_.norm, shape.norm_eps, shape.d_model,
                 normed_.data() + row * shape.d_model);
    });
    products_.clear();
    products_.push_back(
        {model_.head, normed_.data(), shape.d_model, n_rows_, batch.logits, shape.vocab_size, false, {}});
    issue();
    for (int64_t at = 0; at < batch.n_pieces * shape.n_columns; ++at) {
        batch.shares[at] /= static_cast<double>(shape.n_layers);
    }
    choose(batch);
}

// What most draws need of the logits, while those are near.
void Step::choose(const Batch &batch) {
    const int64_t n_tokens = model_.shape.vocab_size, n_columns = model_.shape.n_columns;
    const int64_t n_blocks = logit_blocks(n_tokens);
    blocks_.resize(static_cast<size_t>(batch.n_pieces * n_blocks));
    pool_.run(batch.n_pieces * n_blocks, [&](int64_t index, int) {
        const int64_t from = index % n_blocks * LOGITS_IN_BLOCK;
        const float *logits = batch.logits + index / n_blocks * n_tokens + from;
        blocks_[static_cast<size_t>(index)] = look_at(logits, std::min(LOGITS_IN_BLOCK, n_tokens - from));
    });
    std::fill_n(batch.ppm, batch.n_pieces * n_columns, 0);
    for (int64_t piece = 0; piece < batch.n_pieces; ++piece) {
        const Likeliest found =
            likeliest(batch.logits + piece * n_tokens, blocks_.data() + piece * n_blocks, n_blocks);
        batch.likeliest[piece] = found.token;
        batch.log_totals[piece] = found.log_total;
        if (found.token < 0) continue;
        to_ppm(batch.shares + piece * n_columns, n_columns, batch.ppm + piece * n_columns, order_);
    }
}

// The one place where products of a step are begun.
void Step::issue() {
    if (recording_) {
        for (const Product &one : products_) {
            recorded_.push_back({reinterpret_cast<uint64_t>(one.matrix.data), one.rows});
            if (one.up.data != nullptr) recorded_.push_back({reinterpret_cast<uint64_t>(one.up.data), one.rows});
        }
    }
    multiply_many(pool_, products_.data(), static_cast<int64_t>(products_.size()));
}

int64_t Step::size_bytes() const {
    int64_t total = sums_.size_bytes();
    for (const Room<float> *room : {&x_, &normed_, &qkv_, &attended_, &added_, &hidden_, &hidden_up_,
                                    &outputs_, &inner_gate_, &inner_up_}) {
        total += room->size_bytes();
    }
    for (const auto &scores : scores_) total += static_cast<int64_t>(scores.capacity() * sizeof(float));
    return total;
}

}  // namespace experts
