// Included by isa_avx2.cpp, in its namespace: tables of mismatches, and sums over signs of a layer's last few filters.

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
