// Pictures from files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// A picture: RGB, rows without gaps.
struct Picture {
    int width = 0, height = 0;
    std::vector<std::uint8_t> pixels;
};

/// Read a picture; on an error `fault` says why.
bool read_picture(const std::string& path, Picture& picture, std::string& fault);
