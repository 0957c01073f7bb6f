// SPDX-License-Identifier: Apache-2.0
// Packs weights with short exponents (short.hpp says how they lie), a record of 64 weights at once.

#include <algorithm>

#include "shapes.hpp"

namespace experts {
namespace {

constexpr int N_EXPONENTS = 256;

// counts[exponent] += weights of it. Exponents are often equal to those before them, and an addition would wait for the
// one before it: so several counts are kept.
void count_exponents(const uint32_t *words, int64_t n_words, int32_t kind, int64_t *counts) {
    constexpr int64_t AT_ONCE = 8;
    static thread_local uint32_t partial[2 * AT_ONCE][N_EXPONENTS];
    std::fill_n(&partial[0][0], 2 * AT_ONCE * N_EXPONENTS, 0u);
    for (int64_t begin = 0; begin < n_words; begin += AT_ONCE) {
        for (int64_t at = 0; at < AT_ONCE; ++at) {
            const uint32_t word = words[begin + at];
            partial[at][word >> 23 & 255] += 1;
            if (kind == BF16) partial[AT_ONCE + at][word >> 7 & 255] += 1;
        }
    }
    for (const auto &some : partial) {
        for (int exponent = 0; exponent < N_EXPONENTS; ++exponent) counts[exponent] += some[exponent];
    }
}

#ifdef EXPERTS_SHORT_IN_REGISTERS

// A matrix as it is given, in words of 32 bits: a weight of fp32, or in bf16 those of a pair of inputs.
struct Plain {
    const uint32_t *words;
    int64_t row_words;

    // One word of each output of a panel.
    __m512i column(int64_t output, int64_t word) const {
        const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                _mm512_set1_epi32(static_cast<int>(row_words)));
        return _mm512_i32gather_epi32(rows, words + output * row_words + word, 4);
    }
};

// The code of each exponent.
struct Codes {
    __m512i of_exponents[4];

    explicit Codes(const uint8_t *code_of) {
        for (int quarter = 0; quarter < 4; ++quarter) of_exponents[quarter] = _mm512_loadu_si512(code_of + quarter * 64);
    }
    __m512i of(__m512i exponents) const {
        const __m512i lower = _mm512_permutex2var_epi8(of_exponents[0], exponents, of_exponents[1]);
        const __m512i upper = _mm512_permutex2var_epi8(of_exponents[2], exponents, of_exponents[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(exponents), lower, upper);
    }
};

// Codes of four weights in a byte, of two bits each, and then the highest bit of all.
void write_three_bits(__m512i codes, char *to) {
    const __m512i lower = _mm512_and_si512(codes, _mm512_set1_epi8(3));
    const __m128i first = _mm512_castsi512_si128(lower), second = _mm512_extracti32x4_epi32(lower, 1);
    const __m128i third = _mm512_extracti32x4_epi32(lower, 2), fourth = _mm512_extracti32x4_epi32(lower, 3);
    const __m128i front = _mm_or_si128(first, _mm_slli_epi16(second, 2));
    const __m128i back = _mm_or_si128(_mm_slli_epi16(third, 4), _mm_slli_epi16(fourth, 6));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_or_si128(front, back));
    const uint64_t upper = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(4));
    std::memcpy(to + 16, &upper, 8);
}

// Codes of two weights in a byte.
void write_four_bits(__m512i codes, char *to) {
    const __m256i first = _mm512_castsi512_si256(codes), second = _mm512_extracti64x4_epi64(codes, 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_or_si256(first, _mm256_slli_epi16(second, 4)));
}

// Writes the part of a record that signs, exponents and the highest bits of mantissas of two panels make; returns
// behind the exponents that stand apart. Up to 64 bytes are written there.
template <int KIND>
uint8_t *write_highs(__m512i first, __m512i second, const Codes &codes, char *record, uint8_t *others) {
    const __m512i one = _mm512_shldi_epi16(first, first, 1), two = _mm512_shldi_epi16(second, second, 1);
    const __m512i low_byte = _mm512_set1_epi16(255);
    const __m512i rest = _mm512_packus_epi16(_mm512_and_si512(one, low_byte), _mm512_and_si512(two, low_byte));
    const __m512i exponent = _mm512_packus_epi16(_mm512_srli_epi16(one, 8), _mm512_srli_epi16(two, 8));
    const __m512i code = codes.of(exponent);
    const __mmask64 apart = _mm512_cmpeq_epi8_mask(code, _mm512_set1_epi8(other_code(KIND)));
    _mm512_storeu_si512(others, _mm512_maskz_compress_epi8(apart, exponent));
    _mm512_storeu_si512(record, rest);
    if constexpr (KIND == BF16) {
        write_four_bits(code, record + CODES_AT);
    } else {
        write_three_bits(code, record + CODES_AT);
    }
    return others + _mm_popcnt_u64(apart);
}

// Writes the record of a pair of inputs of two panels from a given output on; returns as write_highs does.
template <int KIND>
uint8_t *write_record(const Plain &from, int64_t output, int64_t pair, const Codes &codes, char *record, uint8_t *others) {
    if constexpr (KIND == BF16) {
        const __m512i first = from.column(output, pair), second = from.column(output + LANES, pair);
        return write_highs<KIND>(first, second, codes, record, others);
    }
    __m512i highs[2];
    const __m512i low_half = _mm512_set1_epi32(0xFFFF);
    for (int panel = 0; panel < 2; ++panel) {
        const __m512i first = from.column(output + panel * LANES, 2 * pair);
        const __m512i second = from.column(output + panel * LANES, 2 * pair + 1);
        const __m512i lows = _mm512_packus_epi32(_mm512_and_si512(first, low_half), _mm512_and_si512(second, low_half));
        _mm512_storeu_si512(record + LOWS_AT + panel * 64, lows);
        highs[panel] = _mm512_packus_epi32(_mm512_srli_epi32(first, 16), _mm512_srli_epi32(second, 16));
    }
    return write_highs<KIND>(highs[0], highs[1], codes, record, others);
}

template <int KIND>
void shorten(const Plain &from, int64_t n_out, int64_t n_in, const Codes &codes, char *records, uint8_t *others,
             int64_t *others_at) {
    constexpr int64_t BYTES = short_bytes(KIND), OUTPUTS = 2 * LANES;
    uint8_t *next = others;
    for (int64_t half = 0; half < n_out / OUTPUTS; ++half) {
        *others_at++ = next - others;
        char *record = records + (half / 2 * n_in + half % 2) * BYTES;
        for (int64_t pair = 0; pair < n_in / 2; ++pair, record += 2 * BYTES) {
            next = write_record<KIND>(from, half * OUTPUTS, pair, codes, record, next);
        }
    }
    *others_at = next - others;
}

#endif

}  // namespace
}  // namespace experts

#pragma GCC visibility push(default)
extern "C" {

// counts[exponent] += weights of it. A word is one weight of fp32 or two of bf16; outputs fill whole bands, so words come
// in eights.
void experts_count_exponents(const uint32_t *words, int64_t n_words, int32_t kind, int64_t *counts) {
    experts::count_exponents(words, n_words, kind, counts);
}

// Only where short exponents pay. Outputs fill whole bands, inputs pairs, and rows follow each other. code_of: of each
// exponent. others: 64 bytes more can be written. others_at: 2 for each band and one more.
void experts_shorten(const uint32_t *words, int64_t n_out, int64_t n_in, int32_t kind, const uint8_t *code_of,
                     char *records, uint8_t *others, int64_t *others_at) {
#ifdef EXPERTS_SHORT_IN_REGISTERS
    using namespace experts;
    const Plain from{words, kind == BF16 ? n_in / 2 : n_in};
    const auto write = kind == BF16 ? shorten<BF16> : shorten<F32>;
    write(from, n_out, n_in, Codes(code_of), records, others, others_at);
#else
    (void)words, (void)n_out, (void)n_in, (void)kind, (void)code_of, (void)records, (void)others, (void)others_at;
#endif
}

}  // extern "C"
