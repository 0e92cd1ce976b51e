// Says what is on pictures, or before a camera.
//
//     cpp_classify BUNDLE SOURCE...       SOURCE: a picture, or a camera such as /dev/video0
#include <iostream>
#include <string>

#include "camera.hpp"
#include "edge_cl/classifier.hpp"
#include "picture.hpp"

namespace {

void print(const std::string& source, const edge_cl::Prediction& prediction) {
    std::cout << source << ": " << (prediction.unknown ? "unknown, perhaps " : "") << prediction.label << " "
              << static_cast<int>(100 * prediction.confidence + 0.5F) << " %\n";
}

bool classify_picture(const edge_cl::Classifier& classifier, const std::string& path) {
    Picture picture;
    std::string fault;
    if (!read_picture(path, picture, fault)) {
        std::cerr << fault << "\n";
        return false;
    }
    edge_cl::Frame frame;
    frame.data = picture.pixels.data();
    frame.size_bytes = picture.pixels.size();
    frame.width = picture.width;
    frame.height = picture.height;
    edge_cl::Prediction prediction;
    if (const edge_cl::Status done = classifier.predict(frame, prediction); !done) {
        std::cerr << path << ": " << done.error().message() << "\n";
        return false;
    }
    print(path, prediction);
    return true;
}

bool classify_camera(const edge_cl::Classifier& classifier, const std::string& path) {
    Camera camera;
    std::string fault;
    if (!camera.open(path, 640, 480, fault)) {
        std::cerr << fault << "\n";
        return false;
    }
    edge_cl::Frame frame;
    edge_cl::Prediction prediction;
    while (camera.next(frame)) {
        if (const edge_cl::Status done = classifier.predict(frame, prediction); !done) {
            std::cerr << path << ": " << done.error().message() << "\n";
            return false;
        }
        print(path, prediction);
    }
    std::cerr << path << " gives no frames any more.\n";
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "cpp_classify BUNDLE SOURCE...\n";
        return 2;
    }
    const edge_cl::Result<edge_cl::Classifier> classifier = edge_cl::Classifier::open(argv[1]);
    if (!classifier) {
        std::cerr << classifier.error().message() << "\n";
        return 1;
    }
    bool good = true;
    for (int i = 2; i < argc; ++i) {
        const std::string source = argv[i];
        good &= source.rfind("/dev/", 0) == 0 ? classify_camera(*classifier, source) : classify_picture(*classifier, source);
    }
    return good ? 0 : 1;
}
