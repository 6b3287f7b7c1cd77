// Bulk groups: the stores of a thread that it commits together and waits for (PTX ISA 9.7.9.25.5).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "emulator/warp.hpp"

namespace abyssal::emulator {

struct BulkGroup {
  uint32_t reads = 0;   // operations that still have to read their source
  uint32_t writes = 0;  // operations that still have to write
};

// Of one thread.
class BulkGroups {
 public:
  // The group that is open.
  std::shared_ptr<BulkGroup> open() {
    if (open_ == nullptr) open_ = std::make_shared<BulkGroup>();
    return open_;
  }
  void commit() {
    committed_.push_back(open());
    open_ = nullptr;
  }
  // Whether all groups but the newest `rest` are done: have read, or have written as well.
  bool are_done(size_t rest, bool reads_only) {
    while (!committed_.empty() && committed_.front()->writes == 0) committed_.pop_front();
    const size_t count = committed_.size() > rest ? committed_.size() - rest : 0;
    for (size_t i = 0; i < count; ++i) {
      if ((reads_only ? committed_[i]->reads : committed_[i]->writes) != 0) return false;
    }
    return true;
  }

 private:
  std::shared_ptr<BulkGroup> open_;
  std::deque<std::shared_ptr<BulkGroup>> committed_;
};

}  // namespace abyssal::emulator
