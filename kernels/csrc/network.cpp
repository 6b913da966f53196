#include "network.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "lookup.h"
#include "parallel.h"

namespace sparsign {

namespace {

// Share of weights other than 0 below which the zeros are skipped: beside multiply-adds, and beside look-up tables.
constexpr double SPARSE_BELOW = 0.4, SPARSE_BELOW_LOOKUPS = 0.2;
constexpr int TOGETHER = 4;  // images that go through a step together, so that weights are read once

bool cpu_has(const std::string& isa) {
#if defined(SPARSIGN_X86)
  __builtin_cpu_init();
#if defined(SPARSIGN_EMULATE)
  if (isa == "avx512") return cpu_has("avx2");
#endif
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
  if (isa == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("fma");
#endif
  return isa == "generic";
}

const std::map<std::string, const Isa* (*)()>& built() {
  static const std::map<std::string, const Isa* (*)()> all{
#if defined(SPARSIGN_X86)
      {"avx2", isa_avx2},
      {"avx512", isa_avx512},
#endif
      {"generic", isa_generic}};
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

Memory::Memory(size_t bytes) : owned_(new uint8_t[bytes + 64 + BLOCK * sizeof(float)]()) {
  const auto address = reinterpret_cast<uintptr_t>(owned_.get());
  aligned_ = owned_.get() + (64 - address % 64) % 64;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> here;
#if defined(SPARSIGN_EMULATE)  // by SIMDe it is slow
  const std::vector<const char*> names{"avx2", "avx512", "generic"};
#else
  const std::vector<const char*> names{"avx512", "avx2", "generic"};
#endif
  for (const char* name : names)
    if (built().count(name) && cpu_has(name)) here.emplace_back(name);
  return here;
}

const Isa* choose_isa(const std::string& name) {
  const std::vector<std::string> here = available_isas();
  if (name.empty()) return built().at(here.front())();
  need(built().count(name), "instruction set '" + name + "' is not one of this build: expected one of " + joined(here));
  need(cpu_has(name), "this CPU has no " + name + ": expected one of " + joined(here));
  return built().at(name)();
}

Network::Network(const std::string& isa, std::array<int, 3> input_shape, bool keep_values)
    : isa_(choose_isa(isa)), keep_values_(keep_values) {
  value(false, input_shape[1], input_shape[2], input_shape[0]);
  written_[0] = true;
}

int Network::value(bool bits, int h, int w, int c) {
  need(!finished_, "the network is finished");
  for (int n : {h, w, c}) need(n >= 1 && n <= LIMIT, "a value of " + std::to_string(n) + ", expected 1 to 2^20");
  Value v{bits, h, w, c, bits ? (c + 63) / 64 : round_up(c, LANES), 0, 0};
  // A whole block may be loaded from any channel of the last pixel.
  v.bytes = (size_t(h) * w * v.ld + (bits ? 0 : BLOCK)) * (bits ? sizeof(uint64_t) : sizeof(float));
  need(v.bytes <= MOST_BYTES, "a value is too large");
  values_.push_back(v);
  written_.push_back(false);
  return int(values_.size()) - 1;
}

const Value& Network::known(int value, bool bits) const {
  need(value >= 0 && value < int(values_.size()), "no value " + std::to_string(value));
  need(values_[value].bits == bits, "value " + std::to_string(value) + " is of the other kind");
  return values_[value];
}

std::array<int, 3> Network::shape(int value) const {
  need(value >= 0 && value < int(values_.size()), "no value " + std::to_string(value));
  return {values_[value].c, values_[value].h, values_[value].w};
}

int Network::classes() const {
  need(finished_, "the network is not finished");
  return values_[output_].c;
}

template <class T>
T* Network::keep(const std::vector<T>& data, size_t padded) {
  constants_.emplace_back(std::max(padded, data.size()) * sizeof(T));
  T* kept = reinterpret_cast<T*>(constants_.back().data());
  std::copy(data.begin(), data.end(), kept);
  return kept;
}

// Checks a step's chain against the shape of its output, and adds the step.
void Network::add(Step step, std::vector<int> reads, int oh, int ow, int oc, const ChainSpec& chain,
                  bool whole_blocks) {
  need(!finished_, "the network is finished");
  auto ops = std::make_unique<std::vector<Op>>();
  std::vector<int> writes;
  const size_t padded = size_t(round_up(oc, BLOCK)) + BLOCK;
  for (const ChainSpec::Item& item : chain.items) {
    Op op{item.kind, nullptr, nullptr, item.low, item.high, item.value};
    const bool has_a = item.kind == Op::AFFINE || item.kind == Op::SCALE || item.kind == Op::PRELU;
    const bool has_b = item.kind == Op::AFFINE || item.kind == Op::SHIFT;
    need(!has_a || item.a.size() == size_t(oc), "a scale has another length than there are channels");
    need(!has_b || item.b.size() == size_t(oc), "a shift has another length than there are channels");
    op.a = keep(item.a, has_a ? padded : 0);
    op.b = keep(item.b, has_b ? padded : 0);
    const bool reads_value = item.kind == Op::ADD || item.kind == Op::MUL;
    if (reads_value || item.kind == Op::STORE || item.kind == Op::SIGN) {
      const Value& v = known(item.value, item.kind == Op::SIGN);
      const bool gate = item.kind == Op::MUL && v.h == 1 && v.w == 1;
      need(((v.h == oh && v.w == ow) || gate) && v.c == oc,
           "a value in a chain has another shape than the step's output");
      need(item.kind != Op::SIGN || whole_blocks, "signs of a grouped convolution");
      if (reads_value) {
        reads.push_back(item.value);
      } else {
        need(!written_[item.value], "value " + std::to_string(item.value) + " is written twice");
        writes.push_back(item.value);
      }
    }
    ops->push_back(op);
  }
  for (int v : reads) need(written_[v], "value " + std::to_string(v) + " is read before it is written");
  for (int v : writes) written_[v] = true;
  step.chain = {ops->data(), int(ops->size())};
  chains_.push_back(std::move(ops));
  steps_.push_back(step);
  uses_.push_back({std::move(reads), std::move(writes)});
}

Conv Network::convolution(int in, bool bits, const ConvSpec& s, std::array<int64_t, 4> shape) {
  need(!finished_, "the network is finished");
  const Value& v = known(in, bits);
  Conv c = sized_conv(v.h, v.w, v.c, s, shape);
  c.in = in;
  c.origin = keep(origins(c), 0);
  return c;
}

void Network::conv_bits(int in, const ConvSpec& spec, const int8_t* codes, std::array<int64_t, 4> shape,
                        const ChainSpec& chain) {
  need(spec.groups == 1, "a grouped convolution over signs");
  Step step{};
  step.kind = Step::CONV_BITS;
  Conv& c = step.conv = convolution(in, true, spec, shape);
  const int taps = c.kh * c.kw;
  const size_t size = size_t(c.oc) * c.c * taps;
  bool zeros = false, known_codes = true;
  for (size_t i = 0; i < size; ++i) {
    known_codes &= codes[i] >= -1 && codes[i] <= 1;
    zeros |= codes[i] == 0;
  }
  need(known_codes, "a code outside -1, 0, 1");
  c.planes = zeros ? 2 : 1;
  c.multiplier = zeros ? 1 : 2;
  need(int64_t(c.c) * taps * c.planes <= 60000, "more inputs than 16-bit counts hold");
  const int words = (c.c + 63) / 64;
  std::vector<uint64_t> filters(size_t(c.oc) * c.planes * taps * words);
  for (int o = 0; o < c.oc; ++o)
    for (int k = 0; k < c.c; ++k)
      for (int t = 0; t < taps; ++t) {
        const int code = codes[(size_t(o) * c.c + k) * taps + t];
        uint64_t* word = &filters[(size_t(o) * c.planes * taps + t) * words + k / 64];
        word[0] |= uint64_t(code >= 0) << (k % 64);
        if (c.planes == 2) word[size_t(taps) * words] |= uint64_t(code > 0) << (k % 64);
      }
  const Kinds kinds = kinds_of(c);
  c.kind = keep(kinds.kind, 0);
  c.base = keep(bases(c, kinds, filters, c.c), 0);
  const size_t bytes = isa_->bits_bytes(c);
  need(bytes <= MOST_BYTES, "a packed weight is too large");
  constants_.emplace_back(bytes);
  isa_->pack_bits(c, filters.data(), constants_.back().data());
  c.weights = constants_.back().data();
  weight_bytes_ += bytes;
  scratch_bytes_ = std::max(scratch_bytes_, isa_->bits_scratch(c) * TOGETHER);
  add(step, {in}, c.oh, c.ow, c.oc, chain, true);
}

// The weights other than 0 of every filter, and the scratch that they read.
void Network::keep_nonzeros(Conv& c, const float* weight, size_t nonzeros) {
  const size_t size = size_t(rows_of(c)) * columns_of(c), plane = size * c.sh * c.sw;
  const size_t scratch = sizeof(float) * (plane * c.c + RUN);
  need(scratch <= MOST_BYTES && plane * c.c <= size_t(INT32_MAX), "an input is too large");
  std::vector<int32_t> starts;
  std::vector<Nonzero> found;
  found.reserve(nonzeros);
  const int together = channel_block(c), taps = c.kh * c.kw;
  for (int first = 0; first < c.c; first += together) {
    for (int o = 0; o < c.oc; ++o) {
      starts.push_back(int32_t(found.size()));
      for (int k = first; k < std::min(c.c, first + together); ++k)
        for (int t = 0; t < taps; ++t) {
          const float value = weight[(size_t(o) * c.c + k) * taps + t];
          const int y = t / c.kw * c.dh, x = t % c.kw * c.dw;
          const size_t at = plane * k + (size_t(y % c.sh) * c.sw + x % c.sw) * size + size_t(y / c.sh) * columns_of(c) + x / c.sw;
          if (value != 0) found.push_back({int32_t(at), value});
        }
    }
    starts.push_back(int32_t(found.size()));
  }
  c.starts = keep(starts, 0);
  c.weights = keep(found, 0);
  weight_bytes_ += sizeof(Nonzero) * found.size();
  scratch_bytes_ = std::max(scratch_bytes_, scratch);
}

// Indices of look-up tables in place of weights.
void Network::keep_lookups(Conv& c, const Lookups& form, const float* weight) {
  c.planes = &form == &isa_->lookups[1] ? 2 : 1;
  c.band = band_rows(c, form);
  const int outputs = c.oc / c.groups;
  std::vector<LookupBlock> blocks;
  std::vector<int32_t> last;  // most blocks have all steps
  for (int group = 0; group < c.groups; ++group)
    for (int first = 0; first < outputs; first += BLOCK) {
      LookupSteps found = lookup_steps(c, form, weight, group * outputs + first, least(BLOCK, outputs - first));
      const bool same = !blocks.empty() && found.at == last;
      const int32_t* at = same ? blocks.back().at : keep(found.at, 0);
      blocks.push_back({at, keep(found.indices, 0), int(found.at.size())});
      weight_bytes_ += sizeof(uint32_t) * found.indices.size() + (same ? 0 : sizeof(int32_t) * found.at.size());
      last = std::move(found.at);
    }
  c.blocks = keep(blocks, 0);
  scratch_bytes_ = std::max(scratch_bytes_, table_bytes(c, form));
}

void Network::conv_float(int in, const ConvSpec& spec, const float* weight, std::array<int64_t, 4> shape,
                         const ChainSpec& chain) {
  Step step{};
  Conv& c = step.conv = convolution(in, false, spec, shape);
  const bool depthwise = c.groups > 1 && c.groups == c.c && c.groups == c.oc;
  step.kind = depthwise ? Step::DEPTHWISE : Step::CONV_FLOAT;
  const size_t size = size_t(c.oc) * shape[1] * c.kh * c.kw;
  const size_t nonzeros = size - size_t(std::count(weight, weight + size, 0.0f));
  std::vector<float> scale;
  const Lookups* const form = depthwise ? nullptr : lookups_of(c, isa_->lookups, weight, scale);
  const double below = form ? SPARSE_BELOW_LOOKUPS : SPARSE_BELOW;
  if (c.groups == 1 && double(nonzeros) * c.oh * columns_of(c) < below * double(size) * c.oh * c.ow &&
      c.oh * columns_of(c) >= 8) {
    step.kind = Step::SPARSE;
    keep_nonzeros(c, weight, nonzeros);
    add(step, {in}, c.oh, c.ow, c.oc, chain, true);
    return;
  }
  if (form) {
    step.kind = Step::LOOKUP;
    keep_lookups(c, *form, weight);
    ChainSpec scaled = chain;
    if (std::any_of(scale.begin(), scale.end(), [](float s) { return s != 1; }))
      scaled.items.insert(scaled.items.begin(), {Op::SCALE, scale, {}});
    add(step, {in}, c.oh, c.ow, c.oc, scaled, c.groups == 1);
    return;
  }
  const size_t bytes = isa_->float_bytes(c);
  need(bytes <= MOST_BYTES, "a packed weight is too large");
  constants_.emplace_back(bytes);
  isa_->pack_float(c, weight, constants_.back().data());
  c.weights = constants_.back().data();
  weight_bytes_ += bytes;
  scratch_bytes_ = std::max(scratch_bytes_, isa_->float_scratch(c));
  add(step, {in}, c.oh, c.ow, c.oc, chain, c.groups == 1 || depthwise);
}

void Network::pool(bool maximum, int in, const ConvSpec& s, std::array<int, 2> output, bool count_pad,
                   const ChainSpec& chain) {
  const Value& v = known(in, false);
  for (int axis = 0; axis < 2; ++axis) {
    const int size = axis ? v.w : v.h;
    need(s.kernel[axis] >= 1 && s.kernel[axis] <= LIMIT && s.stride[axis] >= 1 && s.stride[axis] <= LIMIT &&
             s.dilation[axis] >= 1 && s.dilation[axis] <= LIMIT && output[axis] >= 1 && output[axis] <= LIMIT,
         "a pool's kernel, stride, dilation or output outside its range");
    need(s.padding[axis] >= 0 && s.padding[axis] <= s.kernel[axis] / 2, "a pool's padding above half its kernel");
    need(int64_t(output[axis] - 1) * s.stride[axis] < int64_t(size) + s.padding[axis], "a pool beyond its input");
    need(maximum || s.dilation[axis] == 1, "a dilated average");
  }
  Step step{};
  step.kind = Step::POOL;
  step.pool = {maximum ? Pool::MAX : Pool::AVERAGE, in, v.h, v.w, v.c, output[0], output[1], s.kernel[0], s.kernel[1],
               s.stride[0], s.stride[1], s.padding[0], s.padding[1], s.dilation[0], s.dilation[1], count_pad};
  add(step, {in}, output[0], output[1], v.c, chain, true);
}

// Where each sixteen of a map's outputs lies in a row of `ld` channels; none if one of them is spread wider than 16.
static std::vector<Pick> picks_of(const std::vector<int32_t>& map, int ld) {
  std::vector<Pick> picks;
  for (size_t first = 0; first < map.size(); first += 16) {
    const size_t end = std::min(map.size(), first + 16);
    int32_t from = ld - 16;
    for (size_t k = first; k < end; ++k)
      if (map[k] >= 0) from = std::min(from, map[k]);
    Pick pick{from, {}};
    for (size_t k = first; k < first + 16; ++k) {
      const bool there = k < end && map[k] >= 0;
      if (there && map[k] - from >= 16) return {};
      pick.lane[k - first] = there ? map[k] - from : Pick::NOTHING;
    }
    picks.push_back(pick);
  }
  return picks;
}

void Network::gather(const std::vector<SourceSpec>& sources, std::array<int, 3> output, const ChainSpec& chain) {
  const auto [c, h, w] = output;
  for (int n : output) need(n >= 1 && n <= LIMIT, "a gather's output of a size outside 1 to 2^20");
  need(!sources.empty() && sources.size() <= MAX_SOURCES, "a gather of no or too many operands");
  Step step{};
  step.kind = Step::GATHER;
  step.gather.count = int(sources.size());
  step.gather.oc = c, step.gather.oh = h, step.gather.ow = w;
  step.gather.by_sixteens = true;
  std::vector<int> reads;
  for (size_t i = 0; i < sources.size(); ++i) {
    const SourceSpec& s = sources[i];
    need(s.value >= 0 && s.value < int(values_.size()), "no value " + std::to_string(s.value));
    const Value& v = values_[s.value];
    need(s.stride >= 1 && s.stride <= LIMIT, "a stride outside its range");
    need(int64_t(h - 1) * s.stride < v.h && int64_t(w - 1) * s.stride < v.w, "a gather beyond its operand");
    need(s.map.empty() ? v.c == c : s.map.size() == size_t(c), "a gather's map of another length than its output");
    for (int32_t from : s.map) need(from >= -1 && from < v.c, "a gather's map beyond its operand's channels");
    std::vector<Gather::Way> ways;
    std::vector<int32_t> starts{0};
    for (size_t block = 0; block < s.map.size(); block += BLOCK, starts.push_back(int32_t(ways.size())))
      for (size_t k = block; k < std::min(s.map.size(), block + BLOCK); ++k)
        if (s.map[k] >= 0) ways.push_back({int32_t(k - block), s.map[k]});
    const std::vector<Pick> picks = v.bits ? std::vector<Pick>() : picks_of(s.map, v.ld);
    step.gather.by_sixteens &= !v.bits && (s.map.empty() || !picks.empty());
    step.gather.sources[i] = {s.value, s.stride, s.map.empty() ? nullptr : keep(ways, 1), keep(starts, 0),
                              picks.empty() ? nullptr : keep(picks, 0)};
    reads.push_back(s.value);
  }
  add(step, reads, h, w, c, chain, true);
}

void Network::flatten(int in, const ChainSpec& chain) {
  const Value& v = known(in, false);
  const int64_t size = int64_t(v.h) * v.w * v.c;
  need(size <= LIMIT, "a flattened value of more than 2^20 elements");
  Step step{};
  step.kind = Step::FLATTEN;
  step.flatten = {in, v.h, v.w, v.c};
  add(step, {in}, 1, 1, int(size), chain, true);
}

void Network::finish(int output) {
  const Value& v = known(output, false);
  need(!finished_, "the network is finished");
  need(written_[output] && v.h == 1 && v.w == 1, "the output is not a vector that a step writes");
  output_ = output;
  plan();
  finished_ = true;
}

// Places every value in the arena: first fit among the values alive at the same time.
void Network::plan() {
  const int never = int(steps_.size());
  std::vector<int> born(values_.size(), -1), dies(values_.size(), -1);
  for (int s = 0; s < int(steps_.size()); ++s) {
    for (int v : uses_[s].writes) born[v] = s, dies[v] = std::max(dies[v], s);
    for (int v : uses_[s].reads) dies[v] = s;
  }
  dies[output_] = never;
  std::vector<size_t> placed;
  for (size_t v = 0; v < values_.size(); ++v) {
    if (keep_values_) born[v] = -1, dies[v] = never;
    const size_t size = (values_[v].bytes + 63) / 64 * 64;
    std::vector<std::pair<size_t, size_t>> busy;
    for (size_t u : placed)
      if (born[u] <= dies[v] && born[v] <= dies[u])
        busy.emplace_back(values_[u].offset, (values_[u].bytes + 63) / 64 * 64);
    std::sort(busy.begin(), busy.end());
    size_t offset = 0;
    for (const auto& [from, length] : busy) {
      if (offset + size <= from) break;
      offset = std::max(offset, from + length);
    }
    values_[v].offset = offset;
    arena_bytes_ = std::max(arena_bytes_, offset + size);
    placed.push_back(v);
  }
  need(arena_bytes_ <= MOST_BYTES, "the network needs too much memory");
}

void Network::run_images(const float* images, int64_t n, float* logits, uint8_t* memory) const {
  const Value &in = values_[0], &out = values_[output_];
  const size_t area = size_t(in.h) * in.w;
  for (int64_t done = 0; done < n; done += TOGETHER) {
    const int together = int(std::min<int64_t>(TOGETHER, n - done));
    const Frame frame{values_.data(), memory, arena_bytes_, together, memory + arena_bytes_ * TOGETHER};
    for (int i = 0; i < together; ++i) {
      float* to = frame.at<float>(0, i);
      const float* from = images + size_t(done + i) * in.c * area;
      for (int c = 0; c < in.c; ++c)
        for (size_t p = 0; p < area; ++p) to[p * in.ld + c] = from[c * area + p];
    }
    for (const Step& step : steps_) isa_->run(step, frame);
    for (int i = 0; i < together; ++i)
      std::memcpy(logits + size_t(done + i) * out.c, frame.at<float>(output_, i), sizeof(float) * out.c);
  }
}

// Arenas and scratch of one thread; a run writes whatever it reads of them.
std::unique_ptr<Memory> Network::borrow() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Memory> memory = std::move(idle_.back());
      idle_.pop_back();
      return memory;
    }
  }
  return std::make_unique<Memory>(arena_bytes_ * TOGETHER + scratch_bytes_);
}

void Network::give_back(std::unique_ptr<Memory> memory) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(memory));
}

void Network::run(const float* images, int64_t n, float* logits, int threads) const {
  need(finished_, "the network is not finished");
  need(threads >= 1, "threads below 1");
  const int64_t workers = std::min<int64_t>(threads, n);
  const Value& in = values_[0];
  const size_t size = size_t(in.h) * in.w * in.c;
  in_parallel(workers, [&](int64_t w) {
    const int64_t from = n * w / workers, to = n * (w + 1) / workers;
    std::unique_ptr<Memory> memory = borrow();
    run_images(images + from * size, to - from, logits + from * values_[output_].c, memory->data());
    give_back(std::move(memory));
  });
}

std::vector<float> Network::read(const float* image, int value) const {
  need(finished_ && keep_values_, "values are kept only in a network built with keep_values");
  const auto [c, h, w] = shape(value);
  const Memory memory(arena_bytes_ * TOGETHER + scratch_bytes_);
  std::vector<float> logits(values_[output_].c), found;
  run_images(image, 1, logits.data(), memory.data());
  const Value& v = values_[value];
  const uint8_t* data = memory.data() + v.offset;
  for (int p = 0; p < h * w; ++p)
    for (int k = 0; k < c; ++k)
      if (v.bits)
        found.push_back(reinterpret_cast<const uint64_t*>(data)[size_t(p) * v.ld + k / 64] >> (k % 64) & 1 ? 1.0f : -1.0f);
      else
        found.push_back(reinterpret_cast<const float*>(data)[size_t(p) * v.ld + k]);
  return found;
}

}  // namespace sparsign
