// AVX-512 with VPOPCNTDQ: a zmm holds the same 64 channels of 8 filters, a pixel's word is broadcast, and the counts of 8
// filters stay in their lanes: no horizontal sums.
#include <immintrin.h>

#include "program.h"

namespace sparsign {
namespace {

inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

using Eight = __m256;
inline Eight load8(const float* x) { return _mm256_loadu_ps(x); }
inline Eight multiply_add8(Eight a, float b, Eight c) { return _mm256_fmadd_ps(a, _mm256_set1_ps(b), c); }

using Sixteen = __m512;
inline Sixteen all16(float x) { return _mm512_set1_ps(x); }
inline Sixteen load16(const float* x) { return _mm512_loadu_ps(x); }
inline Sixteen plus16(Sixteen a, Sixteen b) { return _mm512_add_ps(a, b); }
inline Sixteen times16(Sixteen a, Sixteen b) { return _mm512_mul_ps(a, b); }
inline Sixteen multiply_add16(Sixteen a, Sixteen b, Sixteen c) { return _mm512_fmadd_ps(a, b, c); }
inline Sixteen more16(Sixteen a, Sixteen b) { return _mm512_max_ps(a, b); }  // a > b ? a : b
inline Sixteen less16(Sixteen a, Sixteen b) { return _mm512_min_ps(a, b); }  // a < b ? a : b
inline void store16(float* to, Sixteen x) { _mm512_storeu_ps(to, x); }
inline Sixteen pick16(const float* x, const Pick& pick) {
  const __m512i lanes = _mm512_loadu_si512(pick.lane);
  const __mmask16 there = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(Pick::NOTHING), lanes);
  return _mm512_maskz_permutexvar_ps(there, lanes, _mm512_loadu_ps(x + pick.from));
}

inline uint32_t sign_bits16(Sixteen x) { return uint32_t(_mm512_cmp_ps_mask(x, all16(0), _CMP_GE_OQ)); }

// Bits of x >= 0 and of x > 0; whether every number is size, -size or 0.
inline bool signs16(const float* x, float size, uint32_t& not_negative, uint32_t& positive) {
  const __m512 v = _mm512_loadu_ps(x), zero = _mm512_setzero_ps();
  const __mmask16 sized = _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(size), _CMP_EQ_OQ);
  not_negative = uint32_t(_mm512_cmp_ps_mask(v, zero, _CMP_GE_OQ));
  positive = uint32_t(_mm512_cmp_ps_mask(v, zero, _CMP_GT_OQ));
  return (sized | _mm512_cmp_ps_mask(v, zero, _CMP_EQ_OQ)) == 0xFFFF;
}

#include "words.inl"

// Weights [oc / 32][tap][word][plane][32 filters].
struct Bits : Words {
  using Count = int32_t;
  static constexpr int HALF = 32;

  static size_t bytes(const Conv& c) {
    return sizeof(uint64_t) * round_up(c.oc, HALF) * c.planes * c.kh * c.kw * words(c);
  }

  static void pack(const Conv& c, const uint64_t* words, void* packed) {
    uint64_t* out = static_cast<uint64_t*>(packed);
    const int n = Words::words(c), taps = c.kh * c.kw;
    for (int half = 0; half < c.oc; half += HALF)
      for (int t = 0; t < taps; ++t)
        for (int k = 0; k < n; ++k)
          for (int plane = 0; plane < c.planes; ++plane, out += HALF)
            for (int j = 0; j < least(HALF, c.oc - half); ++j)
              out[j] = words[((size_t(half + j) * c.planes + plane) * taps + t) * n + k];
  }

  // P pixels x F registers of 8 filters.
  template <int P, int PLANES, int F>
  static void count_tile(const Conv& c, const uint8_t* in, const int32_t* origin, int pixels, const uint64_t* w,
                         Count counts[][BLOCK]) {
    const int n = words(c);
    const uint64_t* x[P];
    for (int p = 0; p < P; ++p)
      x[p] = reinterpret_cast<const uint64_t*>(in) + size_t(origin[least(p, pixels - 1)]) * n;
    __m512i sums[P][F];
    for (int p = 0; p < P; ++p)
      for (int f = 0; f < F; ++f) sums[p][f] = _mm512_setzero_si512();
    for (int ky = 0; ky < c.kh; ++ky)
      for (int kx = 0; kx < c.kw; ++kx) {
        const ptrdiff_t tap = (ptrdiff_t(ky) * c.dh * c.wp + ptrdiff_t(kx) * c.dw) * n;
        for (int k = 0; k < n; ++k)
          for (int plane = 0; plane < PLANES; ++plane, w += HALF) {
            __m512i weights[F];
            for (int f = 0; f < F; ++f) weights[f] = _mm512_loadu_si512(w + 8 * f);
            for (int p = 0; p < P; ++p) {
              const __m512i word = _mm512_set1_epi64(static_cast<long long>(x[p][tap + k]));
              for (int f = 0; f < F; ++f)
                sums[p][f] =
                    _mm512_add_epi64(sums[p][f], _mm512_popcnt_epi64(_mm512_xor_si512(word, weights[f])));
            }
          }
      }
    for (int p = 0; p < P; ++p)
      for (int f = 0; f < F; ++f)
        _mm256_store_si256(reinterpret_cast<__m256i*>(counts[p] + 8 * f), _mm512_cvtepi64_epi32(sums[p][f]));
  }

  template <int P, int PLANES>
  static void count_filters(const Conv& c, const uint8_t* in, const int32_t* origin, int pixels, const uint64_t* w,
                            int filters, Count counts[][BLOCK]) {
    if (filters > 24) return count_tile<P, PLANES, 4>(c, in, origin, pixels, w, counts);
    if (filters > 16) return count_tile<P, PLANES, 3>(c, in, origin, pixels, w, counts);
    if (filters > 8) return count_tile<P, PLANES, 2>(c, in, origin, pixels, w, counts);
    count_tile<P, PLANES, 1>(c, in, origin, pixels, w, counts);
  }

  static void count(const Conv& c, const uint8_t* in, int first, int pixels, int block, int channels,
                    Count counts[][BLOCK]) {
    const size_t filter = size_t(c.kh) * c.kw * words(c) * c.planes;
    for (int half = 0; half < channels; half += HALF) {
      const uint64_t* w = static_cast<const uint64_t*>(c.weights) + (block + half) * filter;
      Count(*to)[BLOCK] = reinterpret_cast<Count(*)[BLOCK]>(counts[0] + half);
      const int32_t* origin = c.origin + first;
      const int filters = channels - half;
      for (int p = 0, left; (left = pixels - p) > 0; p += 4) {
        if (left == 1 && c.planes == 1) count_filters<1, 1>(c, in, origin + p, left, w, filters, to + p);
        if (left == 1 && c.planes == 2) count_filters<1, 2>(c, in, origin + p, left, w, filters, to + p);
        if (left > 1 && c.planes == 1) count_filters<4, 1>(c, in, origin + p, left, w, filters, to + p);
        if (left > 1 && c.planes == 2) count_filters<4, 2>(c, in, origin + p, left, w, filters, to + p);
      }
    }
  }
};

// P pixels x F registers of 16 outputs in 24 or fewer accumulators.
struct Floats {
  static constexpr int PIXELS = 6;

  template <int P, int F>
  static void multiply_tile(const Conv& c, const float* in, int ld, int inputs, const int32_t* origin,
                            const float* weights, Tile& tile, int column) {
    const size_t stride = size_t(c.kh) * c.kw * inputs * 16;
    __m512 sums[P][F];
    for (int p = 0; p < P; ++p)
      for (int f = 0; f < F; ++f) sums[p][f] = _mm512_setzero_ps();
    const float* w = weights;
    for (int ky = 0; ky < c.kh; ++ky)
      for (int kx = 0; kx < c.kw; ++kx) {
        const float* x[P];
        for (int p = 0; p < P; ++p)
          x[p] = in + (size_t(origin[p]) + size_t(ky) * c.dh * c.wp + size_t(kx) * c.dw) * ld;
        for (int k = 0; k < inputs; ++k, w += 16) {
          __m512 row[F];
          for (int f = 0; f < F; ++f) row[f] = _mm512_loadu_ps(w + stride * f);
          for (int p = 0; p < P; ++p) {
            const __m512 value = _mm512_set1_ps(x[p][k]);
            for (int f = 0; f < F; ++f) sums[p][f] = _mm512_fmadd_ps(value, row[f], sums[p][f]);
          }
        }
      }
    for (int p = 0; p < P; ++p)
      for (int f = 0; f < F; ++f) _mm512_storeu_ps(tile.v[p] + (column + f) * 16, sums[p][f]);
  }

  template <int P>
  static void multiply_row(const Conv& c, const float* in, int ld, int inputs, const int32_t* origin,
                           const float* weights, int columns, Tile& tile) {
    const size_t stride = size_t(c.kh) * c.kw * inputs * 16;
    int column = 0;
    for (; column + 4 <= columns; column += 4)
      multiply_tile<P, 4>(c, in, ld, inputs, origin, weights + stride * column, tile, column);
    for (; column + 2 <= columns; column += 2)
      multiply_tile<P, 2>(c, in, ld, inputs, origin, weights + stride * column, tile, column);
    for (; column < columns; ++column)
      multiply_tile<P, 1>(c, in, ld, inputs, origin, weights + stride * column, tile, column);
  }

  static void multiply(const Conv& c, const float* in, int ld, int inputs, int first, int pixels, const float* weights,
                       int columns, Tile& tile) {
    const int32_t* origin = c.origin + first;
    switch (pixels) {
      case 1: return multiply_row<1>(c, in, ld, inputs, origin, weights, columns, tile);
      case 2: return multiply_row<2>(c, in, ld, inputs, origin, weights, columns, tile);
      case 3: return multiply_row<3>(c, in, ld, inputs, origin, weights, columns, tile);
      case 4: return multiply_row<4>(c, in, ld, inputs, origin, weights, columns, tile);
      case 5: return multiply_row<5>(c, in, ld, inputs, origin, weights, columns, tile);
      default: return multiply_row<6>(c, in, ld, inputs, origin, weights, columns, tile);
    }
  }
};

// The value is in a register here.
template <class T>
inline void keep(T& v) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(v));
#else
  (void)v;
#endif
}

// What both kinds of tables share: a register holds the sums of 16 filters. `uses` by a count of instructions, not timed:
// making a table of 4 channels takes 9, one of 3 takes 14, and each use of 16 filters saves 1.6 or 0.9.
struct Sixteens {
  static constexpr int REGISTERS = 1;
  static constexpr int most(int) { return 4; }
  using Sums = __m512;
  using Indices = __m512i;

  static Sums zero() { return _mm512_setzero_ps(); }
  static Indices indices(const uint32_t* w) { return _mm512_loadu_si512(w); }
  static void flush(float* to, Sums sums, bool first) {
    _mm512_storeu_ps(to, first ? sums : _mm512_add_ps(_mm512_loadu_ps(to), sums));
  }
};

// vpermps picks one of 16 floats: four channels.
struct BinaryTables : Sixteens {
  static constexpr Lookups FORM = {4, 16, 4, 96};
  using Table = __m512;

  static Table table(const float* x) { return _mm512_loadu_ps(x); }
  static Indices next(Indices i) { return _mm512_srli_epi32(i, FORM.bits); }
  static Sums add(Sums sums, Table table, Indices i) { return _mm512_add_ps(sums, _mm512_permutexvar_ps(i, table)); }

  static void build(const float* x, int channels, float* out) {
    alignas(64) static constexpr float SIGNS[4][16] = {{-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
                                                       {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
                                                       {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
                                                       {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};
    for (; channels > 0; channels -= 4, x += 4, out += 16) {
      __m512 sums = _mm512_setzero_ps();
      for (int k = 0; k < least(4, channels); ++k)
        sums = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), _mm512_loadu_ps(SIGNS[k]), sums);
      _mm512_storeu_ps(out, sums);
    }
  }
};

// vpermi2ps picks one of 32 floats: three channels' 27 sums.
struct TernaryTables : Sixteens {
  static constexpr Lookups FORM = {3, 32, 5, 256};
  struct Table {
    __m512 low, high;
  };

  static Table table(const float* x) { return {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)}; }
  static Indices next(Indices i) { return _mm512_srli_epi32(i, FORM.bits); }
  static Sums add(Sums sums, const Table& table, Indices i) {
    return _mm512_add_ps(sums, _mm512_permutex2var_ps(table.low, i, table.high));
  }

  static void build(const float* x, int channels, float* out) {
    alignas(64) static constexpr float SIGNS[3][32] = {
        {-1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1},
        {-1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1},
        {-1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    for (; channels > 0; channels -= 3, x += 3, out += 32)
      for (int half = 0; half < 32; half += 16) {
        __m512 sums = _mm512_setzero_ps();
        for (int k = 0; k < least(3, channels); ++k)
          sums = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), _mm512_loadu_ps(SIGNS[k] + half), sums);
        _mm512_storeu_ps(out + half, sums);
      }
  }
};

#include "steps.inl"

double peak(bool bits, int form, int64_t rounds) {
  if (!bits && form == 1) return peak_tables<BinaryTables>(rounds);
  if (!bits && form == 2) return peak_tables<TernaryTables>(rounds);
  if (form != 0) return 0;
  constexpr int N = 10;
  if (bits) {
    __m512i sums[N] = {}, word = _mm512_set1_epi64(rounds), weights = _mm512_set1_epi64(3);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) {
        __m512i other = _mm512_xor_si512(word, weights);
        keep(other);
        sums[k] = _mm512_add_epi64(sums[k], _mm512_popcnt_epi64(other));
        keep(sums[k]);
      }
    }
    return double(rounds) * N * 512;
  }
  __m512 sums[N] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) {
      sums[k] = _mm512_fmadd_ps(a, b, sums[k]);
      keep(sums[k]);
    }
  }
  return double(rounds) * N * 16;
}

const Isa isa = {"avx512", Bits::bytes, Bits::scratch, Bits::pack, float_bytes, float_scratch, pack_float,
                 {BinaryTables::FORM, TernaryTables::FORM}, run, read_signs<float>, read_signs<Bf16>, round_to_bf16,
                 convolve, peak};

}  // namespace

const Isa* isa_avx512() { return &isa; }

}  // namespace sparsign
