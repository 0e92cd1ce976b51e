#include "file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace edge_cl {
namespace {

Error unreadable(const std::string& path, int number) {
    return {Code::bad_bundle, path + " cannot be read: " + std::generic_category().message(number) + ".", ""};
}

}  // namespace

File::File(int descriptor, std::uint64_t size, std::string path)
    : descriptor_(descriptor), size_(size), path_(std::move(path)) {}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_), path_(std::move(other.path_)) {}

File::~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

Result<File> File::open(const std::string& path, bool* missing) {
    if (missing) *missing = false;
    // Without O_NONBLOCK a pipe of that name would block.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) {
        if (missing) *missing = errno == ENOENT || errno == ENOTDIR;
        if (errno == ELOOP) return Error{Code::bad_bundle, path + " is no plain file.", ""};
        return unreadable(path, errno);
    }
    struct stat status {};
    if (::fstat(descriptor, &status) != 0) {
        const int number = errno;
        ::close(descriptor);
        return unreadable(path, number);
    }
    if (!S_ISREG(status.st_mode)) {
        ::close(descriptor);
        return Error{Code::bad_bundle, path + " is no plain file.", ""};
    }
    return File(descriptor, static_cast<std::uint64_t>(status.st_size), path);
}

Result<std::size_t> File::read(void* data, std::size_t size) {
    std::size_t done = 0;
    while (done < size) {
        const ssize_t count = ::read(descriptor_, static_cast<char*>(data) + done, size - done);
        if (count == 0) break;
        if (count < 0) {
            if (errno == EINTR) continue;
            return unreadable(path_, errno);
        }
        done += static_cast<std::size_t>(count);
    }
    return done;
}

Result<std::size_t> File::read_at(std::uint64_t offset, void* data, std::size_t size) {
    if (::lseek(descriptor_, static_cast<off_t>(offset), SEEK_SET) < 0) return unreadable(path_, errno);
    return read(data, size);
}

Result<Bytes> read_file(const std::string& path, std::uint64_t most, bool* missing) {
    Result<File> file = File::open(path, missing);
    if (!file) return file.error();
    if (file->size() > most)
        return Error{Code::bad_bundle, path + " is larger than " + std::to_string(most) + " bytes.", ""};
    Bytes data(static_cast<std::size_t>(file->size()));
    Result<std::size_t> count = file->read(data.data(), data.size());
    if (!count) return count.error();
    data.resize(*count);
    return data;
}

}  // namespace edge_cl
