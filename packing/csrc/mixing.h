// Context mixing of codes: the bits of sparsign/packing/coding/mixing.py, which explains them.
#pragma once

#include <cstdlib>
#include <vector>

#include "arithmetic.h"

namespace sparsign {

constexpr int FLAGS = 0, SIGNS = 1, TERNARY = 2, WIDEST = 16, NODES = 64;
constexpr int ONE = 256, REACH = 11 * ONE - 1, CONTEXTS = 10, INPUTS = 16, FIRST_COUNT = 2;
constexpr int FIRST_WEIGHT = 9830, HEAVIEST = 1 << 19, COLUMNS = 1 << 14;

constexpr auto SQUASH = [] {
    std::array<uint16_t, 2 * REACH + 1> table{};
    uint64_t power = 1ull << 32;
    for (size_t x = 0; x <= REACH; ++x) {
        const uint64_t below = std::clamp<uint64_t>((power << 16) / ((1ull << 32) + power), 1, HALF);
        table[REACH - x] = uint16_t(below);
        table[REACH + x] = uint16_t(std::min<uint64_t>(65536 - below, 65535));
        power = power * 4278222805ull >> 32;
    }
    return table;
}();

constexpr auto STRETCH = [] {
    std::array<int16_t, 4096> table{};
    size_t x = 0;
    for (size_t step = 0; step < table.size(); ++step) {
        while (x < 2 * REACH && SQUASH[x] < 16 * step + 8) ++x;
        table[step] = int16_t(int(x) - REACH);
    }
    return table;
}();

// Codes of one layer, [rows, cols, height, width]; mask: nonzero bytes [rows, cols] where kernels are coded, or null.
struct Layer {
    int16_t* codes;
    int64_t rows, cols, height, width;
    const uint8_t* mask;
};

class Model {
    // Each context's slots lie in one block of a node's: layer, filter, column, place, kernel neighbours, kernel
    // prefix, filters before, channels before, densities, sizes.
    static constexpr std::array<uint32_t, CONTEXTS> SIZES = {1,       1,       COLUMNS, 64,      1 << 14,
                                                             1 << 16, 1 << 10, 1 << 10, 1 << 10, 1 << 8};
    static constexpr std::array<uint32_t, CONTEXTS + 1> BEGIN = [](const auto& sizes) {
        std::array<uint32_t, CONTEXTS + 1> begin{};
        for (size_t k = 0; k < CONTEXTS; ++k) begin[k + 1] = begin[k] + sizes[k];
        return begin;
    }(SIZES);

    struct Node {
        std::array<int32_t, INPUTS> weights{};
        std::vector<uint32_t> slots;  // empty until the node is first met; a slot of 0 is new
    };

    std::array<Node, NODES> nodes;
    int kind = TERNARY;
    uint32_t kind_changes = SLOT_HALF;
    int64_t columns = 0;                     // of the layer, COLUMNS at most
    std::array<uint32_t, CONTEXTS> place{};  // the slot of each context at this position
    std::array<int, INPUTS - CONTEXTS> near{};

    static uint32_t trit(int code) { return uint32_t(code < 0) + 2 * uint32_t(code > 0); }

    static uint32_t size_of(int a, int b) { return uint32_t(std::min(std::abs(a) + std::abs(b), 15)); }

    static uint32_t history(const int (&codes)[3], uint32_t beside) {
        return trit(codes[0]) << 8 | trit(codes[1]) << 6 | trit(codes[2]) << 4 | beside;
    }

    static int signal(int code, int node) {
        if (node == 0) return 2 * ONE * (code != 0);
        if (node == 1) return 2 * ONE * (int(code < 0) - int(code > 0));
        return ONE * std::min(std::abs(code), 8);
    }

    uint32_t density(size_t context) const {
        const auto& slots = nodes[0].slots;
        const uint32_t slot = slots.empty() ? 0 : slots[place[context]];
        return uint32_t(STRETCH[slot >> 20] + 11 * ONE) >> 8;
    }

    Node& node_of(int name) {
        Node& node = nodes[size_t(name)];
        if (node.slots.empty()) {
            node.slots.assign(BEGIN[CONTEXTS], 0);
            node.slots[0] = SLOT_HALF;
            std::fill_n(node.weights.begin(), CONTEXTS, FIRST_WEIGHT);
        }
        return node;
    }

    // Sets slots of one context in all nodes.
    void forget(size_t context, int64_t count, uint32_t slot) {
        for (Node& node : nodes)
            if (!node.slots.empty()) std::fill_n(node.slots.begin() + BEGIN[context], count, slot);
    }

    template <class Coder>
    int decide(Coder& coder, int name, int bit) {
        Node& node = node_of(name);
        uint32_t* slots = node.slots.data();
        int32_t* weights = node.weights.data();
        const uint32_t fresh = slots[0] >> 10 << 10 | FIRST_COUNT;
        int32_t inputs[INPUTS];
        for (size_t k = 0; k < CONTEXTS; ++k) {
            uint32_t& slot = slots[place[k]];
            if (!slot) slot = fresh;
            inputs[k] = STRETCH[slot >> 20];
        }
        for (size_t k = CONTEXTS; k < INPUTS; ++k) inputs[k] = signal(near[k - CONTEXTS], name);
        int32_t total = 0;
        for (size_t k = 0; k < INPUTS; ++k) total += weights[k] * inputs[k] >> 4;
        const int32_t p1 = SQUASH[size_t(REACH + std::clamp(total >> 12, -REACH, REACH))];
        bit = coder.code(bit, uint32_t(p1));

        const int32_t step = 3 * ((bit << 16) - p1) >> 6;
        for (size_t k = 0; k < INPUTS; ++k)
            weights[k] = std::clamp(weights[k] + ((inputs[k] * step + 4096) >> 13), -HEAVIEST, HEAVIEST);
        for (size_t k = 0; k < CONTEXTS; ++k) slots[place[k]] = updated(slots[place[k]], bit);
        return bit;
    }

    template <class Coder>
    int code_number(Coder& coder, int code) {
        if (kind != SIGNS && !decide(coder, 0, code != 0)) return 0;
        const bool negative = kind != FLAGS && decide(coder, 1, code < 0);
        const int given = std::abs(code), most = kind - 2;
        int magnitude = 1, bits = 0;
        while (bits < most && decide(coder, 2 + 4 * bits, given >> (bits + 1) > 0)) ++bits;
        for (int shift = bits - 1; shift >= 0; --shift) {
            const int bit = given >> shift & 1, below = bits - 1 - shift;
            const int node = 3 + 4 * bits + (below ? 1 + (magnitude & 1) : 0);
            magnitude = magnitude << 1 | (below < 2 ? decide(coder, node, bit) : coder.code(bit, HALF));
        }
        return negative ? -magnitude : magnitude;
    }

    template <class Coder>
    void code_kind(Coder& coder, int given) {
        const int differs = coder.code(given != kind, probability(kind_changes));
        kind_changes = updated(kind_changes, differs);
        if (!differs) return;
        kind = 0;
        for (int shift = 4; shift >= 0; --shift) kind |= coder.code(given >> shift & 1, HALF) << shift;
        if (kind > WIDEST)
            throw std::invalid_argument("a layer of kind " + std::to_string(kind) + ", expected at most " +
                                        std::to_string(WIDEST));
    }

    template <class Coder>
    void code_kernel(Coder& coder, const Layer& layer, int64_t row, int64_t col) {
        const int64_t width = layer.width, size = layer.height * width, filter = layer.cols * size;
        int16_t* here = layer.codes + row * filter + col * size;
        uint32_t prefix = 0;
        for (int64_t y = 0, position = 0; y < layer.height; ++y) {
            for (int64_t x = 0; x < width; ++x, ++position, ++here) {
                const int left = x > 0 ? here[-1] : 0, up = y > 0 ? here[-width] : 0;
                const int up_left = x > 0 && y > 0 ? here[-width - 1] : 0;
                const int up_right = y > 0 && x + 1 < width ? here[-width + 1] : 0;
                near = {left, up, up_left, up_right, x > 1 ? here[-2] : 0, y > 1 ? here[-2 * width] : 0};
                int filters[3], channels[3];
                for (int64_t back = 1; back <= 3; ++back) {
                    filters[back - 1] = row >= back ? here[-back * filter] : 0;
                    channels[back - 1] = col >= back ? here[-back * size] : 0;
                }
                const uint32_t beside = trit(left) << 2 | trit(up), spot = uint32_t(std::min<int64_t>(position, 63));
                place[3] = BEGIN[3] + spot;
                place[4] = BEGIN[4] + (spot << 8 | beside << 4 | trit(up_left) << 2 | trit(up_right));
                place[5] = BEGIN[5] + prefix;
                place[6] = BEGIN[6] + history(filters, beside);
                place[7] = BEGIN[7] + history(channels, beside);
                place[8] = BEGIN[8] + (density(1) << 5 | density(2));
                place[9] = BEGIN[9] + (size_of(left, up) << 4 | size_of(filters[0], channels[0]));
                *here = int16_t(code_number(coder, *here));
                prefix = (3 * prefix + trit(*here) + 1) & 0xFFFF;
            }
        }
    }

   public:
    // Codes a layer in place: an encoder reads it, a decoder fills it in and ignores the kind.
    template <class Coder>
    void code_layer(Coder& coder, const Layer& layer, int given_kind) {
        code_kind(coder, given_kind);
        place[0] = BEGIN[0];
        place[1] = BEGIN[1];
        forget(0, 1, SLOT_HALF);
        forget(2, columns, 0);
        columns = std::min<int64_t>(layer.cols, COLUMNS);
        for (int64_t row = 0; row < layer.rows; ++row) {
            forget(1, 1, 0);
            for (int64_t col = 0; col < layer.cols; ++col) {
                if (layer.mask && !layer.mask[row * layer.cols + col]) continue;
                place[2] = BEGIN[2] + uint32_t(col % COLUMNS);
                code_kernel(coder, layer, row, col);
            }
        }
    }
};

}  // namespace sparsign
