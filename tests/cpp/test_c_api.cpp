#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "edge_cl/edge_cl.h"
#include "golden.hpp"

extern "C" int edge_cl_header_check(void);

namespace edge_cl {
namespace {

TEST(CApi, HeaderIsPlainC) { EXPECT_TRUE(edge_cl_header_check()); }

TEST(CApi, AnswersAndReloads) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const test::Golden golden("answers-shared");
    const auto pixels = golden.get<std::uint8_t>("frames");
    edge_cl_options options = EDGE_CL_OPTIONS_INIT;
    options.threads = 1;
    options.top = 2;
    options.unknown_score = 1;
    edge_cl_classifier* classifier = nullptr;
    ASSERT_EQ(edge_cl_open(test::golden("bundle-shared").c_str(), &options, &classifier), EDGE_CL_OK)
        << edge_cl_last_error();
    edge_cl_predictions* predictions = nullptr;
    ASSERT_EQ(edge_cl_predictions_new(&predictions), EDGE_CL_OK);
    edge_cl_frame frames[2] = {EDGE_CL_FRAME_INIT, EDGE_CL_FRAME_INIT};
    for (std::size_t i = 0; i < 2; ++i) {
        frames[i].data = pixels.data() + i * 40 * 40 * 3;
        frames[i].width = frames[i].height = 40;
        frames[i].size_bytes = 40 * 40 * 3;
    }
    ASSERT_EQ(edge_cl_predict(classifier, frames, 2, predictions), EDGE_CL_OK) << edge_cl_last_error();
    ASSERT_EQ(edge_cl_predictions_count(predictions), 2U);
    EXPECT_EQ(edge_cl_top_count(predictions, 1), 2U);
    EXPECT_STREQ(edge_cl_label(predictions, 1), edge_cl_top_label(predictions, 1, 0));
    EXPECT_EQ(edge_cl_confidence(predictions, 1), edge_cl_top_confidence(predictions, 1, 0));
    EXPECT_EQ(edge_cl_unknown(predictions, 0), golden.get<std::int64_t>("routed_unknown")[0]);
    EXPECT_NEAR(edge_cl_unknown_score(predictions, 0), golden.get<float>("routed_unknown_score")[0], 1e-2);
    EXPECT_EQ(edge_cl_unknown_score(predictions, 2), 0);
    EXPECT_EQ(edge_cl_predicted_version(predictions, 0), 2);
    EXPECT_EQ(edge_cl_bundle_version(classifier), 2);
    int changed = -1;
    EXPECT_EQ(edge_cl_reload(classifier, &changed), EDGE_CL_OK);
    EXPECT_EQ(changed, 0);
    EXPECT_EQ(edge_cl_reload(classifier, nullptr), EDGE_CL_OK);
    EXPECT_EQ(edge_cl_predict(classifier, nullptr, 2, predictions), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_predictions_count(predictions), 0U);
    ASSERT_EQ(edge_cl_predict(classifier, frames, 2, predictions), EDGE_CL_OK);
    frames[1].width = 41;
    EXPECT_EQ(edge_cl_predict(classifier, frames, 2, predictions), EDGE_CL_BAD_FRAME);
    EXPECT_NE(std::string(edge_cl_last_error()).find("needs 4920"), std::string::npos) << edge_cl_last_error();
    EXPECT_EQ(edge_cl_predictions_count(predictions), 0U);
    edge_cl_predictions_free(predictions);
    edge_cl_close(classifier);
}

TEST(CApi, FramesOfALongerStructureAreRead) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    struct Longer {
        edge_cl_frame frame;
        char more[16];
    };
    const auto pixels = test::Golden("answers-shared").get<std::uint8_t>("frames");
    Longer frames[2] = {};
    for (Longer& longer : frames) {
        longer.frame.struct_size = sizeof longer;
        longer.frame.data = pixels.data();
        longer.frame.width = longer.frame.height = 40;
    }
    edge_cl_classifier* classifier = nullptr;
    edge_cl_predictions* predictions = nullptr;
    ASSERT_EQ(edge_cl_open(test::golden("bundle-shared").c_str(), nullptr, &classifier), EDGE_CL_OK);
    ASSERT_EQ(edge_cl_predictions_new(&predictions), EDGE_CL_OK);
    EXPECT_EQ(edge_cl_predict(classifier, &frames[0].frame, 2, predictions), EDGE_CL_OK) << edge_cl_last_error();
    EXPECT_STREQ(edge_cl_label(predictions, 0), edge_cl_label(predictions, 1));
    edge_cl_predictions_free(predictions);
    edge_cl_close(classifier);
}

TEST(CApi, RefusesNothingWithACode) {
    edge_cl_classifier* classifier = nullptr;
    edge_cl_options options = EDGE_CL_OPTIONS_INIT;
    options.struct_size = 0;
    EXPECT_EQ(edge_cl_open(nullptr, nullptr, &classifier), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_open("x", nullptr, nullptr), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_open("x", &options, &classifier), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_open("/nowhere", nullptr, &classifier), EDGE_CL_NO_BUNDLE);
    EXPECT_EQ(classifier, nullptr);
    EXPECT_EQ(edge_cl_predictions_new(nullptr), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_predict(nullptr, nullptr, 0, nullptr), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_reload(nullptr, nullptr), EDGE_CL_BAD_OPTION);
    EXPECT_EQ(edge_cl_bundle_version(nullptr), -1);
    EXPECT_EQ(edge_cl_predictions_count(nullptr), 0U);
    EXPECT_EQ(edge_cl_label(nullptr, 0), nullptr);
    EXPECT_EQ(edge_cl_top_label(nullptr, 0, 0), nullptr);
    EXPECT_EQ(edge_cl_confidence(nullptr, 0), 0.0F);
    edge_cl_predictions_free(nullptr);
    edge_cl_close(nullptr);
    EXPECT_NE(std::string(edge_cl_version()), "");
}

TEST(CApi, ErrorsBelongToTheirThread) {
    edge_cl_classifier* classifier = nullptr;
    ASSERT_EQ(edge_cl_open("/nowhere", nullptr, &classifier), EDGE_CL_NO_BUNDLE);
    std::thread([] { EXPECT_STREQ(edge_cl_last_error(), ""); }).join();
    EXPECT_NE(std::string(edge_cl_last_error()).find("/nowhere is no bundle"), std::string::npos);
}

}  // namespace
}  // namespace edge_cl
