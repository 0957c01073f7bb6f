// SPDX-License-Identifier: Apache-2.0
// Weight matrices in the order in which kernels read them, and their product with rows.
//
// A matrix W [n_out, n_in] is cut into panels of LANES outputs (the last one padded with zeros), and those into bands of
// BAND panels (the last one of what is left). Within a band the weights of one input stand side by side, panel after
// panel, then those of the next input; bf16 holds two inputs together. So a tile of a whole band reads one stream.
//
// Where exponents are given, they are kept in three or four bits instead (short.hpp): the same weights in fewer bytes.
//
// Row law: every y[r, o] is one fixed sequence of operations on x[r, :] and W[o, :]. No bit of it depends on how
// weights are kept, how many rows are computed together, on which panels a call covers, or on how many threads share them.
#pragma once

#include <cstdint>

#include "pool.hpp"

namespace experts {

constexpr int64_t LANES = 16;
constexpr int64_t BAND = 4;

enum Kind : int32_t { F32 = 0, BF16 = 1, I8 = 2 };

struct Matrix {
    const void *data;     // packed panels, 64-byte aligned
    const float *scales;  // I8: one per output, padded to whole panels; otherwise null
    int64_t n_out;
    int64_t n_in;
    int32_t kind;
    const uint8_t *exponents;  // 16 of them, where weights name one of these; null: panels of whole weights
    const uint8_t *others;     // exponents of all other weights in their order; 64 bytes more can be read
    const int64_t *others_at;  // [2 bands + 1]: where those of two panels begin, and the last ones' end
};

inline int64_t panels_of(const Matrix &matrix) { return (matrix.n_out + LANES - 1) / LANES; }

// Panels of the band that a panel stands in.
inline int64_t band_of(const Matrix &matrix, int64_t panel) {
    const int64_t left = panels_of(matrix) - panel / BAND * BAND;
    return left < BAND ? left : BAND;
}

// y[r, o] = sum_i x[r, i] * W[o, i]   (add: y[r, o] += ...) for the outputs of panels first <= p < last and all rows.
// Only columns o < n_out of y are written. x and y may be any strided fp32 rows.
void multiply(const Matrix &matrix, int64_t first, int64_t last, const float *x, int64_t x_stride, int64_t rows, float *y,
              int64_t y_stride, bool add = false);

// One product of a region: y = W x (or y += W x), or with a second matrix of the same sizes and kind of element
// y = silu(W x) * (up x), the inner layer of a SwiGLU. Rows may be 0.
struct Product {
    Matrix matrix;
    const float *x;
    int64_t x_stride;
    int64_t rows;
    float *y;
    int64_t y_stride;
    bool add = false;
    Matrix up = {};                   // no data: a plain product; add is not used where there is one
    const int32_t *x_rows = nullptr;  // row r is x + x_rows[r] * x_stride; null: x + r * x_stride
};

// Computes products in one region of the pool. They must not write what another one reads or writes. The work is cut
// by its cost, so that it is even for one row and for a thousand, for one matrix and for sixty.
void multiply_many(Pool &pool, const Product *products, int64_t n_products);

// The same for one matrix.
void multiply_all(Pool &pool, const Matrix &matrix, const float *x, int64_t x_stride, int64_t rows, float *y,
                  int64_t y_stride, bool add = false);

// exp of every lane, in one fixed form (relative error below 2 ulp; +inf above 88.72, 0 below -87.34; NaN stays NaN).
float exp_one(float x);

}  // namespace experts
