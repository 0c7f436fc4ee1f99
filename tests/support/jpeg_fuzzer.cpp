// Reads the headers of damaged JPEGs, each in memory that ends where it does: for AddressSanitizer, by test_images.py.
//
//     jpeg_fuzzer COUNT SEED FILE...
//
// With -DPLANTED one byte behind the end is read, which has to be reported.
#include "jpeg.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

static const char SPECIAL[] = "\xff\xd8\xd9\xda\xe0\xe1\xee\xc0\xc2\x00\x01\x02\x12" "EIM";

static std::string damaged(const std::vector<std::string>& wholes, std::mt19937_64& random) {
    const auto below = [&](size_t limit) { return limit ? size_t(random() % limit) : 0; };
    std::string content = wholes[below(wholes.size())];
    for (size_t edits = below(8); edits && content.size() > 4; edits--) {
        const size_t at = below(below(3) ? std::min<size_t>(content.size(), 120) : content.size());
        const std::string& other = wholes[below(wholes.size())];
        switch (below(6)) {
        case 0: content[at] ^= char(1 << below(8)); break;
        case 1: content[at] = SPECIAL[below(sizeof SPECIAL - 1)]; break;
        case 2: content.resize(at); break;
        case 3: content.erase(at, below(12)); break;
        case 4: content.insert(at, other, below(other.size()), below(60)); break;
        default: content[at] = char(random()); break;
        }
    }
    return content;
}

int main(int argument_count, char** arguments) {
    std::vector<std::string> wholes;
    for (int number = 3; number < argument_count; number++) {
        std::ifstream file(arguments[number], std::ios::binary);
        wholes.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    std::mt19937_64 random(strtoull(arguments[2], nullptr, 10));
    long headers = 0;
    for (long left = atol(arguments[1]); left; left--) {
        const std::string content = damaged(wholes, random);
        const size_t size = content.size();
        const std::unique_ptr<uint8_t[]> exact(new uint8_t[size]);
        memcpy(exact.get(), content.data(), size);
        jpeg::Header header;
        if (jpeg::walk(exact.get(), size, &header)) {
            headers++;
            if (jpeg::needs_search(&header))
                jpeg::search(exact.get(), size, &header);
            const bool is_sane = header.orientation >= 1 && header.orientation <= 8 && header.width >= 0
                && header.width <= 65535 && header.height >= 0 && header.height <= 65535 && header.scans >= 0;
            if (!is_sane)
                return 1;
#ifdef PLANTED
            headers += exact[size];
#endif
        }
        const size_t start = size ? random() % size : 0;
        const int orientation = jpeg::orientation_of(exact.get() + start, size - start);
        if (orientation < 1 || orientation > 8)
            return 1;
    }
    printf("%ld headers\n", headers);
    return 0;
}
