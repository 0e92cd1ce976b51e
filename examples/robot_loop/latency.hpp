// How long frames took.
#pragma once

#include <array>
#include <cstdint>
#include <ostream>

/// Counts times in buckets, each a quarter longer than the one before; needs no memory as it grows.
class Latency {
public:
    void add(double ms);

    std::uint64_t count() const { return count_; }
    double longest_ms() const { return longest_; }

    /// Return the time that a share of the frames did not exceed, to the precision of a bucket.
    double quantile_ms(double share) const;

    /// Write one line a bucket that holds frames.
    void print(std::ostream& out) const;

private:
    static constexpr std::size_t kBuckets = 64;
    static double limit(std::size_t bucket);

    std::array<std::uint64_t, kBuckets> buckets_{};
    std::uint64_t count_ = 0;
    double longest_ = 0;
};
