#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "sha256.hpp"

namespace edge_cl {
namespace {

// Examples of FIPS 180-4's test vectors.
TEST(Sha256, GivesTheStandardsDigests) {
    EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha256(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnThePieces) {
    for (std::size_t size = 0; size < 200; ++size) {
        const std::string data(size, 'x');
        for (const std::size_t piece : {1, 7, 63, 64, 65}) {
            Sha256 digest;
            for (std::size_t at = 0; at < size; at += piece) digest.update(data.data() + at, std::min(piece, size - at));
            EXPECT_EQ(digest.hex(), sha256(data)) << size << " by " << piece;
        }
    }
}

}  // namespace
}  // namespace edge_cl
