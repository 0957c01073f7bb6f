// SPDX-License-Identifier: Apache-2.0
// Weights with short exponents: tiles over them.
//
// The weights of one matrix are of few magnitudes: nearly all of their exponents are among fifteen, and most among seven.
// A band holds, pair of inputs after pair of inputs, two records, each of two panels. A record begins with a byte of each
// weight: the seven highest bits of its mantissa above its sign. Then comes which exponent it has: in bf16 four bits
// each, those of the second half of all weights in the upper halves of the bytes; in fp32 two bits each, quarter after
// quarter of the weights, and one bit of each, the highest. Then, in fp32, the sixteen lowest bits of each mantissa,
// panel after panel. That is three quarters of bf16, and a little more than five sixths of fp32. All bits set say that the
// exponent is another one: these stand apart, a byte each, in the order of the weights.
//
// Weights are looked up in registers; where the processor cannot do that, none are kept so (experts_short_pays).
// Nothing is rounded: a tile multiplies the same numbers in the same order as one over whole panels.
#pragma once

#include "tiles.hpp"

namespace experts {

// Exponents that stand apart, as far as they were read. A poisoned matrix says that all do, so the end is looked at.
struct Others {
    const uint8_t *next, *end;

    void skip(int64_t n) { next += std::min<int64_t>(n, end - next); }
};

#ifdef EXPERTS_SHORT_IN_REGISTERS
// Sign, exponent and the highest seven bits of the mantissa of two panels.
struct Highs {
    __m512i panel[2];
};

inline __m512i exponents_in_lanes(const uint8_t *exponents) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(exponents)));
}

template <int KIND>
inline __m512i codes_of(const char *record) {
    const char *codes = record + CODES_AT;
    if constexpr (KIND == BF16) {
        const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes)));
        const __m512i shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
        return _mm512_and_si512(_mm512_srlv_epi64(twice, shifts), _mm512_set1_epi8(15));
    }
    const __m512i fourfold = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes)));
    const __m512i shifts = _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6);
    const __m512i lower = _mm512_and_si512(_mm512_srlv_epi64(fourfold, shifts), _mm512_set1_epi8(3));
    uint64_t upper;
    std::memcpy(&upper, codes + 16, 8);
    return _mm512_mask_add_epi8(lower, upper, lower, _mm512_set1_epi8(4));
}

template <int KIND>
inline Highs highs_of(const char *record, __m512i exponents, Others &others) {
    const __m512i code = codes_of<KIND>(record);
    const __mmask64 apart = _mm512_cmpeq_epi8_mask(code, _mm512_set1_epi8(other_code(KIND)));
    __m512i exponent = _mm512_shuffle_epi8(exponents, code);
    // Hardly ever in bf16, nearly always in fp32.
    if (KIND == F32 || __builtin_expect(apart != 0, 0)) {
        exponent = _mm512_mask_expand_epi8(exponent, apart, _mm512_loadu_si512(others.next));
        others.skip(_mm_popcnt_u64(apart));
    }
    const __m512i rest = _mm512_loadu_si512(record);
    const __m512i first = _mm512_unpacklo_epi8(rest, exponent), second = _mm512_unpackhi_epi8(rest, exponent);
    return {{_mm512_shrdi_epi16(first, first, 1), _mm512_shrdi_epi16(second, second, 1)}};
}

// Two inputs of one panel.
inline void whole_floats(__m512i high, const char *lows, __m512 &first, __m512 &second) {
    const __m512i low = _mm512_loadu_si512(lows);
    first = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high));
    second = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high));
}

// The products of a pair of inputs of panels that begin at a given one of their band, and those weights whole where
// somewhere is given to keep them.
template <int KIND, int R, int P, bool KEEP>
inline void short_pair(Lanes (&sums)[R][P], const char *pair, int first, __m512i exponents, Others (&others)[2],
                       const float *x, char *keep) {
    constexpr int SIDES = P == 1 ? 1 : 2;
#pragma GCC unroll 2
    for (int p = 0; p < P; p += 2) {
        const int half = P == 4 ? p / 2 : first / 2, side = P == 1 ? first % 2 : 0;
        const char *record = pair + half * short_bytes(KIND);
        const Highs highs = highs_of<KIND>(record, exponents, others[P == 4 ? p / 2 : 0]);
        if constexpr (KIND == BF16) {
#if defined(__AVX512BF16__)
            __m512i w[SIDES];
#pragma GCC unroll 2
            for (int at = 0; at < SIDES; ++at) w[at] = highs.panel[side + at];
            add_pairs<R, P>(sums, p, w, x);
            if constexpr (KEEP) {
                for (int at = 0; at < SIDES; ++at) _mm512_store_si512(keep + (p + at) * 64, w[at]);
            }
#endif
        } else {
            __m512 w[2][2];
#pragma GCC unroll 2
            for (int at = 0; at < SIDES; ++at) {
                whole_floats(highs.panel[side + at], record + LOWS_AT + (side + at) * 64, w[0][at], w[1][at]);
            }
#pragma GCC unroll 2
            for (int input = 0; input < 2; ++input) {
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const Part value = splat(x[input * R + r]).part[0];
#pragma GCC unroll 2
                    for (int at = 0; at < SIDES; ++at) {
                        Part &sum = sums[r][p + at].part[0];
                        sum = fused_part((Part)w[input][at], value, sum);
                    }
                }
                if constexpr (KEEP) {
                    for (int at = 0; at < SIDES; ++at) _mm512_store_ps(keep + (input * P + p + at) * 64, w[input][at]);
                }
            }
        }
    }
}

// Fetches what panels of a band read of a pair of inputs, past the second cache: nobody reads it again soon.
template <int KIND, int P>
inline void fetch_pair(const char *pair, int first) {
    const char *record = pair + first / 2 * short_bytes(KIND);
    constexpr int64_t N_BYTES = short_bytes(KIND) * (P == 4 ? 2 : 1);
#pragma GCC unroll 8
    for (int64_t at = 0; at < N_BYTES; at += 64) __builtin_prefetch(record + at, 0, 0);
}

// R rows times P panels. KEEP: leaves the weights whole in part.keep, as a band of P panels.
template <int KIND, int R, int P, bool KEEP>
void short_tile(const ShortPart &part, int64_t pairs, const float *x, const Target &target) {
    constexpr int64_t BYTES = 2 * short_bytes(KIND), X = KIND == F32 ? 2 * R : R;
    constexpr int64_t KEPT = whole_bytes(KIND) * P, PAIRS_AHEAD = IN_FLIGHT_BYTES * BAND / P / BYTES;
    const int first = static_cast<int>(part.first_panel);
    Others others[2] = {{part.others[P == 4 ? 0 : first / 2], part.others_end}, {part.others[1], part.others_end}};
    Lanes sums[R][P];
    zero_sums(sums);
    // Towards the end of its panels a tile fetches the beginning of those that come next.
    const int64_t near_end = std::max<int64_t>(0, pairs - PAIRS_AHEAD), jump = target.next - part.band - pairs * BYTES;
    const __m512i exponents = exponents_in_lanes(part.exponents);
    for (int64_t pair = 0; pair < pairs; ++pair) {
        const char *here = part.band + pair * BYTES;
        fetch_pair<KIND, P>(here + PAIRS_AHEAD * BYTES + (pair < near_end ? 0 : jump), first);
        if constexpr (KIND == F32) {
            __builtin_prefetch(others[0].next + 256);
            if constexpr (P == 4) __builtin_prefetch(others[1].next + 256);
        }
        char *keep = KEEP ? part.keep + pair * KEPT : nullptr;
        short_pair<KIND, R, P, KEEP>(sums, here, first, exponents, others, x + pair * X, keep);
    }
    write_sums<KIND, R, P>(sums, target);
}

#endif

template <int KIND, int R, int P, bool KEEP>
constexpr ShortTileFunction short_tile_or_none() {
#ifdef EXPERTS_SHORT_IN_REGISTERS
    if constexpr (short_in_registers(KIND) && P <= most_short_panels(R, KEEP)) return short_tile<KIND, R, P, KEEP>;
#endif
    return nullptr;
}

template <int KIND, bool KEEP, int... R>
const ShortTileRow &short_tiles_by_rows(int rows, std::integer_sequence<int, R...>) {
    static constexpr ShortTileRow table[] = {
        {{short_tile_or_none<KIND, R + 1, 1, KEEP>(), short_tile_or_none<KIND, R + 1, 2, KEEP>(),
          short_tile_or_none<KIND, R + 1, 4, KEEP>()}}...};
    return table[rows - 1];
}

template <int KIND>
const ShortTileRow &short_tiles(int rows, bool keep) {
    constexpr auto ROWS = std::make_integer_sequence<int, MAX_ROWS>();
    return keep ? short_tiles_by_rows<KIND, true>(rows, ROWS) : short_tiles_by_rows<KIND, false>(rows, ROWS);
}

}  // namespace experts
