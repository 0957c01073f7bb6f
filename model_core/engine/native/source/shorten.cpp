// SPDX-License-Identifier: Apache-2.0
// Packs weights with short exponents (short.hpp says how they lie).

#include <algorithm>

#include "shapes.hpp"

namespace experts {
namespace {

constexpr int RECORD_WEIGHTS = 64, BAND_OUTPUTS = BAND * LANES;

// A matrix as it is given: rows of outputs that lie apart, in words of sixteen bits, the highest of a weight last.
struct Plain {
    const uint16_t *words;
    int64_t row_words;
    int32_t kind;

    int64_t at(int64_t output, int64_t input) const {
        return output * row_words + (kind == F32 ? 2 * input + 1 : input);
    }
    uint16_t high(int64_t output, int64_t input) const { return words[at(output, input)]; }
    uint16_t low(int64_t output, int64_t input) const { return words[at(output, input) - 1]; }
};

uint8_t exponent_of(uint16_t high) { return static_cast<uint8_t>(high >> 7); }

// Which output of two panels and which of two inputs stand at a word of a panel.
struct Which {
    int output, input;
};

Which which_at(int32_t kind, int panel, int word) {
    if (kind == BF16) return {panel * 16 + word / 2, word % 2};
    return {panel * 16 + word / 8 * 4 + word % 4, word / 4 % 2};
}

// Writes one record; returns behind the exponents that stand apart.
uint8_t *write_record(const Plain &from, int64_t output, int64_t input, const uint8_t *code_of, const Which (&order)[64],
                      uint8_t *record, uint8_t *others) {
    const uint8_t other = from.kind == BF16 ? 15 : 7;
    uint8_t codes[RECORD_WEIGHTS];
    for (int place = 0; place < RECORD_WEIGHTS; ++place) {
        const uint16_t high = from.high(output + order[place].output, input + order[place].input);
        record[place] = static_cast<uint8_t>(high << 1 | high >> 15);
        codes[place] = code_of[exponent_of(high)];
        if (codes[place] == other) *others++ = exponent_of(high);
    }
    uint8_t *to = record + RECORD_WEIGHTS;
    if (from.kind == BF16) {
        for (int place = 0; place < 32; ++place) to[place] = static_cast<uint8_t>(codes[place] | codes[place + 32] << 4);
        return others;
    }
    std::fill_n(to, 24, uint8_t{0});
    for (int place = 0; place < RECORD_WEIGHTS; ++place) {
        to[place % 16] = static_cast<uint8_t>(to[place % 16] | (codes[place] & 3) << place / 16 * 2);
        to[16 + place / 8] = static_cast<uint8_t>(to[16 + place / 8] | codes[place] >> 2 << place % 8);
    }
    for (int panel = 0; panel < 2; ++panel) {
        for (int word = 0; word < 32; ++word) {
            const Which which = which_at(F32, panel, word);
            const uint16_t low = from.low(output + which.output, input + which.input);
            std::memcpy(to + 24 + (panel * 32 + word) * 2, &low, 2);
        }
    }
    return others;
}

}  // namespace
}  // namespace experts

#pragma GCC visibility push(default)
extern "C" {

// counts[exponent] += weights of it, of all weights.
void experts_count_exponents(const uint16_t *words, int64_t row_words, int64_t n_out, int64_t n_in, int32_t kind,
                             int64_t *counts) {
    const experts::Plain from{words, row_words, kind};
    for (int64_t output = 0; output < n_out; ++output) {
        for (int64_t input = 0; input < n_in; ++input) counts[experts::exponent_of(from.high(output, input))] += 1;
    }
}

// Outputs fill whole bands, inputs pairs. code_of: of each exponent. others_at: 2 for each band and one more.
void experts_shorten(const uint16_t *words, int64_t row_words, int64_t n_out, int64_t n_in, int32_t kind,
                     const uint8_t *code_of, uint8_t *records, uint8_t *others, int64_t *others_at) {
    using namespace experts;
    const Plain from{words, row_words, kind};
    Which order[RECORD_WEIGHTS];
    for (int place = 0; place < RECORD_WEIGHTS; ++place) {
        order[place] = which_at(kind, place / 8 % 2, place / 16 * 8 + place % 8);
    }
    const int64_t bytes = short_bytes(kind);
    uint8_t *next = others;
    for (int64_t half = 0; half < n_out / BAND_OUTPUTS * 2; ++half) {
        *others_at++ = next - others;
        uint8_t *record = records + half / 2 * n_in * bytes + half % 2 * bytes;
        for (int64_t input = 0; input < n_in; input += 2, record += 2 * bytes) {
            next = write_record(from, half * 32, input, code_of, order, record, next);
        }
    }
    *others_at = next - others;
}

}  // extern "C"
