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
// Weights are nibbles, each in a byte as vpshufb wants it: [blocks][kh][kw][nibble][plane][filters of the block], or
// [blocks][kh][nibble][kw]... for `count_row`. A block is BLOCK filters; the last one is HALF where that holds what is left.
struct Bits : Words {
  using Count = uint16_t;
  static constexpr int HALF = 32;
  static constexpr int MOST = 63;  // look-ups whose mismatches fit into a byte: at most 4 each

  static int nibbles(const Conv& c) { return (c.c + 3) / 4; }
  static size_t tail(const Conv& c) { return size_t(MAX_TILE) * nibbles(c) + 16; }  // read past the image, never used
  static size_t image_bytes(const Conv& c) { return (size_t(c.hp) * c.wp * nibbles(c) + tail(c) + 63) / 64 * 64; }
  static size_t scratch(const Conv& c) { return image_bytes(c); }
  static size_t bytes(const Conv& c) { return size_t(round_up(c.oc, HALF)) * c.kh * c.kw * nibbles(c) * c.planes; }

  // Whether output pixels of a row are neighbours, so that what one reads at a tap the next one reads at the tap before.
  static bool neighbours(const Conv& c) { return c.kw == 3 && c.sw == 1 && c.dw == 1 && c.ow >= 3; }

  static int next(const Conv& c, int first, int channels) {
    if (!neighbours(c)) return least(4, c.oh * c.ow - first);
    return least(channels <= HALF ? 8 : 4, c.ow - first % c.ow);
  }

  static uint8_t* zeros(uint8_t* to, size_t bytes) {  // and up to 15 more
    for (size_t i = 0; i < bytes; i += 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_setzero_si128());
    return to + bytes;
  }

  // Writes from the first byte to the last: what a store leaves past its end is written again.
  static void expand(const Conv& c, const uint64_t* in, int ld, uint8_t* out) {
    const int n = nibbles(c), stored = words(c);
    const size_t side = size_t(c.pw) * n, rows = size_t(c.ph) * c.wp * n;
    const __m128i high = _mm_set1_epi8(char(0xF0));
    out = zeros(out, rows);
    for (int y = 0; y < c.h; ++y) {
      out = zeros(out, side);
      for (int x = 0; x < c.w; ++x, in += ld, out += n)
        for (int k = 0; k < stored; ++k) {
          const __m128i bits = _mm_cvtsi64_si128(static_cast<long long>(in[k]));
          const __m128i even = _mm_and_si128(_mm_slli_epi16(bits, 4), high), odd = _mm_and_si128(bits, high);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * k), _mm_unpacklo_epi8(even, odd));
        }
      out = zeros(out, side);
    }
    zeros(out, rows + tail(c) - 16);
  }

  static void pack(const Conv& c, const uint64_t* words, void* packed) {
    uint8_t* out = static_cast<uint8_t*>(packed);
    const int n = nibbles(c), stored = Words::words(c), taps = c.kh * c.kw;
    for (int block = 0; block < c.oc; block += BLOCK) {
      const int width = c.oc - block > HALF ? BLOCK : HALF;
      for (int row = 0; row < c.kh; ++row)
        for (int i = 0; i < n * c.kw; ++i) {
          const int k = neighbours(c) ? i / c.kw : i % n, tap = row * c.kw + (neighbours(c) ? i % c.kw : i / n);
          for (int plane = 0; plane < c.planes; ++plane, out += width)
            for (int lane = 0; lane < width; ++lane) {  // `packed` is all zeros: lanes beyond the last filter stay so
              // Even bytes are filters 0-15 of the 32, odd bytes 16-31: counts come out in order, see `flush`.
              const int o = block + lane / 32 * 32 + lane % 2 * 16 + lane % 32 / 2;
              if (o >= c.oc) continue;
              const uint64_t* word = words + ((size_t(o) * c.planes + plane) * taps + tap) * stored;
              out[lane] = word[k / 16] >> (k % 16 * 4) & 15;
            }
        }
    }
  }

  // Sums of bytes of P pixels x F registers of 32 filters. Its loops are unrolled: else they would lie in memory.
  template <int P, int F>
  struct Sums {
    __m256i v[P][F];

    inline void clear() {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int f = 0; f < F; ++f) v[p][f] = _mm256_setzero_si256();
    }

    // Adds them to the counts (the first time: stores them), and clears them.
    inline void flush(Count counts[][BLOCK], bool first) {
      const __m256i even = _mm256_set1_epi16(0xFF);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int f = 0; f < F; ++f) {
          __m256i* to = reinterpret_cast<__m256i*>(counts[p] + 32 * f);
          const __m256i a = _mm256_and_si256(v[p][f], even), b = _mm256_srli_epi16(v[p][f], 8);
          to[0] = first ? a : _mm256_add_epi16(to[0], a);
          to[1] = first ? b : _mm256_add_epi16(to[1], b);
        }
      clear();
    }
  };

  static inline __m256i table(uint8_t nibble) {
    return _mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(&TABLE.mismatches[0][0] + nibble));
  }

  // The value is in a register here: gcc would rather sum in another order, and keep half of the sums in memory.
  static inline void keep(__m256i& v) { asm("" : "+x"(v)); }

  // Any P pixels; PLANES = 2 for ternary weights.
  template <int P, int F, int PLANES>
  __attribute__((noinline)) static void count_any(const Conv& c, const uint8_t* in, const int32_t* origin, int pixels,
                                                  const uint8_t* w, Count counts[][BLOCK]) {
    constexpr int STEP = 32 * F * PLANES;
    const int n = nibbles(c);
    const uint8_t* x[P];
    for (int p = 0; p < P; ++p) x[p] = in + size_t(origin[least(p, pixels - 1)]) * n;
    Sums<P, F> sums;
    sums.clear();
    constexpr int LIMIT = MOST / PLANES;
    int used = 0;
    bool first = true;
    for (int ky = 0; ky < c.kh; ++ky)
      for (int kx = 0; kx < c.kw; ++kx) {
        const ptrdiff_t tap = (ptrdiff_t(ky) * c.dh * c.wp + ptrdiff_t(kx) * c.dw) * n;
        for (int from = 0, to; from < n; from = to) {
          if (used == LIMIT) sums.flush(counts, first), first = false, used = 0;
          to = least(n, from + LIMIT - used);
          used += to - from;
          for (int k = from; k < to; ++k, w += STEP) {
            __m256i rows[F * PLANES];
#pragma GCC unroll 8
            for (int i = 0; i < F * PLANES; ++i) {
              rows[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32 * i));
              keep(rows[i]);
            }
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
              const __m256i t = table(x[p][tap + k]);
#pragma GCC unroll 8
              for (int i = 0; i < F * PLANES; ++i)
                sums.v[p][i % F] = _mm256_add_epi8(sums.v[p][i % F], _mm256_shuffle_epi8(t, rows[i]));
            }
          }
        }
      }
    sums.flush(counts, first);
  }

  // P neighbours of a row, 3 taps wide: every table serves up to 3 of them.
  template <int P, int F, int PLANES>
  __attribute__((noinline)) static void count_row(const Conv& c, const uint8_t* in, const int32_t* origin, int, const uint8_t* w,
                        Count counts[][BLOCK]) {
    constexpr int TAPS = 3, LIMIT = MOST / PLANES / TAPS, STEP = 32 * F * PLANES;
    const int n = nibbles(c);
    Sums<P, F> sums;
    sums.clear();
    int used = 0;
    bool first = true;
    for (int ky = 0; ky < c.kh; ++ky) {
      const uint8_t* x = in + (size_t(origin[0]) + size_t(ky) * c.dh * c.wp) * n;
      for (int from = 0, to; from < n; from = to) {
        if (used == LIMIT) sums.flush(counts, first), first = false, used = 0;
        to = least(n, from + LIMIT - used);
        used += to - from;
        for (int k = from; k < to; ++k, w += TAPS * STEP) {
#pragma GCC unroll 16
          for (int q = 0; q < P + TAPS - 1; ++q) {
            const __m256i t = table(x[size_t(q) * n + k]);
#pragma GCC unroll 8
            for (int kx = 0; kx < TAPS; ++kx) {
              const int p = q - kx;
              if (p < 0 || p >= P) continue;
#pragma GCC unroll 8
              for (int i = 0; i < F * PLANES; ++i) {
                const __m256i row = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + kx * STEP + 32 * i));
                sums.v[p][i % F] = _mm256_add_epi8(sums.v[p][i % F], _mm256_shuffle_epi8(t, row));
                keep(sums.v[p][i % F]);
              }
            }
          }
        }
      }
    }
    sums.flush(counts, first);
  }

  template <int PLANES>
  static void count_planes(const Conv& c, const uint8_t* in, int first, int pixels, int channels, const uint8_t* w,
                           Count counts[][BLOCK]) {
    const int32_t* origin = c.origin + first;
    const auto count = [&](auto tile) { tile(c, in, origin, pixels, w, counts); };
    if (!neighbours(c)) {
      if (channels <= HALF) return count(count_any<4, 1, PLANES>);
      return pixels == 1 ? count(count_any<1, 2, PLANES>) : count(count_any<4, 2, PLANES>);
    }
    if (channels <= HALF) switch ((pixels + 1) / 2) {
        case 1: return count(count_row<2, 1, PLANES>);
        case 2: return count(count_row<4, 1, PLANES>);
        case 3: return count(count_row<6, 1, PLANES>);
        default: return count(count_row<8, 1, PLANES>);
      }
    switch (pixels) {
      case 1: return count(count_row<1, 2, PLANES>);
      case 2: return count(count_row<2, 2, PLANES>);
      case 3: return count(count_row<3, 2, PLANES>);
      default: return count(count_row<4, 2, PLANES>);
    }
  }

  static void count(const Conv& c, const uint8_t* in, int first, int pixels, int block, int channels,
                    Count counts[][BLOCK]) {
    const uint8_t* w = static_cast<const uint8_t*>(c.weights) + size_t(block) * c.kh * c.kw * nibbles(c) * c.planes;
    if (c.planes == 1)
      count_planes<1>(c, in, first, pixels, channels, w, counts);
    else
      count_planes<2>(c, in, first, pixels, channels, w, counts);
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
