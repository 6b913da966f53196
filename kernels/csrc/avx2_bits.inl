// Included by isa_avx2.cpp, in its namespace: sums over signs, a tile of filters and pixels at a time.

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
