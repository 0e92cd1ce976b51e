#include "recogniser.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace edge_cl {

constexpr std::size_t kNoRoute = static_cast<std::size_t>(-1);

// The memory of one call.
struct Recogniser::Workspace {
    Workspace(const Preprocess& spec, const Shape& shape, const Head& head)
        : preprocessor(spec),
          offset(shape.features()),
          scores(head.classes()),
          room(2 * head.classes()),
          mass(head.branches.size()),
          posterior(kBatch * head.classes()),
          order(head.classes()) {}

    Preprocessor preprocessor;
    std::unique_ptr<Pass> pass;
    std::vector<float> offset, scores, room, mass, posterior;
    std::vector<std::size_t> order;
    std::size_t on[kBatch] = {};      // the frames that go on after the exit, ...
    std::size_t routes[kBatch] = {};  // ... and the place of each one's task; kNoRoute: no branch is asked
    std::size_t rows[kBatch] = {}, places[kBatch] = {};
    bool unknown[kBatch] = {};
    float unknown_score[kBatch] = {};  // no numbers, if they were not asked for
};

// A workspace lent to one call; it goes back with the lease.
class Recogniser::Lease {
public:
    Lease(const Recogniser& owner, std::unique_ptr<Workspace> space) : owner_(owner), space_(std::move(space)) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
        const std::lock_guard lock(owner_.mutex_);
        owner_.idle_.push_back(std::move(space_));  // room was reserved when it was made
    }
    Workspace& operator*() const { return *space_; }

private:
    const Recogniser& owner_;
    std::unique_ptr<Workspace> space_;
};

Recogniser::Recogniser(const Manifest& manifest, Head head, std::shared_ptr<const Backend> backend, Rule rule,
                       std::size_t top, bool scored)
    : preprocess_(manifest.preprocess),
      shape_(manifest.shape),
      version_(manifest.version),
      head_(std::move(head)),
      backend_(std::move(backend)),
      rule_(rule),
      top_(std::min(top, head_.classes())),
      scored_(scored) {
    for (const std::string& name : head_.names) longest_name_ = std::max(longest_name_, name.size());
}

Recogniser::~Recogniser() = default;

Result<std::unique_ptr<Recogniser::Workspace>> Recogniser::make_workspace() const {
    auto space = std::make_unique<Workspace>(preprocess_, shape_, head_);
    Result<std::unique_ptr<Pass>> pass = backend_->begin();
    if (!pass) return pass.error();
    space->pass = std::move(*pass);
    const std::lock_guard lock(mutex_);
    idle_.reserve(++made_);
    return space;
}

Status Recogniser::predict(const Frame* frames, std::size_t count, const Deadline& deadline, Prediction* out) const {
    std::unique_ptr<Workspace> space;
    {
        const std::lock_guard lock(mutex_);
        if (!idle_.empty()) {
            space = std::move(idle_.back());
            idle_.pop_back();
        }
        batch_ = std::max(batch_, std::min(count, kBatch));
    }
    if (!space) {
        Result<std::unique_ptr<Workspace>> made = make_workspace();
        if (!made) return made.error();
        space = std::move(*made);
    }
    const Lease lease(*this, std::move(space));
    for (std::size_t start = 0; start < count; start += kBatch) {
        const std::size_t size = std::min(count - start, kBatch);
        if (Status done = answer(*lease, frames + start, size, deadline, out + start); !done) return done;
    }
    return {};
}

Status Recogniser::answer(Workspace& space, const Frame* frames, std::size_t count, const Deadline& deadline,
                          Prediction* out) const {
    Result<std::uint8_t*> input = space.pass->input(count);
    if (!input) return input.error();
    const std::size_t pixels = static_cast<std::size_t>(preprocess_.image_size) *
                               static_cast<std::size_t>(preprocess_.image_size) * 3;
    for (std::size_t i = 0; i < count; ++i) space.preprocessor.centre(frames[i], *input + i * pixels);
    if (Status done = space.pass->encode(count, deadline); !done) return done;
    const Exit* const exit = rule_ == Rule::routed ? head_.exit.get() : nullptr;
    std::size_t on = 0;
    for (std::size_t i = 0; i < count; ++i) {
        float* posterior = space.posterior.data() + i * head_.classes();
        const float* prefix = space.pass->prefix_features() + i * shape_.prefix_features();
        space.unknown[i] = false;
        space.unknown_score[i] = std::numeric_limits<float>::quiet_NaN();
        float* const score = scored_ ? &space.unknown_score[i] : nullptr;
        if (exit == nullptr || !exit->answer(prefix, space.offset.data(), posterior, space.room.data(), score))
            space.on[on++] = i;
    }
    if (on > 0)
        if (Status done = ask_base(space, on, deadline); !done) return done;
    if (on > 0 && rule_ == Rule::routed)
        if (Status done = ask_branches(space, on, deadline); !done) return done;
    const auto first = space.posterior.begin(), last = first + static_cast<std::ptrdiff_t>(count * head_.classes());
    if (!std::all_of(first, last, [](float p) { return std::isfinite(p); }))
        return Error{Code::backend, "A frame has no answer: its class probabilities are no numbers.",
                     "If the graphs are in half precision: edge-cl export OUT --precision fp32"};
    for (std::size_t i = 0; i < count; ++i) write(space, i, out[i]);
    return {};
}

Status Recogniser::ask_base(Workspace& space, std::size_t count, const Deadline& deadline) const {
    if (Status done = space.pass->branch(kBase, space.on, count, deadline); !done) return done;
    const std::size_t prefix = shape_.prefix_features(), suffix = shape_.suffix_features();
    for (std::size_t j = 0; j < count; ++j) {
        const std::size_t i = space.on[j];
        float* posterior = space.posterior.data() + i * head_.classes();
        head_.discriminant.scores(space.pass->prefix_features() + i * prefix, prefix,
                                  space.pass->suffix_features() + j * suffix, space.offset.data(), posterior);
        const float* const offset = space.offset.data();
        const float score = head_.largest(posterior), best = head_.posterior(posterior, space.room.data());
        if (scored_) {
            space.unknown_score[i] = head_.unknown_score(head_.distance(offset, score), best);
            space.unknown[i] = space.unknown_score[i] > 1;
        } else {  // sooner done; what is no number is not likely either
            space.unknown[i] = head_.is_far(offset, score) || !(best >= head_.least_score);
        }
        space.routes[j] = head_.is_unsure(posterior) ? head_.route(posterior, space.mass.data()) : kNoRoute;
    }
    return {};
}

Status Recogniser::ask_branches(Workspace& space, std::size_t count, const Deadline& deadline) const {
    const std::size_t prefix = shape_.prefix_features(), suffix = shape_.suffix_features();
    // Branches without an adapter come first: they need the base branch's features, which the others overwrite.
    for (const bool has_adapter : {false, true})
        for (std::size_t task = 0; task < head_.branches.size(); ++task) {
            const Branch& branch = head_.branches[task];
            if (!branch.is_asked() || backend_->has_branch(branch.task) != has_adapter) continue;
            std::size_t chosen = 0;
            for (std::size_t j = 0; j < count; ++j)
                if (space.routes[j] == task) {
                    space.places[chosen] = has_adapter ? chosen : j;  // where its suffix features lie
                    space.rows[chosen++] = space.on[j];
                }
            if (chosen == 0) continue;
            if (has_adapter)
                if (Status done = space.pass->branch(branch.task, space.rows, chosen, deadline); !done) return done;
            for (std::size_t k = 0; k < chosen; ++k) {
                const std::size_t i = space.rows[k];
                branch.discriminant.scores(space.pass->prefix_features() + i * prefix, prefix,
                                           space.pass->suffix_features() + space.places[k] * suffix,
                                           space.offset.data(), space.scores.data());
                head_.fuse(space.posterior.data() + i * head_.classes(), branch, space.scores.data());
            }
        }
    return {};
}

void Recogniser::write(Workspace& space, std::size_t row, Prediction& out) const {
    const float* const posterior = space.posterior.data() + row * head_.classes();
    std::vector<std::size_t>& order = space.order;
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto middle = order.begin() + static_cast<std::ptrdiff_t>(top_);
    std::partial_sort(order.begin(), middle, order.end(), [&](std::size_t a, std::size_t b) {
        return posterior[a] != posterior[b] ? posterior[a] > posterior[b] : a < b;
    });
    out.top.resize(top_);
    for (std::size_t i = 0; i < top_; ++i) {
        out.top[i].label.reserve(longest_name_);  // once: no later label needs more
        out.top[i].label = head_.names[order[i]];
        out.top[i].confidence = posterior[order[i]];
    }
    out.label.reserve(longest_name_);
    out.label = out.top[0].label;
    out.confidence = out.top[0].confidence;
    out.unknown = space.unknown[row];
    out.unknown_score = space.unknown_score[row];
    out.version = version_;
}

Status Recogniser::warm_up(const Recogniser* before) const {
    std::size_t callers = 1, batch = 1;
    if (before != nullptr) {
        const std::lock_guard lock(before->mutex_);
        callers = std::max(callers, before->made_);
        batch = std::max(batch, before->batch_);
    }
    std::vector<std::uint8_t> grey(static_cast<std::size_t>(preprocess_.image_size) *
                                   static_cast<std::size_t>(preprocess_.image_size), 128);
    Frame frame;
    frame.data = grey.data();
    frame.width = frame.height = preprocess_.image_size;
    frame.format = PixelFormat::grey8;
    const std::vector<Frame> frames(batch, frame);
    std::vector<Prediction> out(batch);
    for (std::size_t i = 0; i < callers; ++i) {
        Result<std::unique_ptr<Workspace>> space = make_workspace();
        if (!space) return space.error();
        const Lease lease(*this, std::move(*space));
        if (i + 1 == callers)  // the last one runs: what is to be set up at a first run is the session's
            if (Status done = answer(*lease, frames.data(), batch, {}, out.data()); !done) return done;
    }
    return {};
}

}  // namespace edge_cl
