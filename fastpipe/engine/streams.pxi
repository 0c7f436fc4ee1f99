# Streams: chunks of an answer, handed on while the rest is being made. A backend emits them, and waits where a reader is slow.
#
# Guarantees   A chunk is handed on once, in the order in which its backend emitted it, and only while its request is wanted. A
#              backend that waits for room holds no GIL; it goes on when there is room, or when the request has ended, however.
#              That wait is not the backend's: the watchdog looks away meanwhile, and each chunk begins its time anew.
# Assumes      The GIL. Only workers run backends that emit (Station.may_stream): whoever waits here is no caller of the pipe.

cimport cython
from cpython.exc cimport PyErr_CheckSignals

from fastpipe.engine.parking cimport FOREVER, Frame, enter_frame, innermost_frame, leave_frame, now_ns, word_wait

from fastpipe.errors import BackendError, PipeError

# What StreamReader.take returns where there is no chunk.
NOT_YET = object()
ENDED = object()


cdef Frame* _frame_of_batch() noexcept:
    """The frame of the batch that this thread runs; NULL: it runs none."""
    cdef Frame* frame = innermost_frame()
    cdef const void* greenlet = current_greenlet()
    while frame != NULL and (frame.batch == NULL or frame.greenlet != greenlet):
        frame = frame.outer
    return frame


cdef ChunkStream _stream_of(Visit visit):
    """Where the chunks of a visit go; None: nobody reads them."""
    sink = root_of(visit.walk).sink
    return <ChunkStream>sink if type(sink) is ChunkStream else None


cdef Visit _visit_for(object request, str function):
    """Which of the batch that this thread runs a request is. Raises what tells the author of a backend what is wrong."""
    cdef Frame* frame = _frame_of_batch()
    cdef Visit visit
    if frame == NULL:
        raise PipeError(f"{function}() is for a backend's forward(), and none runs on this thread. A backend that hands its work to "
                        "other threads takes the chunks from them, and emits them itself")
    visit = find_visit(request)
    if visit is None:
        raise PipeError(f"{function}() is for a request of the batch that the calling thread runs, and this is none of the dicts in "
                        "that batch")
    if not visit.node.station.streams:
        raise BackendError(f"node {visit.node.name!r}: backend {visit.node.backend_name} emits chunks and does not say so: set "
                           "streams = True in its class")
    check_process(visit.walk.engine)
    return visit


# ---- while a watchdog looks ------------------------------------------------------------------------------------


cdef tuple _guard_of(Visit visit):
    """(the turn, the instance) of a batch at which a watchdog looks; None: none does, or the batch was given up."""
    cdef Station station = visit.node.station
    cdef Py_ssize_t index
    if station.hang_ns == 0:
        return None
    for index in range(len(station.held)):
        held = station.held[index]
        if held is not None and is_among(visit, <list>(<tuple>held)[0]):
            return (<tuple>held)[1], index
    return None


cdef c_bool _keep(Visit visit, tuple guard, int64_t since) noexcept:
    """Tell the watchdog that a batch is alive; False: it was given up (E8)."""
    return guard is None or keep_batch(visit.node.station, <int>guard[1], <Turn>guard[0], since)


# ---- emitting --------------------------------------------------------------------------------------------------


def emit(request, chunk) -> bool:
    """Inside a backend's ``forward``: hand on a part of a request's answer, while the rest is being made.

    Where somebody reads the request's stream (``pipe.stream``, ``pipe.astream``) and is slow, this waits for room, without
    the GIL, until there is some or the request has ended. Of a request that was simply called the chunk is dropped: its
    answer is what ``forward`` leaves in it.

    Returns:
        False: nobody waits for the request any more (it was cancelled, its time is over, its reader has left, the pipe
        was closed without waiting). The chunk is dropped; what is done for the request from here on is for nothing.

    Raises:
        PipeError: no backend runs on this thread, or its batch does not hold this very dict.
        BackendError: the backend's class does not say ``streams = True``.
    """
    cdef Visit visit = _visit_for(request, "emit")
    cdef ChunkStream stream
    while True:
        if is_unwanted(visit) or not _keep(visit, _guard_of(visit), now_ns()):
            return False
        stream = _stream_of(visit)
        if stream is None or not stream.c_is_full():
            return _put(visit, stream, chunk)
        _wait_for_room([visit])


def try_emit(request, chunk) -> bool:
    """What ``emit`` does, but without waiting: False as well if there is no room for the chunk now.

    For a ``forward`` that works on several requests by turns: a slow reader of one need not stop the others. Ask
    ``fastpipe.cancelled(request)`` which it was; where none has room, ``wait_for_room``.
    """
    cdef Visit visit = _visit_for(request, "try_emit")
    cdef ChunkStream stream = _stream_of(visit)
    if is_unwanted(visit) or (stream is not None and stream.c_is_full()) or not _keep(visit, _guard_of(visit), now_ns()):
        return False
    return _put(visit, stream, chunk)


def wait_for_room(requests) -> None:
    """Inside a backend's ``forward``: wait, without the GIL, until ``emit`` would not wait for one of these requests.

    That is so as well once nobody waits for one of them any more.
    """
    cdef list visits = list(requests)
    cdef Py_ssize_t index
    for index in range(len(visits)):
        visits[index] = _visit_for(visits[index], "wait_for_room")
    if visits:
        _wait_for_room(visits)


def finish(backend, request) -> bool:
    """Inside a backend's ``forward``: a request is done, and need not wait for the others of its batch.

    Its outcome is what it holds now: it goes on to the next node, or its caller is told, while ``forward`` goes on with the
    others. From here on its dict is not the backend's any more.

    Args:
        backend: the one whose ``forward`` this is called in: ``self``.
        request: the very dict that it was given.

    Returns:
        False: it stays until ``forward`` returns, because the backend is a part of another one, which goes on with it, or
        because it is run step by step. Nothing has happened.

    Raises:
        PipeError, BackendError: as of ``emit``.
    """
    return _finish(backend, request, None)


cdef c_bool _is_whole(object backend, Node node) except *:
    """True if it is one of the node's backends, and not a part of one."""
    cdef Instance instance
    for instance in node.instances:
        if instance.backend is backend:
            return True
    return False


def _finish(backend, request, list failed) -> bool:
    """The same; ``failed`` holds what the request has failed with, and is emptied: nobody else keeps that, as a rule."""
    cdef Visit visit = _visit_for(request, "finish")
    cdef Engine engine = visit.walk.engine
    cdef Visit onward
    cdef Turn turn
    cdef Frame* frame = _frame_of_batch()
    cdef int count = len(<list>frame.batch)
    if visit.stepper is not None or not _is_whole(backend, visit.node):
        return False
    if visit.has_left or is_dead(visit) or not _keep(visit, _guard_of(visit), now_ns()):
        return True                                             # it is filed with the batch, which may have been given up
    turn = Turn.__new__(Turn)
    turn.is_workers = turn.is_elsewhere = True
    onward = Visit.__new__(Visit)                               # the other one goes down with the batch
    onward.walk = visit.walk
    onward.node = visit.node
    onward.request = visit.request
    onward.round = visit.round
    onward.way = visit.way
    if visit.is_in_sequence:
        pass_turn(visit, onward)
    note_gone(onward)
    visit.has_left = True
    visit.is_held = False
    if failed is not None:
        error = failed.pop()
        onward.node.station.requests_failed += 1
        number = _number_of(onward, backend)
        fail_visit(engine, onward, with_batch(error if Py_REFCNT(error) == 1 else copy_of(error), onward, number, count), turn)
    else:
        note_result(engine, onward, backend, turn)
        send_on(engine, onward, turn)
    enqueue_all(engine, turn)
    frame = enter_frame(<void*>engine, True, current_greenlet())
    settle(engine, turn)
    leave_frame(frame)
    turn.wake()
    if turn.death is not None:
        note_interrupt(None, turn.death)
    return True


cdef int _number_of(Visit visit, object backend) except -1:
    """Which of its node's instances a backend is."""
    cdef Instance instance
    for instance in visit.node.instances:
        if instance.backend is backend:
            return visit.node.station.numbers[instance.index]
    return 0


cdef c_bool _put(Visit visit, ChunkStream stream, object chunk) except *:
    if stream is None:
        return True
    stream.chunks.append(chunk)
    stream.emitted += 1
    visit.has_emitted = True
    if not stream.c_tell(None):
        _leave(visit.walk.engine, stream)                       # its event loop is closed
        return False
    return True


cdef int _wait_for_room(list visits) except -1:
    """Wait until one of some visits has room for a chunk, or is unwanted."""
    cdef Visit visit = <Visit>visits[0]
    cdef Engine engine = visit.walk.engine
    cdef ChunkStream stream
    cdef Pause pause = Pause.__new__(Pause)
    cdef tuple guard
    cdef list streams = []
    for visit in visits:
        stream = _stream_of(visit)
        if stream is None or is_unwanted(visit) or not stream.c_is_full():
            return 0
        if stream.cannot_be_read:
            return _fail_unread(visit.walk.engine, stream)
        streams.append(stream)
    guard = _guard_of(visit)
    if not _keep(visit, guard, ON_HOLD):
        return 0
    try:
        for stream in streams:
            stream.blocked.append(pause)
        _park(engine, pause, streams)
    finally:
        for stream in streams:
            take_out(stream.blocked, pause)
        if guard is not None:
            begin_batch(visit.node.station, <int>guard[1], <Turn>guard[0], now_ns())
    return 0


cdef int _park(Engine engine, Pause pause, list streams) except -1:
    """Sleep until one of the streams says so. Their event loops may close meanwhile, and tell nobody."""
    cdef ChunkStream stream
    cdef int64_t until = FOREVER
    cdef int why
    while True:
        for stream in streams:
            if stream.loop is not None:
                until = now_ns() + CLOSED_LOOP_SLICE_NS
                if stream.loop.is_closed() or not stream.c_tell(None):
                    _leave(engine, stream)
        with nogil:
            why = word_wait(&pause.word, first_slice(until), _spin_ns)
        if why == 0:
            return 0
        PyErr_CheckSignals()


cdef int _leave(Engine engine, ChunkStream stream) noexcept:
    """Nobody reads any more: give the request up."""
    stream.is_left = True
    stream.c_release()
    return 0 if stream.walk is None else cancel_walk(engine, stream.walk)


cdef int _fail_unread(Engine engine, ChunkStream stream) except -1:
    """Fail a request whose reader waits for its end, in close(), with a full buffer: it would be for ever."""
    cdef Turn turn = Turn.__new__(Turn)
    if stream.walk is not None:
        fail_walk(engine, stream.walk, closed_error("the pipe was closed by the reader of this stream, which had not come to its "
                                                    "end"), turn)
        settle(engine, turn)
        turn.wake()
        turn.c_report_interrupt()
    return 0


cdef int leave_streams(Engine engine, object task) noexcept:
    """The reader of some streams is about to wait for the end of their requests: this thread, or a task.

    They go on as long as there is room for their chunks: then they fail.
    """
    cdef unsigned long thread = PyThread_get_thread_ident()
    cdef PyObject* each = engine.newest
    cdef ChunkStream stream
    while each != NULL:
        if (<Walk>each).sink_kind == SINK_STREAM:
            stream = <ChunkStream>(<Walk>each).sink
            if stream.reader_thread == thread if task is None else (stream.reader_task is not None
                                                                    and stream.reader_task() is task):
                stream.cannot_be_read = True
                stream.c_release()
        each = (<Walk>each).older
    return 0


cdef Progress give_streams(list walks, list splits, list requests):
    """Have parts, which a backend runs for the requests of its batch, emit into the streams of those whose parts they are.

    None: nobody reads any of them.
    """
    cdef Progress progress = None
    cdef Visit visit
    cdef ChunkStream stream
    cdef Py_ssize_t start = 0
    for parts, request in zip(splits, requests, strict=True):
        visit = find_visit(request)
        stream = None if visit is None else _stream_of(visit)
        if stream is not None:
            for walk in walks[start:start + len(parts)]:
                (<Walk>walk).sink = stream
            if progress is None:
                progress = Progress.__new__(Progress)
                progress.visits = []
                progress.emitted = []
            progress.visits.append(visit)
            progress.emitted.append(stream.emitted)
        start += len(parts)
    return progress


@cython.final
cdef class Progress:
    """Whether parts, which the batch of a backend waits for, have emitted or wait for a reader."""

    cdef int c_look(self) except -1:
        """If they have, that batch is alive, too; and must not run again."""
        cdef Visit visit
        cdef ChunkStream stream
        cdef Py_ssize_t index
        for index in range(len(self.visits)):
            visit = <Visit>self.visits[index]
            stream = _stream_of(visit)
            if stream is None:
                continue
            if stream.emitted != self.emitted[index]:
                visit.has_emitted = True
            elif not stream.blocked:
                continue
            self.emitted[index] = stream.emitted
            _keep(visit, _guard_of(visit), now_ns())
        return 0


# ---- reading ---------------------------------------------------------------------------------------------------


cdef StreamReader new_reader(Engine engine, Py_ssize_t limit):
    cdef StreamReader reader = StreamReader.__new__(StreamReader)
    reader.engine = engine
    reader.stream = ChunkStream.__new__(ChunkStream, limit)
    return reader


@cython.final
cdef class StreamReader:
    """The chunks of one request's answer, in the order in which they come; what ``pipe.stream`` returns.

    Iterate over it; ``close()``, the end of a ``with`` block, or dropping it, before the end, cancels the request. Any
    threads may read: each chunk goes to one of them.
    """

    def __iter__(self):
        return self

    def __next__(self):
        """Wait for the next chunk. Serves signals: what a handler raises cancels the request."""
        cdef ChunkStream stream = self.stream
        if stream is None:                                      # nobody's: only the pipe makes one that has a stream
            raise StopIteration
        check_process(self.engine)
        try:
            while not stream.chunks and not stream.has_ended:
                check_may_wait(self.engine)
                self.c_wait()
        except BaseException:
            self.close()
            raise
        if not stream.chunks:
            self.c_outcome(False)
            raise StopIteration
        stream.reader_thread = PyThread_get_thread_ident()
        stream.cannot_be_read = False
        return stream.c_take()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        """Leave: what was not read is dropped, and the request is cancelled if it has not ended. May be called again."""
        cdef ChunkStream stream = self.stream
        if stream is None or self.engine.generation != _generation:  # in the child of a fork it is the parent's
            return
        stream.is_left = True
        stream.error = None
        if stream.waiter is not None and stream.walk is None:
            stream.waiter.cancel()
            stream.waiter = None
        _leave(self.engine, stream)
        stream.has_ended = True
        stream.chunks.clear()

    cdef int c_wait(self) except -1:
        """Sleep until there is news. In a backend of this pipe, raise CallLoop if that would be for ever."""
        cdef ChunkStream stream = self.stream
        cdef tuple wait = None
        if innermost_frame() != NULL and stream.walk is not None:
            wait = backends_here(self.engine, stream.walk)
        if wait is None:
            wait_for(&stream.news, _has_news, stream, FOREVER)
            return 0
        self.engine.waits_inside.append(wait)
        try:
            while not wait_for(&stream.news, _has_news, stream, now_ns() + CALL_LOOP_SLICE_NS):
                error = find_call_loop(self.engine, wait)
                if error is not None:
                    raise error
        finally:
            take_out(self.engine.waits_inside, wait)
        return 0

    cdef object c_outcome(self, c_bool is_awaited):
        """Raise what the request has failed with, once."""
        error = self.stream.error
        self.stream.error = None
        if error is not None:
            try:
                raise _as_raised(error, is_awaited)
            finally:
                del error                                       # the traceback holds the reader: no cycle

    # ---- for coroutines: _streams.py -------------------------------------------------------------------------------

    @property
    def waiter(self):
        """Who waits for room for the request, or None."""
        return self.stream.waiter

    def take(self):
        """The next chunk, NOT_YET, or ENDED; raises what the request has failed with."""
        cdef ChunkStream stream = self.stream
        check_process(self.engine)
        if stream.chunks:
            return stream.c_take()
        if not stream.has_ended:
            return NOT_YET
        self.c_outcome(True)
        return ENDED

    def listen(self, future):
        """Have a future of the loop settled once there is news; False: there is some."""
        cdef ChunkStream stream = self.stream
        if stream.mailbox.first is not None:                    # a callback may have been lost, where asyncio has no memory for it
            stream.mailbox.deliver()
        if stream.chunks or stream.has_ended:
            return False
        stream.waiting = future
        return True


cdef int _has_news(object stream) except -1:
    return 1 if (<ChunkStream>stream).chunks or (<ChunkStream>stream).has_ended else 0
