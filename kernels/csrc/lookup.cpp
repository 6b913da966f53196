#include "lookup.h"

#include <algorithm>
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
  const double uses = double(c.kh) * c.kw * round_up(c.oc / c.groups, 16) * c.oh * c.ow / (double(c.h) * c.w);
  const bool pays = form.channels > 0 && c.c / c.groups >= form.channels && uses >= form.uses;
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
  const int inputs = c.c / c.groups, taps = c.kh * c.kw, tables = tables_of(c, form), lanes = round_up(filters, 16);
  const size_t size = size_t(inputs) * taps, pixel = pixel_floats(c, form);
  weight += size * first;
  struct Place {
    int32_t word, shift;  // of a step's indices; word -1: no step, all its weights are 0
  };
  std::vector<Place> places(size_t(tables) * taps, {-1, 0});
  std::vector<uint8_t> alive(size);
  for (int o = 0; o < filters; ++o)
    for (size_t i = 0; i < size; ++i) alive[i] |= weight[size * o + i] != 0;
  for (size_t i = 0; i < size; ++i)
    if (alive[i]) places[i / taps / form.channels * taps + i % taps].word = 0;
  LookupSteps found;
  for (int t = 0; t < taps; ++t)
    for (int table = 0; table < tables; ++table) {
      Place& place = places[size_t(table) * taps + t];
      if (place.word < 0) continue;
      const int step = int(found.at.size());
      place = {step / form.steps(), step % form.steps() * form.bits};
      const size_t tap = size_t(t / c.kw) * c.dh * c.wp + size_t(t % c.kw) * c.dw;
      found.at.push_back(int32_t(tap * pixel + size_t(table) * form.entries));
    }
  std::vector<uint32_t> words((found.at.size() + form.steps() - 1) / form.steps());  // of one filter
  found.indices.resize(words.size() * lanes);
  const bool ternary = form.entries > 1 << form.channels;
  for (int o = 0; o < filters; ++o) {
    std::fill(words.begin(), words.end(), 0);
    for (int table = 0; table < tables; ++table) {
      const Place* place = &places[size_t(table) * taps];
      uint32_t radix = 1;
      for (int k = table * form.channels; k < least(inputs, (table + 1) * form.channels); ++k, radix *= ternary ? 3 : 2)
        for (int t = 0; t < taps; ++t) {
          const float w = *weight++;
          const uint32_t digit = ternary ? uint32_t((w > 0) - (w < 0) + 1) : uint32_t(w > 0);
          if (place[t].word >= 0) words[place[t].word] += digit * radix << place[t].shift;
        }
    }
    for (size_t i = 0; i < words.size(); ++i) found.indices[i * lanes + o] = words[i];
  }
  return found;
}

}  // namespace sparsign
