#include "batch.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "parallel.h"

namespace sparsign {

namespace {

constexpr size_t NEAR = size_t(192) << 10;  // bytes of images at once: what the second-level cache keeps beside weights
constexpr size_t PROBE = 64;                // numbers that are looked at before anything else is done

float wide(float x) { return x; }
float wide(Bf16 x) { return widened(x); }

bool read_signs(const Isa& isa, const float* x, size_t rows, int channels, float size, uint64_t* words, bool* zeros) {
  return isa.read_signs(x, rows, channels, size, words, zeros);
}
bool read_signs(const Isa& isa, const Bf16* x, size_t rows, int channels, float size, uint64_t* words, bool* zeros) {
  return isa.read_signs_bf16(x, rows, channels, size, words, zeros);
}

// Where sums are written before they are rounded: y itself in fp32.
float* sums_of(float* y, std::vector<float>&, size_t) { return y; }
float* sums_of(Bf16*, std::vector<float>& room, size_t count) {
  room.resize(count);
  return room.data();
}
void write(const Isa&, const float*, size_t, float*) {}
void write(const Isa& isa, const float* sums, size_t count, Bf16* y) { isa.round_to_bf16(sums, count, y); }

// The magnitude of the first numbers other than 0, 1 if there is none, 0 if they differ or are not finite.
template <typename Number>
float magnitude(const Number* x, size_t count) {
  float size = 0;
  for (size_t i = 0; i < count; ++i) {
    const float a = std::fabs(wide(x[i]));
    if (a != 0 && size == 0) size = a;
    if (a != 0 && a != size) return 0;
  }
  return size == 0 ? 1 : std::isfinite(size) ? size : 0;
}

// Filters as bits, with their scales; see `Conv::planes`.
struct Filters {
  std::vector<uint64_t> words;  // [oc][plane][kh * kw][words]
  std::vector<uint64_t> alive;  // [words]: channels whose bits count
  std::vector<float> scale;     // [oc]
  int planes;
};

// False unless the weights of every filter are `scale`, -`scale` and 0.
bool read_filters(const Isa& isa, const Conv& c, const float* weight, Filters& found) {
  const int taps = c.kh * c.kw, n = (c.c + 63) / 64;
  const size_t filter = size_t(taps) * n;
  std::vector<uint64_t> both(2 * filter * c.oc);
  found.scale.assign(c.oc, 0);
  found.alive.assign(n, 0);
  bool zeros = false;
  for (int o = 0; o < c.oc; ++o) {
    const float* row = weight + size_t(o) * taps * c.c;
    float scale = 0;
    for (int i = 0; i < taps * c.c && scale == 0; ++i) scale = std::fabs(row[i]);
    if (!std::isfinite(scale)) return false;
    uint64_t* words = &both[2 * filter * o];
    found.scale[o] = scale;
    if (!isa.read_signs(row, taps, c.c, scale, words, &zeros)) return false;
    if (scale == 0) std::fill(words, words + 2 * filter, 0);
    for (size_t i = 0; i < filter && scale != 0; ++i) {
      const uint64_t real = i % n == size_t(n) - 1 && c.c % 64 ? (uint64_t(1) << c.c % 64) - 1 : ~uint64_t(0);
      found.alive[i % n] |= real & ~(words[i] ^ words[filter + i]);
    }
  }
  found.planes = 1;
  for (size_t i = 0; i < both.size() && found.planes == 1; ++i)
    if (i / filter % 2 == 0 && ((both[i] ^ both[i + filter]) & found.alive[i % n])) found.planes = 2;
  if (found.planes == 2) {
    found.words = std::move(both);
    found.alive.assign(n, ~uint64_t(0));
    return true;
  }
  found.words.resize(filter * c.oc);
  for (size_t i = 0; i < found.words.size(); ++i)
    found.words[i] = both[i / filter * 2 * filter + i % filter] & found.alive[i % n];
  return true;
}

// Images from .. to; false as soon as one holds something else than signs.
template <typename Number>
bool some_images(const Isa& isa, const Conv& c, const Number* x, float size, const Filters& filters, int64_t from,
                 int64_t to, Number* y, const std::atomic<bool>& failed) {
  const int n = (c.c + 63) / 64;
  const size_t in = size_t(c.h) * c.w * c.c, out = size_t(c.oh) * c.ow * c.oc, words = size_t(c.h) * c.w * n;
  const size_t bytes = isa.bits_scratch(c);
  const int together = int(std::clamp<int64_t>(int64_t(NEAR / bytes), 1, to - from));
  const Memory scratch(bytes * together);
  std::vector<uint64_t> bits(2 * words * together);
  std::vector<float> room;
  const std::vector<float> ones(c.oc, 1.0f);
  std::vector<float> scale(filters.scale), half(filters.scale);
  for (int o = 0; o < c.oc; ++o) scale[o] *= size, half[o] *= 0.5f * size;
  for (int64_t image = from; image < to; image += together) {
    const int count = int(std::min<int64_t>(together, to - image));
    bool zeros = false;
    if (failed || !read_signs(isa, x + in * image, size_t(c.h) * c.w * count, c.c, size, bits.data(), &zeros))
      return false;
    for (size_t i = 0; i < 2 * words * count; ++i) bits[i] &= filters.alive[i % n];
    float* sums = sums_of(y + out * image, room, out * count);
    isa.convolve(c, bits.data(), count, (zeros ? ones : scale).data(), false, sums, scratch.data());
    if (zeros) isa.convolve(c, bits.data() + words * count, count, half.data(), true, sums, scratch.data());
    write(isa, sums, out * count, y + out * image);
  }
  return true;
}

}  // namespace

template <typename Number>
bool convolve_signs(const Isa& isa, const Number* x, std::array<int64_t, 4> x_shape, const float* weight, int64_t outputs,
                    const ConvSpec& spec, Number* y, int threads) {
  const auto [n, h, w, channels] = x_shape;
  need(threads >= 1, "threads below 1");
  need(n >= 1, "a batch of no images");
  for (int64_t size : {h, w, channels}) need(size >= 1 && size <= LIMIT, "an input of a size outside 1 to 2^20");
  need(spec.groups == 1, "a grouped convolution over signs");
  const std::array<int64_t, 4> shape{outputs, channels, spec.kernel[0], spec.kernel[1]};
  Conv c = sized_conv(int(h), int(w), int(channels), spec, shape);
  const float size = magnitude(x, std::min(PROBE, size_t(n * h * w * channels)));
  Filters filters;
  if (size == 0 || 2 * channels * c.kh * c.kw > 60000 || !read_filters(isa, c, weight, filters)) return false;
  c.planes = filters.planes;
  c.multiplier = c.planes == 2 ? 1 : 2;
  int alive = 0;
  for (uint64_t word : filters.alive) alive += __builtin_popcountll(word);
  const std::vector<int32_t> origin = origins(c);
  const Kinds kinds = kinds_of(c);
  const std::vector<int32_t> base = bases(c, kinds, filters.words, std::min(alive, c.c));
  c.origin = origin.data(), c.kind = kinds.kind.data(), c.base = base.data();
  const Memory packed(isa.bits_bytes(c));
  isa.pack_bits(c, filters.words.data(), packed.data());
  c.weights = packed.data();

  const int64_t workers = std::min<int64_t>(threads, n);
  std::atomic<bool> failed{false};
  in_parallel(workers, [&](int64_t k) {
    if (!some_images(isa, c, x, size, filters, n * k / workers, n * (k + 1) / workers, y, failed)) failed = true;
  });
  return !failed;
}

template bool convolve_signs(const Isa&, const float*, std::array<int64_t, 4>, const float*, int64_t, const ConvSpec&,
                             float*, int);
template bool convolve_signs(const Isa&, const Bf16*, std::array<int64_t, 4>, const float*, int64_t, const ConvSpec&,
                             Bf16*, int);

}  // namespace sparsign
