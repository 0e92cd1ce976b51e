#include "cuda_driver.hpp"

#include <string>
#include <utility>

#include "library.hpp"

namespace edge_cl {
namespace {

template <class Function>
bool find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(find_symbol(library, name));
    return function != nullptr;
}

}  // namespace

Result<std::shared_ptr<const Cuda>> Cuda::open() {
    const char* const mend = "Install the GPU's driver, or use the backend onnxruntime.";
    Result<void*> library = open_library("", "EDGE_CL_CUDA", {"libcuda.so.1"});
    if (!library) return Error{Code::no_backend, "CUDA's driver was not found: " + library.error().what, mend};
    std::shared_ptr<Cuda> cuda(new Cuda);
    CUresult (*init)(unsigned) = nullptr;
    CUresult (*get_device)(CUdevice*, int) = nullptr;
    CUresult (*retain)(CUcontext*, CUdevice) = nullptr;
    void* const from = *library;
    const bool complete =
        find(from, "cuInit", init) && find(from, "cuDeviceGet", get_device) &&
        find(from, "cuDriverGetVersion", cuda->get_version) && find(from, "cuDeviceGetName", cuda->get_name) &&
        find(from, "cuDeviceGetAttribute", cuda->get_attribute) &&
        find(from, "cuDevicePrimaryCtxRetain", retain) && find(from, "cuDevicePrimaryCtxRelease_v2", cuda->release) &&
        find(from, "cuCtxPushCurrent_v2", cuda->push) && find(from, "cuCtxPopCurrent_v2", cuda->pop) &&
        find(from, "cuGetErrorString", cuda->error_text) && find(from, "cuStreamCreate", cuda->stream_create) &&
        find(from, "cuStreamDestroy_v2", cuda->stream_destroy) && find(from, "cuStreamQuery", cuda->stream_query) &&
        find(from, "cuStreamSynchronize", cuda->stream_synchronize) && find(from, "cuMemAlloc_v2", cuda->allocate) &&
        find(from, "cuMemFree_v2", cuda->free) && find(from, "cuMemHostAlloc", cuda->allocate_host) &&
        find(from, "cuMemFreeHost", cuda->free_host) && find(from, "cuMemcpyHtoDAsync_v2", cuda->to_device) &&
        find(from, "cuMemcpyDtoHAsync_v2", cuda->to_host) && find(from, "cuMemcpyDtoDAsync_v2", cuda->copy);
    if (!complete) return Error{Code::no_backend, "CUDA's driver lacks functions that are needed.", mend};
    Status done = cuda->check(init(0), "starting");
    if (done) done = cuda->check(get_device(&cuda->device_, 0), "finding the GPU");
    if (done) done = cuda->check(cuda->describe(), "telling what GPU it is");
    if (done) done = cuda->check(retain(&cuda->context_, cuda->device_), "using the GPU");
    if (!done) return Error{Code::no_backend, done.error().what, mend};
    return std::shared_ptr<const Cuda>(std::move(cuda));
}

CUresult Cuda::describe() {
    int number = 0, major = 0, minor = 0;
    char name[256] = {};
    CUresult done = get_version(&number);
    if (done == CUDA_SUCCESS) done = get_name(name, sizeof name - 1, device_);
    if (done == CUDA_SUCCESS) done = get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_);
    if (done == CUDA_SUCCESS) done = get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_);
    version = std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
    gpu = name;
    compute_capability = std::to_string(major) + "." + std::to_string(minor);
    return done;
}

Cuda::~Cuda() {
    if (context_ != nullptr) release(device_);
}

Status Cuda::check(CUresult result, const char* doing) const {
    if (result == CUDA_SUCCESS) return {};
    const char* text = nullptr;
    if (error_text(result, &text) != CUDA_SUCCESS || text == nullptr) text = "no reason given";
    return Error{result == CUDA_ERROR_OUT_OF_MEMORY ? Code::memory : Code::backend,
                 std::string("CUDA refuses ") + doing + ": " + text + ".", ""};
}

Result<CudaMemory> CudaMemory::allocate(std::shared_ptr<const Cuda> cuda, Place place, std::size_t bytes) {
    CudaMemory memory;
    const CUresult result = place == Place::device ? cuda->allocate(&memory.device_, bytes)
                                                   : cuda->allocate_host(&memory.host_, bytes, 0);
    if (Status done = cuda->check(result, "memory"); !done) return done.error();
    memory.cuda_ = std::move(cuda);
    return memory;
}

CudaMemory::~CudaMemory() {
    if (!cuda_) return;
    const Cuda::Active active(*cuda_);
    if (device_ != 0) cuda_->free(device_);
    if (host_ != nullptr) cuda_->free_host(host_);
}

}  // namespace edge_cl
