#include "library.hpp"

#include <dlfcn.h>

#include <cstdlib>

namespace edge_cl {

Result<void*> open_library(const std::string& path, const char* variable, const std::vector<std::string>& usual) {
    const char* const named = std::getenv(variable);
    std::vector<std::string> places = usual;
    if (!path.empty())
        places = {path};
    else if (named != nullptr && *named != '\0')
        places = {named};
    std::string faults;
    for (const std::string& place : places) {
        if (place.empty()) continue;
        if (void* const library = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
        faults += (faults.empty() ? "" : "; ") + std::string(::dlerror());
    }
    return Error{Code::no_backend, faults + ".", ""};
}

void* find_symbol(void* library, const char* name) { return ::dlsym(library, name); }

}  // namespace edge_cl
