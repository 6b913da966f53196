// The steps of a program, compiled once per instruction set. The including file has defined, in the same unnamed
// namespace: `sign_bits16`, `signs16`, `Eight` and `Sixteen` floats, the `Bits` kernel of convolutions over signs, the `Floats` kernel of
// those over floats, and the `BinaryTables` and `TernaryTables` of lookup.inl.
//
// Every step makes tiles, in the first-level cache, and hands them to `finish`.

template <int P, int J, class F>
inline void every(Sixteen (&x)[P][J], F f) {
#pragma GCC unroll 4
  for (int k = 0; k < J; ++k)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) x[p][k] = f(x[p][k], p, 16 * k);
}

template <int P, int J, class F>
inline void every_float(Sixteen (&x)[P][J], F f) {
  every(x, [=](Sixteen y, int, int) {
    alignas(64) float v[16];
    store16(v, y);
    for (float& z : v) z = f(z);
    return load16(v);
  });
}

// The chain on P pixels x J sixteens of channels from block + j on, of which the first `channels` are there. All of them
// stay in registers where there are enough.
template <int P, int J>
inline void finish_sixteens(const Chain& chain, const Frame& f, int image, float (*tile)[BLOCK], int first, int block,
                            int j, int channels) {
  const int at = block + j;
  Sixteen x[P][J];
  every(x, [=](Sixteen, int p, int k) { return load16(tile[p] + j + k); });
  for (const Op* op = chain.ops; op != chain.ops + chain.count; ++op) {
    const float *a = op->a + at, *b = op->b + at;
    switch (op->kind) {
      case Op::AFFINE:
        every(x, [=](Sixteen y, int, int k) { return multiply_add16(y, load16(a + k), load16(b + k)); });
        break;
      case Op::SCALE:
        every(x, [=](Sixteen y, int, int k) { return times16(y, load16(a + k)); });
        break;
      case Op::SHIFT:
        every(x, [=](Sixteen y, int, int k) { return plus16(y, load16(b + k)); });
        break;
      case Op::CLAMP: {  // a number that is none stays so
        const Sixteen low = all16(op->low), high = all16(op->high);
        every(x, [=](Sixteen y, int, int) { return less16(high, more16(low, y)); });
        break;
      }
      case Op::PRELU: {
        const Sixteen zero = all16(0);
        every(x, [=](Sixteen y, int, int k) {
          return plus16(more16(y, zero), times16(less16(zero, y), load16(a + k)));
        });
        break;
      }
      case Op::SIGMOID:
      case Op::SILU: {
        const bool gated = op->kind == Op::SILU;
        every_float(x, [=](float y) { return (gated ? y : 1.0f) / (1.0f + __builtin_expf(-y)); });
        break;
      }
      case Op::HARDSIGMOID:
      case Op::HARDSWISH: {
        const bool gated = op->kind == Op::HARDSWISH;
        every_float(x, [=](float z) {
          const float y = z + 3.0f < 0.0f ? 0.0f : z + 3.0f;
          return (gated ? z : 1.0f) * (y > 6.0f ? 6.0f : y) / 6.0f;
        });
        break;
      }
      case Op::MUL: {
        const Value& v = f.values[op->value];
        const int step = v.h * v.w == 1 ? 0 : v.ld;
        const float* other = f.at<float>(op->value, image) + size_t(first) * step + at;
        every(x, [=](Sixteen y, int p, int k) { return times16(y, load16(other + size_t(p) * step + k)); });
        break;
      }
      case Op::ADD: {
        const int ld = f.values[op->value].ld;
        const float* other = f.at<float>(op->value, image) + size_t(first) * ld + at;
        every(x, [=](Sixteen y, int p, int k) { return plus16(y, load16(other + size_t(p) * ld + k)); });
        break;
      }
      case Op::SIGNUM:
        every_float(x, [](float y) { return y >= 0 ? 1.0f : -1.0f; });
        break;
      case Op::STORE: {
        const int ld = f.values[op->value].ld;
        float* out = f.at<float>(op->value, image) + size_t(first) * ld + at;
        every(x, [=](Sixteen y, int p, int k) {
          float* to = out + size_t(p) * ld + k;
          if (channels - k >= 16) {
            store16(to, y);
          } else {  // what lies behind may be another group's
            alignas(64) float v[16];
            store16(v, y);
            for (int i = 0; i < channels - k; ++i) to[i] = v[i];
          }
          return y;
        });
        break;
      }
      case Op::SIGN: {
        const int ld = f.values[op->value].ld;
        uint64_t* out = f.at<uint64_t>(op->value, image) + size_t(first) * ld + block / BLOCK;
        const uint64_t real = channels >= BLOCK ? ~uint64_t(0) : (uint64_t(1) << channels) - 1;
        for (int p = 0; p < P; ++p, out += ld) {
          uint64_t word = 0;
          for (int k = 0; k < J; ++k) word |= uint64_t(sign_bits16(x[p][k])) << 16 * k;
          *out = j == 0 ? word & real : *out | (word & real) << j;
        }
        break;
      }
    }
  }
}

template <int J>
inline void finish_columns(const Chain& chain, const Frame& f, int image, Tile& tile, int first, int pixels, int block,
                           int j, int channels) {
  int p = 0;
  if constexpr (J < 4)
    for (; p + 8 <= pixels; p += 8) finish_sixteens<8, J>(chain, f, image, tile.v + p, first + p, block, j, channels);
  for (; p + 4 <= pixels; p += 4) finish_sixteens<4, J>(chain, f, image, tile.v + p, first + p, block, j, channels);
  for (; p + 2 <= pixels; p += 2) finish_sixteens<2, J>(chain, f, image, tile.v + p, first + p, block, j, channels);
  for (; p < pixels; ++p) finish_sixteens<1, J>(chain, f, image, tile.v + p, first + p, block, j, channels);
}

// The chain on a tile: pixels first .. first + pixels, channels block .. block + channels of one image.
inline void finish(const Chain& chain, const Frame& f, int image, Tile& tile, int first, int pixels, int block,
                   int channels) {
  int j = 0;
  for (; j + 48 < channels; j += 64) finish_columns<4>(chain, f, image, tile, first, pixels, block, j, channels - j);
  for (; j + 16 < channels; j += 32) finish_columns<2>(chain, f, image, tile, first, pixels, block, j, channels - j);
  for (; j < channels; j += 16) finish_columns<1>(chain, f, image, tile, first, pixels, block, j, channels - j);
}

// Signs: mismatches between weight and activation bits are counted by `Bits`, borders are corrected by `base`. Every tile
// of sums goes to `emit(image, tile, first pixel, pixels, first channel, channels)`.
template <class Emit>
inline void sum_signs(const Conv& c, int images, const uint8_t* bordered, Emit emit) {
  const int pixels = c.oh * c.ow, blocks = round_up(c.oc, BLOCK);
  Tile tile;
  alignas(64) Bits::Count counts[MAX_TILE][BLOCK] = {};
  const float multiplier = float(c.multiplier);
  for (int block = 0; block < c.oc; block += BLOCK) {
    const int channels = least(BLOCK, c.oc - block), lanes = round_up(channels, 16);
    for (int image = 0; image < images; ++image) {
      const uint8_t* in = bordered + Bits::image_bytes(c) * size_t(image);
      for (int first = 0, count; first < pixels; first += count) {
        count = Bits::next(c, first, channels);
        Bits::count(c, in, first, count, block, channels, counts);
        for (int p = 0; p < count; ++p) {
          const int32_t* base = c.base + size_t(c.kind[first + p]) * blocks + block;
          for (int j = 0; j < lanes; j += 16)
            for (int i = j; i < j + 16; ++i) tile.v[p][i] = float(base[i]) - multiplier * float(counts[p][i]);
        }
        emit(image, tile, first, count, block, channels);
      }
    }
  }
}

void conv_bits(const Step& step, const Frame& f) {
  const Conv& c = step.conv;
  for (int image = 0; image < f.images; ++image)
    Bits::expand(c, f.at<uint64_t>(c.in, image), f.values[c.in].ld, f.scratch + Bits::image_bytes(c) * size_t(image));
  sum_signs(c, f.images, f.scratch, [&](int image, Tile& tile, int first, int count, int block, int channels) {
    finish(step.chain, f, image, tile, first, count, block, channels);
  });
}

// 16 numbers, of which the first `count` are there, in fp32: where they stand, or in `room`.
inline const float* sixteen(const float* x, int count, float* room) {
  if (count >= 16) return x;
  for (int i = 0; i < count; ++i) room[i] = x[i];
  return room;
}

inline const float* sixteen(const Bf16* x, int count, float* room) {
  if (count >= 16)
    for (int i = 0; i < 16; ++i) room[i] = widened(x[i]);
  else
    for (int i = 0; i < count; ++i) room[i] = widened(x[i]);
  return room;
}

template <typename Number>
bool read_signs(const Number* x, size_t rows, int channels, float size, uint64_t* words, bool* zeros) {
  const int n = (channels + 63) / 64;
  uint64_t *first = words, *second = words + rows * size_t(n), zero = 0;
  for (size_t row = 0; row < rows; ++row, x += channels)
    for (int k = 0; k < n; ++k) {
      const int width = least(64, channels - 64 * k);
      uint64_t at_least = 0, above = 0;
      bool known = true;
      for (int j = 0; j < width; j += 16) {
        alignas(64) float room[16] = {};
        const float* from = sixteen(x + 64 * k + j, width - j, room);
        uint32_t not_negative, positive;
        known &= signs16(from, size, not_negative, positive);
        at_least |= uint64_t(not_negative) << j;
        above |= uint64_t(positive) << j;
      }
      if (!known) return false;
      const uint64_t real = width < 64 ? (uint64_t(1) << width) - 1 : ~uint64_t(0);
      *first++ = at_least & real;
      *second++ = above & real;
      zero |= (at_least ^ above) & real;
    }
  *zeros |= zero != 0;
  return true;
}

void round_to_bf16(const float* from, size_t count, Bf16* to) {
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    to[i] = Bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

void convolve(const Conv& c, const uint64_t* in, int images, const float* scale, bool add, float* y, uint8_t* scratch) {
  const int n = (c.c + 63) / 64;
  for (int image = 0; image < images; ++image, in += size_t(c.h) * c.w * n)
    Bits::expand(c, in, n, scratch + Bits::image_bytes(c) * size_t(image));
  const size_t area = size_t(c.oh) * c.ow;
  sum_signs(c, images, scratch, [&](int image, Tile& tile, int first, int count, int block, int channels) {
    float* out = y + (area * image + first) * c.oc + block;
    for (int p = 0; p < count; ++p, out += c.oc)  // + 0: a filter that is all zeros makes 0, never -0
      if (add)
        for (int j = 0; j < channels; ++j) out[j] = scale[block + j] * (tile.v[p][j] + out[j]) + 0.0f;
      else
        for (int j = 0; j < channels; ++j) out[j] = scale[block + j] * tile.v[p][j] + 0.0f;
  });
}

// fp32 input with a border of zeros, channels without padding: [hp][wp][c].
inline void add_border(const Conv& c, const float* in, int ld, float* out) {
  const size_t row = size_t(c.wp) * c.c;
  for (size_t i = 0; i < row * size_t(c.hp); ++i) out[i] = 0;
  for (int y = 0; y < c.h; ++y)
    for (int x = 0; x < c.w; ++x) {
      const float* from = in + (size_t(y) * c.w + x) * ld;
      float* to = out + size_t(y + c.ph) * row + size_t(x + c.pw) * c.c;
      for (int k = 0; k < c.c; ++k) to[k] = from[k];
    }
}

inline bool needs_border(const Conv& c) { return c.ph || c.pw; }

// Where the input of a float convolution lies: in the arena, or copied with a border into the scratch.
struct FloatInput {
  const float* data;
  int ld;
};

inline FloatInput float_input(const Conv& c, const Frame& f, int image) {
  const float* in = f.at<float>(c.in, image);
  const int ld = f.values[c.in].ld;
  if (!needs_border(c)) return {in, ld};
  float* bordered = reinterpret_cast<float*>(f.scratch);
  add_border(c, in, ld, bordered);
  return {bordered, c.c};
}

#include "lookup.inl"

void conv_float(const Step& step, const Frame& f) {
  const Conv& c = step.conv;
  const int pixels = c.oh * c.ow, inputs = c.c / c.groups, outputs = c.oc / c.groups;
  const size_t column = size_t(inputs) * c.kh * c.kw * 16;  // packed weights of 16 outputs
  Tile tile;
  for (int image = 0; image < f.images; ++image) {
    const FloatInput in = float_input(c, f, image);
    for (int group = 0; group < c.groups; ++group) {
      const float* weights = static_cast<const float*>(c.weights) + column * (round_up(outputs, 16) / 16) * group;
      for (int block = 0; block < outputs; block += BLOCK) {
        const int channels = least(BLOCK, outputs - block);
        for (int first = 0; first < pixels; first += Floats::PIXELS) {
          const int count = least(Floats::PIXELS, pixels - first);
          Floats::multiply(c, in.data + group * inputs, in.ld, inputs, first, count,
                           weights + column * (block / 16), round_up(channels, 16) / 16, tile);
          finish(step.chain, f, image, tile, first, count, group * outputs + block, channels);
        }
      }
    }
  }
}

// A few zeros are multiplied like other numbers; where most weights are zeros they are left out: a weight meets up to 64
// neighbouring outputs of its filter, which stay in registers.
template <int V>
inline void sum_sparse(const float* in, const Nonzero* w, const Nonzero* end, float* out) {
  Eight sums[V];
  for (int v = 0; v < V; ++v) sums[v] = load8(out + 8 * v);
  for (; w != end; ++w) {
    const float* x = in + w->at;
    for (int v = 0; v < V; ++v) sums[v] = multiply_add8(load8(x + 8 * v), w->value, sums[v]);
  }
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < 8; ++i) out[8 * v + i] = sums[v][i];
}

inline void sum_run(int eights, const float* in, const Nonzero* w, const Nonzero* end, float* out) {
  switch (eights) {
    case 1: return sum_sparse<1>(in, w, end, out);
    case 2: return sum_sparse<2>(in, w, end, out);
    case 3: return sum_sparse<3>(in, w, end, out);
    case 4: return sum_sparse<4>(in, w, end, out);
    case 5: return sum_sparse<5>(in, w, end, out);
    case 6: return sum_sparse<6>(in, w, end, out);
    case 7: return sum_sparse<7>(in, w, end, out);
    default: return sum_sparse<8>(in, w, end, out);
  }
}

inline void by_channel(const Conv& c, const float* in, int ld, float* out) {
  const int rows = rows_of(c), columns = columns_of(c);
  const size_t size = size_t(rows) * columns, plane = size * c.sh * c.sw;
  for (size_t i = 0; i < plane * c.c + RUN; ++i) out[i] = 0;
  for (int y = 0; y < c.h; ++y) {
    const int row = y + c.ph;
    float* to = out + size_t(row % c.sh) * c.sw * size + size_t(row / c.sh) * columns;
    const float* from = in + size_t(y) * c.w * ld;
    for (int k = 0; k < c.c; ++k)
      for (int phase = 0; phase < c.sw; ++phase) {
        int x = ((phase - c.pw) % c.sw + c.sw) % c.sw;
        float* place = to + plane * k + phase * size + (x + c.pw) / c.sw;
        for (; x < c.w; x += c.sw) *place++ = from[size_t(x) * ld + k];
      }
  }
}

void conv_sparse(const Step& step, const Frame& f) {
  const Conv& c = step.conv;
  const int columns = columns_of(c), places = (c.oh - 1) * columns + c.ow;  // some between the rows are no outputs
  float* planes = reinterpret_cast<float*>(f.scratch);
  const Nonzero* weights = static_cast<const Nonzero*>(c.weights);
  alignas(64) float sums[BLOCK][RUN];
  Tile tile;
  for (int image = 0; image < f.images; ++image) {
    by_channel(c, f.at<float>(c.in, image), f.values[c.in].ld, planes);
    for (int block = 0; block < c.oc; block += BLOCK) {
      const int channels = least(BLOCK, c.oc - block);
      for (int from = 0; from < places; from += RUN) {
        const int count = least(RUN, places - from), eights = (count + 7) / 8;
        for (int j = 0; j < channels; ++j)
          for (int i = 0; i < RUN; ++i) sums[j][i] = 0;
        const int32_t* starts = c.starts + block;
        for (int k = 0; k < c.c; k += channel_block(c), starts += c.oc + 1)
          for (int j = 0; j < channels; ++j) sum_run(eights, planes + from, weights + starts[j], weights + starts[j + 1], sums[j]);
        for (int at = from; at < from + count;) {  // neighbouring outputs of one row
          const int y = at / columns, x = at % columns;
          if (x >= c.ow) {
            at += columns - x;
            continue;
          }
          const int pixels = least(least(MAX_TILE, c.ow - x), from + count - at);
          for (int j = 0; j < channels; ++j)
            for (int p = 0; p < pixels; ++p) tile.v[p][j] = sums[j][at - from + p];
          finish(step.chain, f, image, tile, y * c.ow + x, pixels, block, channels);
          at += pixels;
        }
      }
    }
  }
}

// One filter per channel; weights [kh * kw][channels rounded up to BLOCK].
void depthwise(const Step& step, const Frame& f) {
  const Conv& c = step.conv;
  const int pixels = c.oh * c.ow, ldw = round_up(c.c, BLOCK);
  Tile tile;
  for (int image = 0; image < f.images; ++image) {
    const FloatInput in = float_input(c, f, image);
    for (int block = 0; block < c.c; block += BLOCK) {
      const int channels = least(BLOCK, c.c - block);
      for (int first = 0; first < pixels; first += MAX_TILE) {
        const int count = least(MAX_TILE, pixels - first);
        for (int p = 0; p < count; ++p) {
          for (int j = 0; j < BLOCK; ++j) tile.v[p][j] = 0;
          const float* w = static_cast<const float*>(c.weights) + block;
          for (int ky = 0; ky < c.kh; ++ky)
            for (int kx = 0; kx < c.kw; ++kx, w += ldw) {
              const size_t pixel = size_t(c.origin[first + p]) + size_t(ky) * c.dh * c.wp + size_t(kx) * c.dw;
              const float* x = in.data + pixel * in.ld + block;
              for (int j = 0; j < channels; ++j) tile.v[p][j] = multiply_add(x[j], w[j], tile.v[p][j]);
            }
        }
        finish(step.chain, f, image, tile, first, count, block, channels);
      }
    }
  }
}

void pool(const Step& step, const Frame& f) {
  const Pool& s = step.pool;
  const int ld = f.values[s.in].ld;
  Tile tile;
  for (int image = 0; image < f.images; ++image) {
    const float* in = f.at<float>(s.in, image);
    for (int pixel = 0; pixel < s.oh * s.ow; ++pixel) {
      const int top = pixel / s.ow * s.sh - s.ph, left = pixel % s.ow * s.sw - s.pw;
      for (int block = 0; block < s.c; block += BLOCK) {
        const int channels = least(BLOCK, s.c - block), lanes = round_up(channels, 16);
        float* out = tile.v[0];
        for (int j = 0; j < lanes; ++j) out[j] = s.kind == Pool::MAX ? -__builtin_inff() : 0.0f;
        int inside = 0;
        for (int ky = 0; ky < s.kh; ++ky) {
          const int y = top + ky * s.dh;
          if (y < 0 || y >= s.h) continue;
          for (int kx = 0; kx < s.kw; ++kx) {
            const int x = left + kx * s.dw;
            if (x < 0 || x >= s.w) continue;
            ++inside;
            const float* from = in + (size_t(y) * s.w + x) * ld + block;
            if (s.kind == Pool::MAX)
              for (int j = 0; j < lanes; ++j) out[j] = from[j] > out[j] || from[j] != from[j] ? from[j] : out[j];
            else
              for (int j = 0; j < lanes; ++j) out[j] += from[j];
          }
        }
        if (s.kind == Pool::AVERAGE) {
          if (s.count_pad)  // torch counts the border that padding made, not what rounding up added beyond it
            inside = (least(top + s.kh, s.h + s.ph) - top) * (least(left + s.kw, s.w + s.pw) - left);
          for (int j = 0; j < lanes; ++j) out[j] /= float(inside);
        }
        finish(step.chain, f, image, tile, pixel, 1, block, channels);
      }
    }
  }
}

// Adds a source's channels of a block to one pixel of a tile.
inline void add_source(const Gather::Source& source, const Frame& f, int image, size_t pixel, int block, int channels,
                       float* out) {
  const Value& v = f.values[source.in];
  const Gather::Way* way = source.ways ? source.ways + source.starts[block / BLOCK] : nullptr;
  const Gather::Way* end = source.ways ? source.ways + source.starts[block / BLOCK + 1] : nullptr;
  if (v.bits) {
    const uint64_t* bits = f.at<uint64_t>(source.in, image) + pixel * v.ld;
    const auto sign = [=](int c) { return (bits[c / 64] >> (c % 64) & 1) ? 1.0f : -1.0f; };
    if (!source.ways)
      for (int j = 0; j < channels; ++j) out[j] += sign(block + j);
    for (; way != end; ++way) out[way->to] += sign(way->from);
    return;
  }
  const float* data = f.at<float>(source.in, image) + pixel * v.ld;
  for (; way != end; ++way) out[way->to] += data[way->from];
  if (source.ways) return;
  for (int j = 0; j < round_up(channels, 16); j += 16)  // lanes that do not exist hold anything
    for (int i = j; i < j + 16; ++i) out[i] += data[block + i];
}

inline size_t pixel_of(const Gather& g, const Gather::Source& source, const Frame& f, int pixel) {
  const int width = f.values[source.in].w;
  if (source.stride == 1 && width == g.ow) return size_t(pixel);
  return (size_t(pixel / g.ow) * width + size_t(pixel % g.ow)) * source.stride;
}

// Pixels first .. first + FOUR, of which those from `count` on hold anything: four sums stay in registers.
constexpr int FOUR = 4;
inline void add_sixteens(const Gather& g, const Frame& f, int image, int first, int count, int block, int lanes,
                         float (*out)[BLOCK]) {
  const float* pixels[MAX_SOURCES][FOUR];
  for (int s = 0; s < g.count; ++s)
    for (int p = 0; p < FOUR; ++p)
      pixels[s][p] = f.at<float>(g.sources[s].in, image) +
                     pixel_of(g, g.sources[s], f, first + least(p, count - 1)) * f.values[g.sources[s].in].ld;
  for (int j = 0; j < lanes; j += 16) {
    Sixteen sums[FOUR];
    for (int p = 0; p < FOUR; ++p) sums[p] = all16(0);
    for (int s = 0; s < g.count; ++s)
      if (const Pick* picks = g.sources[s].picks)
        for (int p = 0; p < FOUR; ++p) sums[p] = plus16(sums[p], pick16(pixels[s][p], picks[(block + j) / 16]));
      else
        for (int p = 0; p < FOUR; ++p) sums[p] = plus16(sums[p], load16(pixels[s][p] + block + j));
    for (int p = 0; p < FOUR; ++p) store16(out[p] + j, sums[p]);
  }
}

void gather(const Step& step, const Frame& f) {
  const Gather& g = step.gather;
  const int pixels = g.oh * g.ow;
  Tile tile;
  for (int image = 0; image < f.images; ++image)
    for (int block = 0; block < g.oc; block += BLOCK) {
      const int channels = least(BLOCK, g.oc - block);
      for (int first = 0; first < pixels; first += MAX_TILE) {
        const int count = least(MAX_TILE, pixels - first);
        if (g.by_sixteens)
          for (int p = 0; p < count; p += FOUR)
            add_sixteens(g, f, image, first + p, count - p, block, round_up(channels, 16), tile.v + p);
        else
          for (int p = 0; p < count; ++p) {
            for (int j = 0; j < BLOCK; ++j) tile.v[p][j] = 0;
            for (int s = 0; s < g.count; ++s)
              add_source(g.sources[s], f, image, pixel_of(g, g.sources[s], f, first + p), block, channels, tile.v[p]);
          }
        finish(step.chain, f, image, tile, first, count, block, channels);
      }
    }
}

// [h][w][c] -> [c * h * w] in the order of torch's [C, H, W].
void flatten(const Step& step, const Frame& f) {
  const Flatten& s = step.flatten;
  const int ld = f.values[s.in].ld, area = s.h * s.w, size = area * s.c;
  Tile tile;
  for (int image = 0; image < f.images; ++image) {
    const float* in = f.at<float>(s.in, image);
    for (int block = 0; block < size; block += BLOCK) {
      const int channels = least(BLOCK, size - block);
      for (int j = 0; j < channels; ++j) tile.v[0][j] = in[size_t((block + j) % area) * ld + (block + j) / area];
      finish(step.chain, f, image, tile, 0, 1, block, channels);
    }
  }
}

void run(const Step& step, const Frame& f) {
  switch (step.kind) {
    case Step::CONV_BITS: return conv_bits(step, f);
    case Step::CONV_FLOAT: return conv_float(step, f);
    case Step::LOOKUP: return conv_lookup(step, f);
    case Step::DEPTHWISE: return depthwise(step, f);
    case Step::POOL: return pool(step, f);
    case Step::GATHER: return gather(step, f);
    case Step::FLATTEN: return flatten(step, f);
    case Step::SPARSE: return conv_sparse(step, f);
  }
}

// Packing of float weights is the same for all: [groups][outputs / 16][kh * kw][inputs][16], or as `depthwise` says.
size_t float_bytes(const Conv& c) {
  if (c.groups > 1 && c.groups == c.c && c.groups == c.oc) return sizeof(float) * c.kh * c.kw * round_up(c.c, BLOCK);
  return sizeof(float) * c.groups * round_up(c.oc / c.groups, 16) * (c.c / c.groups) * c.kh * c.kw;
}

size_t float_scratch(const Conv& c) {
  return needs_border(c) ? sizeof(float) * c.hp * c.wp * c.c : 0;
}

void pack_float(const Conv& c, const float* weight, void* packed) {
  const int taps = c.kh * c.kw, inputs = c.c / c.groups, outputs = c.oc / c.groups;
  float* out = static_cast<float*>(packed);
  if (c.groups > 1 && c.groups == c.c && c.groups == c.oc) {
    for (int t = 0; t < taps; ++t)
      for (int k = 0; k < round_up(c.c, BLOCK); ++k) *out++ = k < c.c ? weight[size_t(k) * taps + t] : 0;
    return;
  }
  for (int group = 0; group < c.groups; ++group)
    for (int block = 0; block < outputs; block += 16)
      for (int t = 0; t < taps; ++t)
        for (int k = 0; k < inputs; ++k)
          for (int j = block; j < block + 16; ++j)
            *out++ = j < outputs ? weight[((size_t(group) * outputs + j) * inputs + k) * taps + t] : 0;
}
