// Weights of two or three levels as indices of look-up tables, see `Lookups` in program.h.
#pragma once

#include "geometry.h"

namespace sparsign {

// The look-ups that a layer's weights [filters][inputs][kh * kw] allow and that pay, else nullptr: those of every filter
// are its scale, its negative and, in ternary layers, 0. scale: [filters]; 0 where all weights are, whatever their signs.
const Lookups* lookups_of(const Conv& c, const Lookups forms[2], const float* weight, std::vector<float>& scale);

// Floats of a pixel's tables, all groups.
size_t pixel_floats(const Conv& c, const Lookups& form);

// Output rows whose tables are made at once; 0 if even those of one are too many.
int band_rows(const Conv& c, const Lookups& form);

// Bytes of the tables of a band.
size_t table_bytes(const Conv& c, const Lookups& form);

// The steps and indices of filters first .. first + filters of a group; weight: [filters of the layer][inputs][kh * kw].
struct LookupSteps {
  std::vector<int32_t> at;
  std::vector<uint32_t> indices;
};
LookupSteps lookup_steps(const Conv& c, const Lookups& form, const float* weight, int first, int filters);

}  // namespace sparsign
