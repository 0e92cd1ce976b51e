// Reads any bytes as a manifest. A manifest with a wrong hash is refused at once, so the hash is also made right.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "json_text.hpp"
#include "manifest.hpp"
#include "sha256.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    if (edge_cl::parse_manifest(text)) return 0;
    const auto value = edge_cl::compact_member(text, "manifest");
    if (!value) return 0;
    const std::string whole = "{\"manifest\": " + *value + ", \"sha256\": \"" + edge_cl::sha256(*value) + "\"}";
    const edge_cl::Result<edge_cl::Manifest> manifest = edge_cl::parse_manifest(whole);
    if (!manifest) return 0;
    // What was accepted leads nowhere but into the bundle, and no size computed from it overflows.
    for (const auto& [role, ref] : manifest->files)
        if (ref.name.find('/') != std::string::npos || ref.name.find("..") != std::string::npos) __builtin_trap();
    if (manifest->shape.features() == 0 || manifest->shape.features() > 1 << 26) __builtin_trap();
    if (manifest->shape.prefix_features() >= manifest->shape.features()) __builtin_trap();
    return 0;
}
