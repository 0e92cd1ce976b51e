#include "tensorrt_pass.hpp"

#include <chrono>
#include <thread>
#include <utility>
#include <vector>

namespace edge_cl {
namespace {

using Context = std::unique_ptr<nvinfer1::IExecutionContext>;

class TensorRtPass final : public Pass {
public:
    explicit TensorRtPass(const TensorRtEngines& engines) : engines_(engines) {}
    ~TensorRtPass() override;

    Status prepare();

    Result<std::uint8_t*> input(std::size_t count) override;
    Status encode(std::size_t count, const Deadline& deadline) override;
    Status branch(std::int64_t task, const std::size_t* rows, std::size_t count, const Deadline& deadline) override;
    const float* prefix_features() const override { return static_cast<const float*>(prefix_host_.host()); }
    const float* suffix_features() const override { return static_cast<const float*>(suffix_host_.host()); }

private:
    std::size_t token_bytes() const { return engines_.shape.tokens * engines_.shape.width * (engines_.half ? 2 : 4); }
    Status set(nvinfer1::IExecutionContext& context, const char* tensor, const CudaMemory& memory);
    Status enqueue(nvinfer1::IExecutionContext& context, const char* input, const nvinfer1::Dims& shape);
    Status run_suffix(std::int64_t task, const CudaMemory& tokens, std::size_t count);
    Status finish(const Deadline& deadline);

    const TensorRtEngines& engines_;
    CUstream stream_ = nullptr;
    bool is_pending_ = false;  // a run that was late may still be using the buffers
    Context prefix_;
    std::map<const Engine*, Context> suffixes_;
    CudaMemory image_, tokens_, gathered_, prefix_features_, suffix_features_;
    CudaMemory image_host_, prefix_host_, suffix_host_;
};

nvinfer1::Dims dims(std::initializer_list<std::size_t> sizes) {
    nvinfer1::Dims result{};
    for (const std::size_t size : sizes) result.d[result.nbDims++] = static_cast<std::int64_t>(size);
    return result;
}

TensorRtPass::~TensorRtPass() {
    const Cuda::Active active(*engines_.cuda);
    if (stream_ != nullptr) {
        engines_.cuda->stream_synchronize(stream_);
        engines_.cuda->stream_destroy(stream_);
    }
}

Status TensorRtPass::prepare() {
    const Cuda::Active active(*engines_.cuda);
    // Without CU_STREAM_NON_BLOCKING it would wait for every other program's default stream in this process.
    Status done = engines_.cuda->check(engines_.cuda->stream_create(&stream_, CU_STREAM_NON_BLOCKING), "a stream");
    if (!done) return done;
    Result<Context> context = engines_.prefix->make_context();
    if (!context) return context.error();
    prefix_ = std::move(*context);
    for (const auto& [task, suffix] : engines_.suffixes) {
        if (suffixes_.count(suffix.engine.get()) != 0) continue;
        Result<Context> made = suffix.engine->make_context();
        if (!made) return made.error();
        suffixes_.emplace(suffix.engine.get(), std::move(*made));
    }
    const Shape& shape = engines_.shape;
    const std::size_t batch = engines_.max_batch, pixels = batch * engines_.side * engines_.side * 3;
    const std::size_t prefix = batch * shape.prefix_features() * sizeof(float);
    const std::size_t suffix = batch * shape.suffix_features() * sizeof(float);
    const struct {
        CudaMemory& memory;
        CudaMemory::Place place;
        std::size_t bytes;
    } wanted[] = {{image_, CudaMemory::Place::device, pixels},
                  {tokens_, CudaMemory::Place::device, batch * token_bytes()},
                  {gathered_, CudaMemory::Place::device, batch * token_bytes()},
                  {prefix_features_, CudaMemory::Place::device, prefix},
                  {suffix_features_, CudaMemory::Place::device, suffix},
                  {image_host_, CudaMemory::Place::host, pixels},
                  {prefix_host_, CudaMemory::Place::host, prefix},
                  {suffix_host_, CudaMemory::Place::host, suffix}};
    for (const auto& [memory, place, bytes] : wanted) {
        Result<CudaMemory> made = CudaMemory::allocate(engines_.cuda, place, bytes);
        if (!made) return made.error();
        memory = std::move(*made);
    }
    return {};
}

Result<std::uint8_t*> TensorRtPass::input(std::size_t count) {
    if (count == 0 || count > engines_.max_batch)
        return Error{Code::backend,
                     "The engines run at most " + std::to_string(engines_.max_batch) + " frames at once, not " +
                         std::to_string(count) + ".",
                     "Pass fewer frames at once."};
    if (is_pending_) {
        const Cuda::Active active(*engines_.cuda);
        if (Status done = engines_.cuda->check(engines_.cuda->stream_synchronize(stream_), "to finish"); !done)
            return done.error();
        is_pending_ = false;
    }
    return static_cast<std::uint8_t*>(image_host_.host());
}

Status TensorRtPass::set(nvinfer1::IExecutionContext& context, const char* tensor, const CudaMemory& memory) {
    if (context.setTensorAddress(tensor, memory.address())) return {};
    return Error{Code::backend, std::string("TensorRT refuses '") + tensor + "': " + engines_.trt->complaint() + ".", ""};
}

Status TensorRtPass::enqueue(nvinfer1::IExecutionContext& context, const char* input, const nvinfer1::Dims& shape) {
    if (context.setInputShape(input, shape) && context.enqueueV3(reinterpret_cast<cudaStream_t>(stream_))) return {};
    return Error{Code::backend, "TensorRT refuses a frame: " + engines_.trt->complaint() + ".", ""};
}

Status TensorRtPass::encode(std::size_t count, const Deadline& deadline) {
    const Cuda::Active active(*engines_.cuda);
    const Cuda& cuda = *engines_.cuda;
    const std::size_t side = engines_.side;
    if (deadline.is_past()) return too_late();
    is_pending_ = true;
    Status done = cuda.check(cuda.to_device(image_.device(), image_host_.host(), count * side * side * 3, stream_), "a copy");
    if (done) done = set(*prefix_, "image", image_);
    if (done) done = set(*prefix_, "tokens", tokens_);
    if (done) done = set(*prefix_, "features", prefix_features_);
    if (done) done = enqueue(*prefix_, "image", dims({count, side, side, 3}));
    if (done)
        done = cuda.check(cuda.to_host(prefix_host_.host(), prefix_features_.device(),
                                       count * engines_.shape.prefix_features() * sizeof(float), stream_),
                          "a copy");
    return done ? finish(deadline) : done;
}

Status TensorRtPass::branch(std::int64_t task, const std::size_t* rows, std::size_t count, const Deadline& deadline) {
    const Cuda::Active active(*engines_.cuda);
    const Cuda& cuda = *engines_.cuda;
    if (deadline.is_past()) return too_late();
    is_pending_ = true;
    const bool is_all = rows[count - 1] == count - 1;  // the first frames, as they lie there
    for (std::size_t i = 0; i < count && !is_all; ++i) {
        Status done = cuda.check(cuda.copy(gathered_.device() + i * token_bytes(),
                                           tokens_.device() + rows[i] * token_bytes(), token_bytes(), stream_),
                                 "a copy");
        if (!done) return done;
    }
    Status done = run_suffix(task, is_all ? tokens_ : gathered_, count);
    return done ? finish(deadline) : done;
}

Status TensorRtPass::run_suffix(std::int64_t task, const CudaMemory& tokens, std::size_t count) {
    const auto found = engines_.suffixes.find(task);
    if (found == engines_.suffixes.end())
        return Error{Code::internal, "There is no branch of task " + std::to_string(task) + ".", ""};
    const TensorRtSuffix& suffix = found->second;
    nvinfer1::IExecutionContext& context = *suffixes_.at(suffix.engine.get());
    Status done = set(context, "tokens", tokens);
    if (done) done = set(context, "features", suffix_features_);
    if (done && suffix.down.device() != 0) {
        done = set(context, "lora_down", suffix.down);
        if (done) done = set(context, "lora_up", suffix.up);
    }
    if (done) done = enqueue(context, "tokens", dims({count, engines_.shape.tokens, engines_.shape.width}));
    if (!done) return done;
    const Cuda& cuda = *engines_.cuda;
    return cuda.check(cuda.to_host(suffix_host_.host(), suffix_features_.device(),
                                   count * engines_.shape.suffix_features() * sizeof(float), stream_),
                      "a copy");
}

Status TensorRtPass::finish(const Deadline& deadline) {
    const Cuda& cuda = *engines_.cuda;
    CUresult result = CUDA_ERROR_NOT_READY;
    if (!deadline.is_set()) {
        result = cuda.stream_synchronize(stream_);
    } else {  // what runs on the GPU cannot be stopped; it is waited for before the buffers are used again
        while ((result = cuda.stream_query(stream_)) == CUDA_ERROR_NOT_READY) {
            if (deadline.is_past()) return too_late();
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }
    is_pending_ = result != CUDA_SUCCESS;
    return cuda.check(result, "a frame");
}

}  // namespace

Result<std::unique_ptr<Pass>> begin_tensorrt_pass(const TensorRtEngines& engines) {
    auto pass = std::make_unique<TensorRtPass>(engines);
    if (Status done = pass->prepare(); !done) return done.error();
    return std::unique_ptr<Pass>(std::move(pass));
}

}  // namespace edge_cl
