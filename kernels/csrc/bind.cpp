// Python's view of a network: built step by step by kernels/lower.py, run by kernels/engine.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "batch.h"
#include "network.h"

namespace nb = nanobind;
using namespace sparsign;

namespace {

template <class T, int D>
using Array = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;

template <class T>
std::vector<T> copied(const Array<T, 1>& array) {
  return {array.data(), array.data() + array.size()};
}

template <class T>
std::array<int64_t, 4> shape_of(const Array<T, 4>& array) {
  return {int64_t(array.shape(0)), int64_t(array.shape(1)), int64_t(array.shape(2)), int64_t(array.shape(3))};
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // networks live in caches until the interpreter ends
  m.doc() = "The compiled inference engine; see kernels/engine.py.";
  m.def("isas", &available_isas, "Instruction sets that are chosen by themselves: built, and this CPU has them, best first.");

  nb::class_<ChainSpec>(m, "Chain")
      .def(nb::init<>())
      .def("affine", [](ChainSpec& s, Array<float, 1> a, Array<float, 1> b) { s.items.push_back({Op::AFFINE, copied(a), copied(b)}); })
      .def("scale", [](ChainSpec& s, Array<float, 1> a) { s.items.push_back({Op::SCALE, copied(a), {}}); })
      .def("shift", [](ChainSpec& s, Array<float, 1> b) { s.items.push_back({Op::SHIFT, {}, copied(b)}); })
      .def("clamp", [](ChainSpec& s, float low, float high) { s.items.push_back({Op::CLAMP, {}, {}, low, high}); })
      .def("prelu", [](ChainSpec& s, Array<float, 1> a) { s.items.push_back({Op::PRELU, copied(a), {}}); })
      .def("sigmoid", [](ChainSpec& s) { s.items.push_back({Op::SIGMOID, {}, {}}); })
      .def("silu", [](ChainSpec& s) { s.items.push_back({Op::SILU, {}, {}}); })
      .def("hardsigmoid", [](ChainSpec& s) { s.items.push_back({Op::HARDSIGMOID, {}, {}}); })
      .def("hardswish", [](ChainSpec& s) { s.items.push_back({Op::HARDSWISH, {}, {}}); })
      .def("mul", [](ChainSpec& s, int value) { s.items.push_back({Op::MUL, {}, {}, 0, 0, value}); })
      .def("add", [](ChainSpec& s, int value) { s.items.push_back({Op::ADD, {}, {}, 0, 0, value}); })
      .def("signum", [](ChainSpec& s) { s.items.push_back({Op::SIGNUM, {}, {}}); })
      .def("store", [](ChainSpec& s, int value) { s.items.push_back({Op::STORE, {}, {}, 0, 0, value}); })
      .def("sign", [](ChainSpec& s, int value) { s.items.push_back({Op::SIGN, {}, {}, 0, 0, value}); });

  nb::class_<ConvSpec>(m, "Window")
      .def("__init__",
           [](ConvSpec* self, std::array<int, 2> kernel, std::array<int, 2> stride, std::array<int, 2> padding,
              std::array<int, 2> dilation, int groups) { new (self) ConvSpec{kernel, stride, padding, dilation, groups}; },
           nb::arg("kernel"), nb::arg("stride"), nb::arg("padding"), nb::arg("dilation"), nb::arg("groups") = 1);

  nb::class_<SourceSpec>(m, "Source")
      .def("__init__",
           [](SourceSpec* self, int value, int stride, Array<int32_t, 1> map) { new (self) SourceSpec{value, stride, copied(map)}; },
           nb::arg("value"), nb::arg("stride"), nb::arg("map"));

  m.def("peak",
        [](const std::string& isa, bool bits, int form, int64_t rounds) { return choose_isa(isa)->peak(bits, form, rounds); },
        nb::arg("isa"), nb::arg("bits"), nb::arg("form"), nb::arg("rounds"),
        "Multiply-accumulates of so many rounds of one form of loop, 0 if there is no such form; time it.");
  m.def("convolve_signs",
        [](const std::string& isa, bool bf16, uintptr_t x, std::array<int64_t, 4> shape, uintptr_t weight, int64_t outputs,
           const ConvSpec& window, uintptr_t y, int threads) {
          nb::gil_scoped_release release;
          const auto convolve = [&](auto number) {
            using Number = decltype(number);
            return convolve_signs(*choose_isa(isa), reinterpret_cast<const Number*>(x), shape,
                                  reinterpret_cast<const float*>(weight), outputs, window, reinterpret_cast<Number*>(y), threads);
          };
          return bf16 ? convolve(Bf16()) : convolve(float());
        },
        nb::arg("isa"), nb::arg("bf16"), nb::arg("x"), nb::arg("shape"), nb::arg("weight"), nb::arg("outputs"),
        nb::arg("window"), nb::arg("y"), nb::arg("threads"),
        "Addresses of x [n, h, w, c] and y [n, oh, ow, outputs], both bf16 or fp32, and of weight [outputs, kh, kw, c], fp32; the caller checks them.");

  nb::class_<Network>(m, "Network")
      .def(nb::init<const std::string&, std::array<int, 3>, bool>(), nb::arg("isa"), nb::arg("input_shape"), nb::arg("keep_values"))
      .def_prop_ro("isa", &Network::isa)
      .def_prop_ro("arena_bytes", &Network::arena_bytes)
      .def_prop_ro("weight_bytes", &Network::weight_bytes)
      .def_prop_ro("classes", &Network::classes)
      .def("value", &Network::value, nb::arg("bits"), nb::arg("h"), nb::arg("w"), nb::arg("c"))
      .def("shape", &Network::shape)
      .def("conv_bits", [](Network& n, int in, const ConvSpec& s, Array<int8_t, 4> codes, const ChainSpec& chain) {
        n.conv_bits(in, s, codes.data(), shape_of(codes), chain);
      })
      .def("conv_float", [](Network& n, int in, const ConvSpec& s, Array<float, 4> weight, const ChainSpec& chain) {
        n.conv_float(in, s, weight.data(), shape_of(weight), chain);
      })
      .def("pool", &Network::pool, nb::arg("maximum"), nb::arg("value"), nb::arg("window"), nb::arg("output"), nb::arg("count_pad"), nb::arg("chain"))
      .def("gather", &Network::gather)
      .def("flatten", &Network::flatten)
      .def("finish", &Network::finish)
      .def("run",
           [](const Network& n, uintptr_t images, int64_t count, uintptr_t logits, int threads) {
             nb::gil_scoped_release release;
             n.run(reinterpret_cast<const float*>(images), count, reinterpret_cast<float*>(logits), threads);
           },
           "Addresses of fp32 images [count, C, H, W] and logits [count, classes]; the caller checks them.")
      .def("read", [](const Network& n, Array<float, 3> image, int value) {
        const auto [c, h, w] = n.shape(n.input());
        if (image.shape(0) != size_t(c) || image.shape(1) != size_t(h) || image.shape(2) != size_t(w))
          throw std::invalid_argument("an image of another shape than the network's input");
        return n.read(image.data(), value);
      });
}
