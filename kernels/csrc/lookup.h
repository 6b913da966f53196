// Weights of two or three levels as indices of look-up tables, see `Lookups` in program.h.
#pragma once

#include "geometry.h"

namespace sparsign {

// scale [filters], if the `size` weights of each filter are its scale, its negative and 0; else false. zeros: how many
// weights are 0 in filters that are not all 0; of those that are, the scale is 0 and signs don't matter.
bool read_levels(const float* weight, int filters, size_t size, std::vector<float>& scale, size_t& zeros);

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
