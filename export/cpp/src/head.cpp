#include "head.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.hpp"

namespace edge_cl {

void softmax(float* scores, std::size_t count, float temperature) {
    for (std::size_t i = 0; i < count; ++i) scores[i] /= temperature;
    const float largest = *std::max_element(scores, scores + count);
    float sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += scores[i] = std::exp(scores[i] - largest);
    for (std::size_t i = 0; i < count; ++i) scores[i] /= sum;
}

void Discriminant::scores(const float* prefix, std::size_t prefix_size, const float* suffix, float* offset,
                          float* out) const {
    const std::size_t size = centre.size();
    for (std::size_t i = 0; i < prefix_size; ++i) offset[i] = prefix[i] - centre[i];
    for (std::size_t i = prefix_size; i < size; ++i) offset[i] = suffix[i - prefix_size] - centre[i];
    weight.dots(offset, size, 0, bias.size(), out);
    for (std::size_t c = 0; c < bias.size(); ++c) out[c] += bias[c];
}

void Quadratic::add(float* scores, float* room) const {
    const std::size_t count = cost.size();
    float* const along = room;
    float* const gain = room + count;
    for (std::size_t c = 0; c < count; ++c) gain[c] = -cost[c];
    for (std::size_t first = 0; first < offset.size(); first += count) {
        weight.dots(scores, count, first, count, along);
        for (std::size_t c = 0; c < count; ++c) {
            const float off = along[c] + offset[first + c];
            gain[c] += off * off;
        }
    }
    for (std::size_t c = 0; c < count; ++c) scores[c] += gain[c];
}

float Head::posterior(float* scores, float* room) const {
    quadratic.add(scores, room);
    const float best = largest(scores);
    softmax(scores, classes(), temperature);
    return best;
}

void Head::prepare() {
    highest_ = gain;
    for (std::size_t k = gain.size(); k-- > 1;) highest_[k - 1] = std::max(highest_[k - 1], highest_[k]);
}

float Head::largest(const float* values) const { return *std::max_element(values, values + classes()); }

float Head::distance(const float* offset, float score) const {
    const std::size_t size = features();
    float square = Kernels::best().dot(offset, offset, size);
    for (std::size_t k = 0; k < gain.size(); ++k) {
        float along = 0;
        basis.dots(offset, size, k, 1, &along);
        square += along * along * gain[k];
    }
    return square / variance - 2 * score;
}

bool Head::is_far(const float* offset, float score) const {
    constexpr std::size_t kRows = 4;  // that are taken at once
    const std::size_t size = features();
    const float nearest = 2 * score;
    float square = Kernels::best().dot(offset, offset, size);
    for (std::size_t k = 0; k < gain.size(); k += kRows) {
        // The rows to come only make it smaller: their gains are negative. Of an infinite distance they may make none.
        if (square / variance - nearest < threshold && highest_[k] <= 0) return false;
        float along[kRows];
        const std::size_t count = std::min(kRows, gain.size() - k);
        basis.dots(offset, size, k, count, along);
        for (std::size_t j = 0; j < count; ++j) square += along[j] * along[j] * gain[k + j];
    }
    return !(square / variance - nearest <= threshold);  // what is no number is not near either
}

bool Head::is_unsure(const float* posterior) const {
    return exit == nullptr || largest(posterior) <= exit->confidence;
}

float Head::unknown_score(float distance, float best) const {
    using Limits = std::numeric_limits<float>;
    const float far = std::fmax(distance / threshold, 1 + (least_score - best) / temperature);
    const bool unknown = !(distance <= threshold && best >= least_score);  // whatever threshold and distance are
    const float score = unknown ? std::fmax(far, std::nextafter(1.0F, 2.0F)) : std::fmin(far, 1.0F);
    return std::min(std::max(score, Limits::lowest()), Limits::max());
}

bool Exit::answer(const float* prefix, float* offset, float* posterior, float* room, float* unknown_score) const {
    head.discriminant.scores(prefix, head.features(), nullptr, offset, posterior);
    const float score = head.largest(posterior);
    head.posterior(posterior, room);
    if (!(head.largest(posterior) > confidence)) return false;
    if (unknown_score == nullptr) return !head.is_far(offset, score);
    const float own = head.unknown_score(head.distance(offset, score), score);
    *unknown_score = kExitShare * own;
    return own <= 1;
}

std::size_t Head::route(const float* posterior, float* mass) const {
    std::fill(mass, mass + branches.size(), 0.0F);
    for (std::size_t c = 0; c < classes(); ++c) mass[tasks[c]] += posterior[c];
    return static_cast<std::size_t>(std::max_element(mass, mass + branches.size()) - mass);
}

void Head::fuse(float* posterior, const Branch& branch, float* scores) const {
    softmax(scores, branch.columns.size(), branch.temperature);
    float mass = 0;
    for (const std::size_t column : branch.columns) mass += posterior[column];
    const float share = branch.share, rest = 1 - share;
    for (std::size_t i = 0; i < branch.columns.size(); ++i) {
        float& probability = posterior[branch.columns[i]];
        probability = rest * probability + share * mass * scores[i];
    }
}

}  // namespace edge_cl
