#include "picture.hpp"

#include <fstream>
#include <memory>

#ifdef EDGE_CL_STB
#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_HDR
#include <stb_image.h>
#endif

namespace {

constexpr int kMostSide = 1 << 15;

// PPM, binary, 8 bits: "P6", width, height, 255, then RGB.
bool read_ppm(const std::string& path, Picture& picture) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int most = 0;
    if (!(file >> magic >> picture.width >> picture.height >> most) || magic != "P6" || most != 255) return false;
    if (picture.width < 1 || picture.height < 1 || picture.width > kMostSide || picture.height > kMostSide) return false;
    file.get();
    picture.pixels.resize(static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height) * 3);
    file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
    return file.gcount() == static_cast<std::streamsize>(picture.pixels.size());
}

}  // namespace

bool read_picture(const std::string& path, Picture& picture, std::string& fault) {
    if (read_ppm(path, picture)) return true;
#ifdef EDGE_CL_STB
    int channels = 0;
    const std::unique_ptr<stbi_uc, void (*)(void*)> data(
        stbi_load(path.c_str(), &picture.width, &picture.height, &channels, 3), stbi_image_free);
    if (data) {
        const std::size_t size = static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height) * 3;
        picture.pixels.assign(data.get(), data.get() + size);
        return true;
    }
    fault = path + ": " + stbi_failure_reason() + ".";
#else
    fault = path + " is no binary PPM, and this build reads nothing else.";
#endif
    return false;
}
