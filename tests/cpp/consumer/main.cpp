#include <edge_cl/classifier.hpp>
#include <iostream>

int main() {
    const edge_cl::Result<edge_cl::Classifier> classifier = edge_cl::Classifier::open("/nowhere");
    std::cout << classifier.error().message() << "\n";
    return classifier.error().code == edge_cl::Code::no_bundle ? 0 : 1;
}
