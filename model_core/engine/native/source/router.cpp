// SPDX-License-Identifier: Apache-2.0
// Logits column by column, shares of gates, a softmax over the allowed, and the k largest of it.

#include "router.hpp"

#include <algorithm>
#include <cmath>

#include "rowmath.hpp"

namespace experts {
namespace {

constexpr double EVIDENCE_CAP = 6.0;  // nats
constexpr double BOUND = 1e9;

double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::fabs(x))); }

// What domain gates and biases add to the logits of the allowed columns.
void add_gates(const Shape &shape, const Column *columns, const int32_t *allowed, int64_t n, const double *sums,
               int64_t position, RoutingRoom &room) {
    const double count = static_cast<double>(position + 1);
    room.mean.resize(static_cast<size_t>(shape.d_model));
    for (int64_t i = 0; i < shape.d_model; ++i) room.mean[static_cast<size_t>(i)] = sums[i] / count;
    room.gates.resize(static_cast<size_t>(n));
    room.evidence.resize(static_cast<size_t>(n));
    double peak = 0.0;
    for (int64_t place = 0; place < n; ++place) {
        const Column &column = columns[allowed[place]];
        if (column.gate_row == nullptr) continue;
        const double gate = dot(room.mean.data(), column.gate_row, shape.d_model) + column.gate_bias;
        const double excess = std::min(std::max(gate, 0.0), BOUND) / EVIDENCE_CAP;
        const double evidence = std::min(gate, BOUND) / std::sqrt(1.0 + excess * excess);
        room.gates[static_cast<size_t>(place)] = gate;
        room.evidence[static_cast<size_t>(place)] = evidence;
        peak = std::max(peak, evidence);
    }
    double total = std::exp(-peak);
    for (int64_t place = 0; place < n; ++place) {
        if (columns[allowed[place]].gate_row != nullptr) {
            total += std::exp(room.evidence[static_cast<size_t>(place)] - peak);
        }
    }
    const double log_total = std::log(total);
    for (int64_t place = 0; place < n; ++place) {
        const Column &column = columns[allowed[place]];
        double more = static_cast<double>(column.bias);
        if (column.gate_row != nullptr) {
            const double gate = room.gates[static_cast<size_t>(place)];
            const double share = room.evidence[static_cast<size_t>(place)] - peak - log_total;
            more = share + (log_sigmoid(gate + more) - log_sigmoid(gate));
        }
        room.logits[static_cast<size_t>(place)] += static_cast<float>(more);
    }
}

// Places of the k largest weights, ties to the earlier one, in ascending order of places.
void keep_top(const float *weights, int64_t n, int64_t top_k, std::vector<int32_t> &order) {
    order.clear();
    for (int32_t place = 0; place < n; ++place) {
        const bool full = static_cast<int64_t>(order.size()) == top_k;
        // Equal weights, and any that cannot be compared, keep their order.
        if (full && !(weights[place] > weights[order.back()])) continue;
        if (full) order.pop_back();
        auto at = order.end();
        while (at != order.begin() && weights[place] > weights[*(at - 1)]) --at;
        order.insert(at, place);
    }
    std::sort(order.begin(), order.end());
}

}  // namespace

void running_sums(const float *rows, int64_t width, int64_t n, int64_t from, int64_t end, const double *carry,
                  double *sums) {
    for (int64_t row = 0; row < n; ++row) {
        const double *before = row == 0 ? carry : sums + (row - 1) * width;
        for (int64_t i = from; i < end; ++i) {
            sums[row * width + i] = before[i] + static_cast<double>(rows[row * width + i]);
        }
    }
}

int64_t route(const Shape &shape, const Column *columns, const int32_t *allowed, int64_t n, int64_t top_k, const float *x,
              const double *sums, int64_t position, RoutingRoom &room, Choice choice) {
    const int64_t taken = std::max<int64_t>(1, std::min(top_k, n));
    room.logits.resize(static_cast<size_t>(n));
    room.weights.resize(static_cast<size_t>(n));
    float *weights = room.weights.data();
    bool gated = false;
    for (int64_t place = 0; place < n; ++place) {
        const Column &column = columns[allowed[place]];
        room.logits[static_cast<size_t>(place)] = dot(x, column.row, shape.d_model);
        gated = gated || column.gate_row != nullptr;
    }
    if (gated) {
        add_gates(shape, columns, allowed, n, sums, position, room);
    } else {
        for (int64_t place = 0; place < n; ++place) {
            room.logits[static_cast<size_t>(place)] += columns[allowed[place]].bias;
        }
    }
    float top = room.logits[0];
    for (int64_t place = 1; place < n; ++place) top = std::max(top, room.logits[static_cast<size_t>(place)]);
    float total = 0.0f;
    for (int64_t place = 0; place < n; ++place) {
        weights[place] = std::exp(room.logits[static_cast<size_t>(place)] - top);
        total += weights[place];
    }
    for (int64_t place = 0; place < n; ++place) weights[place] = weights[place] / total;
    keep_top(weights, n, taken, room.order);
    float kept = 0.0f;
    for (int64_t index = 0; index < taken; ++index) kept += weights[room.order[static_cast<size_t>(index)]];
    const float scale = shape.renormalise != 0 ? kept : 1.0f;
    for (int64_t index = 0; index < taken; ++index) {
        const int32_t place = room.order[static_cast<size_t>(index)];
        choice.columns[index] = allowed[place];
        choice.weights[index] = weights[place] / scale;
    }
    return taken;
}

}  // namespace experts
