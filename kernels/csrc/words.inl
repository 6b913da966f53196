// Signs as 64-bit words, with a border of zero bits around the image: [hp][wp][words of 64 channels].
struct Words {
  static int words(const Conv& c) { return (c.c + 63) / 64; }
  static size_t image_bytes(const Conv& c) { return sizeof(uint64_t) * c.hp * c.wp * words(c); }
  static size_t scratch(const Conv& c) { return image_bytes(c); }

  static void expand(const Conv& c, const uint64_t* in, int ld, uint8_t* scratch) {
    const int n = words(c);
    uint64_t* out = reinterpret_cast<uint64_t*>(scratch);
    const size_t row = size_t(c.wp) * n;
    for (size_t i = 0; i < row * size_t(c.hp); ++i) out[i] = 0;
    for (int y = 0; y < c.h; ++y)
      for (int x = 0; x < c.w; ++x)
        for (int k = 0; k < n; ++k)
          out[size_t(y + c.ph) * row + size_t(x + c.pw) * n + k] = in[(size_t(y) * c.w + x) * ld + k];
  }

  // Bit of a weight: 1 for +1. A ternary weight is the mean of two binary ones: 0 is +1 in plane 0, -1 in plane 1.
  static bool weight_bit(const Conv& c, const int8_t* codes, int o, int plane, int tap, int channel) {
    if (o >= c.oc || channel >= c.c) return false;
    const int8_t code = codes[(size_t(o) * c.c + channel) * (c.kh * c.kw) + tap];
    return code > 0 || (code == 0 && plane == 0);
  }

  static uint64_t weight_word(const Conv& c, const int8_t* codes, int o, int plane, int tap, int word) {
    uint64_t bits = 0;
    for (int i = 0; i < 64; ++i) bits |= uint64_t(weight_bit(c, codes, o, plane, tap, word * 64 + i)) << i;
    return bits;
  }
};
