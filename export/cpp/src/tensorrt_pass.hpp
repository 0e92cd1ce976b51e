// One call's memory, stream and contexts for TensorRT.
#pragma once

#include <map>
#include <memory>

#include "backend.hpp"
#include "cuda_driver.hpp"
#include "engine.hpp"

namespace edge_cl {

/// What runs a branch: an engine, and its adapter where that is an input.
struct TensorRtSuffix {
    std::shared_ptr<const Engine> engine;
    CudaMemory down, up;
};

/// The loaded engines of a bundle.
struct TensorRtEngines {
    std::shared_ptr<const Cuda> cuda;
    const TensorRt* trt = nullptr;
    Shape shape;
    std::size_t side = 0;       ///< of the input, pixels
    std::size_t max_batch = 0;  ///< that all engines can run
    bool half = false;          ///< tokens and adapters are fp16
    std::shared_ptr<const Engine> prefix;
    std::map<std::int64_t, TensorRtSuffix> suffixes;  ///< by task, `kBase` for the base branch
};

/// Make a pass; the engines must outlive it.
Result<std::unique_ptr<Pass>> begin_tensorrt_pass(const TensorRtEngines& engines);

}  // namespace edge_cl
