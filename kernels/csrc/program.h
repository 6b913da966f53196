// What a lowered network is made of, as plain data. The executor of every instruction set includes this and nothing of
// the standard library: an inline function of the library compiled with AVX could be the copy that the linker keeps
// for all, and would then crash on a CPU without AVX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sparsign {

constexpr int BLOCK = 64;     // output channels that a tile holds: one 64-bit word of signs
constexpr int LANES = 16;     // float channels are padded to a multiple of this
constexpr int MAX_TILE = 8;   // most pixels of a tile
constexpr int MAX_SOURCES = 8;  // most operands of a gather

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
static inline int least(int a, int b) { return a < b ? a : b; }

// Up to MAX_TILE neighbouring output pixels x BLOCK output channels: what steps make, and what chains work on.
struct alignas(64) Tile {
  float v[MAX_TILE][BLOCK];
};

// An activation of one image: float [h][w][ld] or signs as bits [h][w][ld words of 64 channels], bit 1 for +1.
// Bits of channels that do not exist are 0; lanes of floats that do not exist hold anything.
struct Value {
  bool bits;
  int h, w, c, ld;
  size_t bytes;
  size_t offset;  // in the arena of one image
};

// What happens to the outputs of a step while they are in the first-level cache, in order.
struct Op {
  enum Kind { AFFINE, SCALE, SHIFT, CLAMP, PRELU, SIGMOID, SILU, HARDSIGMOID, HARDSWISH, ADD, MUL, SIGNUM, STORE, SIGN };
  Kind kind;
  const float* a;  // AFFINE: a x + b; SCALE: a x; SHIFT: x + b; PRELU: a x below 0; one value per channel
  const float* b;
  float low, high;  // CLAMP
  int value;        // ADD, MUL: the other operand, MUL's may be 1x1 pixels; STORE, SIGN: where to
};

struct Chain {
  const Op* ops;
  int count;
};

// Sums of floats by look-up, where a filter's weights are scale, -scale and, if ternary, 0. A table holds the sums of a few
// neighbouring channels of a pixel with every pattern of their weights; it serves all filters, and all taps that meet the
// pixel. A step adds one entry of it to the sum of each filter.
struct Lookups {
  int channels;  // of a table; 0: the instruction set has no such look-up
  int entries;   // floats from table to table
  int bits;      // of an index: sum of (w > 0) 2^k, or of (w + 1) 3^k if ternary, over the channels k
  int uses;      // of a table, filters x taps: below, making it takes longer than it saves
  constexpr int steps() const { return 32 / bits; }  // whose indices a word holds, the first in the lowest bits
};
constexpr size_t NEAR_TABLES = size_t(256) << 10;  // bytes of tables at once: half of a second-level cache of 512 KB

// Up to BLOCK filters of a group. Steps that none of them has a weight for are left out.
struct LookupBlock {
  const int32_t* at;        // [steps]: where the tap's table lies, less the output's first one; in floats
  const uint32_t* indices;  // [ceil(steps / Lookups::steps())][filters rounded up to 16]
  int steps;
};

// Convolution of an image, or a linear layer (1x1 pixels). Sizes fit: `Program` checked them.
struct Conv {
  int in, h, w, c;  // value id and shape of the input, channels of all groups
  int oh, ow, oc;
  int kh, kw, sh, sw, ph, pw, dh, dw, groups;
  int hp, wp;             // size of the input with its border: h + 2 ph, w + 2 pw
  const int32_t* origin;  // [oh * ow]: pixel of the bordered input under the kernel's first tap
  const void* weights;    // packed by the instruction set
  // SPARSE only: where each filter's `Nonzero`s of some input channels begin, [channel blocks][oc + 1]; in `weights`.
  const int32_t* starts;
  // Signs only. Bits are 1 for +1. Binary weights are one plane of bits; a ternary weight is the mean of two binary ones,
  // two planes: 0 is +1 in the first, -1 in the second.
  // Sum over +-1 = base[kind[pixel]][channel] - multiplier * mismatches.
  int planes, multiplier;
  // LOOKUP only: `planes` is 2 for ternary weights, 1 for binary ones; `band`: rows of outputs whose tables are made at once.
  const LookupBlock* blocks;  // [groups][blocks of outputs]
  int band;
  const uint16_t* kind;  // [oh * ow]: which taps of the kernel lie in the image
  const int32_t* base;   // [kinds][channels rounded up to BLOCK]
};

// A weight other than 0 of a sparse convolution, and where it reads: its input's place less the output's. The bordered
// input lies by channel, and within it by the remainders of row and column by the strides, so that the pixels that a
// weight meets are neighbours: [c][sh][sw][rows_of][columns_of].
constexpr int RUN = 64;            // outputs of a filter that are summed together
constexpr int NEAR_FLOATS = 4096;  // half of a first-level cache of 32 KB
struct Nonzero {
  int32_t at;
  float value;
};
// Input channels whose planes, as far as a run of outputs reads them, stay in the first-level cache together.
static inline int channel_block(const Conv& c) {
  const int columns = (c.wp + c.sw - 1) / c.sw, rows = (c.hp + c.sh - 1) / c.sh;
  const int span = RUN + (c.kh - 1) * c.dh / c.sh * columns, plane = rows * columns;
  const int floats = (span < plane ? span : plane) * (c.sh < c.kh ? c.sh : c.kh) * (c.sw < c.kw ? c.sw : c.kw);
  return floats < NEAR_FLOATS ? NEAR_FLOATS / floats : 1;
}
static inline int rows_of(const Conv& c) { return (c.hp + c.sh - 1) / c.sh; }
static inline int columns_of(const Conv& c) { return (c.wp + c.sw - 1) / c.sw; }

struct Pool {
  enum Kind { MAX, AVERAGE } kind;
  int in, h, w, c, oh, ow;
  int kh, kw, sh, sw, ph, pw, dh, dw;
  bool count_pad;
};

// Of 16 neighbouring outputs, where each one lies among 16 neighbouring channels.
struct Pick {
  static constexpr int32_t NOTHING = 16;
  int32_t from;
  int32_t lane[16];  // below 16, or NOTHING
};

// output[pixel][c] = sum over sources of source[pixel * stride][channel that goes to c], nothing where none does.
struct Gather {
  struct Way {
    int32_t to, from;  // place in a block of the output, channel of the source
  };
  struct Source {
    int in, stride;
    const Way* ways;        // nullptr: channel c goes to c
    const int32_t* starts;  // [blocks + 1]: where each block's ways begin
    const Pick* picks;      // [channels / 16]: the same by sixteens; nullptr: c goes to c, or some ways are too far apart
  } sources[MAX_SOURCES];
  bool by_sixteens;  // every source is floats, and picked or as it is
  int count;
  int oh, ow, oc;
};

struct Flatten {
  int in, h, w, c;
};

struct Step {
  enum Kind { CONV_BITS, CONV_FLOAT, LOOKUP, DEPTHWISE, SPARSE, POOL, GATHER, FLATTEN } kind;
  Conv conv;
  Pool pool;
  Gather gather;
  Flatten flatten;
  Chain chain;
};

// What a step works on: `images` images at once, each with an arena of its own.
struct Frame {
  const Value* values;
  uint8_t* arena;
  size_t arena_stride;
  int images;
  uint8_t* scratch;

  template <class T>
  T* at(int value, int image) const {
    return reinterpret_cast<T*>(arena + arena_stride * size_t(image) + values[value].offset);
  }
};

// A number in bf16: the upper half of its fp32.
using Bf16 = uint16_t;

inline float widened(Bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// One instruction set: how weights are laid out for it, and how a step runs on it.
struct Isa {
  const char* name;
  // Bytes of `pack_bits` output and of the scratch that a convolution over signs needs.
  size_t (*bits_bytes)(const Conv&);
  size_t (*bits_scratch)(const Conv&);
  // words: the filters' bits [oc][plane][kh * kw][words of 64 channels], see `Conv::planes`; packed: all zeros.
  void (*pack_bits)(const Conv&, const uint64_t* words, void* packed);
  size_t (*float_bytes)(const Conv&);
  size_t (*float_scratch)(const Conv&);
  // weight: [oc][c / groups][kh * kw].
  void (*pack_float)(const Conv&, const float* weight, void* packed);
  Lookups lookups[2];  // binary, ternary
  void (*run)(const Step&, const Frame&);
  // The bits of numbers [rows][channels] in words [plane][rows][words of 64 channels]: x >= 0 and x > 0, which differ
  // where x is 0. False if something is neither `size`, -`size` nor 0; `zeros`: set if something is 0.
  bool (*read_signs)(const float* x, size_t rows, int channels, float size, uint64_t* words, bool* zeros);
  bool (*read_signs_bf16)(const Bf16* x, size_t rows, int channels, float size, uint64_t* words, bool* zeros);
  // The nearest bf16, ties to even, of finite numbers.
  void (*round_to_bf16)(const float* from, size_t count, Bf16* to);
  // A convolution over the signs of several images, outside of any network. in: words [images][h * w][words];
  // y [images][oh * ow][oc] = scale[oc] * (sums + (add ? y : 0)); scratch: `bits_scratch` for every image.
  void (*convolve)(const Conv&, const uint64_t* in, int images, const float* scale, bool add, float* y,
                   uint8_t* scratch);
  // What the instructions of sums over signs (`bits`) and of fp32 sums can do: about `rounds` of a loop of one form of
  // them, 0, 1, ..., and the multiply-accumulates that they stand for; 0 where there is no such form. Of fp32: multiply-
  // adds, look-ups of binary weights, of ternary ones.
  double (*peak)(bool bits, int form, int64_t rounds);
};

const Isa* isa_generic();
const Isa* isa_avx2();
const Isa* isa_avx512();

}  // namespace sparsign
