"""The compiled loops, for NumPy arrays: ``loops.hpp`` has them, this gives them addresses, strides and sizes.

The arguments have been checked (``_arguments``); nothing here does it again. The loops read the arrays where they lie,
in any layout, and run without the GIL, once for the whole call, unless told to keep it.
"""

from cpython.buffer cimport PyBUF_CONTIG, PyBUF_CONTIG_RO, PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libcpp cimport bool as bool_t
from libcpp.vector cimport vector


cdef extern from "loops.hpp" namespace "fastpipe" nogil:
    struct Image:
        const uint8_t* pixels
        Py_ssize_t height, width, channels
        Py_ssize_t row_stride, column_stride, channel_stride

    struct Taps:
        Py_ssize_t count
        const int64_t* first
        const int64_t* second
        const int64_t* first_weight
        const int64_t* second_weight

    struct Level:
        pass

    struct Table:
        pass

    void convert_loop "fastpipe::convert"(Image image, const int32_t* gray_weights, uint8_t* out) noexcept
    void normalize_loop "fastpipe::normalize"(
        const Image* images, Py_ssize_t image_count, const int32_t* gray_weights, bool_t is_swapped,
        const Level* levels, Py_ssize_t plane_count, float* out) noexcept
    void normalize_to_half_loop "fastpipe::normalize_to_half"(
        const Image* images, Py_ssize_t image_count, const int32_t* gray_weights, bool_t is_swapped,
        const Table* tables, Py_ssize_t plane_count, uint16_t* out) noexcept
    void resize_loop "fastpipe::resize"(Image image, Taps row_taps, Taps column_taps, uint8_t* out) noexcept


def convert(object image, object gray_weights, object out, bint keeps_gil):
    """Write one image to ``out``, its channels converted.

    Args:
        image: uint8 (h, w, 3) or (h, w), any strides. Three channels become one if there are ``gray_weights``, and
            else three in the opposite order; one becomes three equal ones.
        gray_weights: int32 of three channels in the image's order, times 2**15; None: gray is not wanted.
        out: uint8, C-contiguous, of the result's shape.
        keeps_gil: do not release it.
    """
    cdef Image seen = _seen(image)
    cdef const int32_t* weights = <const int32_t*>_weights(gray_weights)
    cdef uint8_t* to = <uint8_t*>_address(out, PyBUF_CONTIG)
    if keeps_gil:
        convert_loop(seen, weights, to)
    else:
        with nogil:
            convert_loop(seen, weights, to)


def normalize(list images, object gray_weights, bint is_swapped, object levels, object out, bint keeps_gil):
    """Write a batch to ``out``, normalised, in planes.

    Args:
        images: uint8, each (h, w, 3) or (h, w), of one size, any strides.
        gray_weights: see ``convert``.
        is_swapped: the images' first channel goes to the last plane.
        levels: for each plane of ``out``, float32 mean and std if ``out`` is float32. If it is float16: what each of
            the 256 bytes becomes, as float16.
        out: float32 or float16 (n, planes, h, w), C-contiguous.
        keeps_gil: do not release it.
    """
    cdef vector[Image] seen
    cdef object image
    seen.reserve(len(images))
    for image in images:
        seen.push_back(_seen(image))
    cdef const int32_t* weights = <const int32_t*>_weights(gray_weights)
    cdef const void* level = _address(levels, PyBUF_CONTIG_RO)
    cdef void* to = _address(out, PyBUF_CONTIG)
    cdef Py_ssize_t planes = out.shape[1]
    cdef bint is_half = out.itemsize == 2
    if keeps_gil:
        _normalize(seen, weights, is_swapped, level, planes, is_half, to)
    else:
        with nogil:
            _normalize(seen, weights, is_swapped, level, planes, is_half, to)


def resize(object image, object row_taps, object column_taps, object out, bint keeps_gil):
    """Write one image to ``out`` at another size.

    Args:
        image: uint8 (h, w, 3), not empty, any strides.
        row_taps: int64 (4, new height), see ``reference.taps``.
        column_taps: int64 (4, new width).
        out: uint8 (new height, new width, 3), C-contiguous.
        keeps_gil: do not release it.
    """
    cdef Image seen = _seen(image)
    cdef Taps rows = _taps(row_taps)
    cdef Taps columns = _taps(column_taps)
    cdef uint8_t* to = <uint8_t*>_address(out, PyBUF_CONTIG)
    if keeps_gil:
        resize_loop(seen, rows, columns, to)
    else:
        with nogil:
            resize_loop(seen, rows, columns, to)


cdef void _normalize(
    const vector[Image]& images, const int32_t* weights, bint is_swapped, const void* levels, Py_ssize_t planes,
    bint is_half, void* out,
) noexcept nogil:
    if is_half:
        normalize_to_half_loop(
            images.data(), images.size(), weights, is_swapped, <const Table*>levels, planes, <uint16_t*>out)
    else:
        normalize_loop(images.data(), images.size(), weights, is_swapped, <const Level*>levels, planes, <float*>out)


# A buffer is given back at once: the caller has references to its arrays, and it is these that keep the memory.

cdef Image _seen(object image) except *:
    """Return address, sizes and strides of an image."""
    cdef Py_buffer view
    cdef Image seen
    PyObject_GetBuffer(image, &view, PyBUF_STRIDED_RO)
    seen.pixels = <const uint8_t*>view.buf
    seen.height, seen.width = view.shape[0], view.shape[1]
    seen.row_stride, seen.column_stride = view.strides[0], view.strides[1]
    seen.channels = view.shape[2] if view.ndim == 3 else 1
    seen.channel_stride = view.strides[2] if view.ndim == 3 else 1
    PyBuffer_Release(&view)
    return seen


cdef void* _address(object array, int flags) except? NULL:
    """Return where a C-contiguous array begins."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, flags)
    cdef void* address = view.buf
    PyBuffer_Release(&view)
    return address


cdef void* _weights(object gray_weights) except? NULL:
    return NULL if gray_weights is None else _address(gray_weights, PyBUF_CONTIG_RO)


cdef Taps _taps(object taps) except *:
    cdef Taps result
    result.count = taps.shape[1]
    result.first = <const int64_t*>_address(taps, PyBUF_CONTIG_RO)
    result.second = result.first + result.count
    result.first_weight = result.second + result.count
    result.second_weight = result.first_weight + result.count
    return result
