#include "caches.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>

namespace normwise {

int64_t second_cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = std::max<int64_t>(0, sysconf(_SC_LEVEL2_CACHE_SIZE));
  return bytes;
#else
  return 0;
#endif
}

int64_t last_cache_bytes() {
  static const int64_t bytes = [] {
    if (const char* given = std::getenv("NORMWISE_CACHE_BYTES")) return static_cast<int64_t>(std::atoll(given));
    int64_t found = 0;
    char unit = 0;
    // Of the cores that share it with this one, where sysconf adds up what other cores have.
    std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> found >> unit;
    if (unit == 'K' || unit == 'M') found <<= unit == 'K' ? 10 : 20;
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (found <= 0) found = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return found > 0 ? found : std::numeric_limits<int64_t>::max();
  }();
  return bytes;
}

}  // namespace normwise
