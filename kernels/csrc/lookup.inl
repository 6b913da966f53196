// Convolutions of floats with weights of two or three levels by look-up; see `Lookups`. Included by steps.inl: `T` is the
// instruction set's `BinaryTables` or `TernaryTables`.

constexpr int WORDS = 32;  // of indices per filter, whose entries are added up one by one: then the sums go into others

// P pixels x 16 F filters; pixels: every one's first table; w: of the first of these filters; out: [P][BLOCK].
template <class T, int P, int F>
inline void look_up(const float* const* pixels, const LookupBlock& block, const uint32_t* w, int ldw, float* out) {
  constexpr int R = F * T::REGISTERS, LANES_EACH = 16 / T::REGISTERS, TOGETHER = T::FORM.steps();
  const float* x[P];
  typename T::Sums sums[P][R];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) x[p] = pixels[p];
  const int32_t *at = block.at, *const last = at + block.steps;
  bool first = true;
  do {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[p][r] = T::zero();
    for (int word = 0; word < WORDS && at != last; ++word, w += ldw) {
      typename T::Indices indices[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) indices[r] = T::indices(w + LANES_EACH * r);
      for (const int32_t* const end = last - at < TOGETHER ? last : at + TOGETHER; at != end; ++at) {
        const ptrdiff_t place = *at;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          const typename T::Table table = T::table(x[p] + place);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) sums[p][r] = T::add(sums[p][r], table, indices[r]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) indices[r] = T::next(indices[r]);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) T::flush(out + p * BLOCK + LANES_EACH * r, sums[p][r], first);
    first = false;
  } while (at != last);
}

// All filters of a block.
template <class T, int P>
inline void look_up_block(const float* const* pixels, const LookupBlock& block, int channels, Tile& tile) {
  constexpr int MOST = T::most(P);
  const int ldw = round_up(channels, 16);
  int from = 0;
  for (; from + 16 * MOST <= ldw; from += 16 * MOST)
    look_up<T, P, MOST>(pixels, block, block.indices + from, ldw, tile.v[0] + from);
  if constexpr (MOST > 2)
    for (; from + 32 <= ldw; from += 32) look_up<T, P, 2>(pixels, block, block.indices + from, ldw, tile.v[0] + from);
  for (; from < ldw; from += 16) look_up<T, P, 1>(pixels, block, block.indices + from, ldw, tile.v[0] + from);
}

// The tables of one row of the bordered input: [wp][groups][tables of a group].
template <class T>
inline void table_row(const Conv& c, const float* in, int ld, int row, float* out) {
  const int inputs = c.c / c.groups, group = (inputs + T::FORM.channels - 1) / T::FORM.channels * T::FORM.entries;
  const size_t pixel = size_t(group) * c.groups;
  const int y = row - c.ph;
  for (int x = -c.pw; x < c.wp - c.pw; ++x)
    if (x < 0 || x >= c.w || y < 0 || y >= c.h)
      for (size_t i = 0; i < pixel; ++i) *out++ = 0;
    else
      for (int g = 0; g < c.groups; ++g, out += group)
        T::build(in + (size_t(y) * c.w + x) * ld + g * inputs, inputs, out);
}

template <class T>
inline void conv_tables(const Step& step, const Frame& f) {
  constexpr int PIXELS = 6;
  const Conv& c = step.conv;
  const int inputs = c.c / c.groups, outputs = c.oc / c.groups;
  const int group_floats = (inputs + T::FORM.channels - 1) / T::FORM.channels * T::FORM.entries;
  const size_t pixel = size_t(group_floats) * c.groups, row = pixel * c.wp;
  float* tables = reinterpret_cast<float*>(f.scratch);
  Tile tile;
  for (int image = 0; image < f.images; ++image) {
    const float* in = f.at<float>(c.in, image);
    int base = 0, built = 0;  // rows of the bordered input: where `tables` begins, and ends
    for (int top = 0; top < c.oh; top += c.band) {
      const int bottom = least(top + c.band, c.oh), from = top * c.sh, to = (bottom - 1) * c.sh + (c.kh - 1) * c.dh + 1;
      if (built > from) __builtin_memmove(tables, tables + row * (from - base), sizeof(float) * row * (built - from));
      base = from;
      for (built = built > from ? built : from; built < to; ++built)
        table_row<T>(c, in, f.values[c.in].ld, built, tables + row * (built - base));
      const LookupBlock* block = c.blocks;
      for (int group = 0; group < c.groups; ++group)
        for (int first_output = 0; first_output < outputs; first_output += BLOCK, ++block) {
          const int channels = least(BLOCK, outputs - first_output), end = bottom * c.ow;
          for (int first = top * c.ow, count; first < end; first += count) {
            count = least(PIXELS, end - first);
            const float* x[PIXELS];
            for (int p = 0; p < PIXELS; ++p)
              x[p] = tables + pixel * (c.origin[first + least(p, count - 1)] - size_t(base) * c.wp) + group * group_floats;
            if (count > 4)
              look_up_block<T, 6>(x, *block, channels, tile);
            else if (count > 2)
              look_up_block<T, 4>(x, *block, channels, tile);
            else if (count == 2)
              look_up_block<T, 2>(x, *block, channels, tile);
            else
              look_up_block<T, 1>(x, *block, channels, tile);
            finish(step.chain, f, image, tile, first, count, group * outputs + first_output, channels);
          }
        }
    }
  }
}

void conv_lookup(const Step& step, const Frame& f) {
  if constexpr (TernaryTables::FORM.channels > 0)
    if (step.conv.planes == 2) return conv_tables<TernaryTables>(step, f);
  if constexpr (BinaryTables::FORM.channels > 0) conv_tables<BinaryTables>(step, f);
}

// Multiply-adds of so many look-ups and additions in registers.
template <class T>
double peak_tables(int64_t rounds) {
  constexpr int N = 12, CHANNELS = T::FORM.channels;
  alignas(64) float memory[32] = {};
  alignas(64) uint32_t words[16] = {};
  const typename T::Table table = T::table(memory);
  typename T::Indices indices = T::indices(words);
  typename T::Sums sums[N];
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) sums[k] = T::zero();
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < N; ++k) {
      keep(indices);  // one look-up for every sum
      sums[k] = T::add(sums[k], table, indices);
      keep(sums[k]);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) T::flush(memory, sums[k], false);
  volatile float kept = memory[0];
  (void)kept;
  return double(rounds) * N * CHANNELS * 16 / T::REGISTERS;
}
