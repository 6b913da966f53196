// AVX-512's intrinsics in AVX2, by SIMDe (Debian: libsimde-dev): isa_avx512.cpp is checked on a CPU without AVX-512.
// For the option SPARSIGN_EMULATE alone: kernels/check.sh emulated.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
