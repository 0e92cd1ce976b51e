// The head's arithmetic and the numbers in between against what Python computes.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "bundle.hpp"
#include "golden.hpp"
#include "half.hpp"
#include "head.hpp"
#include "kernels.hpp"

namespace edge_cl {
namespace {

TEST(Half, ConvertsAsNumpyDoes) {
    const test::Golden numbers("numbers");
    const auto values = numbers.get<float>("values"), widened = numbers.get<float>("widened");
    const auto halves = numbers.get<std::int64_t>("halves");
    ASSERT_GT(values.size(), 400U);
    for (std::size_t i = 0; i < values.size(); ++i) {
        EXPECT_EQ(float_to_half(values[i]), halves[i]) << values[i];
        EXPECT_EQ(half_to_float(static_cast<std::uint16_t>(halves[i])), widened[i]) << halves[i];
    }
    EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Half, GoesThereAndBack) {
    for (std::uint32_t half = 0; half < 0x7c00; ++half)
        for (const std::uint32_t sign : {0U, 0x8000U}) {
            const auto bits = static_cast<std::uint16_t>(half | sign);
            ASSERT_EQ(float_to_half(half_to_float(bits)), bits);
        }
}

TEST(Factors, AreJoinedAsInPython) {
    const test::Golden numbers("numbers");
    const Factors factors = joint_factors(numbers.get<float>("A"), numbers.get<float>("B"), 3, 2, 8, 4);
    EXPECT_EQ(factors.down, numbers.get<float>("down"));
    EXPECT_EQ(factors.up, numbers.get<float>("up"));
}

void expect_near(const std::vector<float>& found, const std::vector<float>& wanted, float tolerance) {
    ASSERT_EQ(found.size(), wanted.size());
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], wanted[i], tolerance) << i;
}

TEST(Head, AnswersAsPythonDoes) {
    const test::Golden golden("head");
    const auto scalars = golden.get<float>("scalars");
    Head head;
    head.discriminant = {{golden.get<float>("weight"), {}, {}}, golden.get<float>("bias"), golden.get<float>("centre")};
    head.basis.rows = golden.get<float>("basis");
    head.gain = golden.get<float>("gain");
    head.quadratic = {{golden.get<float>("spread_weight"), {}, {}}, golden.get<float>("spread_offset"),
                      golden.get<float>("spread_cost")};
    head.prepare();
    head.variance = scalars[0];
    head.temperature = scalars[1];
    head.names = {"a", "b", "c", "d", "e"};
    for (const std::int64_t task : golden.get<std::int64_t>("tasks")) head.tasks.push_back(static_cast<std::size_t>(task));
    head.branches.resize(2);
    Branch& branch = head.branches[1];
    branch.discriminant = {{golden.get<float>("own_weight"), {}, {}}, golden.get<float>("own_bias"),
                           golden.get<float>("own_centre")};
    for (const std::int64_t c : golden.get<std::int64_t>("columns")) branch.columns.push_back(static_cast<std::size_t>(c));
    branch.share = scalars[2];
    branch.temperature = scalars[3];
    EXPECT_FALSE(head.branches[0].is_asked());
    EXPECT_TRUE(branch.is_asked());

    const std::size_t size = head.features(), classes = head.classes(), split = 16;
    const auto x = golden.get<float>("x"), own = golden.get<float>("own");
    const auto routed = golden.get<std::int64_t>("routed");
    const auto distances = golden.get<float>("distance");
    std::vector<float> all_scores, all_best, all_posteriors, all_fused;
    std::vector<float> offset(size), mass(2), local(2), room(2 * classes);
    for (std::size_t i = 0; i < routed.size(); ++i) {
        std::vector<float> scores(classes);
        const float* row = x.data() + i * size;
        head.discriminant.scores(row, split, row + split, offset.data(), scores.data());
        all_scores.insert(all_scores.end(), scores.begin(), scores.end());
        const float score = head.largest(scores.data());
        EXPECT_NEAR(head.distance(offset.data(), score), distances[i], 1e-4 * std::fabs(distances[i]) + 1e-4);
        head.threshold = distances[i] + 0.01F;
        EXPECT_FALSE(head.is_far(offset.data(), score));
        head.threshold = distances[i] - 0.01F;
        EXPECT_TRUE(head.is_far(offset.data(), score));
        head.threshold = std::numeric_limits<float>::infinity();
        EXPECT_FALSE(head.is_far(offset.data(), score));
        head.threshold = -std::numeric_limits<float>::infinity();
        EXPECT_TRUE(head.is_far(offset.data(), score));
        all_best.push_back(head.posterior(scores.data(), room.data()));
        all_posteriors.insert(all_posteriors.end(), scores.begin(), scores.end());
        const std::size_t task = head.route(scores.data(), mass.data());
        EXPECT_EQ(head.branches[task].is_asked(), routed[i] == 1);
        if (head.branches[task].is_asked()) {
            const float* branch_row = own.data() + i * size;
            branch.discriminant.scores(branch_row, split, branch_row + split, offset.data(), local.data());
            head.fuse(scores.data(), branch, local.data());
        }
        all_fused.insert(all_fused.end(), scores.begin(), scores.end());
    }
    expect_near(all_scores, golden.get<float>("scores"), 2e-5F);
    expect_near(all_best, golden.get<float>("best"), 1e-4F);
    expect_near(all_posteriors, golden.get<float>("posterior"), 1e-6F);
    expect_near(all_fused, golden.get<float>("fused"), 1e-6F);
}

// By hand: the second class has the best score by the discriminant, the first after what their covariances add.
TEST(Head, GivesTheBestScoreBeforeTheTemperature) {
    Head head;
    head.names = {"a", "b"};
    head.temperature = 4;
    const float nothing = std::nanf("");
    std::array<float, 2> scores{3, 5}, shifted{3, 5}, none{nothing, nothing};
    std::array<float, 4> room{};
    EXPECT_EQ(head.posterior(scores.data(), room.data()), 5);
    head.quadratic = {{{0, 0, 0, 0}, {}, {}}, {1, 0}, {0, 3}};
    EXPECT_EQ(head.posterior(shifted.data(), room.data()), 4);
    EXPECT_GT(shifted[0], shifted[1]);
    EXPECT_TRUE(std::isnan(head.posterior(none.data(), room.data())));
}

TEST(Head, CallsADistanceThatIsNoNumberFar) {
    Head head;
    head.basis.rows = {1, 0};
    head.gain = {-0.5F};
    head.discriminant.centre = {0, 0};
    head.prepare();
    const float infinity = std::numeric_limits<float>::infinity(), nothing = std::nanf("");
    struct Case {
        std::array<float, 2> offset;
        float score, threshold;
        bool is_far;
    };
    const Case cases[] = {
        {{1, 1}, 0, infinity, false},   {{1, 1}, 0, 9, false},       {{1, 1}, 0, -infinity, true},
        {{nothing, 1}, 0, 9, true},     {{1, 1}, nothing, 9, true},  {{nothing, 1}, 0, infinity, true},
        {{3e38F, 1}, 0, infinity, true},  // the squares are infinite, and their difference is no number
    };
    for (const Case& c : cases) {
        head.threshold = c.threshold;
        EXPECT_EQ(head.is_far(c.offset.data(), c.score), c.is_far) << &c - cases;
    }
}

TEST(Exit, AnswersAsPythonDoes) {
    const test::Golden golden("head");
    const auto scalars = golden.get<float>("exit_scalars");
    auto exit = std::make_shared<Exit>();
    Head& early = exit->head;
    early.discriminant = {{golden.get<float>("exit_weight"), {}, {}}, golden.get<float>("exit_bias"),
                          golden.get<float>("exit_centre")};
    early.basis.rows = golden.get<float>("exit_basis");
    early.gain = golden.get<float>("exit_gain");
    early.prepare();
    early.variance = scalars[0];
    early.temperature = scalars[1];
    early.threshold = scalars[2];
    early.names = {"a", "b", "c", "d", "e"};
    exit->confidence = scalars[3];

    const auto x = golden.get<float>("x"), posteriors = golden.get<float>("posterior");
    const auto stands = golden.get<std::int64_t>("exit_stands"), unsure = golden.get<std::int64_t>("unsure");
    const std::size_t classes = early.classes(), width = x.size() / stands.size();
    Head head;
    head.names = early.names;
    std::vector<float> found, offset(early.features());
    for (std::size_t i = 0; i < stands.size(); ++i) {
        std::vector<float> posterior(classes), room(2 * classes);
        EXPECT_EQ(exit->answer(x.data() + i * width, offset.data(), posterior.data(), room.data(), nullptr), stands[i] != 0)
            << i;
        found.insert(found.end(), posterior.begin(), posterior.end());
        head.exit = nullptr;
        EXPECT_TRUE(head.is_unsure(posteriors.data() + i * classes));
        head.exit = exit;
        EXPECT_EQ(head.is_unsure(posteriors.data() + i * classes), unsure[i] != 0) << i;
    }
    expect_near(found, golden.get<float>("exit_posterior"), 1e-6F);
}

TEST(Kernels, AgreeWithEachOther) {
    if (Kernels::avx2() == nullptr) GTEST_SKIP() << "this processor or build has one set of kernels";
    std::vector<float> a(4611), b(4611);
    for (std::size_t i = 0; i < a.size(); ++i) {
        a[i] = static_cast<float>(i % 17) - 8;
        b[i] = static_cast<float>(i % 13) - 6;
    }
    for (const std::size_t size : {0UL, 1UL, 7UL, 31UL, 32UL, 33UL, 4608UL, 4611UL})
        EXPECT_EQ(Kernels::portable().dot(a.data(), b.data(), size), Kernels::avx2()->dot(a.data(), b.data(), size));
}

TEST(Kernels, MultiplyMatricesOfFewBitsAsTheWholeOnes) {
    constexpr std::size_t kRows = 7;  // four at once, and three
    for (const std::size_t size : {0UL, 1UL, 7UL, 8UL, 63UL, 64UL, 65UL, 127UL, 200UL, 2304UL, 4611UL}) {
        std::vector<float> x(size), scales(kRows * groups(size)), whole(kRows * size);
        std::vector<std::int8_t> codes(kRows * size);
        for (std::size_t i = 0; i < size; ++i) x[i] = static_cast<float>(i % 17) * 0.37F - 1.7F;
        for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = 0.001F * static_cast<float>(i % 29 + 1);
        for (std::size_t i = 0; i < codes.size(); ++i) {
            codes[i] = static_cast<std::int8_t>(i * 97 + 1);
            whole[i] = static_cast<float>(codes[i]) * scales[i / size * groups(size) + i % size / kGroup];
        }
        for (const Kernels* kernels : {&Kernels::portable(), Kernels::avx2()}) {
            if (kernels == nullptr) continue;
            float found[kRows];
            kernels->code_dots(x.data(), codes.data(), scales.data(), kRows, size, found);
            for (std::size_t row = 0; row < kRows; ++row) {
                double wanted = 0, magnitude = 0;
                for (std::size_t i = 0; i < size; ++i) {
                    const double term = static_cast<double>(x[i]) * whole[row * size + i];
                    wanted += term, magnitude += std::fabs(term);
                }
                EXPECT_NEAR(found[row], wanted, 1e-6 * magnitude) << size << " " << row;
            }
        }
    }
}

TEST(Matrix, MultipliesSomeOfItsRows) {
    std::vector<float> rows(5 * 70), x(70);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
    Matrix few{{}, std::vector<std::int8_t>(rows.size()), {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}};
    for (std::size_t i = 0; i < rows.size(); ++i) {
        few.codes[i] = static_cast<std::int8_t>(i % 251);
        rows[i] = static_cast<float>(few.codes[i]) * few.scales[i / 70 * 2 + i % 70 / kGroup];
    }
    for (const Matrix& matrix : {Matrix{rows, {}, {}}, few}) {
        float found[2];
        matrix.dots(x.data(), x.size(), 3, 2, found);
        for (std::size_t row = 0; row < 2; ++row)  // whole numbers: nothing is rounded
            EXPECT_EQ(found[row], std::inner_product(x.begin(), x.end(), rows.begin() + 70 * (3 + row), 0.0F));
    }
}

}  // namespace
}  // namespace edge_cl
