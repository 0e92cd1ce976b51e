#include "deadline.hpp"

#include <algorithm>

namespace edge_cl {

Watchdog::~Watchdog() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void Watchdog::run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
        const Clock::time_point now = Clock::now();
        Clock::time_point next = Clock::time_point::max();
        for (Watch *watch = first_, *after = nullptr; watch != nullptr; watch = after) {
            after = watch->next_;
            if (watch->deadline_.at <= now) {
                watch->interrupt_(watch->argument_);
                watch->interrupted_ = true;
                unlink(*watch);
            } else {
                next = std::min(next, watch->deadline_.at);
            }
        }
        wakes_ = next;
        if (next == Clock::time_point::max())
            changed_.wait(lock);
        else
            changed_.wait_until(lock, next);
    }
}

void Watchdog::unlink(Watch& watch) {
    if (watch.next_ != nullptr) watch.next_->previous_ = watch.previous_;
    (watch.previous_ != nullptr ? watch.previous_->next_ : first_) = watch.next_;
    watch.watched_ = false;
}

Watchdog::Watch::Watch(Watchdog& dog, const Deadline& deadline, void (*interrupt)(void*), void* argument)
    : dog_(dog), deadline_(deadline), interrupt_(interrupt), argument_(argument) {
    if (!deadline.is_set()) return;
    const std::lock_guard lock(dog_.mutex_);
    if (!dog_.thread_.joinable()) dog_.thread_ = std::thread([&dog] { dog.run(); });
    next_ = dog_.first_;
    if (next_ != nullptr) next_->previous_ = this;
    dog_.first_ = this;
    watched_ = true;
    if (deadline_.at < dog_.wakes_) dog_.changed_.notify_one();
}

bool Watchdog::Watch::finish() {
    if (!deadline_.is_set()) return false;
    const std::lock_guard lock(dog_.mutex_);
    if (watched_) dog_.unlink(*this);
    return interrupted_;
}

}  // namespace edge_cl
