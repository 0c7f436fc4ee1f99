// What the header of a JPEG says, and EXIF's orientation: see backends/image/header.py for what is read, and why.
//
// Bytes are anybody's: nothing is read outside of [data, data + size), and nothing is kept. The walk through a header
// takes so many steps at most; only search() may go over all bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace jpeg {

struct Header {
    int32_t width, height;
    int32_t orientation;    // EXIF's: 1 is upright, 2 to 8 are the other ways to hold and to mirror
    int32_t is_complete;    // it has its end marker
    int32_t is_plain;       // 8 bits, gray or three channels, Huffman coded
    int32_t is_for_engines; // such a one that is baseline, too, and gray or YCbCr
    int64_t scans;          // how often the decoder goes over all of its pixels
    // For search(): where coded pixels begin, and what has to be looked for behind that.
    size_t scan_at;
    int32_t has_several_scans;
};

constexpr int MOST_STEPS = 4096;  // a real header has less than 300; one made to be walked through for minutes is none
constexpr size_t MOST_EXIF_BYTES = 65'536;  // as many as a JPEG can have; a directory further behind is not looked for
constexpr size_t SEARCH_STEP = 1 << 16;     // bytes between looks at whether enough has been found

enum Marker : uint8_t {
    BASELINE_FRAME = 0xC0,
    HUFFMAN_TABLES = 0xC4,
    RESERVED_FRAME = 0xC8,
    ARITHMETIC_TABLES = 0xCC,
    LAST_FRAME = 0xCF,
    FIRST_RESTART = 0xD0,
    LAST_RESTART = 0xD7,
    END_OF_IMAGE = 0xD9,
    START_OF_SCAN = 0xDA,
    JFIF_SEGMENT = 0xE0,
    EXIF_SEGMENT = 0xE1,
    ADOBE_SEGMENT = 0xEE,
};

inline uint32_t big_16(const uint8_t* at) { return uint32_t(at[0]) << 8 | at[1]; }

// ---- EXIF -----------------------------------------------------------------------------------------------------------

constexpr uint32_t ORIENTATION_TAG = 0x0112;

// Numbers of either order of bytes in a block of EXIF data; reading outside of it is noted, and gives 0.
struct Numbers {
    const uint8_t* data;
    size_t size;
    bool is_big;
    bool is_outside = false;

    uint32_t read(size_t at, int count) {
        if (at > size || size - at < size_t(count)) {
            is_outside = true;
            return 0;
        }
        uint32_t value = 0;
        for (int i = 0; i < count; i++)
            value = value << 8 | data[at + (is_big ? i : count - 1 - i)];
        return value;
    }
};

// How a number may be stored that OpenCV and Pillow both take for the orientation. Standard is SHORT, 3. OpenCV looks at
// two bytes whatever the type, so that it misses big-endian numbers of another width; Pillow reads them, and the file
// says what it says.
inline int bytes_of_type(uint32_t type) {
    switch (type) {
    case 6: return 1;                    // SBYTE
    case 4: case 9: case 13: return 4;   // LONG, SLONG, IFD
    default: return 2;                   // SHORT, SSHORT; all others are none, but their bytes have to be there
    }
}

inline uint32_t most_of_type(uint32_t type) {  // how many of them fit into an entry; 0: it is no such type
    switch (type) {
    case 3: case 8: return 2;
    case 4: case 6: case 9: case 13: return 1;
    default: return 0;
    }
}

// The orientation that EXIF data ask for; 1 if they ask for none, or are damaged.
inline int orientation_of(const uint8_t* exif, size_t size) {
    if (size > MOST_EXIF_BYTES)
        size = MOST_EXIF_BYTES;
    if (size >= 6 && !memcmp(exif, "Exif\0", 6))
        exif += 6, size -= 6;
    if (size < 4 || (memcmp(exif, "II*\0", 4) && memcmp(exif, "MM\0*", 4)))
        return 1;
    Numbers numbers{exif, size, exif[0] == 'M'};
    const size_t directory = numbers.read(4, 4);
    const size_t entries = numbers.read(directory, 2);
    for (size_t number = 0; number < entries && !numbers.is_outside; number++) {
        const size_t entry = directory + 2 + 12 * number;
        const uint32_t tag = numbers.read(entry, 2), type = numbers.read(entry + 2, 2);
        const uint32_t count = numbers.read(entry + 4, 4);
        if (numbers.is_outside || tag != ORIENTATION_TAG)
            continue;
        const uint32_t value = numbers.read(entry + 8, bytes_of_type(type));
        const bool is_one = count >= 1 && count <= most_of_type(type) && value >= 1 && value <= 8;
        return is_one && !numbers.is_outside ? int(value) : 1;
    }
    return 1;
}

// ---- the header -----------------------------------------------------------------------------------------------------

inline bool is_frame(uint8_t marker) {  // the three between them are tables and a reserved one
    return marker >= BASELINE_FRAME && marker <= LAST_FRAME && marker != HUFFMAN_TABLES && marker != RESERVED_FRAME
        && marker != ARITHMETIC_TABLES;
}

inline bool is_progressive(uint8_t marker) { return is_frame(marker) && (marker & 3) == 2; }

inline bool is_no_segment(uint8_t marker) {  // no marker, or one that stands alone
    return marker <= 0x01 || marker == 0xFF || (marker >= FIRST_RESTART && marker <= LAST_RESTART);
}

// Whether a JPEG of three channels holds RGB instead of YCbCr, by the same signs as libjpeg; transform: Adobe's, or -1.
inline bool holds_rgb(const uint8_t* data, size_t size, size_t frame_at, bool is_jfif, int transform) {
    if (is_jfif)
        return false;
    if (transform >= 0)
        return transform == 0;
    // Some programs say by the channels' numbers what the pixels are.
    const size_t at = frame_at + 10;
    return size > at + 6 && data[at] == 'R' && data[at + 3] == 'G' && data[at + 6] == 'B';
}

// Walk through a header. False: it is none, or damaged. Otherwise search() has to be called before it is complete.
inline bool walk(const uint8_t* data, size_t size, Header* header) {
    if (size < 3 || data[0] != 0xFF || data[1] != 0xD8 || data[2] != 0xFF)
        return false;
    size_t at = 2, frame_at = 0, exif_at = 0, exif_end = 0;
    bool is_jfif = false;
    int transform = -1;
    uint8_t marker = 0;
    const auto begins = [&](size_t where, const char* with, size_t length) {
        return where <= size && size - where >= length && !memcmp(data + where, with, length);
    };
    for (int step = 0; marker != START_OF_SCAN; step++) {
        if (step == MOST_STEPS || at > size || size - at < 4)
            return false;
        const uint8_t prefix = data[at];
        marker = data[at + 1];
        const size_t length = big_16(data + at + 2);
        if (prefix != 0xFF || is_no_segment(marker)) {
            at += prefix != 0xFF || marker == 0xFF ? 1 : 2;  // passed over, as libjpeg does
            marker = 0;
            continue;
        }
        if (marker == START_OF_SCAN)
            break;
        if (marker == END_OF_IMAGE)
            return false;
        if (is_frame(marker)) {
            if (frame_at)
                return false;  // libjpeg refuses it too; the first must not speak for the second
            frame_at = at;
        } else if (marker == EXIF_SEGMENT && !exif_at && begins(at + 4, "Exif\0", 6)) {  // the first of several
            exif_at = at + 10;
            exif_end = at + 2 + length;
        } else if (marker == JFIF_SEGMENT) {
            is_jfif = is_jfif || begins(at + 4, "JFIF", 5);
        } else if (marker == ADOBE_SEGMENT && begins(at + 4, "Adobe", 5)) {
            transform = -1;
            if (length > 13) {
                if (size <= at + 15)
                    return false;
                transform = data[at + 15];
            }
        }
        at += 2 + (length > 2 ? length : 2);
    }
    if (!frame_at || size - frame_at < 10)
        return false;
    const uint8_t frame = data[frame_at + 1], channels = data[frame_at + 9];
    if (!is_progressive(frame) && size <= at + 4)
        return false;
    const bool has_several_scans = is_progressive(frame) || data[at + 4] < channels;
    const bool is_huffman = frame == 0xC0 || frame == 0xC1 || frame == 0xC2;
    const bool is_plain = is_huffman && data[frame_at + 4] == 8 && (channels == 1 || channels == 3);
    const bool is_baseline = is_plain && frame == BASELINE_FRAME && !has_several_scans;
    header->height = int32_t(big_16(data + frame_at + 5));
    header->width = int32_t(big_16(data + frame_at + 7));
    header->is_plain = is_plain;
    header->is_for_engines =
        is_baseline && !(channels == 3 && holds_rgb(data, size, frame_at, is_jfif, transform));
    if (exif_end > size)
        exif_end = size;
    header->orientation = exif_at && exif_at < exif_end ? orientation_of(data + exif_at, exif_end - exif_at) : 1;
    header->scan_at = at;
    header->has_several_scans = has_several_scans;
    header->scans = 1;
    // Nearly always it is the very end. Some programs add to it; then it is looked for.
    header->is_complete = data[size - 2] == 0xFF && data[size - 1] == END_OF_IMAGE;
    return true;
}

inline bool needs_search(const Header* header) { return header->has_several_scans || !header->is_complete; }

// How often a marker, which coded pixels never contain, is between two places; until it was found so often, about.
inline int64_t count_marker(const uint8_t* data, size_t at, size_t size, uint8_t marker, int64_t enough) {
    int64_t found = 0;
    while (at + 1 < size && found < enough) {
        const size_t stop = size - 1 - at > SEARCH_STEP ? at + SEARCH_STEP : size - 1;
        uint32_t here = 0;
        for (; at < stop; at++)
            here += (data[at] == 0xFF) & (data[at + 1] == marker);
        found += here;
    }
    return found;
}

// Look for what the walk has left open; this goes over all of the bytes.
inline void search(const uint8_t* data, size_t size, Header* header) {
    if (!header->is_complete)
        header->is_complete = count_marker(data, header->scan_at, size, END_OF_IMAGE, 1) > 0;
    if (header->has_several_scans)
        header->scans = count_marker(data, header->scan_at, size, START_OF_SCAN, INT64_MAX);
}

}  // namespace jpeg
