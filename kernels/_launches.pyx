"""What a call of ``fastpipe.kernels.cuda`` does for each image, and the launch itself: in C, as it is done so often.

Rows are ``ImageRow`` of image_row.hpp, 48 bytes each; in a bytearray of ours, or in any contiguous buffer of a caller's.
"""

from cpython.buffer cimport Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset


cdef extern from "image_row.hpp" nogil:
    cdef cppclass Row "ImageRow":
        uint64_t address
        int64_t row_stride
        int32_t height
        int32_t width
        int32_t column_stride
        int32_t channel_stride
        int32_t place[4]


cdef bint fill_row(Row* row, uint64_t address, tuple shape, tuple strides, int channels) except -1:
    # Says whether the image has the right axes, and is not empty.
    if len(shape) != 2 + (channels == 3) or (channels == 3 and shape[2] != 3):
        return False
    memset(row, 0, sizeof(Row))
    row.address = address
    row.row_stride, row.column_stride = strides[0], strides[1]
    row.channel_stride = strides[2] if channels == 3 else 0
    row.height, row.width = shape[0], shape[1]
    return row.height > 0 and row.width > 0


def rows_of_cupy(images, int channels, int device, uint8):
    """Return the rows of CuPy's arrays in a bytearray; or the number of the first that is wrong.

    Args:
        images: a sequence of arrays.
        channels: 3, or 1: without the last axis.
        device: the number of the GPU where they have to be.
        uint8: the dtype they have to be of, the one object.
    """
    cdef Py_ssize_t count = len(images), number
    rows = bytearray(count * sizeof(Row))
    cdef Row* row = <Row*>PyByteArray_AS_STRING(rows)
    for number in range(count):
        image = images[number]
        memory = image.data
        if memory.device_id != device or image.dtype is not uint8:
            return number
        if not fill_row(row + number, memory.ptr, image.shape, image.strides, channels):
            return number
    return rows


# ---- DLPack's table of C functions, of which one reads an array: dlpack.h, as far as that needs it -------------------

cdef struct Tensor:  # DLTensor
    void* data
    int32_t device_type
    int32_t device
    int32_t axes
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides
    uint64_t offset_bytes


cdef struct Exchange:  # DLPackExchangeAPI
    uint32_t major
    uint32_t minor
    void* older
    void* allocate
    void* export_managed
    void* import_managed
    int (*read)(void* array, Tensor* tensor) except -1
    void* current_stream


cdef enum:
    CUDA = 2  # kDLCUDA
    UNSIGNED = 1  # kDLUInt

cdef const char* EXCHANGE_NAME = "dlpack_exchange_api"


def rows_by_dlpack(images, int channels, int device, int device_type=CUDA):
    """Return the rows of arrays of one class that has DLPack's C functions, as torch's from 2.10 on: as ``rows_of_cupy``.

    It takes a tenth of the time in which torch's tensors tell their attributes.

    Raises:
        TypeError: if the class has no such functions.
    """
    cdef Py_ssize_t count = len(images), number
    cdef Tensor tensor
    rows = bytearray(count * sizeof(Row))
    cdef Row* row = <Row*>PyByteArray_AS_STRING(rows)
    if not count:
        return rows
    kind = type(images[0])
    table = getattr(kind, "__dlpack_c_exchange_api__", None)
    if not PyCapsule_IsValid(table, EXCHANGE_NAME):
        raise TypeError(f"images: {kind.__name__} has no __dlpack_c_exchange_api__; torch has it from 2.10 on")
    cdef Exchange* exchange = <Exchange*>PyCapsule_GetPointer(table, EXCHANGE_NAME)
    if exchange.major != 1 or exchange.read == NULL:
        raise TypeError(f"images: expected version 1 of DLPack's functions, {kind.__name__} has {exchange.major}")
    for number in range(count):
        image = images[number]
        if type(image) is not kind:
            return number
        exchange.read(<void*>image, &tensor)
        if tensor.device_type != device_type or tensor.device != device:
            return number
        if tensor.code != UNSIGNED or tensor.bits != 8 or tensor.lanes != 1:
            return number
        if tensor.axes != 2 + (channels == 3) or (channels == 3 and tensor.shape[2] != 3):
            return number
        if not (0 < tensor.shape[0] < 2**31 and 0 < tensor.shape[1] < 2**31):
            return number
        row[number].address = <uint64_t><uintptr_t>tensor.data + tensor.offset_bytes
        row[number].row_stride = tensor.strides[0]
        row[number].height, row[number].width = <int32_t>tensor.shape[0], <int32_t>tensor.shape[1]
        if not -(2**31) <= tensor.strides[1] < 2**31:
            return number
        row[number].column_stride = <int32_t>tensor.strides[1]
        row[number].channel_stride = <int32_t>tensor.strides[2] if channels == 3 else 0
    return rows


def extent_of(rows):
    """Return the least height, the greatest, the least width, the greatest; and whether all rows but differ in address.

    Raises:
        BufferError: if the rows are not contiguous.
    """
    cdef Py_buffer buffer
    cdef Py_ssize_t number, count
    cdef Row* row
    cdef int32_t lowest, highest, narrowest, widest
    cdef bint are_alike = True
    PyObject_GetBuffer(rows, &buffer, PyBUF_SIMPLE)
    try:
        row = <Row*>buffer.buf
        count = buffer.len // sizeof(Row)
        if not count:
            return 0, 0, 0, 0, False
        lowest = highest = row.height
        narrowest = widest = row.width
        for number in range(1, count):
            lowest, highest = min(lowest, row[number].height), max(highest, row[number].height)
            narrowest, widest = min(narrowest, row[number].width), max(widest, row[number].width)
            are_alike = are_alike and not memcmp(&row[number].row_stride, &row.row_stride, sizeof(Row) - 8)
        return lowest, highest, narrowest, widest, are_alike
    finally:
        PyBuffer_Release(&buffer)


def write_first_row(uintptr_t to, rows, int64_t offset):
    """Write the first row to memory, which has room, of an image that lies so many bytes further on."""
    write_rows(to, rows, 0, 1, False)
    (<Row*>to).address += <uint64_t>offset


def write_rows(uintptr_t to, rows, Py_ssize_t start, Py_ssize_t count, bint are_alike):
    """Write rows to memory, which has room: each; or, if they are alike, the first one and the addresses of all."""
    cdef Py_buffer buffer
    cdef Py_ssize_t number
    cdef uint64_t* addresses = <uint64_t*>(to + sizeof(Row))
    cdef Row* row
    PyObject_GetBuffer(rows, &buffer, PyBUF_SIMPLE)
    try:
        if start < 0 or count < 0 or (start + count) * <Py_ssize_t>sizeof(Row) > buffer.len:
            raise IndexError(f"rows: expected {start + count}, got {buffer.len // sizeof(Row)}")
        row = <Row*>buffer.buf + start
        memcpy(<void*>to, row, sizeof(Row) * (1 if are_alike else count))
        if are_alike:
            for number in range(count):
                addresses[number] = row[number].address
    finally:
        PyBuffer_Release(&buffer)


# ---- the driver: what of cuda.h a launch needs, and no more ----------------------------------------------------------

cdef struct Attribute:  # CUlaunchAttribute
    int kind
    int unused
    int32_t value[16]


cdef struct Configuration:  # CUlaunchConfig
    unsigned int grid[3]
    unsigned int block[3]
    unsigned int shared_bytes
    void* stream
    Attribute* attributes
    unsigned int attribute_count


cdef enum:
    PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_

ctypedef int (*GetCurrent)(void** context) noexcept nogil
ctypedef int (*PushCurrent)(void* context) noexcept nogil
ctypedef int (*PopCurrent)(void** context) noexcept nogil
ctypedef int (*Copy)(uint64_t to, const void* source, size_t size_bytes, void* stream) noexcept nogil
ctypedef int (*Record)(void* event, void* stream) noexcept nogil
ctypedef int (*LaunchKernel)(
    const Configuration* configuration, void* function, void** arguments, void** extra
) noexcept nogil


cdef class Driver:
    """Launches in one context of CUDA's driver. Made of the addresses of its functions; they must stay loaded."""

    cdef GetCurrent get_current
    cdef PushCurrent push_current
    cdef PopCurrent pop_current
    cdef Copy copy
    cdef Record record
    cdef LaunchKernel launch_kernel
    cdef void* context
    cdef bint follows_closely

    NAMES = (
        "cuCtxGetCurrent",
        "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuEventRecord",
        "cuLaunchKernelEx",
    )

    def __init__(self, addresses, uintptr_t context, bint follows_closely):
        cdef uintptr_t get_current, push_current, pop_current, copy, record, launch_kernel
        get_current, push_current, pop_current, copy, record, launch_kernel = addresses
        self.get_current = <GetCurrent>get_current
        self.push_current = <PushCurrent>push_current
        self.pop_current = <PopCurrent>pop_current
        self.copy = <Copy>copy
        self.record = <Record>record
        self.launch_kernel = <LaunchKernel>launch_kernel
        self.context = <void*>context
        self.follows_closely = follows_closely

    def launch(
        self,
        uintptr_t function,
        tuple grid,
        tuple block,
        unsigned int shared_bytes,
        uintptr_t batch,
        uintptr_t stream,
        uint64_t table_to,
        uintptr_t table_from,
        size_t table_bytes,
        uintptr_t event,
    ):
        """Queue the copy of a table, if it has bytes, and a kernel behind it, and record the event, if there is one.

        The GIL is given up once. Returns what the driver says, 0 if all went well.
        """
        cdef Configuration configuration
        cdef Attribute attribute
        memset(&configuration, 0, sizeof(configuration))
        memset(&attribute, 0, sizeof(attribute))
        configuration.grid[0], configuration.grid[1], configuration.grid[2] = grid[0], grid[1], grid[2]
        configuration.block[0], configuration.block[1], configuration.block[2] = block[0], block[1], 1
        configuration.shared_bytes = shared_bytes
        configuration.stream = <void*>stream
        attribute.kind = PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value[0] = 1
        configuration.attributes = &attribute
        configuration.attribute_count = 1 if self.follows_closely else 0
        cdef int result
        with nogil:
            result = self.c_launch(&configuration, <void*>function, <void*>batch, table_to, <void*>table_from,
                                   table_bytes, <void*>event)
        return result

    cdef int c_launch(
        self,
        Configuration* configuration,
        void* function,
        void* batch,
        uint64_t table_to,
        void* table_from,
        size_t table_bytes,
        void* event,
    ) noexcept nogil:
        cdef void* current = NULL
        cdef void* popped = NULL
        cdef int result = self.get_current(&current)
        cdef bint is_pushed = current != self.context
        if not result and is_pushed:
            result = self.push_current(self.context)
        if result:
            return result
        if table_bytes:
            result = self.copy(table_to, table_from, table_bytes, configuration.stream)
        if not result:
            result = self.launch_kernel(configuration, function, &batch, NULL)
        if not result and event:
            result = self.record(event, configuration.stream)
        if is_pushed:
            self.pop_current(&popped)
        return result
