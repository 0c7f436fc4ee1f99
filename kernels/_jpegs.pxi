# A batch of JPEGs, as nvJPEG wants to be told of them, and the call that decodes it.

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

    cdef cppclass Handles:
        int way_count
        void* libraries[2]
        void* states[2]
        void* stream
        void* before
        void* after

    cdef cppclass Batch:
        int count
        int output
        const uint8_t* const* sources
        const size_t* sizes
        Destination* targets
        const Header* headers
        int32_t* is_refused

    cdef cppclass Outcome:
        int step
        int status
        int32_t refused

    cdef cppclass CppDecoder "nvjpeg::Decoder":
        CppDecoder(const Functions& functions, const Handles& handles) except +
        Outcome decode(const Batch& batch, void* caller, bint tells) noexcept

    cdef cppclass CppChooser "nvjpeg::Chooser":
        int choose() noexcept
        void tell(int way, double cost) noexcept

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

    ``sort``, then ``blocks`` and ``place``, ``Decoder.decode``, and ``hand_on``, or ``targets`` for who does that
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
    cdef Py_ssize_t block_count  # as blocks() has said last; none is known to fit what has changed since
    cdef bint is_placed
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
        cdef Py_ssize_t number = -1, taken = 0
        cdef Header* header
        cdef const uint8_t* data
        cdef size_t size
        left = []
        self.forget()
        self.count = 0
        self.kept, self.others = [], []
        for request in requests:
            number += 1
            try:
                encoded = request["data"]
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
        self.forget()
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
        self.block_count = block + 1
        return blocks

    cdef void forget(self) noexcept:
        self.block_count, self.is_placed = 0, False

    def place(self, list addresses):
        """Say where the blocks are, each as large as ``blocks`` wants it."""
        cdef Py_ssize_t number
        cdef Place* place
        cdef uintptr_t start
        self.is_placed = False
        self.check_blocks(addresses)
        for number in range(self.count):
            place = self.places + number
            start = addresses[place.block]
            memset(self.destinations + number, 0, sizeof(Destination))
            self.destinations[number].pitch[0] = self.columns[place.block] * CHANNELS
            self.destinations[number].channel[0] = (
                <uint8_t*>start + place.top * self.columns[place.block] * CHANNELS
            )
        self.is_placed = True

    cdef int check_blocks(self, list given) except -1:
        if not self.count or len(given) != self.block_count:
            raise ValueError(f"expected {self.block_count} blocks of memory, as blocks() says, got {len(given)}")
        return 0

    cdef int check_placed(self) except -1:
        if not self.is_placed:
            raise ValueError("the images have not been placed")
        return 0

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
        self.check_placed()
        self.check_blocks(memories)
        if len(requests) <= self.places[self.count - 1].request:
            raise ValueError(f"expected the requests of sort(), got {len(requests)}")
        for number in range(self.count):
            pixels = Pixels.__new__(Pixels)
            turn(&pixels.c_row, self.destinations + number, self.headers + number)
            pixels.color, pixels.memory = color, memories[self.places[number].block]
            request = requests[self.places[number].request]
            request["result"] = pixels
            request["color"] = color

    def drop_refused(self):
        """Take out the images that ``decode`` has refused, and return their requests' numbers."""
        cdef Py_ssize_t number, kept = 0
        refused = []
        self.forget()
        for number in range(self.count):
            if self.is_refused[number]:
                refused.append(self.places[number].request)
                continue
            self.sources[kept], self.sizes[kept] = self.sources[number], self.sizes[number]
            self.headers[kept], self.places[kept] = self.headers[number], self.places[number]
            self.is_refused[kept] = False
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
cdef class Chooser:
    """Which way to decode is quicker just now, the pipelined (0) or the plain one (1): for tests of it."""

    cdef CppChooser chooser

    def choose(self):
        """Return the way of the next batch."""
        return self.chooser.choose()

    def tell(self, int way, double cost):
        """Take in what a batch has cost, in nanoseconds a byte."""
        self.chooser.tell(way, cost)


@cython.final
cdef class Decoder:
    """What decodes on one GPU, for everybody in the process; see nvjpeg.hpp. Any thread may call it.

    Args:
        addresses: of the functions in NAMES; the libraries must stay loaded.
        ways: handle and state of each way: the pipelined one, and the plain one, if there is one. These and the
            following are to live as long as ``decode`` may be called.
        stream: on which it decodes.
        before: an event of its own.
        after: another one.
    """

    cdef CppDecoder* decoder

    NAMES = (
        "nvjpegGetImageInfo",
        "nvjpegDecodeBatchedInitialize",
        "nvjpegDecodeBatched",
        "cuStreamQuery",
        "cuStreamSynchronize",
        "cuEventRecord",
        "cuStreamWaitEvent",
    )

    def __cinit__(self, addresses, list ways, uintptr_t stream, uintptr_t before, uintptr_t after):
        cdef uintptr_t info, prepare, decode, query, synchronize, record, wait, library, state
        cdef Functions functions
        cdef Handles handles
        info, prepare, decode, query, synchronize, record, wait = addresses
        functions.info = <int (*)(void*, const uint8_t*, size_t, int*, int*, int*, int*) noexcept nogil>info
        functions.prepare = <int (*)(void*, void*, int, int, int) noexcept nogil>prepare
        functions.decode = <int (*)(
            void*, void*, const uint8_t* const*, const size_t*, Destination*, void*
        ) noexcept nogil>decode
        functions.query = <int (*)(void*) noexcept nogil>query
        functions.synchronize = <int (*)(void*) noexcept nogil>synchronize
        functions.record = <int (*)(void*, void*) noexcept nogil>record
        functions.wait = <int (*)(void*, void*, unsigned) noexcept nogil>wait
        if not 1 <= len(ways) <= 2:
            raise ValueError(f"ways: expected one or two, got {len(ways)}")
        for library, state in ways:
            handles.libraries[handles.way_count], handles.states[handles.way_count] = <void*>library, <void*>state
            handles.way_count += 1
        handles.stream, handles.before, handles.after = <void*>stream, <void*>before, <void*>after
        self.decoder = new CppDecoder(functions, handles)

    def __dealloc__(self):
        del self.decoder

    def decode(self, Jpegs images, int output, uintptr_t caller, bint tells):
        """Decode a batch, placed, behind what is queued on a stream of the caller's, which waits for its pixels.

        The GIL is given up, once; nobody else may use the images meanwhile.

        Args:
            images: the batch.
            output: nvJPEG's number of what is made.
            caller: the stream.
            tells: whether what it costs says something of the batches to come.

        Returns:
            The name of the function that has failed ("": none), what it returned, and how many images were refused
            (nothing is decoded then).
        """
        cdef Batch batch
        cdef Outcome outcome
        images.check_placed()
        batch.count, batch.output, batch.sources = <int>images.count, output, images.sources
        batch.sizes, batch.targets, batch.headers = images.sizes, images.destinations, images.headers
        batch.is_refused = images.is_refused
        with nogil:
            outcome = self.decoder.decode(batch, <void*>caller, tells)
        return self.NAMES[outcome.step] if outcome.step >= 0 else "", outcome.status, outcome.refused
