// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace edge_cl {

/// Takes bytes piece by piece.
class Sha256 {
public:
    void update(const void* data, std::size_t size);

    /// Return the digest as 64 lower-case hexadecimal digits; call it once, at the end.
    std::string hex();

private:
    void block(const std::uint8_t* bytes);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> waiting_{};
    std::size_t filled_ = 0;
    std::uint64_t total_ = 0;
};

/// Return the digest of some bytes.
std::string sha256(std::string_view data);

}  // namespace edge_cl
