#include "lookup.h"

#include <cmath>

namespace sparsign {

namespace {

int tables_of(const Conv& c, const Lookups& form) { return (c.c / c.groups + form.channels - 1) / form.channels; }

size_t rows_bytes(const Conv& c, const Lookups& form, int rows) {
  return sizeof(float) * pixel_floats(c, form) * c.wp * (size_t(rows - 1) * c.sh + size_t(c.kh - 1) * c.dh + 1);
}

}  // namespace

const Lookups* lookups_of(const Conv& c, const Lookups forms[2], const float* weight, std::vector<float>& scale) {
  const size_t size = size_t(c.c / c.groups) * c.kh * c.kw;
  bool ternary = false;
  scale.assign(c.oc, 0.0f);
  for (int o = 0; o < c.oc; ++o, weight += size) {
    size_t zeros = 0;
    for (size_t i = 0; i < size; ++i) {
      const float magnitude = std::fabs(weight[i]);
      if (scale[o] == 0) scale[o] = magnitude;
      zeros += magnitude == 0;
      if (magnitude != 0 && magnitude != scale[o]) return nullptr;
    }
    ternary |= zeros > 0 && zeros < size;
  }
  const Lookups& form = forms[ternary];
  const int64_t uses = int64_t(c.kh) * c.kw * round_up(c.oc / c.groups, 16) * c.oh * c.ow;
  const bool pays = form.channels > 0 && c.c / c.groups >= form.channels && uses >= int64_t(form.uses) * c.h * c.w;
  return pays && band_rows(c, form) > 0 ? &form : nullptr;
}

size_t pixel_floats(const Conv& c, const Lookups& form) { return size_t(tables_of(c, form)) * form.entries * c.groups; }

int band_rows(const Conv& c, const Lookups& form) {
  if (rows_bytes(c, form, 1) > size_t(INT32_MAX)) return 0;
  int rows = 1;
  while (rows < c.oh && rows_bytes(c, form, rows + 1) <= NEAR_TABLES) ++rows;
  return rows;
}

size_t table_bytes(const Conv& c, const Lookups& form) { return rows_bytes(c, form, c.band); }

LookupSteps lookup_steps(const Conv& c, const Lookups& form, const float* weight, int first, int filters) {
  const int inputs = c.c / c.groups, taps = c.kh * c.kw, lanes = round_up(filters, 16);
  const int levels = form.entries > 1 << form.channels ? 3 : 2;
  const size_t pixel = pixel_floats(c, form);
  LookupSteps found;
  int steps = 0;
  for (int t = 0; t < taps; ++t)
    for (int k = 0; k < inputs; k += form.channels) {
      std::vector<uint32_t> row(lanes);
      bool any = false;
      for (int o = 0; o < filters; ++o)
        for (int i = least(form.channels, inputs - k) - 1; i >= 0; --i) {
          const float w = weight[(size_t(first + o) * inputs + k + i) * taps + t];
          row[o] = row[o] * levels + (levels == 3 ? (w > 0) - (w < 0) + 1 : w > 0);
          any |= w != 0;
        }
      if (!any) continue;
      const size_t tap = size_t(t / c.kw) * c.dh * c.wp + size_t(t % c.kw) * c.dw;
      found.at.push_back(int32_t(tap * pixel + size_t(k / form.channels) * form.entries));
      const int place = steps++ % form.steps();
      if (place == 0) found.indices.resize(found.indices.size() + lanes);
      uint32_t* words = found.indices.data() + found.indices.size() - lanes;
      for (int o = 0; o < filters; ++o) words[o] |= row[o] << (place * form.bits);
    }
  return found;
}

}  // namespace sparsign
