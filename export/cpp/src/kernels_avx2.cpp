// Compiled with AVX2 and FMA switched on: nothing here may run before `avx2` has asked the processor.
#include "kernels.hpp"

#include <immintrin.h>

namespace edge_cl {
namespace {
#include "kernels.inc"
}  // namespace

const Kernels* Kernels::avx2() {
    static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has ? &kKernels : nullptr;
}

}  // namespace edge_cl
