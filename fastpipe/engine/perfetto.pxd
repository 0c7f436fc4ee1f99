# Perfetto's trace format, as far as a timeline needs it: protobuf messages, written forward into a buffer.
#
# Guarantees   Pure: no clock, no allocation, no Python. A length is four bytes, whatever it is, and filled in afterwards: protobuf
#              allows it, and Perfetto's own writers do the same.
# Assumes      Who calls has made sure of the room: less than 256 bytes a packet, and what texts and flows (10 bytes each) need.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:                      # fields, each with its wire type
    PACKET = 0x0A               # Trace.packet
    TIMESTAMP = 0x40            # TracePacket.timestamp, in ns; without a clock of its own it is the trace's
    SEQUENCE = 0x50             # TracePacket.trusted_packet_sequence_id; without it an event is dropped
    TRACK_EVENT = 0x5A          # TracePacket.track_event
    TRACK_DESCRIPTOR = 482      # TracePacket.track_descriptor
    DESCRIPTOR_UUID = 0x08
    DESCRIPTOR_NAME = 0x12
    DESCRIPTOR_PARENT = 0x28
    EVENT_ANNOTATION = 0x22     # TrackEvent.debug_annotations
    EVENT_TYPE = 0x48
    EVENT_TRACK = 0x58
    EVENT_NAME = 186
    EVENT_COUNTER = 240         # TrackEvent.counter_value
    EVENT_FLOW = 377            # TrackEvent.flow_ids: fixed64
    ANNOTATION_INT = 0x20
    ANNOTATION_TEXT = 0x32
    ANNOTATION_NAME = 0x52

cdef enum:                      # TrackEvent.type
    SLICE_BEGIN = 1
    SLICE_END = 2
    INSTANT = 3
    COUNTER = 4


cdef struct Packet:             # one that is being written
    uint8_t* at                 # where its next byte goes
    uint8_t* length             # of the packet
    uint8_t* inner_length       # of the message inside of it


cdef inline uint8_t* put_varint(uint8_t* at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <uint8_t>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline uint8_t* put_number(uint8_t* at, uint64_t field, uint64_t value) noexcept nogil:
    return put_varint(put_varint(at, field), value)


cdef inline uint8_t* put_text(uint8_t* at, uint64_t field, const char* text, size_t length) noexcept nogil:
    at = put_number(at, field, length)
    memcpy(at, text, length)
    return at + length


cdef inline void fill_length(uint8_t* length, uint8_t* end) noexcept nogil:
    cdef uint64_t value = end - length - 4
    length[0] = <uint8_t>(value | 0x80)
    length[1] = <uint8_t>((value >> 7) | 0x80)
    length[2] = <uint8_t>((value >> 14) | 0x80)
    length[3] = <uint8_t>((value >> 21) & 0x7F)


cdef inline void begin_packet(Packet* packet, uint8_t* at, uint64_t kind) noexcept nogil:
    at = put_varint(at, PACKET)
    packet.length = at
    at = put_number(at + 4, SEQUENCE, 1)
    at = put_varint(at, kind)
    packet.inner_length = at
    packet.at = at + 4


cdef inline void begin_event(Packet* packet, uint8_t* at, int64_t time_ns, uint64_t kind, uint64_t track) noexcept nogil:
    at = put_varint(at, PACKET)
    packet.length = at
    at = put_number(at + 4, SEQUENCE, 1)
    at = put_number(at, TIMESTAMP, time_ns)
    at = put_varint(at, TRACK_EVENT)
    packet.inner_length = at
    at = put_number(at + 4, EVENT_TYPE, kind)
    packet.at = put_number(at, EVENT_TRACK, track)


cdef inline uint8_t* end_packet(Packet* packet) noexcept nogil:
    fill_length(packet.inner_length, packet.at)
    fill_length(packet.length, packet.at)
    return packet.at


cdef inline void put_flow(Packet* packet, uint64_t flow) noexcept nogil:
    packet.at = put_varint(packet.at, EVENT_FLOW)
    memcpy(packet.at, &flow, 8)                                 # little-endian, as the machines are on which this runs
    packet.at += 8


cdef inline void put_annotation(Packet* packet, const char* name, size_t name_length, int64_t value) noexcept nogil:
    cdef uint8_t* length
    packet.at = put_varint(packet.at, EVENT_ANNOTATION)
    length = packet.at
    packet.at = put_text(packet.at + 4, ANNOTATION_NAME, name, name_length)
    packet.at = put_number(packet.at, ANNOTATION_INT, value)
    fill_length(length, packet.at)


cdef inline void put_words(Packet* packet, const char* name, size_t name_length, const char* text, size_t length_of_text) noexcept nogil:
    cdef uint8_t* length
    packet.at = put_varint(packet.at, EVENT_ANNOTATION)
    length = packet.at
    packet.at = put_text(packet.at + 4, ANNOTATION_NAME, name, name_length)
    packet.at = put_text(packet.at, ANNOTATION_TEXT, text, length_of_text)
    fill_length(length, packet.at)
