// The head: from features to class probabilities; the arithmetic of edge_cl/head.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "matrix.hpp"

namespace edge_cl {

/// Linear discriminant: score_c = weight_c . (x - centre) + bias_c.
struct Discriminant {
    Matrix weight;              ///< (C, F)
    std::vector<float> bias;    ///< (C,)
    std::vector<float> centre;  ///< (F,)

    /// Write the scores of features that lie in two parts, `features` being their sum. `offset` is room for F numbers,
    /// and holds x - centre afterwards.
    void scores(const float* prefix, std::size_t prefix_size, const float* suffix, float* offset, float* out) const;
};

/// What a task branch knows of its own classes.
struct Branch {
    std::int64_t task = 0;
    Discriminant discriminant;
    std::vector<std::size_t> columns;  ///< of its classes among all classes; none: the task has no branch
    float share = 0;                   ///< the branch's share in the answer within its task
    float temperature = 1;

    /// Whether it is worth running.
    bool is_asked() const { return share > 0 && columns.size() > 1; }
};

/// What the classes' own covariances add to their scores: sum_r (weight_rc . scores + offset_rc)^2 - cost_c.
struct Quadratic {
    Matrix weight;              ///< (R C, C), for every direction a row a class; none: nothing is added
    std::vector<float> offset;  ///< (R C,)
    std::vector<float> cost;    ///< (C,)

    /// Add it to the scores of C classes, in place. `room` is for 2 C numbers.
    void add(float* scores, float* room) const;
};

struct Exit;

/// Scores, routing and the unknown test over all classes known.
struct Head {
    Discriminant discriminant;      ///< of the base branch
    Quadratic quadratic;            ///< what the classes' own covariances add to its scores
    Matrix basis;                   ///< (K, F), orthonormal rows of the precision, but for rounding
    std::vector<float> gain;        ///< (K,), relative change of the precision along each
    float variance = 1;             ///< of the precision's isotropic part
    float temperature = 1;
    float threshold = 0;            ///< squared distance above which a picture is unknown
    float least_score = -std::numeric_limits<float>::infinity();  ///< of the best class, below which it is unknown too
    std::vector<std::string> names; ///< of the classes, by column
    std::vector<std::size_t> tasks; ///< by column: place of the class's task among `branches`
    std::vector<Branch> branches;   ///< one for every task, in the order of their numbers
    std::shared_ptr<const Exit> exit;  ///< what answers before the suffix, or null

    std::size_t classes() const { return names.size(); }
    std::size_t features() const { return discriminant.centre.size(); }

    /// Compute what the unknown test needs of the gains.
    void prepare();

    /// Turn the discriminant's scores into probabilities, in place, and return the best class's score with what its own
    /// covariance adds. `room` is for two numbers a class.
    float posterior(float* scores, float* room) const;

    /// Return the largest of the scores or probabilities of the classes.
    float largest(const float* values) const;

    /// Whether a picture of offset x - centre and this largest of the discriminant's scores is too far from every class
    /// mean; `prepare` comes first.
    bool is_far(const float* offset, float score) const;

    /// Return the squared Mahalanobis distance to the nearest class mean, all of it: `is_far` stops when it is sure.
    float distance(const float* offset, float score) const;

    /// How unlike all that is known a picture is, above 1 if it is unknown: `Head.unknown_score` of edge_cl/head.py.
    float unknown_score(float distance, float best) const;

    /// Whether a task branch should look at an answer of the base branch: at all of them, where there is no exit.
    bool is_unsure(const float* posterior) const;

    /// Return the place among `branches` of the most probable task; `mass` is room for a number a task.
    std::size_t route(const float* posterior, float* mass) const;

    /// Share a task's probability out by its branch's scores, which are overwritten.
    void fuse(float* posterior, const Branch& branch, float* scores) const;

private:
    std::vector<float> highest_;  // gain among each row of the basis and those after it
};

constexpr float kExitShare = 0.7F;  ///< of the whole model's threshold that the exit's stands for: edge_cl/head.py

/// What answers from the prefix alone, so that the suffix need not run.
struct Exit {
    Head head;             ///< over the prefix's features, without branches
    float confidence = 0;  ///< of the best class, above which an answer is sure

    /// Write the class probabilities of the prefix's features; return whether the answer stands: it is sure, and the
    /// picture not too far from what is known. `offset` is room for as many numbers, `room` for two a class; where
    /// `unknown_score` is not null, it gets the picture's.
    bool answer(const float* prefix, float* offset, float* posterior, float* room, float* unknown_score) const;
};

/// Softmax of `count` scores over a temperature, in place.
void softmax(float* scores, std::size_t count, float temperature);

}  // namespace edge_cl
