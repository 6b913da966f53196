// Order-0 coding of bit fields: the bits of sparsign/packing/coding/fields.py, which explains them.
#pragma once

#include <numeric>
#include <utility>
#include <vector>

#include "arithmetic.h"

namespace sparsign {

struct Counts {
    uint32_t total = 0, ones = 0;
    uint32_t p1 = HALF;  // divided when the counts change: no later bit waits for it

    void count(uint32_t bit) {
        ++total;
        ones += bit;
        if (total == 1 << 16) {
            const uint32_t zeros = (total - ones) >> 1;
            ones >>= 1;
            total = zeros + ones;
        }
        p1 = std::max((2 * ones + 1) * HALF / (total + 1), 1u);  // below 65536 as ones <= total
    }
};

// Codes bits [shift, shift + width) of every number in place: an encoder reads them, a decoder fills them in.
template <bool modelled, class Coder, class Number>
void code_bits(Coder& shared, Number* numbers, size_t count, int shift, int width) {
    Coder coder = std::move(shared);  // a local one stays in registers
    std::vector<Counts> tree(size_t(1) << width);
    for (size_t k = 0; k < count; ++k) {
        const uint32_t number = numbers[k];
        uint32_t node = 1;
        for (int b = shift + width - 1; b >= shift; --b) {
            if (coder.code(number >> b & 1, modelled ? tree[node].p1 : HALF)) {
                if (modelled) tree[node].count(1);
                node = node << 1 | 1;
            } else {
                if (modelled) tree[node].count(0);
                node <<= 1;
            }
        }
        numbers[k] = Number(number | (node ^ 1u << width) << shift);
    }
    shared = std::move(coder);
}

template <class Coder, class Number>
void code_field(Coder& coder, Number* numbers, size_t count, int shift, int width, bool modelled) {
    if (coder.code(modelled, HALF)) {
        code_bits<true>(coder, numbers, count, shift, width);
    } else {
        code_bits<false>(coder, numbers, count, shift, width);
    }
}

inline std::string encode_fields(uint32_t* numbers, size_t count, const std::vector<int>& widths) {
    Encoder encoder;
    int shift = std::accumulate(widths.begin(), widths.end(), 0);
    for (int width : widths) {
        shift -= width;
        Encoder alone;
        code_field(alone, numbers, count, shift, width, true);
        code_field(encoder, numbers, count, shift, width, 8 * alone.finish().size() < size_t(width) * count);
    }
    return encoder.finish();
}

// `numbers` hold zeros to be filled in.
template <class Number>
void decode_fields(const std::string& data, Number* numbers, size_t count, const std::vector<int>& widths) {
    Decoder decoder(data);
    int shift = std::accumulate(widths.begin(), widths.end(), 0);
    for (int width : widths) {
        shift -= width;
        code_field(decoder, numbers, count, shift, width, false);
    }
    decoder.finish();
}

}  // namespace sparsign
