// The sizes of this processor's caches, as far as the system tells them.
#pragma once

#include <cstdint>

namespace normwise {

// 0 where it is not known.
int64_t second_cache_bytes();

// Of the last cache before memory, larger than any tensor where it is not known; the environment variable NORMWISE_CACHE_BYTES
// may say another.
int64_t last_cache_bytes();

}  // namespace normwise
