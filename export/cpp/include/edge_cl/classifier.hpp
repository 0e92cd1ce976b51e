// Recognising with a bundle: edge_cl::Classifier.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "edge_cl/export.h"
#include "edge_cl/frame.hpp"
#include "edge_cl/prediction.hpp"
#include "edge_cl/result.hpp"

namespace edge_cl {

/// How a classifier works.
struct EDGE_CL_API Options {
    std::string backend = "auto";  ///< "onnxruntime", "tensorrt"; "auto": TensorRT where engines are, else ONNX Runtime
    int threads = 0;               ///< CPU threads of ONNX Runtime; 0: as many as there are cores
    std::string rule = "routed";   ///< "routed": base branch and one task branch; "base": the base branch alone, faster
    int top = 5;                   ///< how many classes a prediction lists
    bool unknown_score = false;    ///< whether a prediction has its `unknown_score`: 0.04 to 0.1 ms more a frame
    std::chrono::milliseconds timeout{0};  ///< longest that a call of `predict` may take; 0: no limit
    std::string onnxruntime;  ///< path of ONNX Runtime's library; "": $EDGE_CL_ONNXRUNTIME, then where it was built with
    std::string tensorrt;     ///< path of TensorRT's library; "": $EDGE_CL_TENSORRT, then the system's
    std::string engines;      ///< directory of engines; "": `engines` in the bundle
};

/// Answers for frames from a bundle.
///
/// `predict` may be called from several threads, also while another thread calls `reload`: every call is answered by
/// one version, the one in force when it began. After a first call of the same size on as many threads, `predict`
/// allocates nothing.
class EDGE_CL_API Classifier {
public:
    /// Open a bundle; every file of it is verified.
    static Result<Classifier> open(const std::string& bundle, const Options& options = {}) noexcept;

    Classifier(Classifier&&) noexcept;
    Classifier& operator=(Classifier&&) noexcept;
    ~Classifier();

    /// Answer for one frame; on an error `out` is as it was.
    Status predict(const Frame& frame, Prediction& out) const noexcept;

    /// Answer for several frames, which may differ in size and format; up to 16 are run at once.
    Status predict(const Frame* frames, std::size_t count, Prediction* out) const noexcept;

    /// Put the bundle's present version in force, if it is another; return whether it was.
    ///
    /// Frames are answered meanwhile. On an error the version in force stays.
    Result<bool> reload() noexcept;

    /// The store's version that answers.
    std::int64_t version() const noexcept;

    /// Names of the classes known, in the order of the head.
    std::vector<std::string> classes() const;

    /// What runs the graphs: "onnxruntime" or "tensorrt".
    std::string backend() const;

private:
    class Implementation;
    explicit Classifier(std::unique_ptr<Implementation> implementation) noexcept;
    std::unique_ptr<Implementation> implementation_;
};

}  // namespace edge_cl
