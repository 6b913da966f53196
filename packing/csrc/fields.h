// Order-0 coding of bit fields: the bits of sparsign/packing/coding/fields.py, which explains them.
#pragma once

#include <numeric>
#include <vector>

#include "arithmetic.h"

namespace sparsign {

struct Counts {
    uint32_t zeros = 0, ones = 0;

    uint32_t probability() const { return std::clamp<uint32_t>((2 * ones + 1) * HALF / (zeros + ones + 1), 1, 65535); }

    void count(int bit) {
        ++(bit ? ones : zeros);
        if (zeros + ones == 1 << 16) zeros >>= 1, ones >>= 1;
    }
};

// Codes bits [shift, shift + width) of every number in place: an encoder reads them, a decoder fills them in.
template <class Coder>
void code_field(Coder& coder, uint32_t* numbers, size_t count, int shift, int width, bool modelled) {
    modelled = coder.code(modelled, HALF);
    std::vector<Counts> tree(size_t(1) << width);
    for (size_t k = 0; k < count; ++k) {
        uint32_t node = 1;
        for (int b = shift + width - 1; b >= shift; --b) {
            const int bit = coder.code(numbers[k] >> b & 1, modelled ? tree[node].probability() : HALF);
            tree[node].count(bit);
            node = node << 1 | uint32_t(bit);
        }
        numbers[k] |= (node ^ 1u << width) << shift;
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
inline void decode_fields(const std::string& data, uint32_t* numbers, size_t count, const std::vector<int>& widths) {
    Decoder decoder(data);
    int shift = std::accumulate(widths.begin(), widths.end(), 0);
    for (int width : widths) {
        shift -= width;
        code_field(decoder, numbers, count, shift, width, false);
    }
    decoder.finish();
}

}  // namespace sparsign
