// Learning a task beside the loop: a command that runs in a process of its own.
#pragma once

#include <optional>
#include <string>

/// A command of the shell, started once.
class Learning {
public:
    explicit Learning(std::string command) : command_(std::move(command)) {}
    Learning(const Learning&) = delete;
    Learning& operator=(const Learning&) = delete;
    ~Learning();

    /// Start it; false if that fails.
    bool start();

    /// Return its exit status once it has ended, and only once.
    std::optional<int> finished();

    bool is_running() const { return process_ > 0; }

private:
    std::string command_;
    int process_ = 0;
};
