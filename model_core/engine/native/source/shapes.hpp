// SPDX-License-Identifier: Apache-2.0
// What packing rows, cutting products and the tiles themselves agree on.
#pragma once

#include "lanes.hpp"
#include "panels.hpp"

namespace experts {

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 14, MAX_PANELS = 4, MAX_SUMS = 28;
constexpr int MAX_SHORT_SUMS = 24;
#else
constexpr int MAX_ROWS = 6, MAX_PANELS = 4, MAX_SUMS = 6;
constexpr int MAX_SHORT_SUMS = 6;
#endif

#if defined(__AVX512BF16__)
constexpr bool PAIRS_AT_ONCE = true;
#else
constexpr bool PAIRS_AT_ONCE = false;
#endif

#if defined(__AVX512BW__) && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__)
#define EXPERTS_SHORT_IN_REGISTERS
#endif

// Whether tiles make weights with short exponents whole in registers; elsewhere that takes longer than reading them.
constexpr bool short_in_registers(int kind) {
#ifdef EXPERTS_SHORT_IN_REGISTERS
    return kind == F32 || (kind == BF16 && PAIRS_AT_ONCE);
#else
    (void)kind;
    return false;
#endif
}

// Panels that a tile of some rows takes at once: as many as its sums leave registers for.
constexpr int most_panels(int rows) {
    int panels = MAX_PANELS;
    while (panels > 1 && rows * panels > MAX_SUMS) panels /= 2;
    return panels;
}

// The same over short exponents, which need registers too. Whole weights of two panels stay in the cache, of four not.
constexpr int most_short_panels(int rows, bool keep) {
    int panels = keep ? 2 : MAX_PANELS;
    while (panels > 1 && rows * panels > (panels == 2 ? MAX_SUMS : MAX_SHORT_SUMS)) panels /= 2;
    return panels;
}

// Where the results of a tile go.
struct Target {
    float *y;
    int64_t stride;
    int64_t width;        // outputs from the first panel on that exist
    const float *scales;  // from the first panel on, or null
    bool add;
    int64_t step_bytes;  // from the weights of one step to those of the next one
    const char *next;    // panels that are read afterwards: their beginning is fetched towards the end of these
};

// Floats (or pairs) of packed rows per step and row.
constexpr int x_per_step(int kind) { return kind == BF16 && !PAIRS_AT_ONCE ? 2 : 1; }
constexpr int64_t step_bytes(int kind) { return kind == I8 ? LANES : LANES * 4; }
inline int64_t steps_of(const Matrix &matrix) { return matrix.kind == BF16 ? (matrix.n_in + 1) / 2 : matrix.n_in; }

inline bool is_short(const Matrix &matrix) { return matrix.exponents != nullptr; }
// Bytes of a pair of inputs of two panels with short exponents, and of a pair of inputs of one whole panel.
constexpr int64_t short_bytes(int kind) { return kind == BF16 ? 96 : 216; }
constexpr int64_t whole_bytes(int kind) { return kind == BF16 ? 64 : 128; }
// Of a record: where its codes begin, and the lowest bits of mantissas; and the code of all exponents that stand apart.
constexpr int CODES_AT = 64, LOWS_AT = 88;
constexpr int other_code(int kind) { return kind == BF16 ? 15 : 7; }
inline int64_t short_band_bytes(const Matrix &matrix) { return matrix.n_in * short_bytes(matrix.kind); }

// Computes R rows times P panels that stand side by side in one band. For each step the R inputs (bf16: pairs of inputs)
// of the rows stand side by side in x.
using TileFunction = void (*)(const char *panels, int64_t steps, const float *x, const Target &target);

// Panels of a band whose exponents are short.
struct ShortPart {
    const char *band;
    int64_t first_panel;       // 0 to 3
    const uint8_t *exponents;  // 16
    const uint8_t *others[2];  // of the first two panels, and of the other two
    const uint8_t *others_end;
    char *keep;                // where whole weights are left for more tiles of rows, or null
};

// As TileFunction, for pairs of inputs.
using ShortTileFunction = void (*)(const ShortPart &part, int64_t pairs, const float *x, const Target &target);

struct ShortTileRow {
    ShortTileFunction by_panels[3];  // as in TileRow
};

struct TileRow {
    TileFunction by_panels[3];  // of 1, 2 and 4 panels; none where the sums have no room
};

// Tiles of 1 to MAX_ROWS rows. Each kind is compiled apart, which takes several processors less time.
const TileRow &f32_tiles(int rows);
const TileRow &bf16_tiles(int rows);
const TileRow &i8_tiles(int rows);

// Tiles over short exponents; keep: those that leave the weights whole.
const ShortTileRow &f32_short_tiles(int rows, bool keep);
const ShortTileRow &bf16_short_tiles(int rows, bool keep);

}  // namespace experts
