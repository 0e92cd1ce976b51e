// One call's memory and tensors for ONNX Runtime.
#pragma once

#include <map>
#include <memory>

#include "backend.hpp"
#include "onnx_graph.hpp"

namespace edge_cl {

/// What runs a branch: a graph, and its adapter where that is an input.
struct OnnxSuffix {
    explicit OnnxSuffix(const OnnxRuntime& ort) : down(ort), up(ort) {}
    std::shared_ptr<const OnnxGraph> graph;
    OrtOwned<OrtValue> down, up;
};

/// The loaded graphs of a bundle.
struct OnnxGraphs {
    const OnnxRuntime* ort = nullptr;
    Watchdog* watchdog = nullptr;
    Shape shape;
    std::size_t side = 0;  ///< of the input, pixels
    bool half = false;     ///< tokens and adapters are fp16
    std::shared_ptr<const OnnxGraph> prefix;
    std::map<std::int64_t, OnnxSuffix> suffixes;  ///< by task, `kBase` for the base branch

    ONNXTensorElementDataType type() const {
        return half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
};

/// Make a pass; the graphs must outlive it.
Result<std::unique_ptr<Pass>> begin_onnx_pass(const OnnxGraphs& graphs);

}  // namespace edge_cl
