// A network being built step by step, checked, planned and run. Every size that a step will use is checked here, against
// the shapes of its values; offsets into memory are only ever computed here.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "geometry.h"
#include "program.h"

namespace sparsign {

// Zeroed memory on a cache line's border, with room behind it for the loads of a whole block.
class Memory {
 public:
  explicit Memory(size_t bytes = 0);
  uint8_t* data() const { return aligned_; }

 private:
  std::unique_ptr<uint8_t[]> owned_;
  uint8_t* aligned_;
};

// The operations on a step's output, collected before the step is added.
struct ChainSpec {
  struct Item {
    Op::Kind kind;
    std::vector<float> a, b;
    float low = 0, high = 0;
    int value = -1;
  };
  std::vector<Item> items;
};

struct SourceSpec {
  int value;
  int stride;
  std::vector<int32_t> map;  // empty: channel c is channel c
};

// Instruction sets that were built and that this CPU has, best first.
std::vector<std::string> available_isas();

// The instruction set of that name, the best for an empty one; std::invalid_argument as for `Network`.
const Isa* choose_isa(const std::string& name);

class Network {
 public:
  // Raises std::invalid_argument naming an instruction set that is unknown, not built or not on this CPU.
  Network(const std::string& isa, std::array<int, 3> input_shape, bool keep_values);
  Network(const Network&) = delete;

  std::string isa() const { return isa_->name; }
  int value(bool bits, int h, int w, int c);

  void conv_bits(int in, const ConvSpec& spec, const int8_t* codes, std::array<int64_t, 4> shape, const ChainSpec& chain);
  void conv_float(int in, const ConvSpec& spec, const float* weight, std::array<int64_t, 4> shape,
                  const ChainSpec& chain);
  void pool(bool maximum, int in, const ConvSpec& window, std::array<int, 2> output, bool count_pad,
            const ChainSpec& chain);
  void gather(const std::vector<SourceSpec>& sources, std::array<int, 3> output, const ChainSpec& chain);
  void flatten(int in, const ChainSpec& chain);

  // No more steps: plans the arena. `output` is a float value of 1x1 pixels.
  void finish(int output);

  // images [n][C][H][W] -> logits [n][classes]; the same result for any number of threads.
  void run(const float* images, int64_t n, float* logits, int threads) const;

  // Runs one image and copies a value as fp32 [h][w][c] (signs as +1, -1). Only with keep_values.
  std::vector<float> read(const float* image, int value) const;

  int input() const { return 0; }
  std::array<int, 3> shape(int value) const;
  int classes() const;
  size_t arena_bytes() const { return arena_bytes_; }
  size_t weight_bytes() const { return weight_bytes_; }

 private:
  const Value& known(int value, bool bits) const;
  Conv convolution(int in, bool bits, const ConvSpec& spec, std::array<int64_t, 4> shape);
  void add(Step step, std::vector<int> reads, int oh, int ow, int oc, const ChainSpec& chain, bool whole_blocks);
  void keep_nonzeros(Conv& c, const float* weight, size_t nonzeros);
  void keep_lookups(Conv& c, const Lookups& form, const float* weight);
  void plan();
  void run_images(const float* images, int64_t n, float* logits, uint8_t* memory) const;
  std::unique_ptr<Memory> borrow() const;
  void give_back(std::unique_ptr<Memory> memory) const;
  template <class T>
  T* keep(const std::vector<T>& data, size_t padded);

  struct Use {
    std::vector<int> reads, writes;
  };

  const Isa* isa_;
  bool keep_values_, finished_ = false;
  int output_ = -1;
  std::vector<Value> values_;
  std::vector<bool> written_;
  std::vector<Step> steps_;
  std::vector<Use> uses_;
  std::vector<Memory> constants_;
  std::vector<std::unique_ptr<std::vector<Op>>> chains_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Memory>> idle_;  // of earlier runs: fresh pages cost more than a small network
  size_t arena_bytes_ = 0, scratch_bytes_ = 0, weight_bytes_ = 0;
};

}  // namespace sparsign
