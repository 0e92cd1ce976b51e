#include "learning.hpp"

#include <spawn.h>
#include <sys/types.h>
#include <sys/wait.h>

#include <csignal>

extern char** environ;

Learning::~Learning() {
    if (!is_running()) return;
    ::kill(process_, SIGTERM);  // a learn that is interrupted goes on when it is started again
    ::waitpid(process_, nullptr, 0);
}

bool Learning::start() {
    std::string shell = "sh", option = "-c";
    char* const arguments[] = {shell.data(), option.data(), command_.data(), nullptr};
    pid_t process = 0;
    if (::posix_spawn(&process, "/bin/sh", nullptr, nullptr, arguments, environ) != 0) return false;
    process_ = process;
    return true;
}

std::optional<int> Learning::finished() {
    int status = 0;
    if (!is_running() || ::waitpid(process_, &status, WNOHANG) != process_) return std::nullopt;
    process_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
