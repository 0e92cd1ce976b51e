#include "onnx_pass.hpp"

#include <array>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

namespace edge_cl {
namespace {

// The tensors of one batch size; they point into the pass's buffers.
struct Tensors {
    explicit Tensors(const OnnxRuntime& ort)
        : image(ort), tokens(ort), gathered(ort), prefix_features(ort), suffix_features(ort) {}
    OrtOwned<OrtValue> image, tokens, gathered, prefix_features, suffix_features;
};

class OnnxPass final : public Pass {
public:
    explicit OnnxPass(const OnnxGraphs& graphs) : graphs_(graphs), run_options_(*graphs.ort) {}

    Status prepare() {
        return graphs_.ort->check(graphs_.ort->api().CreateRunOptions(run_options_.out()), "options of a run");
    }

    Result<std::uint8_t*> input(std::size_t count) override {
        if (Status done = reserve(count); !done) return done.error();
        return image_.data();
    }

    Status encode(std::size_t count, const Deadline& deadline) override;
    Status branch(std::int64_t task, const std::size_t* rows, std::size_t count, const Deadline& deadline) override;

    const float* prefix_features() const override { return prefix_features_.data(); }
    const float* suffix_features() const override { return suffix_features_.data(); }

private:
    Status reserve(std::size_t count);
    Result<Tensors*> tensors(std::size_t count);
    Status run_suffix(const OnnxSuffix& suffix, const OrtValue* tokens, OrtValue* features, const Deadline& deadline);
    Status run(const OnnxGraph& graph, const char* const* input_names, const OrtValue* const* inputs,
               std::size_t input_count, const char* const* output_names, std::size_t output_count, OrtValue** outputs,
               const Deadline& deadline);
    std::size_t token_bytes() const { return graphs_.shape.tokens * graphs_.shape.width * (graphs_.half ? 2 : 4); }

    const OnnxGraphs& graphs_;
    OrtOwned<OrtRunOptions> run_options_;
    std::size_t room_ = 0;  // frames that the buffers hold
    std::vector<std::uint8_t> image_, tokens_, gathered_;
    std::vector<float> prefix_features_, suffix_features_;
    std::array<std::optional<Tensors>, kBatch + 1> by_count_;
};

Status OnnxPass::reserve(std::size_t count) {
    if (count == 0 || count > kBatch) return Error{Code::internal, "A batch of " + std::to_string(count) + ".", ""};
    if (count <= room_) return {};
    for (auto& tensors : by_count_) tensors.reset();  // they point into the old buffers
    room_ = 0;
    image_.resize(count * graphs_.side * graphs_.side * 3);
    tokens_.resize(count * token_bytes());
    gathered_.resize(count * token_bytes());
    prefix_features_.resize(count * graphs_.shape.prefix_features());
    suffix_features_.resize(count * graphs_.shape.suffix_features());
    for (std::size_t n = 1; n <= count; ++n)  // of any number of frames, as that many may go on after the exit
        if (Result<Tensors*> bound = tensors(n); !bound) return bound.error();
    room_ = count;
    return {};
}

Result<Tensors*> OnnxPass::tensors(std::size_t count) {
    if (by_count_[count].has_value()) return &*by_count_[count];
    const Shape& shape = graphs_.shape;
    const auto batch = static_cast<std::int64_t>(count), side = static_cast<std::int64_t>(graphs_.side);
    const std::vector<std::int64_t> tokens{batch, static_cast<std::int64_t>(shape.tokens),
                                           static_cast<std::int64_t>(shape.width)};
    Tensors made(*graphs_.ort);
    const auto wrap = [&](OrtOwned<OrtValue>& target, void* data, std::size_t bytes,
                          const std::vector<std::int64_t>& sizes, ONNXTensorElementDataType type) -> Status {
        Result<OrtOwned<OrtValue>> value = wrap_tensor(*graphs_.ort, data, bytes, sizes, type);
        if (!value) return value.error();
        target = std::move(*value);
        return {};
    };
    const auto wrap_features = [&](OrtOwned<OrtValue>& target, std::vector<float>& buffer, std::size_t width) {
        return wrap(target, buffer.data(), count * width * sizeof(float), {batch, static_cast<std::int64_t>(width)},
                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    };
    Status done = wrap(made.image, image_.data(), count * graphs_.side * graphs_.side * 3, {batch, side, side, 3},
                       ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
    if (done) done = wrap(made.tokens, tokens_.data(), count * token_bytes(), tokens, graphs_.type());
    if (done) done = wrap(made.gathered, gathered_.data(), count * token_bytes(), tokens, graphs_.type());
    if (done) done = wrap_features(made.prefix_features, prefix_features_, shape.prefix_features());
    if (done) done = wrap_features(made.suffix_features, suffix_features_, shape.suffix_features());
    if (!done) return done.error();
    by_count_[count].emplace(std::move(made));
    return &*by_count_[count];
}

Status OnnxPass::encode(std::size_t count, const Deadline& deadline) {
    Result<Tensors*> bound = tensors(count);
    if (!bound) return bound.error();
    static constexpr const char* inputs[] = {"image"};
    static constexpr const char* outputs[] = {"tokens", "features"};
    const OrtValue* const given[] = {(*bound)->image.get()};
    OrtValue* taken[] = {(*bound)->tokens.get(), (*bound)->prefix_features.get()};
    return run(*graphs_.prefix, inputs, given, 1, outputs, 2, taken, deadline);
}

Status OnnxPass::branch(std::int64_t task, const std::size_t* rows, std::size_t count, const Deadline& deadline) {
    const auto suffix = graphs_.suffixes.find(task);
    if (suffix == graphs_.suffixes.end())
        return Error{Code::internal, "There is no branch of task " + std::to_string(task) + ".", ""};
    Result<Tensors*> bound = tensors(count);
    if (!bound) return bound.error();
    const bool is_all = rows[count - 1] == count - 1;  // the first frames, as they lie there
    for (std::size_t i = 0; i < count && !is_all; ++i)
        std::memcpy(gathered_.data() + i * token_bytes(), tokens_.data() + rows[i] * token_bytes(), token_bytes());
    const OrtValue* const tokens = is_all ? (*bound)->tokens.get() : (*bound)->gathered.get();
    return run_suffix(suffix->second, tokens, (*bound)->suffix_features.get(), deadline);
}

Status OnnxPass::run_suffix(const OnnxSuffix& suffix, const OrtValue* tokens, OrtValue* features,
                            const Deadline& deadline) {
    static constexpr const char* inputs[] = {"tokens", "lora_down", "lora_up"};
    static constexpr const char* outputs[] = {"features"};
    const OrtValue* const given[] = {tokens, suffix.down.get(), suffix.up.get()};
    return run(*suffix.graph, inputs, given, suffix.down ? 3 : 1, outputs, 1, &features, deadline);
}

Status OnnxPass::run(const OnnxGraph& graph, const char* const* input_names, const OrtValue* const* inputs,
                     std::size_t input_count, const char* const* output_names, std::size_t output_count,
                     OrtValue** outputs, const Deadline& deadline) {
    const OrtApi& api = graphs_.ort->api();
    struct Interrupted {
        const OrtApi* api;
        OrtRunOptions* options;
    } interrupted{&api, run_options_.get()};
    if (deadline.is_past()) return too_late();
    Watchdog::Watch watch(
        *graphs_.watchdog, deadline,
        [](void* argument) {
            const auto* run = static_cast<const Interrupted*>(argument);
            if (OrtStatus* status = run->api->RunOptionsSetTerminate(run->options)) run->api->ReleaseStatus(status);
        },
        &interrupted);
    OrtStatus* const status = api.Run(graph.session(), run_options_.get(), input_names, inputs, input_count,
                                      output_names, output_count, outputs);
    const bool late = watch.finish();
    if (late)
        if (Status reset = graphs_.ort->check(api.RunOptionsUnsetTerminate(run_options_.get()), "a reset"); !reset) {
            if (status != nullptr) api.ReleaseStatus(status);
            return reset;
        }
    if (status == nullptr) return {};
    Status failed = graphs_.ort->check(status, "a frame");
    if (late) return too_late();
    return failed;
}

}  // namespace

Result<std::unique_ptr<Pass>> begin_onnx_pass(const OnnxGraphs& graphs) {
    auto pass = std::make_unique<OnnxPass>(graphs);
    if (Status done = pass->prepare(); !done) return done.error();
    return std::unique_ptr<Pass>(std::move(pass));
}

}  // namespace edge_cl
