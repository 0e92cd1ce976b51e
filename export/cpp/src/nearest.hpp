// Naming what was probably meant.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace edge_cl {

/// Return how many letters must be put in, taken out or changed to make one word the other.
inline std::size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
        }
    }
    return row.back();
}

/// Return "Did you mean X?", or all that is known where nothing is near.
inline std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
    std::string all;
    const std::string* nearest = nullptr;
    std::size_t least = std::max<std::size_t>(word.size() / 2, 1) + 1;
    for (const std::string& candidate : known) {
        all += (all.empty() ? "" : ", ") + candidate;
        if (const std::size_t distance = edit_distance(word, candidate); distance < least) {
            least = distance;
            nearest = &candidate;
        }
    }
    return nearest != nullptr ? "Did you mean '" + *nearest + "'?" : "Known are: " + all + ".";
}

}  // namespace edge_cl
