// AVX2 and FMA. There is no vector popcount, but vpshufb looks up 32 table entries at once: the table of a pixel's four
// channels holds its mismatches with all 16 patterns of four weights, so that one vpshufb and one vpaddb do 128
// multiply-adds where xor and a counting of bits would take eight instructions for 256.
#include <immintrin.h>

#include "program.h"

namespace sparsign {
namespace {

inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

using Eight = __m256;
inline Eight load8(const float* x) { return _mm256_loadu_ps(x); }
inline Eight multiply_add8(Eight a, float b, Eight c) { return _mm256_fmadd_ps(a, _mm256_set1_ps(b), c); }

inline uint32_t sign_bits16(const float* x) {
  const __m256 zero = _mm256_setzero_ps();
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), zero, _CMP_GE_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + 8), zero, _CMP_GE_OQ));
  return uint32_t(low | high << 8);
}

// Bits of x >= 0 and of x > 0; whether every number is size, -size or 0.
inline bool signs16(const float* x, float size, uint32_t& not_negative, uint32_t& positive) {
  const __m256 zero = _mm256_setzero_ps(), minus = _mm256_set1_ps(-0.0f), s = _mm256_set1_ps(size);
  int known = 0xFF;
  not_negative = positive = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256 v = _mm256_loadu_ps(x + 8 * half);
    const __m256 is_zero = _mm256_cmp_ps(v, zero, _CMP_EQ_OQ);
    known &= _mm256_movemask_ps(_mm256_or_ps(is_zero, _mm256_cmp_ps(_mm256_andnot_ps(minus, v), s, _CMP_EQ_OQ)));
    not_negative |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_GE_OQ))) << 8 * half;
    positive |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_GT_OQ))) << 8 * half;
  }
  return known == 0xFF;
}

#include "words.inl"

// mismatches[a][w] = popcount(a ^ w) of two nibbles.
struct alignas(64) Table {
  uint8_t mismatches[16][16];
};

constexpr Table make_table() {
  Table t{};
  for (int a = 0; a < 16; ++a)
    for (int w = 0; w < 16; ++w)
      for (int x = a ^ w; x; x &= x - 1) ++t.mismatches[a][w];
  return t;
}

constexpr Table TABLE = make_table();

// Activations are nibbles of four channels, each in a byte as the offset of its row in TABLE: [hp][wp][nibbles].
// Weights are nibbles, each in a byte as vpshufb wants it: [oc / BLOCK][tap][nibble][plane][BLOCK].
struct Bits : Words {
  using Count = uint16_t;
  static constexpr int PIXELS = 4;

  static int nibbles(const Conv& c) { return (c.c + 3) / 4; }
  static size_t image_bytes(const Conv& c) { return round_up(c.hp * c.wp * nibbles(c) + 16, 64); }
  static size_t scratch(const Conv& c) { return image_bytes(c); }
  static size_t bytes(const Conv& c) {
    return size_t(round_up(c.oc, BLOCK)) * c.kh * c.kw * nibbles(c) * c.planes;
  }

  static void expand(const Conv& c, const uint64_t* in, int ld, uint8_t* scratch) {
    const int n = nibbles(c), stored = words(c);
    const size_t row = size_t(c.wp) * n;
    const __m128i high = _mm_set1_epi8(char(0xF0));
    for (size_t i = 0; i < row * size_t(c.hp); i += 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(scratch + i), _mm_setzero_si128());
    for (int y = 0; y < c.h; ++y)
      for (int x = 0; x < c.w; ++x, in += ld) {
        uint8_t* out = scratch + size_t(y + c.ph) * row + size_t(x + c.pw) * n;
        for (int k = 0; k < stored; ++k) {  // writes zeros past the pixel's nibbles: over the border or the next pixel
          const __m128i bits = _mm_cvtsi64_si128(static_cast<long long>(in[k]));
          const __m128i even = _mm_and_si128(_mm_slli_epi16(bits, 4), high), odd = _mm_and_si128(bits, high);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * k), _mm_unpacklo_epi8(even, odd));
        }
      }
  }

  static void pack(const Conv& c, const uint64_t* words, void* packed) {
    uint8_t* out = static_cast<uint8_t*>(packed);
    const int n = nibbles(c), stored = Words::words(c), taps = c.kh * c.kw;
    const size_t step = size_t(BLOCK) * c.planes;  // from a nibble to the next
    for (int block = 0; block < c.oc; block += BLOCK, out += step * n * taps)
      for (int lane = 0; lane < BLOCK; ++lane) {  // `packed` is all zeros: lanes beyond the last filter stay so
        // Even bytes are filters 0-15 of the 32, odd bytes 16-31: counts come out in order, see `flush`.
        const int o = block + lane / 32 * 32 + lane % 2 * 16 + lane % 32 / 2;
        if (o >= c.oc) continue;
        for (int plane = 0; plane < c.planes; ++plane)
          for (int t = 0; t < taps; ++t) {
            const uint64_t* word = words + ((size_t(o) * c.planes + plane) * taps + t) * stored;
            uint8_t* to = out + size_t(t) * n * step + plane * BLOCK + lane;
            for (int k = 0; k < n; ++k, to += step) *to = word[k / 16] >> (k % 16 * 4) & 15;
          }
      }
  }

  template <int F>
  static inline void flush(__m256i (*sums)[F], int pixels, Count counts[][BLOCK]) {
    const __m256i even = _mm256_set1_epi16(0xFF);
    for (int p = 0; p < pixels; ++p)
      for (int f = 0; f < F; ++f) {
        __m256i* to = reinterpret_cast<__m256i*>(counts[p] + 32 * f);
        to[0] = _mm256_add_epi16(to[0], _mm256_and_si256(sums[p][f], even));
        to[1] = _mm256_add_epi16(to[1], _mm256_srli_epi16(sums[p][f], 8));
        sums[p][f] = _mm256_setzero_si256();
      }
  }

  // P pixels x F registers of 32 filters; PLANES = 2 for ternary weights.
  template <int P, int F, int PLANES>
  static void count_tile(const Conv& c, const uint8_t* in, const int32_t* origin, int pixels, const uint8_t* w,
                         Count counts[][BLOCK]) {
    constexpr int LIMIT = 63 / PLANES;  // nibbles whose mismatches fit into a byte: at most 4 each and plane
    const int n = nibbles(c);
    const uint8_t* x[P];
    for (int p = 0; p < P; ++p) x[p] = in + size_t(origin[least(p, pixels - 1)]) * n;
    for (int p = 0; p < P; ++p)
      for (int j = 0; j < 32 * F; j += 16) _mm256_store_si256(reinterpret_cast<__m256i*>(counts[p] + j), __m256i{});
    __m256i sums[P][F] = {};
    int used = 0;
    for (int ky = 0; ky < c.kh; ++ky)
      for (int kx = 0; kx < c.kw; ++kx) {
        const ptrdiff_t tap = (ptrdiff_t(ky) * c.dh * c.wp + ptrdiff_t(kx) * c.dw) * n;
        for (int from = 0; from < n; from += LIMIT) {
          const int to = least(n, from + LIMIT);
          if (used + to - from > LIMIT) {
            flush<F>(sums, P, counts);
            used = 0;
          }
          used += to - from;
          for (int k = from; k < to; ++k, w += BLOCK * PLANES) {
            __m256i weights[PLANES][F];
            for (int plane = 0; plane < PLANES; ++plane)
              for (int f = 0; f < F; ++f)
                weights[plane][f] =
                    _mm256_load_si256(reinterpret_cast<const __m256i*>(w + plane * BLOCK + 32 * f));
            for (int p = 0; p < P; ++p) {
              const uint8_t* entry = &TABLE.mismatches[0][0] + x[p][tap + k];
              const __m256i table = _mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(entry));
              for (int plane = 0; plane < PLANES; ++plane)
                for (int f = 0; f < F; ++f)
                  sums[p][f] = _mm256_add_epi8(sums[p][f], _mm256_shuffle_epi8(table, weights[plane][f]));
            }
          }
        }
      }
    flush<F>(sums, P, counts);
  }

  static void count(const Conv& c, const uint8_t* in, int first, int pixels, int block, int channels,
                    Count counts[][BLOCK]) {
    const uint8_t* w =
        static_cast<const uint8_t*>(c.weights) + size_t(block) * c.kh * c.kw * nibbles(c) * c.planes;
    const int32_t* origin = c.origin + first;
    if (channels <= 32) {
      if (c.planes == 1) return count_tile<4, 1, 1>(c, in, origin, pixels, w, counts);
      return count_tile<4, 1, 2>(c, in, origin, pixels, w, counts);
    }
    if (pixels == 1) {
      if (c.planes == 1) return count_tile<1, 2, 1>(c, in, origin, pixels, w, counts);
      return count_tile<1, 2, 2>(c, in, origin, pixels, w, counts);
    }
    if (c.planes == 1) return count_tile<4, 2, 1>(c, in, origin, pixels, w, counts);
    return count_tile<4, 2, 2>(c, in, origin, pixels, w, counts);
  }
};

// P pixels x F registers of 8 outputs in 12 or fewer accumulators.
struct Floats {
  static constexpr int PIXELS = 6;

  template <int P, int F>
  static void multiply_tile(const Conv& c, const float* in, int ld, int inputs, const int32_t* origin,
                            const float* weights, Tile& tile, int column) {
    const size_t stride = size_t(c.kh) * c.kw * inputs * 16;  // from 16 outputs' weights to the next 16's
    __m256 sums[P][F] = {};
    const float* w = weights;
    for (int ky = 0; ky < c.kh; ++ky)
      for (int kx = 0; kx < c.kw; ++kx) {
        const float* x[P];
        for (int p = 0; p < P; ++p)
          x[p] = in + (size_t(origin[p]) + size_t(ky) * c.dh * c.wp + size_t(kx) * c.dw) * ld;
        for (int k = 0; k < inputs; ++k, w += 16) {
          __m256 row[F];
          for (int f = 0; f < F; ++f) row[f] = _mm256_load_ps(w + stride * (f / 2) + 8 * (f % 2));
          for (int p = 0; p < P; ++p) {
            const __m256 value = _mm256_broadcast_ss(x[p] + k);
            for (int f = 0; f < F; ++f) sums[p][f] = _mm256_fmadd_ps(value, row[f], sums[p][f]);
          }
        }
      }
    for (int p = 0; p < P; ++p)
      for (int f = 0; f < F; ++f) _mm256_store_ps(tile.v[p] + column * 16 + 8 * f, sums[p][f]);
  }

  static void multiply(const Conv& c, const float* in, int ld, int inputs, int first, int pixels, const float* weights,
                       int columns, Tile& tile) {
    const int32_t* origin = c.origin + first;
    const size_t stride = size_t(c.kh) * c.kw * inputs * 16;
    int column = 0;
    if (pixels == 1)  // few pixels: more outputs at once hide the latency of the multiply-adds
      for (; column + 4 <= columns; column += 4)
        multiply_tile<1, 8>(c, in, ld, inputs, origin, weights + stride * column, tile, column);
    for (; column < columns; ++column) {
      const float* w = weights + stride * column;
      switch (pixels) {
        case 1: multiply_tile<1, 2>(c, in, ld, inputs, origin, w, tile, column); break;
        case 2: multiply_tile<2, 2>(c, in, ld, inputs, origin, w, tile, column); break;
        case 3: multiply_tile<3, 2>(c, in, ld, inputs, origin, w, tile, column); break;
        case 4: multiply_tile<4, 2>(c, in, ld, inputs, origin, w, tile, column); break;
        case 5: multiply_tile<5, 2>(c, in, ld, inputs, origin, w, tile, column); break;
        default: multiply_tile<6, 2>(c, in, ld, inputs, origin, w, tile, column);
      }
    }
  }
};

#include "steps.inl"

// A look-up and an addition are 32 filters x 4 channels.
double peak(bool bits, int64_t rounds) {
  constexpr int N = 12;
  if (bits) {
    __m256i sums[N] = {}, table = _mm256_set1_epi8(1), weights = _mm256_set1_epi8(int(rounds & 3));
    for (int64_t i = 0; i < rounds; ++i) {
      asm volatile("" : "+x"(table), "+x"(weights));
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) {
        __m256i found = _mm256_shuffle_epi8(table, weights);
        asm volatile("" : "+x"(found));  // one look-up for every sum
        sums[k] = _mm256_add_epi8(sums[k], found);
      }
    }
    for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
    return double(rounds) * N * 128;
  }
  __m256 sums[N] = {}, a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) {
      sums[k] = _mm256_fmadd_ps(a, b, sums[k]);
      asm volatile("" : "+x"(sums[k]));
    }
  }
  return double(rounds) * N * 8;
}

const Isa isa = {"avx2", Bits::bytes, Bits::scratch, Bits::pack, float_bytes, float_scratch, pack_float, run, read_signs,
                 convolve, peak};

}  // namespace

const Isa* isa_avx2() { return &isa; }

}  // namespace sparsign
