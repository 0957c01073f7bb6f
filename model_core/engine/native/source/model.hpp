// SPDX-License-Identifier: Apache-2.0
// What a caller hands over: where the weights are, where states are kept, and what a step shall compute.
//
// Plain structures without methods of construction, the same on both sides of the C interface. Nothing here owns memory.
#pragma once

#include <cstdint>

#include "panels.hpp"

namespace experts {

// Sizes in elements.
struct Shape {
    int64_t n_layers, d_model, n_heads, n_kv_heads, head_dim, vocab_size, n_columns, n_positions;
    float norm_eps;
    float clip;           // bound on queries, keys and values; 0: none
    int32_t norm_before;  // norms stand before attention and mixture, else after them
    int32_t renormalise;  // the chosen experts' weights are divided by their sum
};

// A SwiGLU. A low-rank one holds the public matrices and a change of each: W x + b (a x); without data: no change.
struct Network {
    Matrix gate, up, down;
    Matrix gate_a, gate_b, up_a, up_b, down_a, down_b;
};

// What an expert is in one layer.
struct Column {
    Network network;
    const float *row;        // of the router [D]
    const double *gate_row;  // folded domain gate [D]; null: no gate
    double gate_bias;
    float bias;  // 0 or below
};

// What the base is in one layer, its public network aside.
struct Layer {
    Matrix q, k, v, o;
    const float *attn_norm, *ffn_norm;  // [D]
    const float *q_norm, *k_norm;       // full width; null: none
};

// Embedding rows lie plainly, or are read out of the head's panels where both are one (rows null).
struct Model {
    Shape shape;
    const void *embedding;  // [V, D], fp32 or bf16 as embedding_kind says
    int32_t embedding_kind;
    Matrix head;
    const float *norm;               // [D]
    const float *rope_cos, *rope_sin;  // [positions, head_dim]
    const Layer *layers;             // [L]
    const Column *columns;           // [L, E], the public expert's first
};

// Where states lie. Of a page, layer and key head: keys [head_dim][PAGE], then values [PAGE][padded head_dim].
struct States {
    void *keys_values;
    double *page_sums;  // [pages, L, D]: prefix sums at the end of a page; null while no expert has a gate
    double *tails;      // [tails, L, D]: prefix sums at the end of what counts
    int64_t n_pages, n_tails;
    int32_t kind;  // F32 or BF16
};

// Pieces of a step; lists of pages and columns lie one after the other, piece b's from at[b] to at[b + 1].
struct Batch {
    int64_t n_pieces, n_rows;
    const int32_t *ids;                            // [T]
    const int32_t *starts, *lengths, *tails, *top_k;  // [B]
    const int32_t *pages_at, *pages, *columns_at, *columns;
    float *logits;     // [B, V]
    double *shares;    // [B, E]
    double *new_tails;  // [B, L, D]; null where no piece needs them
    int64_t *touched;  // [E]: rows multiplied with each column's matrices, all layers together
    int32_t *likeliest;   // [B]: the first of the largest logits; -1 where they are not all finite
    double *log_totals;   // [B]: logarithm of the sum of exp(logit - largest)
    int32_t *ppm;         // [B, E]: shares in parts per million; zeros where logits are not finite
};

}  // namespace experts
