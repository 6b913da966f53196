// Checks an engine without Python: convolutions of random shapes on every instruction set that is here, against naive
// loops. For a CPU that is only emulated (kernels/check.sh aarch64). Exit code 1 and a line where one differs.
#include <cmath>
#include <cstdio>
#include <random>

#include "network.h"

using namespace sparsign;

namespace {

struct Case {
  int n, c, h, w, oc;
  ConvSpec spec;
  bool signs, ternary;
  std::array<int64_t, 4> shape() const { return {oc, c / spec.groups, spec.kernel[0], spec.kernel[1]}; }
  std::string text() const {
    char line[200];
    std::snprintf(line, sizeof line, "%s%s [%d, %d, %d, %d] to %d, kernel %dx%d stride %d,%d padding %d,%d dilation %d groups %d",
                  ternary ? "ternary " : "", signs ? "signs" : "floats", n, c, h, w, oc, spec.kernel[0], spec.kernel[1],
                  spec.stride[0], spec.stride[1], spec.padding[0], spec.padding[1], spec.dilation[0], spec.groups);
    return line;
  }
};

Case random_case(std::mt19937& rng) {
  const auto pick = [&](int from, int to) { return std::uniform_int_distribution<int>(from, to)(rng); };
  Case k{pick(1, 3), pick(1, 150), pick(1, 9), pick(1, 9), pick(1, 140), {}, pick(0, 1) == 1, pick(0, 1) == 1};
  ConvSpec& s = k.spec;
  const int kernels[] = {1, 2, 3, 5};
  for (int axis = 0; axis < 2; ++axis) {
    s.kernel[axis] = kernels[pick(0, 3)], s.stride[axis] = pick(1, 3), s.padding[axis] = pick(0, 2), s.dilation[axis] = pick(1, 2);
    int& size = axis ? k.w : k.h;
    size = std::max(size, (s.kernel[axis] - 1) * s.dilation[axis] + 1 - 2 * s.padding[axis]);
  }
  if (!k.signs && pick(0, 3) == 0) {
    s.groups = 3;
    k.c = (k.c + 2) / 3 * 3, k.oc = pick(0, 1) ? k.c : (k.oc + 2) / 3 * 3;
  }
  return k;
}

// [n][oc][oh][ow] in double.
std::vector<double> naive(const Case& k, const std::vector<float>& x, const std::vector<float>& weight, int oh, int ow) {
  const ConvSpec& s = k.spec;
  const int inputs = k.c / s.groups, outputs = k.oc / s.groups, kh = s.kernel[0], kw = s.kernel[1];
  std::vector<double> y;
  for (int n = 0; n < k.n; ++n)
    for (int o = 0; o < k.oc; ++o)
      for (int row = 0; row < oh; ++row)
        for (int column = 0; column < ow; ++column) {
          double sum = 0;
          for (int i = 0; i < inputs; ++i)
            for (int t = 0; t < kh * kw; ++t) {
              const int r = row * s.stride[0] + t / kw * s.dilation[0] - s.padding[0];
              const int c = column * s.stride[1] + t % kw * s.dilation[1] - s.padding[1];
              if (r < 0 || r >= k.h || c < 0 || c >= k.w) continue;
              const size_t at = ((size_t(n) * k.c + o / outputs * inputs + i) * k.h + r) * k.w + c;
              const double value = k.signs ? (x[at] >= 0 ? 1 : -1) : x[at];
              sum += value * weight[(size_t(o) * inputs + i) * kh * kw + t];
            }
          y.push_back(sum);
        }
  return y;
}

std::vector<float> on_engine(const std::string& isa, const Case& k, const std::vector<float>& x,
                             const std::vector<float>& weight, int oh, int ow) {
  Network network(isa, {k.c, k.h, k.w}, false);
  ChainSpec chain, store;
  const int out = network.value(false, oh, ow, k.oc);
  store.items.push_back({Op::STORE, {}, {}, 0, 0, out});
  if (k.signs) {
    const int bits = network.value(true, k.h, k.w, k.c);
    chain.items.push_back({Op::SIGN, {}, {}, 0, 0, bits});
    network.gather({{0, 1, {}}}, {k.c, k.h, k.w}, chain);
    network.conv_bits(bits, k.spec, std::vector<int8_t>(weight.begin(), weight.end()).data(), k.shape(), store);
  } else {
    network.conv_float(0, k.spec, weight.data(), k.shape(), store);
  }
  const int logits = network.value(false, 1, 1, k.oc * oh * ow);
  ChainSpec last;
  last.items.push_back({Op::STORE, {}, {}, 0, 0, logits});
  network.flatten(out, last);
  network.finish(logits);
  std::vector<float> y(size_t(k.n) * network.classes());
  network.run(x.data(), k.n, y.data(), 2);
  return y;
}

bool holds(const std::string& isa, const Case& k, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<float> x(size_t(k.n) * k.c * k.h * k.w), weight;
  for (float& value : x) value = normal(rng);
  const auto shape = k.shape();
  const int levels = std::uniform_int_distribution<int>(0, 2)(rng);  // over floats: 0 any numbers, else signs
  for (int64_t i = 0; i < shape[0] * shape[1] * shape[2] * shape[3]; ++i) {
    const float value = normal(rng);
    const float sign = k.ternary && std::fabs(value) < 0.6f ? 0.0f : value < 0 ? -1.0f : 1.0f;
    weight.push_back(k.signs || levels ? sign : value);
  }
  const Conv c = sized_conv(k.h, k.w, k.c, k.spec, shape);
  const std::vector<double> exact = naive(k, x, weight, c.oh, c.ow);
  const std::vector<float> found = on_engine(isa, k, x, weight, c.oh, c.ow);
  double largest = 1, error = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    largest = std::max(largest, std::fabs(exact[i]));
    error = std::max(error, std::fabs(exact[i] - found[i]));
  }
  if (k.signs ? error == 0 : error <= 1e-5 * largest) return true;
  std::printf("%s: %s: error %g of %g\n", isa.c_str(), k.text().c_str(), error, largest);
  return false;
}

}  // namespace

int main() {
  constexpr int CASES = 300;
  bool good = true;
  for (const std::string& isa : available_isas()) {
    std::mt19937 rng(0);
    for (int i = 0; i < CASES; ++i) {
      const Case k = random_case(rng);
      good &= holds(isa, k, rng);
    }
    std::printf("%s: %d convolutions\n", isa.c_str(), CASES);
  }
  return good ? 0 : 1;
}
