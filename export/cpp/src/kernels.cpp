#include "kernels.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace edge_cl {
namespace {
#include "kernels.inc"
}  // namespace

const Kernels& Kernels::portable() { return kKernels; }

#ifndef EDGE_CL_AVX2
const Kernels* Kernels::avx2() { return nullptr; }
#endif

const Kernels& Kernels::best() {
    static const Kernels* const chosen = avx2() != nullptr ? avx2() : &portable();
    return *chosen;
}

}  // namespace edge_cl
