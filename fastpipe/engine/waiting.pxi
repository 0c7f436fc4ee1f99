# Waiting: who may wait, and how: the main thread wakes up now and then to serve the signals that Python has for it.
#
# Guarantees   What a signal's handler raises is raised here, within SIGNAL_SLICE_NS or so, and the wait is over.
# Assumes      Called with the GIL, which is free while the thread sleeps. Elsewhere than here signals are served only by who stands
#              in line (_stand_in_line): it must step out of that first.

from cpython.exc cimport PyErr_CheckSignals

from fastpipe.engine.chain cimport Chain, chain_go_on, chain_let_go, leave_gate, note_gil_taken
from fastpipe.engine.parking cimport (
    events_leave, events_prepare, events_sleep, is_settling, kernel_now_ns, now_ns, word_unpark, word_wait,
)

from fastpipe.errors import ForkedPipe, PipeError

ctypedef int (*Condition)(object owner) except -1       # what is waited for: 0 as long as it is not so


cdef int check_may_wait(Engine engine) except -1:
    """A callback of a future runs on a worker's thread: if it waited there, the worker could be the one it waits for.

    So does a method of a dict's subclass, while an answer is written, what traces the pipe, and the destructor of a state; its
    thread may even hold an instance.
    """
    if is_settling(<void*>engine):
        raise PipeError("a callback of a future of this pipe must not wait for the pipe, nor must a method of a dict to which "
                        "it writes an answer, nor what traces it (a sampler, an exporter), nor the destructor of a state that "
                        "it drops: they run on the thread that may have to do the work; use submit() there")
    return 0


cdef int check_process(Engine engine) except -1:
    if engine.generation != _generation:
        raise ForkedPipe("this pipe was built before os.fork(), and its threads live in the parent process; "
                         "build a new one in the child")
    return 0


cdef inline int64_t first_slice(int64_t deadline_ns) noexcept nogil:
    """Where a wait of this thread has to end for a look at signals."""
    cdef int64_t slice_end
    if PyThread_get_thread_ident() != _main_thread:
        return deadline_ns
    slice_end = now_ns() + SIGNAL_SLICE_NS
    return slice_end if deadline_ns < 0 or slice_end < deadline_ns else deadline_ns


cdef int wait_for_answer(Walk walk, int64_t deadline_ns) except -1:
    """What wait_for_word does, for a walk's own word: whoever was woken in a chain goes through its gate, and sees to the next."""
    cdef int why
    cdef Chain* chain
    while True:
        with nogil:
            leave_gate()
            why = word_wait(&walk.word, first_slice(deadline_ns), _spin_ns)
            if why == 0 and walk.chain != NULL:
                chain_go_on(walk.chain, walk.sleeper, _longest_lease_ns)
        if why == 0:
            if walk.chain != NULL:
                note_gil_taken()
                chain = walk.chain
                walk.chain = NULL
                chain_let_go(chain)
            return 1
        # What runs on this thread from here on may take as long as it likes: no chain is to count on it.
        if not word_unpark(&walk.word):
            continue                                            # answered meanwhile
        PyErr_CheckSignals()
        if deadline_ns >= 0 and now_ns() >= deadline_ns:
            return 0


cdef int wait_for_word(Word* word, int64_t deadline_ns) except -1:
    """Wait until a word is SET: 1; or until the deadline: 0. Serves signals."""
    cdef int why
    while True:
        with nogil:
            why = word_wait(word, first_slice(deadline_ns), _spin_ns)
        if why == 0:
            return 1
        PyErr_CheckSignals()
        if deadline_ns >= 0 and now_ns() >= deadline_ns:
            return 0


cdef int wait_for(EventCount* events, Condition condition, object owner, int64_t deadline_ns, c_bool by_kernel=False) except -1:
    """Wait until the condition holds, and return what it says; or until the deadline: 0. Serves signals. Needs no memory.

    Whoever makes it true tells ``events`` afterwards. ``by_kernel``: the deadline is one of the kernel's clock, also while
    time is frozen.
    """
    cdef int outcome
    cdef uint32_t epoch
    while True:
        epoch = events_prepare(events)
        outcome = -1
        try:
            outcome = condition(owner)
        finally:
            if outcome < 0:
                events_leave(events)
        if outcome != 0 or (deadline_ns >= 0 and (kernel_now_ns() if by_kernel else now_ns()) >= deadline_ns):
            events_leave(events)
            return outcome
        with nogil:
            events_sleep(events, epoch, first_slice(deadline_ns))
        PyErr_CheckSignals()
