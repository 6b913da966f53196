// Binary arithmetic coding and adaptive slots: the bits of sparsign/packing/coding/arithmetic.py, which explains them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sparsign {

constexpr uint32_t HALF = 1u << 15;
constexpr uint32_t SLOT_HALF = 1u << 31;
constexpr uint32_t LIMIT = 1023;

constexpr auto RATE = [] {
    std::array<int32_t, LIMIT + 1> table{};
    for (int32_t count = 0; count <= int32_t(LIMIT); ++count) table[size_t(count)] = (1 << 17) / (2 * count + 3);
    return table;
}();

inline uint32_t probability(uint32_t slot) { return std::clamp<uint32_t>(slot >> 16, 1, 65535); }

inline uint32_t updated(uint32_t slot, int bit) {
    const int64_t p = slot >> 10, target = bit ? (1 << 22) - 1 : 0;
    const uint32_t count = slot & LIMIT;
    return uint32_t(p + ((target - p) * RATE[count] >> 16)) << 10 | std::min(count + 1, LIMIT);
}

// The fewest leading bytes of a 32-bit number in [low, high] whose other bytes are zero.
inline std::string last_bytes(uint32_t low, uint32_t high) {
    int kept = 0;
    uint64_t number = 0, rest = 0xFFFFFFFF;
    while ((number = (low + rest) & ~rest) > high) rest = 0xFFFFFFFFull >> 8 * ++kept;
    std::string bytes;
    for (int k = 0; k < kept; ++k) bytes += char(number >> (24 - 8 * k));
    return bytes;
}

// [low, high], cut in proportion to a bit's probability; `shift` takes each byte on which both ends agree.
class Interval {
   protected:
    uint32_t low = 0, high = 0xFFFFFFFF;

    uint32_t middle(uint32_t p1) const { return low + uint32_t(uint64_t(high - low) * p1 >> 16); }

    template <class Shift>
    void narrow(int bit, uint32_t cut, Shift shift) {
        if (bit) [[unlikely]] {  // a branch, which the processor guesses: later bits need not wait
            high = cut;
        } else {
            low = cut + 1;
        }
        while (!((low ^ high) >> 24)) {
            shift(uint8_t(high >> 24));
            low <<= 8;
            high = high << 8 | 255;
        }
    }
};

class Encoder : Interval {
    std::string out;

   public:
    int code(int bit, uint32_t p1) {
        narrow(bit, middle(p1), [this](uint8_t byte) { out += char(byte); });
        return bit;
    }

    std::string finish() const { return out + last_bytes(low, high); }
};

class Decoder : Interval {
    std::string_view data;
    size_t passed = 0;
    uint32_t value = 0;

    void read(size_t position) { value = value << 8 | (position < data.size() ? uint8_t(data[position]) : 0); }

   public:
    explicit Decoder(std::string_view data) : data(data) {
        for (size_t position = 0; position < 4; ++position) read(position);
    }

    // Throws as soon as the bits need more bytes than there are.
    int code(int, uint32_t p1) {
        const uint32_t cut = middle(p1);
        const int bit = value <= cut;
        narrow(bit, cut, [this](uint8_t) {
            if (++passed > data.size())
                throw std::invalid_argument(std::to_string(data.size()) +
                                            " bytes of coded data end before their symbols");
            read(passed + 3);
        });
        return bit;
    }

    // Throws unless the data are exactly what an encoder makes of the bits that were decoded.
    void finish() const {
        if (data.substr(passed) != last_bytes(low, high))
            throw std::invalid_argument(std::to_string(data.size()) +
                                        " bytes of coded data do not end where their symbols end");
    }
};

}  // namespace sparsign
