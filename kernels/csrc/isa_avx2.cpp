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

struct Sixteen {
  __m256 low, high;
};
inline Sixteen all16(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Sixteen load16(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline Sixteen plus16(Sixteen a, Sixteen b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Sixteen times16(Sixteen a, Sixteen b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Sixteen multiply_add16(Sixteen a, Sixteen b, Sixteen c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Sixteen more16(Sixteen a, Sixteen b) {  // a > b ? a : b
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Sixteen less16(Sixteen a, Sixteen b) {  // a < b ? a : b
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline void store16(float* to, Sixteen x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
inline __m256 pick8(Sixteen x, const int32_t* lane) {
  const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane));
  const __m256 low = _mm256_permutevar8x32_ps(x.low, lanes), high = _mm256_permutevar8x32_ps(x.high, lanes);
  const __m256 picked = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28)));
  return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(Pick::NOTHING), lanes)), picked);
}
inline Sixteen pick16(const float* x, const Pick& pick) {
  const Sixteen near = load16(x + pick.from);
  return {pick8(near, pick.lane), pick8(near, pick.lane + 8)};
}

inline uint32_t sign_bits16(Sixteen x) {
  const __m256 zero = _mm256_setzero_ps();
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(x.low, zero, _CMP_GE_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(x.high, zero, _CMP_GE_OQ));
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
#include "avx2_few.inl"
#include "avx2_bits.inl"

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

// vpermilps picks one of 4 floats in each lane: two channels. Three levels of them are 9 sums, too many. (vpermps picks one
// of 8, but half as often; as two binary weights, or with signs apart, a ternary one is no faster than multiplied.)
struct BinaryTables {
  static constexpr Lookups FORM = {2, 4, 2, 64};
  static constexpr int REGISTERS = 2;  // of 16 filters
  // Most 16s of filters of P pixels: 12 sums fit beside a table, two registers of indices and an entry.
  static constexpr int most(int pixels) { return pixels == 1 ? 4 : pixels == 2 ? 2 : 1; }
  using Sums = __m256;
  using Indices = __m256i;
  using Table = __m256;

  static Sums zero() { return _mm256_setzero_ps(); }
  static Table table(const float* x) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x)); }
  static Indices indices(const uint32_t* w) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(w)); }
  static Indices next(Indices i) { return _mm256_srli_epi32(i, FORM.bits); }
  static Sums add(Sums sums, Table table, Indices i) { return _mm256_add_ps(sums, _mm256_permutevar_ps(table, i)); }
  static void flush(float* to, Sums sums, bool first) {
    _mm256_store_ps(to, first ? sums : _mm256_add_ps(_mm256_load_ps(to), sums));
  }

  // The tables of up to 4 channels.
  static __m256 two(const float* x) {
    const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x));
    const __m256 a = _mm256_permutevar_ps(four, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
    const __m256 b = _mm256_permutevar_ps(four, _mm256_setr_epi32(1, 1, 1, 1, 3, 3, 3, 3));
    const __m256 signs = _mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1);
    return _mm256_fmadd_ps(a, signs, _mm256_mul_ps(b, _mm256_setr_ps(-1, -1, 1, 1, -1, -1, 1, 1)));
  }
  static void build(const float* x, int channels, float* out) {
    for (; channels >= 4; channels -= 4, x += 4, out += 8) _mm256_storeu_ps(out, two(x));
    if (channels == 0) return;
    float last[4] = {};
    for (int k = 0; k < channels; ++k) last[k] = x[k];
    const __m256 tables = two(last);
    _mm_storeu_ps(out, _mm256_castps256_ps128(tables));
    if (channels > 2) _mm_storeu_ps(out + 4, _mm256_extractf128_ps(tables, 1));
  }
};
using TernaryTables = NoTables;

#include "steps.inl"

// Look-ups and additions of 32 filters x 4 channels each: a table, weights and sums in registers.
double peak_lookups(int64_t rounds) {
  constexpr int N = 12;
  __m256i sums[N], table = _mm256_set1_epi8(1), weights = _mm256_set1_epi8(3);
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) sums[k] = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) {
      keep(table);  // one look-up for every sum
      sums[k] = _mm256_add_epi8(sums[k], _mm256_shuffle_epi8(table, weights));
      keep(sums[k]);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) asm volatile("" ::"x"(sums[k]));
  return double(rounds) * N * 128;
}

// A tile of `Bits` that reads the first-level cache, over and over: the loads, too.
template <int P, int F>
double peak_tile(int64_t rounds) {
  Conv c{};
  c.c = 80, c.kh = c.kw = 3, c.wp = MAX_TILE + 2, c.dh = c.dw = 1;
  const int n = Bits::nibbles(c);
  alignas(64) uint8_t image[3 * (MAX_TILE + 2) * 20] = {}, weights[9 * 20 * BLOCK] = {};
  alignas(64) Bits::Count counts[MAX_TILE][BLOCK];
  const int32_t origin = 0;
  const int lookups = P * F * n * 9;
  const int64_t tiles = rounds * 12 / lookups + 1;  // about as long as the rounds of the other
  for (int64_t i = 0; i < tiles; ++i) {
    Bits::count_row<P, F, 1>(c, image, &origin, P, weights, counts);
    asm volatile("" ::"r"(&counts) : "memory");
  }
  return double(tiles) * lookups * 128;
}

double peak_fp32(int64_t rounds) {
  constexpr int N = 12;
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

double peak(bool bits, int form, int64_t rounds) {
  if (!bits) return form == 0 ? peak_fp32(rounds) : form == 1 ? peak_tables<BinaryTables>(rounds) : 0;
  switch (form) {
    case 0: return peak_lookups(rounds);
    case 1: return peak_tile<4, 2>(rounds);
    case 2: return peak_tile<8, 1>(rounds);
    default: return 0;
  }
}

const Isa isa = {"avx2", Bits::bytes, Bits::scratch, Bits::pack, float_bytes, float_scratch, pack_float,
                 {BinaryTables::FORM, TernaryTables::FORM}, run, read_signs<float>, read_signs<Bf16>, round_to_bf16,
                 convolve, peak};

}  // namespace

const Isa* isa_avx2() { return &isa; }

}  // namespace sparsign
