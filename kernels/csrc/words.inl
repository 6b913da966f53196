// Signs as 64-bit words, with a border of zero bits around the image: [hp][wp][words of 64 channels].
struct Words {
  static int words(const Conv& c) { return (c.c + 63) / 64; }
  static size_t image_bytes(const Conv& c) { return sizeof(uint64_t) * c.hp * c.wp * words(c); }
  static size_t scratch(const Conv& c) { return image_bytes(c); }
  // Pixels of the tile that begins at pixel `first`.
  static int next(const Conv& c, int first, int channels) { return least(channels <= 32 ? 8 : 4, c.oh * c.ow - first); }

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
};

// Of an instruction set without look-up tables of floats.
struct NoTables {
  static constexpr Lookups FORM = {0, 0, 0, 0};
};
