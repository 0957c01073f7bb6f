// SPDX-License-Identifier: Apache-2.0
// The mixture of one layer: rows are gathered by expert, computed, and added up again in canonical order.

#include <algorithm>

#include "rowmath.hpp"
#include "norms.hpp"
#include "step.hpp"

namespace experts {

void Step::mixture(const Batch &batch, int64_t layer) {
    const Column *columns = model_.columns + layer * model_.shape.n_columns;
    route_rows(batch, columns);
    share(batch);
    assign(columns);
    compute(batch, columns);
    add_outputs(model_.layers[layer]);
}

void Step::route_rows(const Batch &batch, const Column *columns) {
    const int64_t width = model_.shape.d_model;
    chosen_.resize(static_cast<size_t>(n_rows_ * top_k_));
    weights_.resize(static_cast<size_t>(n_rows_ * top_k_));
    n_chosen_.resize(static_cast<size_t>(n_rows_));
    over_rows(n_rows_, [&](int64_t row, int worker) {
        const Row &own = rows_[static_cast<size_t>(row)];
        const int32_t *allowed = batch.columns + batch.columns_at[own.piece];
        const int64_t n = batch.columns_at[own.piece + 1] - batch.columns_at[own.piece];
        const Choice choice = {chosen_.data() + row * top_k_, weights_.data() + row * top_k_};
        int64_t taken = 1;
        if (n == 1) {
            choice.columns[0] = allowed[0];
            choice.weights[0] = 1.0f;
        } else {
            const double *sums = gated_[static_cast<size_t>(own.piece)] != 0 ? sums_.data() + row * width : nullptr;
            taken = route(model_.shape, columns, allowed, n, batch.top_k[own.piece], mixture_input() + row * width,
                          sums, own.position, routing_[static_cast<size_t>(worker)], choice);
        }
        n_chosen_[static_cast<size_t>(row)] = static_cast<int32_t>(taken);
    });
}

// Adds this layer's weights of each piece's last row, normalised, to its shares.
void Step::share(const Batch &batch) {
    for (int64_t piece = 0; piece < batch.n_pieces; ++piece) {
        const int64_t row = compacted_ ? piece : last_rows_[static_cast<size_t>(piece)];
        double total = 0.0;
        for (int64_t at = 0; at < n_chosen_[static_cast<size_t>(row)]; ++at) {
            total += static_cast<double>(weights_[static_cast<size_t>(row * top_k_ + at)]);
        }
        for (int64_t at = 0; at < n_chosen_[static_cast<size_t>(row)]; ++at) {
            const auto place = static_cast<size_t>(row * top_k_ + at);
            double &own = batch.shares[piece * model_.shape.n_columns + chosen_[place]];
            own += static_cast<double>(weights_[place]) / total;
        }
    }
}

// Gives every (row, column) a slot, those of one column side by side, and lays each column's rows side by side too.
void Step::assign(const Column *columns) {
    const Shape &shape = model_.shape;
    filled_.assign(static_cast<size_t>(shape.n_columns), 0);
    for (int64_t row = 0; row < n_rows_; ++row) {
        for (int64_t at = 0; at < n_chosen_[static_cast<size_t>(row)]; ++at) {
            ++filled_[static_cast<size_t>(chosen_[static_cast<size_t>(row * top_k_ + at)])];
        }
    }
    work_.clear();
    int64_t slots = 0, hidden = 0, hidden_up = 0, inner = 0;
    for (int32_t column = 0; column < shape.n_columns; ++column) {
        const int64_t rows = filled_[static_cast<size_t>(column)];
        filled_[static_cast<size_t>(column)] = static_cast<int32_t>(slots);
        if (rows == 0) continue;
        const Network &network = columns[column].network;
        work_.push_back({column, slots, rows, hidden, hidden_up, inner, nullptr, nullptr});
        slots += rows;
        hidden += rows * network.gate.n_out;
        if (network.gate_a.data != nullptr) {
            hidden_up += rows * network.gate.n_out;
            inner += rows * std::max(network.gate_a.n_out, network.down_a.n_out);
        }
    }
    hidden_.need(hidden);
    hidden_up_.need(hidden_up);
    inner_gate_.need(inner);
    inner_up_.need(inner);
    outputs_.need(slots * shape.d_model);
    slots_.resize(static_cast<size_t>(n_rows_ * top_k_));
    slot_rows_.resize(static_cast<size_t>(slots));
    for (int64_t row = 0; row < n_rows_; ++row) {
        for (int64_t at = 0; at < n_chosen_[static_cast<size_t>(row)]; ++at) {
            const auto place = static_cast<size_t>(row * top_k_ + at);
            const int32_t slot = filled_[static_cast<size_t>(chosen_[place])]++;
            slots_[place] = slot;
            slot_rows_[static_cast<size_t>(slot)] = static_cast<int32_t>(row);
        }
    }
    // Rows that lie side by side are read as they are, others by their numbers.
    for (Work &work : work_) {
        const int32_t *rows = slot_rows_.data() + work.begin;
        const bool together = rows[work.rows - 1] - rows[0] + 1 == work.rows;
        work.x = mixture_input() + (together ? rows[0] * shape.d_model : 0);
        work.x_rows = together ? nullptr : rows;
    }
}

// All inner layers in one region, then all outer ones; changes of low rank take regions of their own in between.
void Step::compute(const Batch &batch, const Column *columns) {
    const int64_t width = model_.shape.d_model;
    bool low_rank = false;
    products_.clear();
    for (const Work &work : work_) {
        const Network &own = columns[work.column].network;
        float *hidden = hidden_.data() + work.hidden_at;
        batch.touched[work.column] += work.rows;
        if (own.gate_a.data == nullptr) {
            products_.push_back(
                {own.gate, work.x, width, work.rows, hidden, own.gate.n_out, false, own.up, work.x_rows});
            continue;
        }
        low_rank = true;
        const int64_t rank = own.gate_a.n_out;
        float *hidden_up = hidden_up_.data() + work.hidden_up_at;
        float *inner_gate = inner_gate_.data() + work.inner_at, *inner_up = inner_up_.data() + work.inner_at;
        products_.push_back({own.gate, work.x, width, work.rows, hidden, own.gate.n_out, false, {}, work.x_rows});
        products_.push_back({own.up, work.x, width, work.rows, hidden_up, own.up.n_out, false, {}, work.x_rows});
        products_.push_back({own.gate_a, work.x, width, work.rows, inner_gate, rank, false, {}, work.x_rows});
        products_.push_back({own.up_a, work.x, width, work.rows, inner_up, rank, false, {}, work.x_rows});
    }
    issue();
    if (low_rank) change_inner(columns);
    products_.clear();
    for (const Work &work : work_) {
        const Network &own = columns[work.column].network;
        const float *hidden = hidden_.data() + work.hidden_at;
        const int64_t inner = own.down.n_in;
        float *out = outputs_.data() + work.begin * width;
        products_.push_back({own.down, hidden, inner, work.rows, out, width, false, {}});
        if (own.gate_a.data == nullptr) continue;
        float *inner_gate = inner_gate_.data() + work.inner_at;
        products_.push_back({own.down_a, hidden, inner, work.rows, inner_gate, own.down_a.n_out, false, {}});
    }
    issue();
    if (low_rank) change_outer(columns);
}

// Adds the second factors to the public inner layer, and bends it.
void Step::change_inner(const Column *columns) {
    products_.clear();
    for (const Work &work : work_) {
        const Network &own = columns[work.column].network;
        if (own.gate_a.data == nullptr) continue;
        const int64_t rank = own.gate_a.n_out, inner = own.gate.n_out;
        products_.push_back({own.gate_b, inner_gate_.data() + work.inner_at, rank, work.rows,
                             hidden_.data() + work.hidden_at, inner, true, {}});
        products_.push_back({own.up_b, inner_up_.data() + work.inner_at, rank, work.rows,
                             hidden_up_.data() + work.hidden_up_at, inner, true, {}});
    }
    issue();
    for (const Work &work : work_) {
        const Network &own = columns[work.column].network;
        if (own.gate_a.data == nullptr) continue;
        const int64_t inner = own.gate.n_out;
        over_rows(work.rows, [&](int64_t row, int) {
            silu_product(hidden_.data() + work.hidden_at + row * inner,
                         hidden_up_.data() + work.hidden_up_at + row * inner, inner);
        });
    }
}

void Step::change_outer(const Column *columns) {
    const int64_t width = model_.shape.d_model;
    products_.clear();
    for (const Work &work : work_) {
        const Network &own = columns[work.column].network;
        if (own.gate_a.data == nullptr) continue;
        products_.push_back({own.down_b, inner_gate_.data() + work.inner_at, own.down_a.n_out, work.rows,
                             outputs_.data() + work.begin * width, width, true, {}});
    }
    issue();
}

// The weighted sum of each row's experts, the public one first, and the residual that leaves the layer.
void Step::add_outputs(const Layer &layer) {
    const Shape &shape = model_.shape;
    const int64_t width = shape.d_model;
    over_rows(n_rows_, [&](int64_t row, int) {
        float *mixed = added_.data() + row * width, *x = x_.data() + row * width;
        std::fill_n(mixed, width, 0.0f);
        for (int64_t at = 0; at < n_chosen_[static_cast<size_t>(row)]; ++at) {
            const auto place = static_cast<size_t>(row * top_k_ + at);
            add_scaled(outputs_.data() + slots_[place] * width, weights_[place], width, mixed);
        }
        if (shape.norm_before == 0) rms_norm(mixed, layer.ffn_norm, shape.norm_eps, width, mixed);
        add_rows(x, mixed, width, x);
    });
}

}  // namespace experts
