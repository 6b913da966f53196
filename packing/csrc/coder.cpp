// Python's door to the entropy coders, sparsign.packing._coder. sparsign/packing/coding checks the arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "fields.h"
#include "mixing.h"

namespace nb = nanobind;
using namespace sparsign;

using Codes = nb::ndarray<int16_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class Number>
using Numbers = nb::ndarray<Number, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Layers = std::vector<std::tuple<Codes, std::optional<Mask>, int>>;

// Codes layers in place, each with its mask and kind.
template <class Coder>
static void code_layers(Coder& coder, const Layers& layers) {
    Model model;
    for (const auto& [codes, mask, kind] : layers) {
        const auto size = [&codes = codes](size_t axis) { return int64_t(codes.shape(axis)); };
        const Layer layer{codes.data(), size(0), size(1), size(2), size(3), mask ? mask->data() : nullptr};
        model.code_layer(coder, layer, kind);
    }
}

static std::string to_string(const nb::bytes& data) { return {data.c_str(), data.size()}; }

static nb::bytes to_bytes(const std::string& data) { return nb::bytes(data.data(), data.size()); }

template <class Number>
static void fill_fields(const nb::bytes& data, const Numbers<Number>& numbers, const std::vector<int>& widths) {
    decode_fields(to_string(data), numbers.data(), numbers.size(), widths);
}

NB_MODULE(_coder, module) {
    module.def("encode_codes", [](const Layers& layers) {
        Encoder encoder;
        code_layers(encoder, layers);
        return to_bytes(encoder.finish());
    });
    module.def("decode_codes", [](const nb::bytes& bytes, const Layers& layers) {
        const std::string data = to_string(bytes);
        Decoder decoder(data);
        code_layers(decoder, layers);
        decoder.finish();
    });
    module.def("encode_fields", [](const Numbers<uint32_t>& numbers, const std::vector<int>& widths) {
        return to_bytes(encode_fields(numbers.data(), numbers.size(), widths));
    });
    module.def("decode_fields", fill_fields<uint8_t>);
    module.def("decode_fields", fill_fields<uint32_t>);
}
