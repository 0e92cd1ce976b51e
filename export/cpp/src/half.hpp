// IEEE 754 half precision, as numpy converts it: to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace edge_cl {

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
    std::uint32_t exponent = (half >> 10) & 0x1fU;
    std::uint32_t mantissa = half & 0x3ffU;
    std::uint32_t bits = sign;
    if (exponent == 31) {
        bits |= 0x7f800000U | mantissa << 13;
    } else if (exponent > 0) {
        bits |= (exponent + 112) << 23 | mantissa << 13;
    } else if (mantissa > 0) {  // subnormal: normal in single precision
        exponent = 113;
        for (; (mantissa & 0x400U) == 0; mantissa <<= 1) --exponent;
        bits |= exponent << 23 | (mantissa & 0x3ffU) << 13;
    }
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint16_t float_to_half(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = (bits >> 16) & 0x8000U, magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);   // not a number
    if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // rounds to infinity
    if (magnitude < 0x33000001U) return static_cast<std::uint16_t>(sign);             // rounds to zero
    std::uint32_t shift = 13, mantissa = magnitude, base = 0;
    if (magnitude < 0x38800000U) {  // subnormal: shift the mantissa with its leading one
        shift = 126 - (magnitude >> 23);
        mantissa = (magnitude & 0x7fffffU) | 0x800000U;
    } else {
        base = 112U << 23;
    }
    mantissa -= base;
    const std::uint32_t odd = (mantissa >> shift) & 1U;
    mantissa += (1U << (shift - 1)) - 1 + odd;
    return static_cast<std::uint16_t>(sign | mantissa >> shift);
}

}  // namespace edge_cl
