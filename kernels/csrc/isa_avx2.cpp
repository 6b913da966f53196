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

inline __m256i table(uint8_t nibble) {
  return _mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(&TABLE.mismatches[0][0] + nibble));
}

// The value is in a register here: gcc would rather sum in another order, and keep half of the sums in memory.
inline void keep(__m256i& v) { asm("" : "+x"(v)); }
inline void keep(__m256& v) { asm("" : "+x"(v)); }

constexpr int LOOKUPS = 63;  // look-ups whose mismatches fit into a byte: at most 4 each

// The last filters of a layer, too few for a register: here pixels lie in its lanes, and a table is that of a filter's
// nibble. Activations are nibbles in bytes, [nibble][hp * wp]: what neighbouring pixels read at a tap lies together.
// Weights are nibbles, each in a byte as the offset of its row in TABLE: [groups of 4 filters][kh][kw][nibble][filter][plane].
struct Few {
  using Count = uint16_t;
  static constexpr int MOST = 16, TOGETHER = 4, RUN = 64;

  static int nibbles(const Conv& c) { return (c.c + 3) / 4; }
  static int places(const Conv& c) { return (c.oh - 1) * c.wp + c.ow; }  // some between the rows are no outputs
  // How many of the last block's filters are counted here: where it takes fewer look-ups than a register of filters.
  static int of(const Conv& c, int filters) {
    const int rest = filters % 32;
    if (c.sh != 1 || c.sw != 1 || filters > 32 + MOST || rest > MOST) return 0;
    return int64_t(rest) * ((places(c) + 31) / 32) * 5 <= int64_t(c.oh) * c.ow * 4 ? rest : 0;
  }
  static size_t plane(const Conv& c) { return (size_t(c.hp) * c.wp + RUN + 31) / 32 * 32; }
  static size_t planes_bytes(const Conv& c) { return plane(c) * round_up(nibbles(c), 2); }
  static size_t count_bytes(const Conv& c) { return sizeof(Count) * MOST * c.oh * c.ow; }
  static size_t image_bytes(const Conv& c) { return (count_bytes(c) + planes_bytes(c) + 63) / 64 * 64; }
  static size_t bytes(const Conv& c, int filters) { return size_t(filters) * c.kh * c.kw * nibbles(c) * c.planes; }

  static void pack(const Conv& c, const uint64_t* words, int filters, uint8_t* out) {
    const int n = nibbles(c), stored = (c.c + 63) / 64, taps = c.kh * c.kw;
    for (int first = c.oc - filters; first < c.oc; first += TOGETHER)
      for (int t = 0; t < taps; ++t)
        for (int k = 0; k < n; ++k)
          for (int o = first; o < least(c.oc, first + TOGETHER); ++o)
            for (int p = 0; p < c.planes; ++p)
              *out++ = uint8_t((words[((size_t(o) * c.planes + p) * taps + t) * stored + k / 16] >> (k % 16 * 4) & 15) << 4);
  }

  // The first `nibbles` nibbles of 16 pixels' words, by nibble.
  static void transpose(const uint64_t* words, int nibbles, uint8_t* out, size_t plane) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + 2 * i));
    for (int round = 0; round < 2; ++round) {  // each interleaving moves one bit of a byte's place: 4 bits of the pixel
      for (int i = 0; i < 4; ++i) b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 4]), b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 4]);
      for (int i = 0; i < 4; ++i) a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 4]), a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 4]);
    }
    const __m128i low = _mm_set1_epi8(15);
    for (int i = 0; 2 * i < nibbles; ++i, out += 2 * plane) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_and_si128(a[i], low));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + plane), _mm_and_si128(_mm_srli_epi16(a[i], 4), low));
    }
  }

  static void expand(const Conv& c, const uint64_t* in, int ld, uint8_t* planes) {
    const int n = nibbles(c);
    for (size_t i = 0; i < planes_bytes(c); i += 32)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(planes + i), _mm256_setzero_si256());
    for (int y = 0; y < c.h; ++y)
      for (int x = 0; x < c.w; x += 16) {  // writes zeros past the row's end, before the next row
        const uint64_t* from = in + (size_t(y) * c.w + x) * ld;
        uint8_t* out = planes + size_t(y + c.ph) * c.wp + c.pw + x;
        for (int k = 0; k < n; k += 16, ++from, out += 16 * plane(c)) {
          uint64_t words[16];
          for (int i = 0; i < 16; ++i) words[i] = x + i < c.w ? from[size_t(i) * ld] : 0;
          transpose(words, least(16, n - k), out, plane(c));
        }
      }
  }

  // P filters x V registers of 32 places.
  template <int P, int V, int PLANES>
  __attribute__((noinline)) static void count_run(const Conv& c, const uint8_t* in, const uint8_t* w, Count counts[][RUN]) {
    const int n = nibbles(c);
    __m256i sums[P][V];
    const auto flush = [&](bool first) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          __m256i* to = reinterpret_cast<__m256i*>(counts[p] + 32 * v);
          const __m256i a = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(sums[p][v]));
          const __m256i b = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(sums[p][v], 1));
          to[0] = first ? a : _mm256_add_epi16(to[0], a);
          to[1] = first ? b : _mm256_add_epi16(to[1], b);
          sums[p][v] = _mm256_setzero_si256();
        }
    };
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[p][v] = _mm256_setzero_si256();
    int used = 0;
    bool first = true;
    const size_t step = plane(c);
    for (int ky = 0; ky < c.kh; ++ky)
      for (int kx = 0; kx < c.kw; ++kx) {
        const uint8_t* x = in + size_t(ky) * c.dh * c.wp + size_t(kx) * c.dw;
        for (int from = 0, to; from < n; from = to) {
          constexpr int LIMIT = LOOKUPS / PLANES;
          if (used == LIMIT) flush(first), first = false, used = 0;
          to = least(n, from + LIMIT - used);
          used += to - from;
          for (int k = from; k < to; ++k, x += step, w += P * PLANES) {
            __m256i nibble[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) nibble[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32 * v));
#pragma GCC unroll 8
            for (int i = 0; i < P * PLANES; ++i) {
              const __m256i t = table(w[i]);
#pragma GCC unroll 2
              for (int v = 0; v < V; ++v) {
                sums[i / PLANES][v] = _mm256_add_epi8(sums[i / PLANES][v], _mm256_shuffle_epi8(t, nibble[v]));
                keep(sums[i / PLANES][v]);
              }
            }
          }
        }
      }
    flush(first);
  }

  template <int V, int PLANES>
  static void count_filters(const Conv& c, int filters, const uint8_t* in, const uint8_t* w, Count counts[][RUN]) {
    for (; filters > 0; filters -= TOGETHER, counts += TOGETHER, w += bytes(c, TOGETHER)) switch (filters) {
        case 1: count_run<1, V, PLANES>(c, in, w, counts); break;
        case 2: count_run<2, V, PLANES>(c, in, w, counts); break;
        case 3: count_run<3, V, PLANES>(c, in, w, counts); break;
        default: count_run<4, V, PLANES>(c, in, w, counts);
      }
  }

  // 8 filters x 8 places to 8 places x 8 filters.
  static void turn(const Count counts[][RUN], __m128i places[8]) {
    __m128i other[8];
    for (int i = 0; i < 8; ++i) places[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(counts[i]));
    for (int i = 0; i < 4; ++i) {
      other[2 * i] = _mm_unpacklo_epi16(places[i], places[i + 4]);
      other[2 * i + 1] = _mm_unpackhi_epi16(places[i], places[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
      places[2 * i] = _mm_unpacklo_epi16(other[i], other[i + 4]);
      places[2 * i + 1] = _mm_unpackhi_epi16(other[i], other[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
      other[2 * i] = _mm_unpacklo_epi16(places[i], places[i + 4]);
      other[2 * i + 1] = _mm_unpackhi_epi16(places[i], places[i + 4]);
    }
    for (int i = 0; i < 8; ++i) places[i] = other[i];
  }

  // Counts of all pixels, [oh * ow][MOST], to the beginning of `image`.
  static void count(const Conv& c, const uint64_t* in, int ld, int filters, const uint8_t* w, uint8_t* image) {
    uint8_t* planes = image + count_bytes(c);
    expand(c, in, ld, planes);
    alignas(64) Count run[MOST][RUN] = {};
    Count* out = reinterpret_cast<Count*>(image);
    const int end = places(c);
    for (int from = 0, x = 0; from < end; from += RUN) {
      const bool both = end - from > RUN / 2;
      const auto some = c.planes == 1 ? (both ? count_filters<2, 1> : count_filters<1, 1>)
                                      : (both ? count_filters<2, 2> : count_filters<1, 2>);
      some(c, filters, planes + from, w, run);
      for (int at = 0; at < least(RUN, end - from); at += 8) {
        __m128i low[8], high[8];
        turn(reinterpret_cast<const Count(*)[RUN]>(run[0] + at), low);
        turn(reinterpret_cast<const Count(*)[RUN]>(run[8] + at), high);
        for (int i = 0; i < least(8, end - from - at); ++i, x = x + 1 == c.wp ? 0 : x + 1) {
          if (x >= c.ow) continue;
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out), low[i]);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), high[i]);
          out += MOST;
        }
      }
    }
  }
};

// Activations are nibbles of four channels, each in a byte as the offset of its row in TABLE: [hp][wp][nibbles].
// Weights are nibbles, each in a byte as vpshufb wants it: [blocks][kh][kw][nibble][plane][filters of the block], or
// [blocks][kh][nibble][kw]... for `count_row`. A block is BLOCK filters; the last one is HALF where that holds what is left.
// The last filters, where they are few, are counted by `Few` before any tile is.
struct Bits : Words {
  using Count = uint16_t;
  static constexpr int HALF = 32;

  static int nibbles(const Conv& c) { return (c.c + 3) / 4; }
  static int last(const Conv& c) { return (c.oc - 1) % BLOCK + 1; }  // filters of the last block
  static int few(const Conv& c) { return Few::of(c, last(c)); }
  // Lanes of a block of so many filters.
  static int width(const Conv& c, int filters) {
    const int many = filters - (filters == last(c) ? few(c) : 0);
    return many > HALF ? BLOCK : many > 0 ? HALF : 0;
  }

  static size_t tail(const Conv& c) { return size_t(MAX_TILE) * nibbles(c) + 16; }  // read past the image, never used
  static size_t nibble_bytes(const Conv& c) {
    return c.oc > few(c) ? (size_t(c.hp) * c.wp * nibbles(c) + tail(c) + 63) / 64 * 64 : 0;
  }
  static size_t image_bytes(const Conv& c) { return nibble_bytes(c) + (few(c) ? Few::image_bytes(c) : 0); }
  static size_t scratch(const Conv& c) { return image_bytes(c); }
  static size_t block_bytes(const Conv& c, int lanes) { return size_t(lanes) * c.kh * c.kw * nibbles(c) * c.planes; }
  static size_t bytes(const Conv& c) {
    return block_bytes(c, c.oc - last(c) + width(c, last(c))) + Few::bytes(c, few(c));
  }

  // Whether output pixels of a row are neighbours, so that what one reads at a tap the next one reads at the tap before.
  static bool neighbours(const Conv& c) { return c.kw == 3 && c.sw == 1 && c.dw == 1 && c.ow >= 3; }

  static int next(const Conv& c, int first, int channels) {
    if (!neighbours(c)) return least(4, c.oh * c.ow - first);
    return least(width(c, channels) <= HALF ? 8 : 4, c.ow - first % c.ow);
  }

  static uint8_t* zeros(uint8_t* to, size_t bytes) {  // and up to 15 more
    for (size_t i = 0; i < bytes; i += 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_setzero_si128());
    return to + bytes;
  }

  static void expand(const Conv& c, const uint64_t* in, int ld, uint8_t* out) {
    if (c.oc > few(c)) expand_nibbles(c, in, ld, out);
    const uint8_t* weights = static_cast<const uint8_t*>(c.weights) + bytes(c) - Few::bytes(c, few(c));
    if (few(c)) Few::count(c, in, ld, few(c), weights, out + nibble_bytes(c));
  }

  // Writes from the first byte to the last: what a store leaves past its end is written again.
  static void expand_nibbles(const Conv& c, const uint64_t* in, int ld, uint8_t* out) {
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
      const int lanes = width(c, least(BLOCK, c.oc - block)), end = c.oc - few(c);
      for (int row = 0; row < c.kh; ++row)
        for (int i = 0; i < n * c.kw; ++i) {
          const int k = neighbours(c) ? i / c.kw : i % n, tap = row * c.kw + (neighbours(c) ? i % c.kw : i / n);
          for (int plane = 0; plane < c.planes; ++plane, out += lanes)
            for (int lane = 0; lane < lanes; ++lane) {  // `packed` is all zeros: lanes beyond the last filter stay so
              // Even bytes are filters 0-15 of the 32, odd bytes 16-31: counts come out in order, see `flush`.
              const int o = block + lane / 32 * 32 + lane % 2 * 16 + lane % 32 / 2;
              if (o >= end) continue;
              const uint64_t* word = words + ((size_t(o) * c.planes + plane) * taps + tap) * stored;
              out[lane] = word[k / 16] >> (k % 16 * 4) & 15;
            }
        }
    }
    Few::pack(c, words, few(c), out);
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
    constexpr int LIMIT = LOOKUPS / PLANES;
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
    constexpr int TAPS = 3, LIMIT = LOOKUPS / PLANES / TAPS, STEP = 32 * F * PLANES;
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
  static void count_block(const Conv& c, const uint8_t* in, int first, int pixels, bool half, const uint8_t* w,
                          Count counts[][BLOCK]) {
    const int32_t* origin = c.origin + first;
    const auto count = [&](auto tile) { tile(c, in, origin, pixels, w, counts); };
    if (!neighbours(c)) {
      if (half) return count(count_any<4, 1, PLANES>);
      return pixels == 1 ? count(count_any<1, 2, PLANES>) : count(count_any<4, 2, PLANES>);
    }
    if (half) switch ((pixels + 1) / 2) {
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
    const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block_bytes(c, block);
    const int lanes = width(c, channels);
    if (lanes && c.planes == 1) count_block<1>(c, in, first, pixels, lanes == HALF, w, counts);
    if (lanes && c.planes == 2) count_block<2>(c, in, first, pixels, lanes == HALF, w, counts);
    if (block + channels < c.oc || !few(c)) return;
    const Count* counted = reinterpret_cast<const Count*>(in + nibble_bytes(c)) + size_t(first) * Few::MOST;
    for (int p = 0; p < pixels; ++p, counted += Few::MOST)
      _mm256_store_si256(reinterpret_cast<__m256i*>(counts[p] + channels - few(c)),
                         _mm256_loadu_si256(reinterpret_cast<const __m256i*>(counted)));
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
