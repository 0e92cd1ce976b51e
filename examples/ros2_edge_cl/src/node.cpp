// A ROS 2 node: `image` in, `classification` out; `~/reload` takes the bundle's present version over, `~/learn` teaches
// what is new in the folder named by the parameter `new_classes`, and takes that over when it has been learned.
//
// Parameters: bundle (required), store and new_classes (for ~/learn), backend, timeout_ms.
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/image.hpp>
#include <std_srvs/srv/trigger.hpp>
#include <string>
#include <tuple>
#include <utility>
#include <vision_msgs/msg/classification.hpp>

#include "edge_cl/classifier.hpp"
#include "frames.hpp"
#include "learning.hpp"

namespace {

using std::placeholders::_1;
using std::placeholders::_2;
using std_srvs::srv::Trigger;
using vision_msgs::msg::Classification;

// Put a text between quotes for the shell.
std::string quoted(const std::string& text) {
    std::string result = "'";
    for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return result + "'";
}

class RecogniseNode final : public rclcpp::Node {
public:
    explicit RecogniseNode(edge_cl::Classifier classifier, const rclcpp::NodeOptions& options)
        : Node("recognise", options), classifier_(std::move(classifier)) {
        services_ = create_callback_group(rclcpp::CallbackGroupType::MutuallyExclusive);  // images go on meanwhile
        publisher_ = create_publisher<Classification>("classification", rclcpp::SensorDataQoS());
        subscription_ = create_subscription<sensor_msgs::msg::Image>(
            "image", rclcpp::SensorDataQoS(), std::bind(&RecogniseNode::recognise, this, _1));
        const auto qos = rmw_qos_profile_services_default;
        reload_ = create_service<Trigger>("~/reload", std::bind(&RecogniseNode::reload, this, _1, _2), qos, services_);
        learn_ = create_service<Trigger>("~/learn", std::bind(&RecogniseNode::learn, this, _1, _2), qos, services_);
        timer_ = create_wall_timer(std::chrono::milliseconds(200), [this] { take_over(); }, services_);
    }

private:
    void recognise(const sensor_msgs::msg::Image::ConstSharedPtr& image) {
        const std::optional<edge_cl::Frame> frame = frame_of(image->encoding, image->width, image->height, image->step,
                                                             image->data.data(), image->data.size());
        if (!frame) {
            RCLCPP_WARN_THROTTLE(get_logger(), *get_clock(), 5000, "Images are %s; these can be read: %s",
                                 image->encoding.c_str(), known_encodings().c_str());
            return;
        }
        if (const edge_cl::Status done = classifier_.predict(*frame, prediction_); !done) {
            RCLCPP_ERROR_THROTTLE(get_logger(), *get_clock(), 5000, "%s", done.error().message().c_str());
            return;
        }
        Classification answer;
        answer.header = image->header;
        if (!prediction_.unknown) {  // no results: nothing that is known
            for (const edge_cl::Candidate& candidate : prediction_.top) {
                vision_msgs::msg::ObjectHypothesis hypothesis;
                hypothesis.class_id = candidate.label;
                hypothesis.score = static_cast<double>(candidate.confidence);
                answer.results.push_back(hypothesis);
            }
        }
        publisher_->publish(answer);
    }

    std::pair<bool, std::string> reload_now() {
        const edge_cl::Result<bool> changed = classifier_.reload();
        if (!changed) return {false, changed.error().message()};
        return {true, (*changed ? "took over version " : "already at version ") + std::to_string(classifier_.version())};
    }

    void reload(const Trigger::Request::SharedPtr&, const Trigger::Response::SharedPtr& response) {
        std::tie(response->success, response->message) = reload_now();
    }

    void learn(const Trigger::Request::SharedPtr&, const Trigger::Response::SharedPtr& response) {
        const std::string folder = get_parameter("new_classes").as_string(), store = get_parameter("store").as_string();
        response->success = false;
        if (learning_ && learning_->is_running()) {
            response->message = "Something is being learned already.";
        } else if (folder.empty() || store.empty()) {
            response->message = "Set the parameters store and new_classes.";
        } else {
            learning_.emplace("exec edge-cl learn --update --new-classes " + quoted(folder) + " --store " +
                              quoted(store) + " --export " + quoted(get_parameter("bundle").as_string()));
            response->success = learning_->start();
            response->message = response->success ? "learning " + folder : "edge-cl could not be started";
        }
    }

    void take_over() {
        if (!learning_) return;
        const std::optional<int> code = learning_->finished();
        if (!code) return;
        const auto [good, text] = *code == 0 ? reload_now() : std::pair(false, "status " + std::to_string(*code));
        if (good)
            RCLCPP_INFO(get_logger(), "Learned: %s", text.c_str());
        else
            RCLCPP_ERROR(get_logger(), "The learning failed: %s", text.c_str());
    }

    edge_cl::Classifier classifier_;
    edge_cl::Prediction prediction_;  // of the subscription, which is called by one thread at a time
    std::optional<Learning> learning_;
    rclcpp::CallbackGroup::SharedPtr services_;
    rclcpp::Publisher<Classification>::SharedPtr publisher_;
    rclcpp::Subscription<sensor_msgs::msg::Image>::SharedPtr subscription_;
    rclcpp::Service<Trigger>::SharedPtr reload_, learn_;
    rclcpp::TimerBase::SharedPtr timer_;
};

}  // namespace

int main(int argc, char** argv) {
    rclcpp::init(argc, argv);
    rclcpp::NodeOptions options;
    const auto settings = std::make_shared<rclcpp::Node>("recognise", options);
    const std::string bundle = settings->declare_parameter<std::string>("bundle", "");
    edge_cl::Options wanted;
    wanted.backend = settings->declare_parameter<std::string>("backend", wanted.backend);
    wanted.timeout = std::chrono::milliseconds(settings->declare_parameter<std::int64_t>("timeout_ms", 0));
    const std::string store = settings->declare_parameter<std::string>("store", "");
    const std::string new_classes = settings->declare_parameter<std::string>("new_classes", "");
    edge_cl::Result<edge_cl::Classifier> classifier = edge_cl::Classifier::open(bundle, wanted);
    if (!classifier) {
        RCLCPP_FATAL(settings->get_logger(), "%s", classifier.error().message().c_str());
        return 1;
    }
    options.parameter_overrides({{"bundle", bundle}, {"store", store}, {"new_classes", new_classes}});
    options.automatically_declare_parameters_from_overrides(true);
    rclcpp::executors::MultiThreadedExecutor executor;
    const auto node = std::make_shared<RecogniseNode>(std::move(*classifier), options);
    executor.add_node(node);
    executor.spin();
    rclcpp::shutdown();
    return 0;
}
