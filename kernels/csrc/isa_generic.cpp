// The portable path: plain C++ for any CPU, and what the others are checked against.
#include "program.h"

namespace sparsign {
namespace {

inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

struct Eight {
  float v[8];
  float operator[](int i) const { return v[i]; }
};
inline Eight load8(const float* x) {
  Eight eight;
  for (int i = 0; i < 8; ++i) eight.v[i] = x[i];
  return eight;
}
inline Eight multiply_add8(const Eight& a, float b, Eight c) {
  for (int i = 0; i < 8; ++i) c.v[i] = multiply_add(a.v[i], b, c.v[i]);
  return c;
}

typedef float Sixteen __attribute__((vector_size(64)));  // gcc's and clang's, of whatever registers there are
inline Sixteen all16(float x) { return x - Sixteen{}; }
inline Sixteen load16(const float* x) {
  Sixteen sixteen;
  std::memcpy(&sixteen, x, sizeof sixteen);
  return sixteen;
}
inline Sixteen plus16(Sixteen a, Sixteen b) { return a + b; }
inline Sixteen times16(Sixteen a, Sixteen b) { return a * b; }
inline Sixteen multiply_add16(Sixteen a, Sixteen b, Sixteen c) {
  for (int i = 0; i < 16; ++i) a[i] = multiply_add(a[i], b[i], c[i]);
  return a;
}
inline Sixteen more16(Sixteen a, Sixteen b) { return a > b ? a : b; }
inline Sixteen less16(Sixteen a, Sixteen b) { return a < b ? a : b; }
inline void store16(float* to, Sixteen x) { std::memcpy(to, &x, sizeof x); }
inline Sixteen pick16(const float* x, const Pick& pick) {
  Sixteen picked;
  for (int i = 0; i < 16; ++i) picked[i] = pick.lane[i] == Pick::NOTHING ? 0.0f : x[pick.from + pick.lane[i]];
  return picked;
}

inline uint32_t sign_bits16(Sixteen x) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= uint32_t(x[i] >= 0) << i;
  return bits;
}

// Bits of x >= 0 and of x > 0; whether every number is size, -size or 0.
inline bool signs16(const float* x, float size, uint32_t& not_negative, uint32_t& positive) {
  bool known = true;
  not_negative = positive = 0;
  for (int i = 0; i < 16; ++i) {
    known &= x[i] == size || x[i] == -size || x[i] == 0;
    not_negative |= uint32_t(x[i] >= 0) << i;
    positive |= uint32_t(x[i] > 0) << i;
  }
  return known;
}

// Words of 64 channels: popcount(activations ^ weights). Weights [oc][plane][tap][words].
#include "words.inl"

struct Bits : Words {
  using Count = int32_t;

  static size_t bytes(const Conv& c) { return sizeof(uint64_t) * c.oc * c.planes * c.kh * c.kw * words(c); }

  static void pack(const Conv& c, const uint64_t* words, void* packed) {
    for (size_t i = 0; i < bytes(c) / sizeof(uint64_t); ++i) static_cast<uint64_t*>(packed)[i] = words[i];
  }

  static void count(const Conv& c, const uint8_t* in, int first, int pixels, int block, int channels,
                    Count counts[][BLOCK]) {
    const int n = words(c), taps = c.kh * c.kw;
    const uint64_t* weights = static_cast<const uint64_t*>(c.weights) + size_t(block) * c.planes * taps * n;
    for (int p = 0; p < pixels; ++p) {
      const uint64_t* x = reinterpret_cast<const uint64_t*>(in) + size_t(c.origin[first + p]) * n;
      const uint64_t* w = weights;
      for (int j = 0; j < channels; ++j) {
        int sum = 0;
        for (int plane = 0; plane < c.planes; ++plane)
          for (int ky = 0; ky < c.kh; ++ky)
            for (int kx = 0; kx < c.kw; ++kx, w += n) {
              const uint64_t* a = x + (size_t(ky) * c.dh * c.wp + size_t(kx) * c.dw) * n;
              for (int k = 0; k < n; ++k) sum += __builtin_popcountll(a[k] ^ w[k]);
            }
        counts[p][j] = sum;
      }
      for (int j = channels; j < BLOCK; ++j) counts[p][j] = 0;
    }
  }
};

struct Floats {
  static constexpr int PIXELS = 4;

  static void multiply(const Conv& c, const float* in, int ld, int inputs, int first, int pixels, const float* weights,
                       int columns, Tile& tile) {
    for (int p = 0; p < pixels; ++p)
      for (int column = 0; column < columns; ++column) {
        float sum[16] = {};
        const float* w = weights + size_t(column) * c.kh * c.kw * inputs * 16;
        for (int ky = 0; ky < c.kh; ++ky)
          for (int kx = 0; kx < c.kw; ++kx) {
            const float* x = in + (size_t(c.origin[first + p]) + size_t(ky) * c.dh * c.wp + size_t(kx) * c.dw) * ld;
            for (int k = 0; k < inputs; ++k, w += 16)
              for (int j = 0; j < 16; ++j) sum[j] = multiply_add(x[k], w[j], sum[j]);
          }
        for (int j = 0; j < 16; ++j) tile.v[p][column * 16 + j] = sum[j];
      }
  }
};

using BinaryTables = NoTables;
using TernaryTables = NoTables;

#include "steps.inl"

double peak(bool bits, int form, int64_t rounds) {
  if (form != 0) return 0;
  uint64_t word = 1;
  float sum = 0;
  for (int64_t i = 0; i < rounds; ++i)
    if (bits)
      word += uint64_t(__builtin_popcountll(word ^ uint64_t(i)));
    else
      sum = multiply_add(sum, 0.5f, 0.25f);
  volatile float kept = sum + float(word & 1);
  (void)kept;
  return double(rounds) * (bits ? 64 : 1);
}

const Isa isa = {"generic", Bits::bytes, Bits::scratch, Bits::pack, float_bytes, float_scratch, pack_float,
                 {BinaryTables::FORM, TernaryTables::FORM}, run, read_signs<float>, read_signs<Bf16>, round_to_bf16,
                 convolve, peak};

}  // namespace

const Isa* isa_generic() { return &isa; }

}  // namespace sparsign
