// Between the head and what runs the graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "bundle.hpp"
#include "deadline.hpp"
#include "edge_cl/result.hpp"

namespace edge_cl {

constexpr std::size_t kBatch = 16;  ///< frames that are run at once

/// What a call is told whose deadline is past.
inline Error too_late() { return {Code::timeout, "The answer took too long.", "Allow more time."}; }

/// The memory that one call of `predict` runs in; one caller at a time.
class Pass {
public:
    Pass() = default;
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    virtual ~Pass() = default;

    /// Return room for the input of `count` frames, at most `kBatch`: (count, S, S, 3) uint8.
    virtual Result<std::uint8_t*> input(std::size_t count) = 0;

    /// Run the prefix on the first `count` frames of the input.
    virtual Status encode(std::size_t count, const Deadline& deadline) = 0;

    /// Run a branch on some of the encoded frames, in ascending order; `kBase` is the base branch.
    virtual Status branch(std::int64_t task, const std::size_t* rows, std::size_t count, const Deadline& deadline) = 0;

    /// Features of the prefix, (count, Fp), and of the branch that ran last, (count, Fs).
    virtual const float* prefix_features() const = 0;
    virtual const float* suffix_features() const = 0;
};

/// Runs a bundle's graphs; safe to use from several threads, each with a pass of its own.
class Backend {
public:
    Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;
    virtual ~Backend() = default;

    virtual const char* name() const = 0;

    /// Whether a task has an adapter; one without is the base branch's.
    virtual bool has_branch(std::int64_t task) const = 0;

    virtual Result<std::unique_ptr<Pass>> begin() const = 0;
};

/// What backends are told.
struct BackendOptions {
    int threads = 0;
    std::string onnxruntime, tensorrt, engines;
};

/// Makes a backend of a bundle; `previous` is the one of the same bundle before an update, or null, whose graphs are
/// kept where nothing changed.
using MakeBackend = std::function<Result<std::shared_ptr<const Backend>>(
    const Bundle& bundle, const BackendOptions& options, const std::shared_ptr<const Backend>& previous,
    Watchdog& watchdog)>;

/// The backends of this build by name.
const std::map<std::string, MakeBackend>& backends();

/// Return the name of the backend for "auto": TensorRT if the bundle has engines and the library is there.
std::string choose_backend(const std::string& bundle, const BackendOptions& options);

}  // namespace edge_cl
