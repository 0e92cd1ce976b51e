// CUDA's driver API, found when the program runs; and device memory that frees itself.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>

#include "edge_cl/result.hpp"

namespace edge_cl {

/// The driver's functions, and the first GPU's primary context, which other libraries of the process use too.
class Cuda {
public:
    static Result<std::shared_ptr<const Cuda>> open();
    ~Cuda();
    Cuda(const Cuda&) = delete;
    Cuda& operator=(const Cuda&) = delete;

    /// Turn a result into an error.
    Status check(CUresult result, const char* doing) const;

    /// Makes the context the calling thread's as long as it lives.
    class Active {
    public:
        explicit Active(const Cuda& cuda) : cuda_(cuda) { cuda_.push(cuda_.context_); }
        ~Active() {
            CUcontext ignored = nullptr;
            cuda_.pop(&ignored);
        }
        Active(const Active&) = delete;
        Active& operator=(const Active&) = delete;

    private:
        const Cuda& cuda_;
    };

    std::string version;             ///< that the driver offers, such as "12.6"
    std::string gpu;                 ///< name
    std::string compute_capability;  ///< such as "8.7"

    CUresult (*stream_create)(CUstream*, unsigned) = nullptr;
    CUresult (*stream_destroy)(CUstream) = nullptr;
    CUresult (*stream_query)(CUstream) = nullptr;
    CUresult (*stream_synchronize)(CUstream) = nullptr;
    CUresult (*allocate)(CUdeviceptr*, std::size_t) = nullptr;
    CUresult (*free)(CUdeviceptr) = nullptr;
    CUresult (*allocate_host)(void**, std::size_t, unsigned) = nullptr;
    CUresult (*free_host)(void*) = nullptr;
    CUresult (*to_device)(CUdeviceptr, const void*, std::size_t, CUstream) = nullptr;
    CUresult (*to_host)(void*, CUdeviceptr, std::size_t, CUstream) = nullptr;
    CUresult (*copy)(CUdeviceptr, CUdeviceptr, std::size_t, CUstream) = nullptr;

private:
    Cuda() = default;
    CUresult describe();
    CUresult (*push)(CUcontext) = nullptr;
    CUresult (*pop)(CUcontext*) = nullptr;
    CUresult (*release)(CUdevice) = nullptr;
    CUresult (*error_text)(CUresult, const char**) = nullptr;
    CUresult (*get_version)(int*) = nullptr;
    CUresult (*get_name)(char*, int, CUdevice) = nullptr;
    CUresult (*get_attribute)(int*, CUdevice_attribute, CUdevice) = nullptr;
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
};

/// Memory of the GPU, or pinned memory of the host.
class CudaMemory {
public:
    enum class Place { device, host };
    static Result<CudaMemory> allocate(std::shared_ptr<const Cuda> cuda, Place place, std::size_t bytes);

    CudaMemory() = default;
    CudaMemory(CudaMemory&& other) noexcept { swap(other); }
    CudaMemory& operator=(CudaMemory&& other) noexcept {
        swap(other);
        return *this;
    }
    ~CudaMemory();

    CUdeviceptr device() const { return device_; }
    void* address() const { return reinterpret_cast<void*>(device_); }
    void* host() const { return host_; }

private:
    void swap(CudaMemory& other) noexcept {
        cuda_.swap(other.cuda_);
        std::swap(device_, other.device_);
        std::swap(host_, other.host_);
    }
    std::shared_ptr<const Cuda> cuda_;
    CUdeviceptr device_ = 0;
    void* host_ = nullptr;
};

}  // namespace edge_cl
