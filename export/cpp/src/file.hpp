// Reading files of a bundle: plain files only, and never more than expected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "edge_cl/result.hpp"

namespace edge_cl {

using Bytes = std::vector<std::uint8_t>;

/// An open file; closed with the object.
class File {
public:
    /// Open a plain file for reading; a link, a directory or a pipe is refused. `missing` is set if there is none.
    static Result<File> open(const std::string& path, bool* missing = nullptr);

    File(File&& other) noexcept;
    File& operator=(File&&) = delete;
    ~File();

    /// Bytes of the file when it was opened.
    std::uint64_t size() const { return size_; }

    /// Read on; fewer bytes than asked for at the end of the file.
    Result<std::size_t> read(void* data, std::size_t size);

    /// Read from an offset; fewer bytes than asked for at the end of the file.
    Result<std::size_t> read_at(std::uint64_t offset, void* data, std::size_t size);

private:
    File(int descriptor, std::uint64_t size, std::string path);
    int descriptor_;
    std::uint64_t size_;
    std::string path_;
};

/// Read a whole file of at most `most` bytes.
Result<Bytes> read_file(const std::string& path, std::uint64_t most, bool* missing = nullptr);

}  // namespace edge_cl
