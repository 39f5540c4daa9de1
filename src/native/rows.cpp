// Rows of a table in a file, gathered in one call.
#include <errno.h>
#include <unistd.h>

#include "kernels.h"

namespace {

bool read_whole(int descriptor, char* out, int64_t size, int64_t offset) {
    while (size > 0) {
        const ssize_t count = pread(descriptor, out, static_cast<size_t>(size), offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        out += count;
        offset += count;
        size -= count;
    }
    return true;
}

}  // namespace

int64_t ws_read_rows(int descriptor, int64_t offset, int64_t size, const int64_t* rows, int64_t count, char* out) {
    for (int64_t first = 0, next; first < count; first = next) {
        next = first + 1;
        if (rows[first] < 0) continue;
        while (next < count && rows[next] == rows[next - 1] + 1) ++next;
        if (!read_whole(descriptor, out + first * size, (next - first) * size, offset + rows[first] * size))
            return first;
    }
    return count;
}
