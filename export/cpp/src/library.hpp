// Shared libraries that are looked for when the program runs.
#pragma once

#include <string>
#include <vector>

#include "edge_cl/result.hpp"

namespace edge_cl {

/// Open a library: at `path` if that is not empty, else where the environment variable says, else under the first of
/// the usual names that opens. It stays open for the life of the process.
Result<void*> open_library(const std::string& path, const char* variable, const std::vector<std::string>& usual);

/// Return the address of a symbol, or nullptr.
void* find_symbol(void* library, const char* name);

}  // namespace edge_cl
