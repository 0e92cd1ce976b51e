// ONNX Runtime behind a door: a library that passes everything on, and tells `edge_cl_measure` when a graph begins and
// ends to run, so that what the graphs cost can be told from what edge_cl costs.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

OrtApi api;                              // the real one, but for `Run`
decltype(OrtApi::Run) real_run = nullptr;
void (*entered)(int) = nullptr;

OrtStatusPtr ORT_API_CALL run(OrtSession* session, const OrtRunOptions* options, const char* const* input_names,
                            const OrtValue* const* inputs, std::size_t input_count, const char* const* output_names,
                            std::size_t output_count, OrtValue** outputs) noexcept {
    entered(1);
    OrtStatus* const status =
        real_run(session, options, input_names, inputs, input_count, output_names, output_count, outputs);
    entered(0);
    return status;
}

const OrtApiBase* real_base() {
    static const OrtApiBase* const base = [] {
        const char* const named = std::getenv("EDGE_CL_ONNXRUNTIME");
        void* const library = ::dlopen(named != nullptr ? named : WATCHED_LIBRARY, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return static_cast<const OrtApiBase*>(nullptr);
        return reinterpret_cast<const OrtApiBase* (*)()>(::dlsym(library, "OrtGetApiBase"))();
    }();
    return base;
}

const OrtApi* ORT_API_CALL get_api(std::uint32_t) noexcept {
    const OrtApi* const real = real_base() != nullptr ? real_base()->GetApi(ORT_API_VERSION) : nullptr;
    entered = reinterpret_cast<void (*)(int)>(::dlsym(RTLD_DEFAULT, "edge_cl_measure_entered"));
    if (real == nullptr || entered == nullptr) return nullptr;
    std::memcpy(static_cast<void*>(&api), real, sizeof api);
    real_run = real->Run;
    api.Run = run;
    return &api;
}

const char* ORT_API_CALL get_version() noexcept { return real_base() != nullptr ? real_base()->GetVersionString() : "none"; }

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() {
    static const OrtApiBase base{get_api, get_version};
    return &base;
}
