// Frames through preprocessing, prefix and exit, base branch and the routed task branches, to predictions.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "backend.hpp"
#include "edge_cl/frame.hpp"
#include "edge_cl/prediction.hpp"
#include "head.hpp"

namespace edge_cl {

/// How branches are combined.
enum class Rule { routed, base };

/// One version of a bundle, ready to answer; safe to use from several threads.
class Recogniser {
public:
    Recogniser(const Manifest& manifest, Head head, std::shared_ptr<const Backend> backend, Rule rule, std::size_t top,
               bool scored);
    ~Recogniser();

    /// Answer for frames that were checked, any number of them.
    Status predict(const Frame* frames, std::size_t count, const Deadline& deadline, Prediction* out) const;

    /// Make room for as many callers as another version had, and run each once, so that no frame waits for that.
    Status warm_up(const Recogniser* before) const;

    const std::shared_ptr<const Backend>& backend() const { return backend_; }
    const Head& head() const { return head_; }

private:
    struct Workspace;
    class Lease;

    Result<std::unique_ptr<Workspace>> make_workspace() const;
    Status answer(Workspace& space, const Frame* frames, std::size_t count, const Deadline& deadline,
                  Prediction* out) const;
    Status ask_base(Workspace& space, std::size_t count, const Deadline& deadline) const;
    Status ask_branches(Workspace& space, std::size_t count, const Deadline& deadline) const;
    void write(Workspace& space, std::size_t row, Prediction& out) const;

    Preprocess preprocess_;
    Shape shape_;
    std::int64_t version_;
    Head head_;
    std::shared_ptr<const Backend> backend_;
    Rule rule_;
    std::size_t top_;
    bool scored_;  // whether predictions have their unknown score
    std::size_t longest_name_ = 0;

    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<Workspace>> idle_;
    mutable std::size_t made_ = 0;   // workspaces in all
    mutable std::size_t batch_ = 0;  // most frames that were run at once
};

}  // namespace edge_cl
