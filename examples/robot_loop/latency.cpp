#include "latency.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <string>

double Latency::limit(std::size_t bucket) { return 0.1 * std::pow(1.25, static_cast<double>(bucket)); }

void Latency::add(double ms) {
    std::size_t bucket = 0;
    while (bucket + 1 < kBuckets && ms > limit(bucket)) ++bucket;
    ++buckets_[bucket];
    ++count_;
    longest_ = std::max(longest_, ms);
}

double Latency::quantile_ms(double share) const {
    const double wanted = share * static_cast<double>(count_);
    double seen = 0;
    for (std::size_t i = 0; i < kBuckets; ++i)
        if ((seen += static_cast<double>(buckets_[i])) >= wanted) return std::min(limit(i), longest_);
    return longest_;
}

void Latency::print(std::ostream& out) const {
    const std::uint64_t most = std::max<std::uint64_t>(*std::max_element(buckets_.begin(), buckets_.end()), 1);
    for (std::size_t i = 0; i < kBuckets; ++i)
        if (buckets_[i] > 0)
            out << "  up to " << std::setw(8) << std::fixed << std::setprecision(2) << limit(i) << " ms " << std::setw(8)
                << buckets_[i] << " " << std::string(static_cast<std::size_t>(40 * buckets_[i] / most), '#') << "\n";
}
