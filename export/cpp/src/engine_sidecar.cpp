#include "engine_sidecar.hpp"

#include <nlohmann/json.hpp>
#include <tuple>

#include "half.hpp"
#include "json_text.hpp"
#include "sha256.hpp"

namespace edge_cl {
namespace {

using Json = nlohmann::json;

bool is_plain(const std::string& name) {
    return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos;
}

}  // namespace

Result<EngineSidecar> parse_sidecar(std::string_view data) {
    const auto bad = [](const std::string& why) { return Error{Code::bad_bundle, why, ""}; };
    if (!is_shallow(data)) return bad("it is nested too deeply");
    const Json file = Json::parse(data.begin(), data.end(), nullptr, false);
    const auto written = compact_member(data, "engine");
    try {
        if (!written || file.at("sha256").get<std::string>() != sha256(*written)) return bad("it was altered");
        const Json& value = file.at("engine");
        if (value.at("format").get<int>() != 1) return bad("it is of another version of edge-cl");
        const Json& key = value.at("key");
        EngineSidecar sidecar;
        sidecar.file = {value.at("file").get<std::string>(), value.at("engine").at("sha256").get<std::string>(),
                        value.at("engine").at("size").get<std::uint64_t>()};
        if (!is_plain(sidecar.file.name)) return bad("it names a file elsewhere");
        const Json& platform = key.at("platform");
        const auto said = [&](const char* name) { return platform.at(name).get<std::string>(); };
        sidecar.platform = {said("tensorrt"), said("cuda"), said("gpu"), said("compute_capability")};
        sidecar.graph_sha256 = key.at("graph_sha256").get<std::string>();
        sidecar.weights_sha256 = key.at("weights_sha256").get<std::string>();
        sidecar.overrides_sha256 = key.at("overrides_sha256").get<std::string>();
        sidecar.max_batch = key.at("profile").at(2).get<std::size_t>();
        return sidecar;
    } catch (const std::exception& error) {
        return bad(error.what());
    }
}

std::string key_fault(const EngineSidecar& found, const EngineSidecar& wanted) {
    if (found.graph_sha256 != wanted.graph_sha256 || found.weights_sha256 != wanted.weights_sha256 ||
        found.overrides_sha256 != wanted.overrides_sha256)
        return "was made of other graphs or weights";
    const Platform &there = found.platform, &here = wanted.platform;
    const std::string release = there.tensorrt.substr(0, here.tensorrt.size() + 1);  // C++ is not told the build number
    const bool same_release = there.tensorrt == here.tensorrt || release == here.tensorrt + ".";
    const std::tuple<const char*, bool, const std::string&, const std::string&> parts[] = {
        {"TensorRT", same_release, there.tensorrt, here.tensorrt},
        {"CUDA", there.cuda == here.cuda, there.cuda, here.cuda},
        {"the GPU", there.gpu == here.gpu, there.gpu, here.gpu},
        {"the compute capability", there.compute_capability == here.compute_capability, there.compute_capability,
         here.compute_capability},
    };
    std::string faults;
    for (const auto& [what, is_same, was, is] : parts)
        if (!is_same)
            faults += std::string(faults.empty() ? "was made elsewhere: " : ", ") + what + " was " + was + ", is " + is;
    return faults;
}

std::string overrides_digest(const std::map<std::string, std::vector<float>>& values, std::size_t rows, bool half) {
    if (values.empty()) return "";
    Sha256 digest;
    for (const auto& [name, numbers] : values) {
        const std::string title = name + (half ? " float16 (" : " float32 (") + std::to_string(rows) + ", " +
                                  std::to_string(numbers.size() / rows) + ")\n";
        digest.update(title.data(), title.size());
        if (!half) digest.update(numbers.data(), numbers.size() * sizeof(float));
        for (std::size_t i = 0; half && i < numbers.size(); ++i) {
            const std::uint16_t bits = float_to_half(numbers[i]);
            digest.update(&bits, sizeof bits);
        }
    }
    return digest.hex();
}

}  // namespace edge_cl
