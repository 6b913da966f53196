// Where a convolution reads: its sizes, checked, and the pixels and borders that follow from them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "program.h"

namespace sparsign {

constexpr int LIMIT = 1 << 20;                  // largest size, stride, kernel or channel count that is believed
constexpr size_t MOST_BYTES = size_t(1) << 33;  // largest value, scratch or packed weight

inline void need(bool condition, const std::string& problem) {
  if (!condition) throw std::invalid_argument(problem);
}

struct ConvSpec {
  std::array<int, 2> kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  int groups = 1;
};

// All sizes of a convolution of an image [h][w][c] with a weight of shape [oc][c / groups][kh][kw]; std::invalid_argument
// for sizes that do not fit.
Conv sized_conv(int h, int w, int c, const ConvSpec& spec, std::array<int64_t, 4> shape);

// `Conv::origin`.
std::vector<int32_t> origins(const Conv& c);

// Border pixels read zero bits, that is -1, where torch reads 0. A "kind" of output pixel is a set of taps that lie in
// the image.
struct Kinds {
  std::vector<uint16_t> kind;               // [oh * ow]
  std::vector<std::vector<uint8_t>> inside;  // [kinds][kh * kw]
};
Kinds kinds_of(const Conv& c);

// `Conv::base` of filters' words [oc][plane][kh * kw][words]: takes back what the taps outside the image add.
// channels: how many of the inputs count; those that do not have a weight's bit 0 and are 0 in the image.
std::vector<int32_t> bases(const Conv& c, const Kinds& kinds, const std::vector<uint64_t>& words, int channels);

}  // namespace sparsign
