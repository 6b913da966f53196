#include "geometry.h"

#include <map>

namespace sparsign {

Conv sized_conv(int h, int w, int channels, const ConvSpec& s, std::array<int64_t, 4> shape) {
  for (int64_t n : shape) need(n >= 1 && n <= LIMIT, "a weight of a size outside 1 to 2^20");
  for (int axis = 0; axis < 2; ++axis) {
    need(s.kernel[axis] >= 1 && s.kernel[axis] <= LIMIT && s.stride[axis] >= 1 && s.stride[axis] <= LIMIT &&
             s.dilation[axis] >= 1 && s.dilation[axis] <= LIMIT && s.padding[axis] >= 0 && s.padding[axis] <= LIMIT,
         "a kernel, stride, dilation or padding outside its range");
    need(s.kernel[axis] == shape[2 + axis], "kernel and weight differ in size");
  }
  Conv c{};
  c.h = h, c.w = w, c.c = channels, c.oc = int(shape[0]), c.groups = s.groups;
  c.kh = s.kernel[0], c.kw = s.kernel[1], c.sh = s.stride[0], c.sw = s.stride[1];
  c.ph = s.padding[0], c.pw = s.padding[1], c.dh = s.dilation[0], c.dw = s.dilation[1];
  need(c.groups >= 1 && c.c % c.groups == 0 && c.oc % c.groups == 0 && c.c / c.groups == shape[1],
       "weight, groups and input channels do not fit");
  const int64_t hp = int64_t(c.h) + 2 * c.ph, wp = int64_t(c.w) + 2 * c.pw;
  const int64_t high = int64_t(c.kh - 1) * c.dh + 1, wide = int64_t(c.kw - 1) * c.dw + 1;
  need(high <= hp && wide <= wp, "a kernel larger than its input");
  need(hp * wp * int64_t(round_up(c.c, 64)) * int64_t(sizeof(float)) <= int64_t(MOST_BYTES), "an input is too large");
  need(hp * wp <= INT32_MAX, "an input has too many pixels");
  need(shape[0] * shape[1] * shape[2] * shape[3] <= int64_t(1) << 30, "a weight is too large");
  c.hp = int(hp), c.wp = int(wp);
  c.oh = int((hp - high) / c.sh) + 1, c.ow = int((wp - wide) / c.sw) + 1;
  return c;
}

std::vector<int32_t> origins(const Conv& c) {
  std::vector<int32_t> origin;
  for (int y = 0; y < c.oh; ++y)
    for (int x = 0; x < c.ow; ++x) origin.push_back(y * c.sh * c.wp + x * c.sw);
  return origin;
}

namespace {

// Along one axis: the number of every output's set of taps inside the image, and the sets.
struct Axis {
  std::vector<int> index;
  std::vector<std::vector<uint8_t>> sets;
};

Axis axis(int outputs, int stride, int kernel, int dilation, int pad, int size) {
  Axis found;
  std::map<std::vector<uint8_t>, int> numbers;
  for (int y = 0; y < outputs; ++y) {
    std::vector<uint8_t> set;
    for (int k = 0; k < kernel; ++k) {
      const int64_t at = int64_t(y) * stride + int64_t(k) * dilation;
      set.push_back(at >= pad && at < int64_t(pad) + size);
    }
    const auto [place, is_new] = numbers.emplace(set, int(numbers.size()));
    if (is_new) found.sets.push_back(set);
    found.index.push_back(place->second);
  }
  return found;
}

}  // namespace

Kinds kinds_of(const Conv& c) {
  const Axis rows = axis(c.oh, c.sh, c.kh, c.dh, c.ph, c.h), columns = axis(c.ow, c.sw, c.kw, c.dw, c.pw, c.w);
  const size_t wide = columns.sets.size();
  need(rows.sets.size() * wide < 4096, "too many kinds of border pixels");
  Kinds found;
  for (int row : rows.index)
    for (int column : columns.index) found.kind.push_back(uint16_t(row * wide + column));
  for (const auto& row : rows.sets)
    for (const auto& column : columns.sets) {
      found.inside.emplace_back();
      for (uint8_t a : row)
        for (uint8_t b : column) found.inside.back().push_back(a && b);
    }
  return found;
}

std::vector<int32_t> bases(const Conv& c, const Kinds& kinds, const std::vector<uint64_t>& words, int channels) {
  const int taps = c.kh * c.kw, n = (c.c + 63) / 64, padded = round_up(c.oc, BLOCK);
  std::vector<int32_t> plus(size_t(c.oc) * taps);  // bits set in all planes, by filter and tap
  for (int o = 0; o < c.oc; ++o)
    for (int plane = 0; plane < c.planes; ++plane)
      for (int t = 0; t < taps; ++t)
        for (int k = 0; k < n; ++k)
          plus[size_t(o) * taps + t] +=
              __builtin_popcountll(words[((size_t(o) * c.planes + plane) * taps + t) * n + k]);
  std::vector<int32_t> base(kinds.inside.size() * padded);
  for (size_t kind = 0; kind < kinds.inside.size(); ++kind)
    for (int o = 0; o < c.oc; ++o) {
      int32_t sum = 0;
      for (int t = 0; t < taps; ++t)
        sum += kinds.inside[kind][t] ? channels : c.multiplier * plus[size_t(o) * taps + t];
      base[kind * padded + o] = sum;
    }
  return base;
}

}  // namespace sparsign
