"""What backends on a GPU do for each image of a batch, in C: JPEGs' headers, nvJPEG's arguments, what steps hand on.

A thread that runs Python holds up all others of its process, so what is done once for an image is to be short. None of
it gives up the GIL, but for a long search, and for the call that decodes a batch.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from cpython.object cimport PyObject
from libc.string cimport memset

cimport cython


cdef extern from "image_row.hpp" nogil:
    cdef cppclass ImageRow:
        unsigned long long address
        int64_t row_stride
        int32_t height
        int32_t width
        int32_t column_stride
        int32_t channel_stride
        int32_t place[4]


# ---- the header of a JPEG --------------------------------------------------------------------------------------------

cdef extern from "jpeg.hpp" namespace "jpeg" nogil:
    cdef cppclass Header:
        int32_t width
        int32_t height
        int32_t orientation
        int32_t is_complete
        int32_t is_plain
        int32_t is_for_engines
        int64_t scans

    bint walk(const uint8_t* data, size_t size, Header* header) noexcept
    bint needs_search(const Header* header) noexcept
    void search(const uint8_t* data, size_t size, Header* header) noexcept
    int orientation_of(const uint8_t* exif, size_t size) noexcept


cdef enum:
    LONG_SEARCH_BYTES = 1 << 20  # some 100 us; a shorter one is over before another thread has the GIL


cdef void look_for_the_rest(const uint8_t* data, size_t size, Header* header):
    if size > LONG_SEARCH_BYTES:
        with nogil:
            search(data, size, header)
    else:
        search(data, size, header)


def read_jpeg(encoded):
    """Return what the header of a JPEG says; None for anything else, and for a header that is damaged.

    Args:
        encoded: the file's bytes, in any contiguous buffer.

    Returns:
        Width, height, whether it is complete, whether it is plain, whether it is for a GPU's engines, EXIF's
        orientation, and the number of scans: as ``ImageHeader`` of ``backends.image.header`` has them.
    """
    cdef Py_buffer buffer
    cdef Header header
    PyObject_GetBuffer(encoded, &buffer, PyBUF_SIMPLE)
    try:
        if not walk(<const uint8_t*>buffer.buf, buffer.len, &header):
            return None
        if needs_search(&header):
            look_for_the_rest(<const uint8_t*>buffer.buf, buffer.len, &header)
        return (
            header.width,
            header.height,
            bool(header.is_complete),
            bool(header.is_plain),
            bool(header.is_for_engines),
            header.orientation,
            header.scans,
        )
    finally:
        PyBuffer_Release(&buffer)


def read_orientation(exif):
    """Return the orientation that EXIF data asks for, from 1 to 8; 1 if it asks for none, or is damaged.

    Args:
        exif: the data, in any contiguous buffer, perhaps behind the prefix that it has in a JPEG. Of more than a JPEG
            can hold, which is 64 KiB, the beginning is read.
    """
    cdef Py_buffer buffer
    PyObject_GetBuffer(exif, &buffer, PyBUF_SIMPLE)
    try:
        return orientation_of(<const uint8_t*>buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


# ---- what steps hand on: see backends/gpu/handed_on.py ---------------------------------------------------------------

@cython.final
@cython.freelist(256)
cdef class Pixels:
    """A decoded image on a GPU: uint8, in rows of (width, 3).

    Args:
        row: what ``fastpipe.kernels.cuda`` wants to know of it: a row of ``IMAGE``.
        color: the order of its channels, "rgb" or "bgr".
        memory: what keeps its memory, and that of its neighbours.
    """

    cdef ImageRow c_row
    cdef readonly object color
    cdef readonly object memory

    def __init__(self, row, color, memory):
        cdef ImageRow* mine = &self.c_row
        mine.address, mine.row_stride, mine.height, mine.width, mine.column_stride, mine.channel_stride = row[:6]
        mine.place[0], mine.place[1], mine.place[2], mine.place[3] = row[6:]
        self.color, self.memory = color, memory

    @property
    def row(self):
        """What ``fastpipe.kernels.cuda`` wants to know of it: a row of ``IMAGE``."""
        cdef ImageRow* mine = &self.c_row
        return (
            mine.address, mine.row_stride, mine.height, mine.width, mine.column_stride, mine.channel_stride,
            mine.place[0], mine.place[1], mine.place[2], mine.place[3],
        )


cdef object data_of(request):
    cdef PyObject* found
    if type(request) is not dict:
        return request.get("data")
    found = PyDict_GetItemWithError(request, "data")
    return None if found == NULL else <object>found


def rows_of_pixels(list requests):
    """Return the rows of images as a table, and their color, if the ``data`` of all requests is Pixels of one color.

    Returns:
        A bytearray with a row of ``IMAGE`` for each, and the color; None if it is anything else.
    """
    cdef Py_ssize_t count = len(requests), number = 0
    cdef Pixels pixels
    color = None
    rows = bytearray(count * sizeof(ImageRow))
    cdef ImageRow* row = <ImageRow*>PyByteArray_AS_STRING(rows)
    for request in requests:
        data = data_of(request)
        if type(data) is not Pixels or number == count:
            return None
        pixels = <Pixels>data
        if number == 0:
            color = pixels.color
        elif pixels.color != color:
            return None
        row[number] = pixels.c_row
        number += 1
    return (rows, color) if number and number == count else None


@cython.final
@cython.freelist(256)
cdef class Row:
    """A row of a tensor that was made for a batch.

    Args:
        whole: the tensor.
        number: of the row.
    """

    cdef readonly object whole
    cdef readonly Py_ssize_t number
    cdef object c_kind

    def __init__(self, whole, Py_ssize_t number):
        self.whole, self.number = whole, number

    @property
    def tensor(self):
        """The row as a tensor of its own, with a batch axis of 1."""
        return self.whole[self.number : self.number + 1]

    @property
    def kind(self):
        """The row's shape, without the batch axis; its dtype; its device."""
        if self.c_kind is None:
            self.c_kind = kind_of(self.whole)
        return self.c_kind


cdef tuple kind_of(whole):
    return tuple(whole.shape[1:]), whole.dtype, whole.device


def hand_rows(list requests, whole, color):
    """Make the rows of a tensor the results of as many requests, and set their ``color``."""
    cdef Py_ssize_t number = 0
    cdef Row row
    kind = kind_of(whole)
    for request in requests:
        row = Row.__new__(Row)
        row.whole, row.number, row.c_kind = whole, number, kind
        request["result"] = row
        request["color"] = color
        number += 1


def whole_of(list requests):
    """Return the tensor of which the ``data`` of the requests is all the rows, in order; None: it is anything else."""
    cdef Py_ssize_t number = 0
    cdef Row row
    whole = None
    for request in requests:
        data = data_of(request)
        if type(data) is not Row:
            return None
        row = <Row>data
        if number == 0:
            whole = row.whole
        if row.whole is not whole or row.number != number:
            return None
        number += 1
    return whole if number and len(whole) == number else None


# A batch of JPEGs, as nvJPEG wants to be told of them.
include "_jpegs.pxi"
