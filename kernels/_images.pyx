"""What backends on a GPU do for each image of a batch, in C: JPEGs' headers, nvJPEG's arguments, what steps hand on.

A thread that runs Python holds up all others of its process, so what is done once for an image is to be short. None of
it gives up the GIL, but for a long search, and for the call that decodes a batch.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
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


def rows_of_pixels(list requests):
    """Return the rows of images as a table, and their color, if the ``data`` of all requests is Pixels of one color.

    Returns:
        A bytearray with a row of ``IMAGE`` for each, and the color; None if it is anything else.
    """
    cdef Py_ssize_t count = len(requests), number
    cdef Pixels pixels
    color = None
    rows = bytearray(count * sizeof(ImageRow))
    cdef ImageRow* row = <ImageRow*>PyByteArray_AS_STRING(rows)
    for number in range(count):
        data = (<dict?>requests[number]).get("data")
        if type(data) is not Pixels:
            return None
        pixels = <Pixels>data
        if number == 0:
            color = pixels.color
        elif pixels.color != color:
            return None
        row[number] = pixels.c_row
    return (rows, color) if count else None


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
    cdef Py_ssize_t count = len(requests), number
    cdef Row row
    kind = kind_of(whole)
    for number in range(count):
        row = Row.__new__(Row)
        row.whole, row.number, row.c_kind = whole, number, kind
        request = <dict?>requests[number]
        request["result"] = row
        request["color"] = color


def whole_of(list requests):
    """Return the tensor of which the ``data`` of the requests is all the rows, in order; None: it is anything else."""
    cdef Py_ssize_t count = len(requests), number
    cdef Row row
    whole = None
    for number in range(count):
        data = (<dict?>requests[number]).get("data")
        if type(data) is not Row:
            return None
        row = <Row>data
        if number == 0:
            whole = row.whole
        if row.whole is not whole or row.number != number:
            return None
    return whole if count and len(whole) == count else None


# ---- a batch of JPEGs ------------------------------------------------------------------------------------------------

cdef extern from "nvjpeg.hpp" namespace "nvjpeg" nogil:
    cdef cppclass Destination:
        uint8_t* channel[4]
        size_t pitch[4]

    cdef cppclass Functions:
        int (*info)(void*, const uint8_t*, size_t, int*, int*, int*, int*) noexcept
        int (*prepare)(void*, void*, int, int, int) noexcept
        int (*decode)(void*, void*, const uint8_t* const*, const size_t*, Destination*, void*) noexcept
        int (*query)(void*) noexcept
        int (*synchronize)(void*) noexcept
        int (*record)(void*, void*) noexcept
        int (*wait)(void*, void*, unsigned) noexcept

    cdef cppclass Engines:
        void* handle
        void* state
        void* stream
        void* before
        void* after
        int is_prepared
        int helpers
        int output

    cdef cppclass Outcome:
        int step
        int status
        int64_t elapsed_ns
        int32_t refused

    Outcome decode(
        const Functions& call,
        Engines* engines,
        void* caller,
        int count,
        const uint8_t* const* sources,
        const size_t* sizes,
        Destination* targets,
        const Header* headers,
        int32_t* is_refused,
    ) noexcept
    void widest_first(const Header* headers, int32_t count, int32_t* order) noexcept


cdef struct Place:
    Py_ssize_t request  # whose image it is: its number in the batch
    Py_ssize_t block  # of memory
    Py_ssize_t top  # the row of the block in which it begins


cdef enum:
    CHANNELS = 3
    COLUMNS = 16  # rows begin at a multiple of so many pixels
    WIDEST_TO_NARROWEST = 2  # of one block: its rows have one length, that of the widest


@cython.final
cdef class Jpegs:
    """The JPEGs of a batch that a GPU takes, in the order of their requests.

    ``sort``, then ``blocks`` and ``place``, ``Nvjpeg.decode``, and ``hand_on``, or ``targets`` for who does that
    otherwise. What it was given is kept until the next ``sort``: the library reads it until the batch is decoded.

    Not thread-safe.

    Args:
        most: how many there are in a batch at most.
    """

    cdef Py_ssize_t most
    cdef readonly Py_ssize_t count
    cdef const uint8_t** sources
    cdef size_t* sizes
    cdef Destination* destinations
    cdef Header* headers
    cdef int32_t* is_refused
    cdef int32_t* order
    cdef Place* places
    cdef Py_ssize_t* columns  # of each block
    cdef list kept
    cdef list others

    def __cinit__(self, Py_ssize_t most):
        if most < 1:
            raise ValueError(f"most: expected at least 1, got {most}")
        self.most = most
        self.kept, self.others = [], []
        self.sources = <const uint8_t**>PyMem_Calloc(most, sizeof(void*))
        self.sizes = <size_t*>PyMem_Calloc(most, sizeof(size_t))
        self.destinations = <Destination*>PyMem_Calloc(most, sizeof(Destination))
        self.headers = <Header*>PyMem_Calloc(most, sizeof(Header))
        self.is_refused = <int32_t*>PyMem_Calloc(most, sizeof(int32_t))
        self.order = <int32_t*>PyMem_Calloc(most, sizeof(int32_t))
        self.places = <Place*>PyMem_Calloc(most, sizeof(Place))
        self.columns = <Py_ssize_t*>PyMem_Calloc(most, sizeof(Py_ssize_t))
        if (
            self.sources == NULL or self.sizes == NULL or self.destinations == NULL or self.headers == NULL
            or self.is_refused == NULL or self.order == NULL or self.places == NULL or self.columns == NULL
        ):
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.sources)
        PyMem_Free(self.sizes)
        PyMem_Free(self.destinations)
        PyMem_Free(self.headers)
        PyMem_Free(self.is_refused)
        PyMem_Free(self.order)
        PyMem_Free(self.places)
        PyMem_Free(self.columns)

    @property
    def size_bytes(self):
        """How many bytes the images have, encoded."""
        cdef size_t total = 0
        cdef Py_ssize_t number
        for number in range(self.count):
            total += self.sizes[number]
        return total

    def sort(self, list requests, int64_t max_pixels, unchanging, dict errors):
        """Read the headers of a batch, and keep the images that a GPU's JPEG engines take.

        Args:
            requests: with the file in ``data``.
            max_pixels: images with more are not taken.
            unchanging: called with what is no bytes; returns bytes with the same content, or None: it has no bytes.
            errors: a request whose ``data`` cannot be had is noted here, by its number, with what was raised.

        Returns:
            The numbers of all other requests: nothing is known of their images.
        """
        cdef Py_ssize_t number, taken = 0
        cdef Header* header
        cdef const uint8_t* data
        cdef size_t size
        left = []
        self.count = 0
        self.kept, self.others = [], []
        for number in range(len(requests)):
            try:
                encoded = (<dict?>requests[number])["data"]
                if not isinstance(encoded, bytes):
                    encoded = unchanging(encoded)
            except Exception as error:  # its own request's
                errors[number] = error
                continue
            if taken == self.most or encoded is None:
                left.append(number)
                continue
            data, size = <const uint8_t*>PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded)
            header = self.headers + taken
            if not walk(data, size, header) or not header.is_for_engines or not is_small(header, max_pixels):
                left.append(number)
                continue
            if not header.is_complete:
                look_for_the_rest(data, size, header)
                if not header.is_complete:
                    left.append(number)
                    continue
            self.kept.append(encoded)
            self.sources[taken], self.sizes[taken], self.places[taken].request = data, size, number
            taken += 1
        self.count = taken
        return left

    def blocks(self):
        """Return the blocks of memory that the pixels need, each as (rows, columns), of three bytes a pixel.

        Images whose widths differ much do not share one.
        """
        cdef Py_ssize_t index, number
        cdef Py_ssize_t rows = 0, columns = 0, widest = 0, block = -1
        blocks = []
        widest_first(self.headers, <int32_t>self.count, self.order)
        for index in range(self.count):
            number = self.order[index]
            if block < 0 or <int64_t>self.headers[number].width * WIDEST_TO_NARROWEST < widest:
                if block >= 0:
                    blocks.append((rows, columns))
                widest = self.headers[number].width
                block, rows = block + 1, 0
                columns = (widest + COLUMNS - 1) // COLUMNS * COLUMNS
                self.columns[block] = columns
            self.places[number].block, self.places[number].top = block, rows
            rows += self.headers[number].height
        if block >= 0:
            blocks.append((rows, columns))
        return blocks

    def place(self, list addresses):
        """Say where the blocks are, each as large as ``blocks`` wants it."""
        cdef Py_ssize_t number
        cdef Place* place
        for number in range(self.count):
            place = self.places + number
            memset(self.destinations + number, 0, sizeof(Destination))
            self.destinations[number].pitch[0] = self.columns[place.block] * CHANNELS
            self.destinations[number].channel[0] = (
                <uint8_t*><uintptr_t>addresses[place.block] + place.top * self.columns[place.block] * CHANNELS
            )

    def targets(self):
        """Return for each image: its request's number, its block, its first row there, height, width, orientation."""
        cdef Py_ssize_t number
        cdef Place* place
        cdef Header* header
        targets = []
        for number in range(self.count):
            place, header = self.places + number, self.headers + number
            target = (place.request, place.block, place.top, header.height, header.width, header.orientation)
            targets.append(target)
        return targets

    def hand_on(self, list requests, list memories, color):
        """Make the pixels the results of their requests, turned as they are to be seen, and set ``color``.

        Args:
            requests: those of ``sort``.
            memories: what keeps each block.
            color: the order of the channels.
        """
        cdef Py_ssize_t number
        cdef Pixels pixels
        for number in range(self.count):
            pixels = Pixels.__new__(Pixels)
            turn(&pixels.c_row, self.destinations + number, self.headers + number)
            pixels.color, pixels.memory = color, memories[self.places[number].block]
            request = <dict?>requests[self.places[number].request]
            request["result"] = pixels
            request["color"] = color

    def drop_refused(self):
        """Take out the images that ``decode`` has refused, and return their requests' numbers."""
        cdef Py_ssize_t number, kept = 0
        refused = []
        for number in range(self.count):
            if self.is_refused[number]:
                refused.append(self.places[number].request)
                continue
            self.sources[kept], self.sizes[kept] = self.sources[number], self.sizes[number]
            self.headers[kept], self.places[kept] = self.headers[number], self.places[number]
            kept += 1
        self.count = kept
        return refused

    def alone(self, Py_ssize_t number):
        """Return one of the images as a batch of its own; this one keeps it."""
        if not 0 <= number < self.count:
            raise IndexError(f"there are {self.count} images, and no {number}")
        cdef Jpegs one = Jpegs.__new__(Jpegs, 1)
        one.count = 1
        one.sources[0], one.sizes[0] = self.sources[number], self.sizes[number]
        one.headers[0], one.places[0] = self.headers[number], self.places[number]
        one.kept.append(self.kept)
        self.others.append(one)
        return one


cdef bint is_small(const Header* header, int64_t max_pixels) noexcept:
    cdef int64_t pixels = <int64_t>header.width * header.height
    return 0 < pixels <= max_pixels


cdef void turn(ImageRow* row, const Destination* stored, const Header* header) noexcept:
    # An image as it is seen, by EXIF's number: the same pixels in another order.
    cdef int orientation = header.orientation
    memset(row, 0, sizeof(ImageRow))
    row.address = <unsigned long long><uintptr_t>stored.channel[0]
    row.row_stride, row.column_stride, row.channel_stride = <int64_t>stored.pitch[0], CHANNELS, 1
    row.height, row.width = header.height, header.width
    if orientation in (3, 4, 6, 7):  # the last stored row is seen first
        row.address += <unsigned long long>((row.height - 1) * row.row_stride)
        row.row_stride = -row.row_stride
    if orientation in (2, 3, 7, 8):  # the last stored column
        row.address += <unsigned long long>((row.width - 1) * row.column_stride)
        row.column_stride = -row.column_stride
    if orientation >= 5:  # rows are seen as columns
        row.height, row.width = row.width, row.height
        row.row_stride, row.column_stride = row.column_stride, <int32_t>row.row_stride


@cython.final
cdef class Nvjpeg:
    """The functions by which a batch is decoded. Made of their addresses; the libraries must stay loaded."""

    cdef Functions functions

    NAMES = (
        "nvjpegGetImageInfo",
        "nvjpegDecodeBatchedInitialize",
        "nvjpegDecodeBatched",
        "cuStreamQuery",
        "cuStreamSynchronize",
        "cuEventRecord",
        "cuStreamWaitEvent",
    )

    def __init__(self, addresses):
        cdef uintptr_t info, prepare, decode_, query, synchronize, record, wait
        info, prepare, decode_, query, synchronize, record, wait = addresses
        self.functions.info = <int (*)(void*, const uint8_t*, size_t, int*, int*, int*, int*) noexcept nogil>info
        self.functions.prepare = <int (*)(void*, void*, int, int, int) noexcept nogil>prepare
        self.functions.decode = <int (*)(
            void*, void*, const uint8_t* const*, const size_t*, Destination*, void*
        ) noexcept nogil>decode_
        self.functions.query = <int (*)(void*) noexcept nogil>query
        self.functions.synchronize = <int (*)(void*) noexcept nogil>synchronize
        self.functions.record = <int (*)(void*, void*) noexcept nogil>record
        self.functions.wait = <int (*)(void*, void*, unsigned) noexcept nogil>wait

    def decode(
        self,
        Jpegs images,
        uintptr_t handle,
        uintptr_t state,
        uintptr_t stream,
        uintptr_t before,
        uintptr_t after,
        bint is_prepared,
        int helpers,
        int output,
        uintptr_t caller,
    ):
        """Decode a batch, placed, on a stream that waits for the caller's, and for which the caller's waits.

        The GIL is given up, once; nobody else may use any of the handles, nor the images, meanwhile.

        Returns:
            The name of the function that has failed ("": none), what it returned, how many nanoseconds the decoding
            call took, how many images were refused (nothing is decoded then), and whether the state is prepared for a
            batch of this size.
        """
        cdef Engines engines
        cdef Outcome outcome
        engines.handle, engines.state, engines.stream = <void*>handle, <void*>state, <void*>stream
        engines.before, engines.after = <void*>before, <void*>after
        engines.is_prepared, engines.helpers, engines.output = is_prepared, helpers, output
        with nogil:
            outcome = decode(
                self.functions, &engines, <void*>caller, <int>images.count, images.sources, images.sizes,
                images.destinations, images.headers, images.is_refused,
            )
        name = self.NAMES[outcome.step] if outcome.step >= 0 else ""
        return name, outcome.status, outcome.elapsed_ns, outcome.refused, bool(engines.is_prepared)
