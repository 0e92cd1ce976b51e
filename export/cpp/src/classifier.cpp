#include "edge_cl/classifier.hpp"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <mutex>
#include <new>
#include <utility>

#include "backend.hpp"
#include "bundle.hpp"
#include "nearest.hpp"
#include "preprocess.hpp"
#include "recogniser.hpp"

namespace edge_cl {
namespace {

constexpr int kLoads = 5;  // tries to load a bundle that is being updated

const std::vector<std::pair<std::string, Rule>> kRules{{"routed", Rule::routed}, {"base", Rule::base}};

// One version of a bundle, ready to answer; never changed.
struct Loaded {
    Bundle bundle;
    Recogniser recogniser;
};

Error from_exception() {
    try {
        throw;
    } catch (const std::bad_alloc&) {
        return {Code::memory, "No memory is left.", ""};
    } catch (const std::exception& error) {
        return {Code::internal, std::string("A fault of edge-cl: ") + error.what() + ".", ""};
    } catch (...) {
        return {Code::internal, "A fault of edge-cl.", ""};
    }
}

}  // namespace

class Classifier::Implementation {
public:
    static Result<std::unique_ptr<Implementation>> open(const std::string& path, const Options& options);

    Status predict(const Frame* frames, std::size_t count, Prediction* out) const;
    Result<bool> reload();

    std::shared_ptr<const Loaded> loaded() const {
        const std::lock_guard lock(mutex_);
        return loaded_;
    }
    const std::string& backend() const { return backend_; }

private:
    Result<std::shared_ptr<const Loaded>> load(const Loaded* before);
    Result<std::shared_ptr<const Loaded>> load_once(const Loaded* before);

    std::string path_, backend_;
    Rule rule_ = Rule::routed;
    std::size_t top_ = 5;
    bool scored_ = false;
    std::chrono::milliseconds timeout_{0};
    BackendOptions options_;
    mutable Watchdog watchdog_;  // outlives what it watches over
    std::mutex loading_;
    mutable std::mutex mutex_;
    std::shared_ptr<const Loaded> loaded_;
};

Result<std::unique_ptr<Classifier::Implementation>> Classifier::Implementation::open(const std::string& path,
                                                                                     const Options& options) {
    auto result = std::make_unique<Implementation>();
    std::error_code unknown;  // the program may change its working directory
    const std::string absolute = std::filesystem::absolute(path, unknown).string();
    result->path_ = !unknown && std::filesystem::exists(absolute, unknown) ? absolute : path;
    result->options_ = {options.threads, options.onnxruntime, options.tensorrt, options.engines};
    std::vector<std::string> names{"auto"}, rules;
    for (const auto& [name, make] : backends()) names.push_back(name);
    for (const auto& [name, rule] : kRules) rules.push_back(name);
    if (std::find(names.begin(), names.end(), options.backend) == names.end())
        return Error{Code::bad_option, "Unknown backend '" + options.backend + "'.",
                     did_you_mean(options.backend, names)};
    const auto rule = std::find_if(kRules.begin(), kRules.end(), [&](const auto& r) { return r.first == options.rule; });
    if (rule == kRules.end())
        return Error{Code::bad_option, "Unknown rule '" + options.rule + "'.", did_you_mean(options.rule, rules)};
    if (options.top < 1 || options.threads < 0 || options.timeout.count() < 0)
        return Error{Code::bad_option,
                     "top " + std::to_string(options.top) + ", threads " + std::to_string(options.threads) +
                         ", timeout " + std::to_string(options.timeout.count()) + " ms cannot be.",
                     "top is at least 1; threads and timeout at least 0."};
    result->rule_ = rule->second;
    result->top_ = static_cast<std::size_t>(options.top);
    result->scored_ = options.unknown_score;
    result->timeout_ = options.timeout;
    result->backend_ = options.backend == "auto" ? choose_backend(path, result->options_) : options.backend;
    Result<std::shared_ptr<const Loaded>> loaded = result->load(nullptr);
    if (!loaded) return loaded.error();
    result->loaded_ = std::move(*loaded);
    return result;
}

Result<std::shared_ptr<const Loaded>> Classifier::Implementation::load(const Loaded* before) {
    for (int i = 1;; ++i) {
        const Publication published = publication_of(path_);
        Result<std::shared_ptr<const Loaded>> loaded = load_once(before);
        // An update may have swept away files between their check and their use; then another manifest is there.
        if (loaded || loaded.error().code != Code::bad_bundle || i == kLoads || publication_of(path_) == published)
            return loaded;
    }
}

Result<std::shared_ptr<const Loaded>> Classifier::Implementation::load_once(const Loaded* before) {
    Result<Bundle> bundle = Bundle::open(path_, before != nullptr ? &before->bundle : nullptr);
    if (!bundle) return bundle.error();
    if (bundle->manifest().classes.empty())
        return Error{Code::no_bundle, path_ + " knows no class yet.",
                     "edge-cl learn --new-classes DIR --export " + shell_quoted(path_)};
    Result<Head> head = bundle->head();
    if (!head) return head.error();
    const std::shared_ptr<const Backend> previous = before != nullptr ? before->recogniser.backend() : nullptr;
    Result<std::shared_ptr<const Backend>> backend = backends().at(backend_)(*bundle, options_, previous, watchdog_);
    if (!backend) return backend.error();
    const Manifest& manifest = bundle->manifest();
    auto loaded = std::shared_ptr<Loaded>(
        new Loaded{*bundle, {manifest, std::move(*head), std::move(*backend), rule_, top_, scored_}});
    Status warm = loaded->recogniser.warm_up(before != nullptr ? &before->recogniser : nullptr);
    if (!warm) return warm.error();
    return std::shared_ptr<const Loaded>(std::move(loaded));
}

Status Classifier::Implementation::predict(const Frame* frames, std::size_t count, Prediction* out) const {
    const Deadline deadline = Deadline::in(timeout_);
    if (count > 0 && (frames == nullptr || out == nullptr))
        return Error{Code::bad_frame, "No frames, or no room for answers.", "Pass both."};
    for (std::size_t i = 0; i < count; ++i)
        if (Status good = check_frame(frames[i]); !good) return good;
    const std::shared_ptr<const Loaded> loaded = this->loaded();
    return loaded->recogniser.predict(frames, count, deadline, out);
}

Result<bool> Classifier::Implementation::reload() {
    const std::lock_guard one_at_a_time(loading_);
    const std::shared_ptr<const Loaded> before = loaded();
    const Result<Manifest> manifest = read_manifest(path_);
    if (!manifest) return manifest.error();
    if (manifest->sha256 == before->bundle.manifest().sha256) return false;
    Result<std::shared_ptr<const Loaded>> after = load(before.get());
    if (!after) return after.error();
    std::shared_ptr<const Loaded> old = std::move(*after);
    {
        const std::lock_guard lock(mutex_);
        loaded_.swap(old);
    }
    return true;  // the old version goes with its last caller
}

Result<Classifier> Classifier::open(const std::string& bundle, const Options& options) noexcept {
    try {
        Result<std::unique_ptr<Implementation>> made = Implementation::open(bundle, options);
        if (!made) return made.error();
        return Classifier(std::move(*made));
    } catch (...) {
        return from_exception();
    }
}

Classifier::Classifier(std::unique_ptr<Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}
Classifier::Classifier(Classifier&&) noexcept = default;
Classifier& Classifier::operator=(Classifier&&) noexcept = default;
Classifier::~Classifier() = default;

Status Classifier::predict(const Frame& frame, Prediction& out) const noexcept { return predict(&frame, 1, &out); }

Status Classifier::predict(const Frame* frames, std::size_t count, Prediction* out) const noexcept {
    try {
        return implementation_->predict(frames, count, out);
    } catch (...) {
        return from_exception();
    }
}

Result<bool> Classifier::reload() noexcept {
    try {
        return implementation_->reload();
    } catch (...) {
        return from_exception();
    }
}

std::int64_t Classifier::version() const noexcept { return implementation_->loaded()->bundle.manifest().version; }

std::vector<std::string> Classifier::classes() const { return implementation_->loaded()->recogniser.head().names; }

std::string Classifier::backend() const { return implementation_->backend(); }

}  // namespace edge_cl
