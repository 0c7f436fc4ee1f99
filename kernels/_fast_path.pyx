"""What a model's backend does for requests whose shapes it has met before, in C: NumPy's arrays in, a run, rows out.

A run of a model leaves the caches full of the model. Each function of Python's behind it is fetched from memory again,
which takes one to two microseconds: for a small model, all of them together took half as long as the model. So what was
found out once about some shapes is kept as a Route, and a batch of requests that have one goes this way.

Nothing is decided here. Which shapes a model takes, and as what, a reader of requests has found out (``Fit``). What is
not met here word for word, a wrong request first of all, is left as it came to the backend's usual way, which says what
is wrong with it. Both ways give the same bits; ``tests/backends/test_fast_path.py`` holds them against each other.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from libc.string cimport memcmp, memcpy

cimport cython

import numpy

cdef enum:
    _LARGEST_COMPARED = 1 << 16                 # bytes of a value that a batch shares: as much as a reader compares
    _MOST_ROUTES = 1024                         # with more it begins anew: as many as a reader remembers

cdef type ndarray = numpy.ndarray
cdef object ascontiguousarray = numpy.ascontiguousarray
cdef object empty = numpy.empty


@cython.final
cdef class OrtRun:
    """Runs a session of ONNX Runtime on a list of arrays; without a function of Python's between.

    Args:
        run: of the session: outputs' names, inputs by their names, options -> outputs.
        outputs: names.
        inputs: names, in the order of the arrays.
        options: of a run, or None.
    """
    cdef object run
    cdef list outputs
    cdef tuple inputs
    cdef object options

    def __cinit__(self, run, outputs, inputs, options):
        self.run = run
        self.outputs = list(outputs)
        self.inputs = tuple(inputs)
        self.options = options

    def __call__(self, list arrays not None):
        cdef dict feeds = {}
        cdef Py_ssize_t index
        if len(arrays) != len(self.inputs):     # nobody looks behind the end of a list here
            raise ValueError(f"expected an array for each of {len(self.inputs)} inputs, got {len(arrays)}")
        for index in range(len(self.inputs)):
            feeds[self.inputs[index]] = arrays[index]
        return self.run(self.outputs, feeds, self.options)


@cython.final
cdef class Route:
    """How requests whose arrays have certain shapes and dtypes get into a model. Not changed once it is made."""
    cdef object key                             # of the fit: equal for all that may share a run
    cdef tuple whole                            # of each input, its shape as the model gets it of one request
    cdef tuple shapes                           # of each input, the shape in which it comes
    cdef tuple given                            # and the dtype
    cdef tuple wanted                           # of each input, the dtype in which the model gets it; None: the same
    cdef Py_ssize_t most                        # requests that share a run
    cdef bint is_checked                        # outputs have to have a row for each request
    cdef bint is_taken                          # False: such requests never go this way


@cython.final
cdef class FastPath:
    """Runs batches of requests that have a route.

    Args:
        fits: what a reader has found out, by the shapes and dtypes of a request's arrays.
        names: of the model's inputs, in its order.
        initial: of inputs that are a state, the value with which a sequence begins, in the order of the last outputs.
        input_axes: of each input, the axis of the requests; None: the batch shares it.
        output_axes: of each output, the states last, the same; None: there is one for all.
        runs_alone: every request has a run for itself.
        has_rows: some run has several requests, so outputs are to have a row for each.
        call: runs the model on a list of arrays, and returns a list of its outputs.
        to_rows: makes of a model's outputs such with the requests in front.
        finish: called with outputs and requests, fills these; None: each gets its rows, with the axis of the requests.

    Thread-safety: any thread may call it. The GIL is held, but for what the functions do that it calls.
    """
    cdef dict fits
    cdef dict routes                            # by the same; filled by any thread, two may make the same
    cdef Route latest                           # which the last request had, or None
    cdef tuple names
    cdef dict initial
    cdef Py_ssize_t free                        # how many inputs are no state
    cdef tuple kept                             # names of those that are
    cdef tuple input_axes
    cdef tuple output_axes
    cdef tuple shared                           # indices of inputs that the batch shares
    cdef bint runs_alone
    cdef bint has_rows
    cdef object call
    cdef object to_rows
    cdef object finish

    def __cinit__(self, *, dict fits, names, dict initial, input_axes, output_axes, bint runs_alone, bint has_rows,
                  call, to_rows, finish):
        self.fits = fits
        self.routes = {}
        self.names = tuple(names)
        self.initial = initial
        self.free = len(self.names) - len(initial)
        self.kept = tuple(initial)
        self.input_axes = tuple(input_axes)
        self.output_axes = tuple(output_axes)
        shared = []
        for index, axis in enumerate(self.input_axes):
            if axis is None:
                shared.append(index)
        self.shared = tuple(shared)
        self.runs_alone = runs_alone
        self.has_rows = has_rows
        self.call = call
        self.to_rows = to_rows
        self.finish = finish

    def key(self, request):
        """Return what is equal for requests that may share a run, as ``Sample.key``; None: the reader has to say it."""
        cdef list arrays = _arrays_of(self, <dict>request) if type(request) is dict else None
        cdef Route route = None if arrays is None else _route_of(self, arrays)
        if route is None or not route.is_taken:
            return None
        if self.runs_alone or not self.shared:
            return route.key, False, None
        values = []
        for index in self.shared:
            if arrays[index].nbytes > _LARGEST_COMPARED:
                return None
            values.append(arrays[index].tobytes())
        return route.key, False, tuple(values)

    def run(self, batch, note, check):
        """Run a batch and fill its requests; False: nothing was done, it is for the usual way.

        Args:
            batch: the requests.
            note: called with what ``call`` raises and the arrays.
            check: called with outputs, the requests in front, of which one has not a row for each request, and with how
                many requests these are; raises.

        Raises:
            Exception: what ``call``, ``check`` and ``finish`` raise; then no request's state was changed.
        """
        cdef Py_ssize_t count = len(batch)
        cdef Py_ssize_t states = len(self.kept)
        cdef Route first = None
        cdef Route route
        cdef list arrays
        cdef list taken = []
        cdef list inputs
        cdef list outputs
        if type(batch) is not list:
            return False
        for request in batch:
            if type(request) is not dict:
                return False
            arrays = _arrays_of(self, <dict>request)
            route = None if arrays is None else _route_of(self, arrays)
            if route is None or not route.is_taken:
                return False
            if first is None:
                first = route
            elif route is not first and route.key != first.key:
                return False
            taken.append(arrays)
        if first is None or count > first.most or not _share(self, taken):
            return False
        inputs = _inputs_of(self, first, taken)
        try:
            outputs = self.call(inputs)
        except Exception as error:
            note(error, inputs)
            raise
        if first.is_checked and not _have_rows(self, outputs, count):
            check(self.to_rows(outputs), count)
            return False
        answers = outputs[:len(outputs) - states] if states else outputs
        if self.finish is not None:
            self.finish(answers, list(batch))   # a list of their own: users may write into it
        elif count == 1:
            batch[0]["result"] = answers[0] if len(answers) == 1 else answers
        else:
            _hand_out(self, answers, <list>batch)
        if states:
            _keep(self, outputs[len(outputs) - states:], <list>batch)
        return True


cdef list _arrays_of(FastPath path, dict request):
    """Return what a request has for each input, in the model's order; None: it is anything but NumPy's arrays."""
    cdef PyObject* found = PyDict_GetItemWithError(request, "data")
    cdef object data
    cdef dict state = None
    cdef list arrays
    cdef Py_ssize_t index = 0
    if found == NULL:
        return None
    data = <object>found
    if path.kept:
        found = PyDict_GetItemWithError(request, "state")
        if found == NULL or <object>found is None:
            state = path.initial
        elif type(<object>found) is dict and len(<dict>found) == len(path.kept):
            state = <dict>found
            for name in path.kept:              # another's name in its place would be taken for data
                if name not in state:
                    return None
        else:
            return None
    arrays = []
    if type(data) is ndarray:
        if path.free != 1:
            return None
    elif type(data) is not dict and type(data) is not list and type(data) is not tuple:
        return None
    elif len(data) != path.free:
        return None
    for name in path.names:
        found = NULL
        if state is not None:
            found = PyDict_GetItemWithError(state, name)
        if found != NULL:
            value = <object>found
        elif type(data) is dict:
            found = PyDict_GetItemWithError(<dict>data, name)
            if found == NULL:
                return None
            value = <object>found
        elif type(data) is ndarray:
            value = data
        elif index < len(data):
            value = data[index]
            index += 1
        else:                                   # another thread has taken something out
            return None
        if type(value) is not ndarray:
            return None
        arrays.append(value)
    return arrays


cdef bint _is_of(Route route, list arrays) except -1:
    """Say whether a request's arrays have the shapes and dtypes of a route."""
    cdef Py_ssize_t index
    for index in range(len(arrays)):
        array = arrays[index]
        if array.dtype is not route.given[index] or array.shape != route.shapes[index]:
            return False
    return True


cdef Route _route_of(FastPath path, list arrays):
    """Return the route of a request's arrays; None: no reader has seen their like."""
    cdef list pairs = []
    cdef PyObject* found
    cdef Route route = path.latest              # another thread may set it, while memory for a shape is found
    if route is not None and _is_of(route, arrays):
        return route                            # what comes in a stream has one shape
    for array in arrays:
        pairs.append((array.shape, array.dtype))
    signature = tuple(pairs)
    found = PyDict_GetItemWithError(path.routes, signature)
    if found != NULL:
        route = <Route>found
        path.latest = route
        return route
    fit = path.fits.get(signature)
    if fit is None:
        return None
    if len(path.routes) >= _MOST_ROUTES:
        path.routes.clear()
    return <Route>path.routes.setdefault(signature, _new_route(path, signature, fit))


cdef Route _new_route(FastPath path, tuple signature, object fit):
    cdef Route route = Route.__new__(Route)
    cdef object whole = fit.whole if fit.as_it_comes is None else fit.as_it_comes
    cdef list shapes = []
    cdef list given = []
    cdef list wanted = []
    # The state of a request that brings several rows at once, and what may overflow, is for the usual way.
    route.is_taken = whole is not None and not fit.narrowed and (fit.as_it_comes is None or not path.kept)
    route.key = fit.key
    route.whole = whole
    for (shape, dtype), target in zip(signature, fit.dtypes, strict=True):
        shapes.append(shape)
        given.append(dtype)
        wanted.append(None if dtype == target else target)
    route.shapes = tuple(shapes)
    route.given = tuple(given)
    route.wanted = tuple(wanted)
    route.most = 1 if fit.as_it_comes is not None else fit.profile.max_batch
    route.is_checked = path.has_rows and fit.as_it_comes is None
    return route


cdef bint _share(FastPath path, list taken) except -1:
    """Say whether requests agree on the inputs that they have to share."""
    cdef list first
    cdef list arrays
    if len(taken) == 1 or not path.shared:
        return True
    first = <list>taken[0]
    for arrays in taken[1:]:
        for index in path.shared:
            if arrays[index] is not first[index] and not _are_equal(arrays[index], first[index]):
                return False
    return True


cdef bint _are_equal(object array, object other) except -1:
    """Say whether two arrays have the same bytes; of large ones, nobody looks."""
    cdef Py_buffer one
    cdef Py_buffer two
    cdef bint found
    PyObject_GetBuffer(ascontiguousarray(array), &one, PyBUF_C_CONTIGUOUS)
    try:
        PyObject_GetBuffer(ascontiguousarray(other), &two, PyBUF_C_CONTIGUOUS)
        found = one.len == two.len and one.len <= _LARGEST_COMPARED and memcmp(one.buf, two.buf, one.len) == 0
        PyBuffer_Release(&two)
    finally:
        PyBuffer_Release(&one)
    return found


cdef list _inputs_of(FastPath path, Route route, list taken):
    """Return what the model gets: of one request its own arrays, of several fresh memory."""
    cdef list inputs = []
    cdef list arrays = <list>taken[0]
    cdef tuple shape
    cdef Py_ssize_t index
    for index in range(len(arrays)):
        array = arrays[index]
        axis = path.input_axes[index]
        shape = <tuple>route.whole[index]
        if len(taken) > 1 and axis is not None:
            array = _joined(taken, index, shape, <Py_ssize_t>axis, route.given[index])
            if route.wanted[index] is not None:
                array = array.astype(route.wanted[index])
        else:
            if route.wanted[index] is not None:
                array = array.astype(route.wanted[index])
            if len(shape):                      # of a scalar it would make a vector
                array = ascontiguousarray(array)
            if array.shape != shape:
                array = array.reshape(shape)
        inputs.append(array)
    return inputs


cdef object _joined(list taken, Py_ssize_t index, tuple shape, Py_ssize_t axis, object dtype):
    """Return an input of several requests as one array, C-contiguous, with the requests on an axis.

    Copied with the GIL held throughout: NumPy gives it up for each of many arrays, and may wait for it for 5 ms.
    """
    cdef Py_ssize_t count = len(taken)
    cdef Py_ssize_t outer = 1
    cdef Py_ssize_t inner
    cdef Py_ssize_t row
    cdef Py_ssize_t block
    cdef Py_buffer whole
    cdef Py_buffer part
    for size in shape[:axis]:
        outer *= size
    batch = empty(shape[:axis] + (count,) + shape[axis + 1:], dtype)
    PyObject_GetBuffer(batch, &whole, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    try:
        inner = whole.len // (outer * count) if outer else 0
        for row in range(count):
            PyObject_GetBuffer(ascontiguousarray((<list>taken[row])[index]), &part, PyBUF_C_CONTIGUOUS)
            if part.len == outer * inner:       # as it has the shape of its route, unless another thread has changed it
                for block in range(outer):
                    memcpy(<char*>whole.buf + (block * count + row) * inner, <char*>part.buf + block * inner, inner)
                PyBuffer_Release(&part)
            else:
                PyBuffer_Release(&part)
                raise BufferError("the array of a request was changed while a model was about to read it")
    finally:
        PyBuffer_Release(&whole)
    return batch


cdef bint _have_rows(FastPath path, list outputs, Py_ssize_t count) except -1:
    """Say whether every output that is to have a row for each request has it."""
    cdef Py_ssize_t index
    cdef tuple shape
    for index in range(len(outputs)):
        axis = path.output_axes[index]
        if axis is None:
            continue
        shape = outputs[index].shape
        if len(shape) <= <Py_ssize_t>axis or shape[axis] != count:
            return False
    return True


cdef object _row(object output, object axis, Py_ssize_t number):
    """Return a request's row of an output, a view that keeps the axis; of one that is for all, a copy."""
    if axis is None:
        return output.copy()
    return output[(slice(None),) * axis + (slice(number, number + 1),)]


cdef int _hand_out(FastPath path, list answers, list batch) except -1:
    cdef Py_ssize_t number
    cdef Py_ssize_t index
    cdef list rows
    for number in range(len(batch)):
        rows = []
        for index in range(len(answers)):
            row = _row(answers[index], path.output_axes[index], number)
            rows.append(row)
        batch[number]["result"] = rows[0] if len(rows) == 1 else rows
    return 0


cdef int _keep(FastPath path, list states, list batch) except -1:
    """Give each request the state that a run has left: of several requests copies, so that no batch stays for one."""
    cdef Py_ssize_t number
    cdef Py_ssize_t index
    cdef Py_ssize_t count = len(batch)
    cdef Py_ssize_t before = len(path.output_axes) - len(states)
    cdef list kept = []
    cdef dict state
    for number in range(count):
        state = {}
        for index in range(len(states)):
            array = states[index]
            if count > 1:
                axis = path.output_axes[before + index]
                array = _row(array, axis, number)
                array = array if axis is None else array.copy()
            state[path.kept[index]] = array
        kept.append(state)
    for number in range(count):
        batch[number]["state"] = kept[number]
    return 0
