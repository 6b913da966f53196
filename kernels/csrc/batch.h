// A convolution over signs of a whole batch, outside of any network: what training calls (kernels/training.py).
#pragma once

#include "geometry.h"
#include "network.h"

namespace sparsign {

// y [n][oh][ow][oc] = convolution of x [n][h][w][c] with weight [oc][kh][kw][c]: integer sums times scales.
//
// Number: float or Bf16, of x and y, the latter rounded once; weights are fp32.
// For x of numbers size, -size and 0, and weights of numbers scale[o], -scale[o] and 0 in every filter. Else false, and
// y holds anything. Channels and filters of zeros alone cost nothing extra; other zeros cost a second pass.
template <typename Number>
bool convolve_signs(const Isa& isa, const Number* x, std::array<int64_t, 4> x_shape, const float* weight, int64_t outputs,
                    const ConvSpec& spec, Number* y, int threads);

}  // namespace sparsign
