// SPDX-License-Identifier: Apache-2.0
// Which experts compute a row, and with which weight; and the prefix sums that domain gates look at.
//
// A row's routing reads the columns it may use and nothing else, so a column that is not there changes no bit.
#pragma once

#include <cstdint>
#include <vector>

#include "model.hpp"

namespace experts {

// Room for one row's routing, one per worker.
struct RoutingRoom {
    std::vector<double> mean, gates, evidence;
    std::vector<float> logits, weights;
    std::vector<int32_t> order;
};

// The columns that a row takes, ascending, with their weights; both lists have room for top_k entries.
struct Choice {
    int32_t *columns;
    float *weights;
};

// Adds rows [n, width] one by one to carry, and writes every sum; fp64, strictly in order, inputs from <= i < end.
void running_sums(const float *rows, int64_t width, int64_t n, int64_t from, int64_t end, const double *carry,
                  double *sums);

// Routes a row.
//   sums:     prefix sums of its position [D]; read where one of the columns has a gate
//   position: counted from 0
//   columns:  of this layer; allowed: the n that the row may use, ascending
// Returns how many were taken: min(top_k, n).
int64_t route(const Shape &shape, const Column *columns, const int32_t *allowed, int64_t n, int64_t top_k, const float *x,
              const double *sums, int64_t position, RoutingRoom &room, Choice choice);

}  // namespace experts
