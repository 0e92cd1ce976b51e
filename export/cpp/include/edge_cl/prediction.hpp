// The answer for one frame.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace edge_cl {

/// A class and its probability.
struct Candidate {
    std::string label;
    float confidence = 0;
};

/// The answer for one frame. Give the same object to every call: its memory is used again.
struct Prediction {
    std::string label;          ///< name of the most probable class
    float confidence = 0;       ///< its probability, 0-1
    bool unknown = false;       ///< too unlike every known class for the label to be trusted
    float unknown_score = std::numeric_limits<float>::quiet_NaN();  ///< how unlike: above 1 is unknown; if it was asked for
    std::vector<Candidate> top; ///< the most probable classes, best first
    std::int64_t version = 0;   ///< the store's version that answered
};

}  // namespace edge_cl
