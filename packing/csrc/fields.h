// Order-0 coding of bit fields: the bits of sparsign/packing/coding/fields.py, which explains them.
#pragma once

#include <numeric>
#include <vector>

#include "arithmetic.h"

namespace sparsign {

// Codes bits [shift, shift + width) of every number in place: an encoder reads them, a decoder fills them in.
template <class Coder>
void code_field(Coder& coder, uint32_t* numbers, size_t count, int shift, int width, bool modelled) {
    modelled = coder.code(modelled, HALF);
    std::vector<uint32_t> tree(size_t(1) << width, SLOT_HALF);
    for (size_t k = 0; k < count; ++k) {
        uint32_t node = 1;
        for (int b = shift + width - 1; b >= shift; --b) {
            const int bit = coder.code(numbers[k] >> b & 1, modelled ? probability(tree[node]) : HALF);
            tree[node] = updated(tree[node], bit);
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
