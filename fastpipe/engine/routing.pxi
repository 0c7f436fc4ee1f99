# Routing: which way a request takes through the graph. Filters, joins, maps, sub-graphs, restarts.
#
# Guarantees   No recursion over the length of a graph: what has arrived, and what may run, is put into the turn.
# Assumes      The GIL. ``except -1`` raises what fails the walk.

from cpython.dict cimport PyDict_Copy, PyDict_GetItem

from fastpipe.engine.parking cimport now_ns

from fastpipe.errors import BackendError, NoResult, RestartLimit, UnknownNode, in_brief, keys_in_brief, nearest
from fastpipe.filters import Status
from fastpipe.results import checked_parts


cdef int ask_filter(Engine engine, Visit visit, Turn turn) except -1:
    """Ask the filter of the visit's node, and do as it says. Raises what fails the walk."""
    cdef Node node = visit.node
    cdef int status
    cdef int kind = node.filter_kind
    cdef Exit exit
    if visit.request is None:
        visit.request = _mapped_request(engine, node, visit.walk)
    if kind == FILTER_DEFAULT:
        if visit.way == PASSED_ON:
            kind = FILTER_SWAP if node.sources is None else FILTER_RUN
        else:
            kind = FILTER_SWAP if visit.way == RESTARTED else FILTER_RUN
    if kind == FILTER_RUN:
        status = STATUS_RUN
    elif kind == FILTER_SWAP:
        status = STATUS_RUN if _move_result(visit.request) else STATUS_BREAK
    else:
        status = checked_status(ask_about(visit.walk, turn, node.filter, visit.request), node)
    if turn.observer is not None:
        turn.observer.decided(node.name, part_of(visit.walk), Status(status), visit.request)
    if status != STATUS_RUN and visit.walk.has_room:
        leave_room(visit.walk)                                  # it does not queue where it has entered
        tell_of_room(visit.walk.home)
    if status != STATUS_RUN and node.states is not None:
        go_round(engine, visit, turn)
    if status == STATUS_RUN:
        if node.is_plain:
            turn.ready.append(visit)
            return 0
        if node.states is not None:
            return await_turn(engine, visit, turn)
        return _split_up(engine, visit, turn) if node.subgraph is not None else look_up(engine, visit, turn)
    if status == STATUS_BREAK:
        # Another filter than swap would have it so, whoever left nothing before.
        visit.walk.without = visit.without if kind == FILTER_SWAP else None
        if visit.walk.without is not None:
            _check_result(engine, visit.walk, visit.request)
        return _answer_walk(engine, visit.walk, visit.request, node.name if visit.walk.entry.leaf_count > 1 else None, turn)
    if status == STATUS_ERROR:
        raise BackendError(f"the filter of node {node.name!r} said Error")
    if status == STATUS_SKIP:
        exit = exit_of(engine, visit.walk.entry, node)
    else:
        exit = exit_of_skipped(engine, visit.walk.entry, node, status)
        if turn.observer is not None:
            turn.observer.hidden(exit.hidden, part_of(visit.walk))
    return advance(engine, visit, exit, False, turn)


cdef c_bool _move_result(dict request) except *:
    """What filters.move_result does."""
    cdef PyObject* result = PyDict_GetItem(request, "result")
    if result == NULL:
        return False
    request["data"] = <object>result
    del request["result"]
    return True


cdef c_bool choose_twin(Engine engine, Visit visit, Turn turn) noexcept:
    """Decide where a visit is to run whose node has twins, just before it is queued or run: so loads are what they are.

    False: what says where its data is has failed, and so has its walk.
    """
    cdef Node node = visit.node
    cdef Station station
    try:
        visit.node = twin_for(engine, visit, turn)
        node.station.next_twin = (node.twins.index(visit.node) + 1) % len(node.twins)
    except BaseException as error:
        fail_visit(engine, visit, with_place(error, node), turn)
        return False
    station = visit.node.station
    if visit.way == ENTERED:                                    # its caller is likely to come back to that place
        visit.walk.home = station
        if station.batches:
            station.c_note_arrival(now_ns())
    return True


cdef dict request_of(Engine engine, Visit visit):
    """The dict with which a visit arrives; {} if its node's map cannot be made. It is the visit's own from now on."""
    try:
        if visit.request is None:
            visit.request = _mapped_request(engine, visit.node, visit.walk)
    except KeyError:                                            # ask_filter meets it again, and fails the walk
        return {}
    return visit.request


cdef int ask_filters(Engine engine, Turn turn) noexcept:
    """Ask the filters of all that has arrived, and of what arrives meanwhile: no recursion, however long the graph is."""
    cdef Visit visit
    cdef Py_ssize_t index = 0
    if turn.stepper != NULL:
        return 0
    while index < len(turn.arrived):
        visit = <Visit>turn.arrived[index]
        index += 1
        if is_dead(visit):
            continue
        try:
            ask_filter(engine, visit, turn)
        except BaseException as error:
            fail_visit(engine, visit, with_place(error, visit.node), turn)
        except:  # noqa: E722
            # See _no_memory.
            fail_visit(engine, visit, _no_memory, turn)
    if index > 0:
        turn.arrived.clear()
    return 0


cdef int advance(Engine engine, Visit visit, Exit exit, c_bool has_run, Turn turn) except -1:
    """Send the request on from a node that has run, or from what was skipped. Raises what fails the walk."""
    cdef Walk walk = visit.walk
    cdef Branches branches = walk.branches                      # there, where the exit keeps a dict, or lets go of one
    cdef Node following
    cdef dict answer = visit.request
    cdef Visit onward = visit
    cdef tuple without = visit.without
    cdef int place = -1
    cdef int32_t slot
    if is_dead(visit):
        return note_dropped(visit) if has_run else 0
    for slot in exit.kept:
        if branches.readers[slot] > 0:
            branches.answers[slot] = answer
            branches.has_run[slot] = has_run
    for slot in exit.unread:
        forget_slot(branches, slot)
    if exit.leaves > 0:
        if has_run and without is not None and without[0] is visit.node and (walk.without is None or walk.without[1] == ""):
            walk.without = without                              # a leaf has run, and has none; what was let go excuses no other
        walk.leaves_left -= exit.leaves
        if walk.leaves_left == 0:
            return _leave_graph(engine, walk, answer, turn)
    for following in exit.next:
        place += 1
        if following.parent_count > 1 and branches is not None and branches.pending.size() != 0:
            branches.pending[following.index] -= 1
            if branches.pending[following.index] > 0:
                continue
        if onward is None:
            onward = Visit.__new__(Visit)
            onward.walk = walk
            onward.round = visit.round
        onward.node = following
        onward.without = without if following.sources is None else None
        if following.sources is not None:
            onward.request = None
        elif place == exit.heir:
            onward.request = answer
        else:
            onward.request = PyDict_Copy(answer)
            engine.copies += 1
        onward.way = PASSED_ON
        onward.ticket.arrival_ns = 0
        turn.arrived.append(onward)
        onward = None
    return 0


cdef dict _mapped_request(Engine engine, Node node, Walk walk):
    """The new dict that a node's ``map`` makes of its ancestors' dicts."""
    cdef dict request = {}
    cdef dict source
    cdef tuple indices
    cdef int32_t slot
    for indices, name, keys, names_context in node.sources:
        source = None
        for index in indices:                                   # of several the first that has run; one also if it was skipped
            slot = walk.entry.slots[<int>index]
            if slot >= 0 and (walk.branches.has_run[slot] or len(indices) == 1):
                source = <dict>walk.branches.answers[slot]
                break
        if source is None:
            which = "which did not run" if len(indices) == 1 else "of which none ran"
            raise KeyError(f"the map of node {node.name!r} reads {name!r}, {which} for this request")
        for key_there, key_here in keys:
            if key_there not in source:
                raise KeyError(f"the map of node {node.name!r} reads {key_there!r} from {(<Node>engine.nodes[index]).name!r}, "
                               f"whose keys are {keys_in_brief(source)}")
            request[key_here] = source[key_there]
        if not names_context and "context" in source and "context" not in request:
            request["context"] = source["context"]
    for indices, _, _, _ in node.sources:
        for index in indices:
            slot = walk.entry.slots[<int>index]
            if slot >= 0:                                       # else it cannot be reached from where the request entered
                forget_slot(walk.branches, slot)
    return request


cdef int _leave_graph(Engine engine, Walk walk, dict answer, Turn turn) except -1:
    """All leaves are passed: the answer, or another round. Of several leaves, those that were skipped say nothing."""
    cdef Entry entry = walk.entry
    cdef Node leaf
    cdef str name = None
    cdef int32_t slot
    if entry.leaf_count > 1:
        answer = {}
        for leaf in entry.leaves:
            slot = entry.slots[leaf.index]
            if walk.branches.has_run[slot]:
                if "result" in walk.branches.answers[slot] or "result" not in answer:
                    name = leaf.name                            # of those that ran the last with a result, if one has any
                answer.update(walk.branches.answers[slot])
        if name is None and entry.restart is not None:          # none has run: it goes round as it is
            for leaf in entry.leaves:
                answer.update(walk.branches.answers[entry.slots[leaf.index]])
    if walk.without is not None:
        _check_result(engine, walk, answer)
    if entry.restart is not None and "restart" not in answer:
        return _restart_walk(engine, walk, entry.restart, answer, turn)
    return _answer_walk(engine, walk, answer, name, turn)


cdef int _check_result(Engine engine, Walk walk, dict answer) except -1:
    """Fail a request that ends without a result because a step gave none. A part's whole knows better: it goes on."""
    cdef Node node
    if engine.lets_go or walk.is_part or "result" in answer:
        return 0
    node, part, _ = walk.without
    if part == "":                                              # a filter inside of it would have it so
        return 0
    if walk.deadline_ns >= 0 and now_ns() >= walk.deadline_ns:
        raise late_error(walk)                                  # it gave up, as fastpipe.cancelled() told it to
    raise NoResult(f"node {node.name!r}: step {part or node.backend_name} gave no result, and no step after it did. If "
                   "requests may end so, say without_result = \"end\" in the configuration; to go on with something else, "
                   "put a step with the filter (or) behind it")


cdef int note_result(Engine engine, Visit visit, object backend, Turn turn) noexcept:
    """Note who left a request without a result, once a node has run: ask its backend for the part of it."""
    visit.without = None
    if PyDict_GetItem(visit.request, "result") != NULL:
        return 0
    try:
        visit.without = (visit.node, None, visit.node)
        if backend.why_no_result is not None:
            visit.without = (visit.node, ask_about(visit.walk, turn, backend.why_no_result, visit.request), visit.node)
    except BaseException as error:                              # it cannot say: then it is the backend as a whole
        report(error, backend)
    return 0


cdef int _answer_walk(Engine engine, Walk walk, dict answer, str leaf, Turn turn) except -1:
    """The graph has ended for this request, of several leaves at ``leaf``: finish, or start again where its dict says."""
    cdef PyObject* restart = PyDict_GetItem(answer, "restart")
    if restart != NULL:
        name = <object>restart
        del answer["restart"]
    if restart == NULL or "result" not in answer:
        if leaf is not None:
            answer[_ANSWERED_BY] = leaf
        return finish_walk(engine, walk, answer, turn)
    node = engine.node_named.get(name) if isinstance(name, str) else None
    if node is None:
        raise UnknownNode(f"request['restart'] is {in_brief(name)}, and no node has that name{nearest(name, engine.node_named)}")
    return _restart_walk(engine, walk, <Node>node, answer, turn)


cdef int _restart_walk(Engine engine, Walk walk, Node node, dict answer, Turn turn) except -1:
    """Enter again, at ``node``: a new round, which shares nothing with the last but its dict."""
    cdef Visit visit
    if walk.entered_again is None:
        walk.entered_again = {}
    count = walk.entered_again[node.index] = walk.entered_again.get(node.index, 0) + 1
    if count > node.restart_limit:
        raise RestartLimit(f"the request entered again at node {node.name!r} for the {count}th time, and its "
                           f"restart_limit is {node.restart_limit}; does a filter let it out (Break)?")
    visit = Visit.__new__(Visit)
    visit.without = None if "result" in answer else walk.without
    walk.restarts += 1
    walk.entry = entry_at(engine, node)
    start_round(walk)
    if walk.standing is not None:
        leave_sequences(engine, walk, turn)
    visit.walk = walk
    visit.round = walk.restarts
    visit.node = node
    visit.request = answer
    visit.way = RESTARTED
    if walk.entry.stateful is not None:
        stand_in(visit)
    turn.arrived.append(visit)
    if turn.observer is not None:
        turn.observer.restarted(node.name, part_of(walk), count)
    return 0


cdef int _split_up(Engine engine, Visit visit, Turn turn) except -1:
    """Send the parts of a sub-graph node on their way. Raises what fails the walk."""
    cdef Node node = visit.node
    cdef Gather gather
    cdef Walk part
    cdef int index
    if not claim(engine, visit, turn):
        return 0
    if len(part_of(visit.walk)) > len(engine.nodes):            # only a loop leads so deep
        raise RestartLimit(f"node {node.name!r}: parts within parts without end: a restart leads from the inside of a "
                           "sub-graph back to the node that jumps there")
    parts = checked_parts(ask_about(visit.walk, turn, node.subgraph.split, visit.request), f"split() of node {node.name!r}")
    gather = Gather.__new__(Gather)
    gather.visit = visit
    gather.left = len(parts)
    gather.answers = [None] * gather.left
    if gather.left == 0:
        return _merge_parts(engine, gather, turn)
    for index, request in enumerate(parts):
        part = new_walk(engine, node.jump, request, SINK_GATHER, gather)
        part.sink_index = index
        part.started = True
        start_part(part, turn)
    return 0


cdef int start_part(Walk part, Turn turn) except -1:
    """Send a part on its way, in a dict of its own: keys that a map leaves behind must not be found in the answer."""
    cdef Visit visit = Visit.__new__(Visit)
    visit.walk = part
    visit.node = part.entry.node
    visit.request = PyDict_Copy(part.request)
    visit.way = ENTERED
    if part.entry.stateful is not None:
        stand_in(visit)
    turn.arrived.append(visit)
    return 0


cdef int _merge_parts(Engine engine, Gather gather, Turn turn) except -1:
    """All parts are there: make them one answer and go on. Raises what fails the walk."""
    cdef Visit visit = gather.visit
    if is_dead(visit):
        return 0
    turn.ended_ns = 0                                           # it may take a while
    ask_about(visit.walk, turn, visit.node.subgraph.merge, visit.request, gather.answers)
    visit.without = None
    if "result" not in visit.request:
        visit.without = (visit.node, "" if gather.has_let_go else None, visit.node)
        if gather.without is not None:
            visit.without = (visit.node, step_in_words(gather.without), gather.without[2])
    return advance(engine, visit, exit_of(engine, visit.walk.entry, visit.node), True, turn)


cdef int part_ended(Engine engine, Walk part, Turn turn) noexcept:
    """File a part's outcome with the node that waits for it."""
    cdef Gather gather = <Gather>part.sink
    cdef Node node = gather.visit.node
    gather.left -= 1
    try:
        if part.error is None:
            gather.answers[part.sink_index] = part.request
            if "result" not in part.request:
                if part.without is None or part.without[1] == "":
                    gather.has_let_go = True
                elif gather.without is None:
                    gather.without = part.without
        elif node.subgraph.keeps_failures:
            gather.answers[part.sink_index] = part.error
        else:
            note_part(part, node)
            return fail_visit(engine, gather.visit, part.error, turn)
        if gather.left == 0:
            _merge_parts(engine, gather, turn)
    except BaseException as error:
        fail_visit(engine, gather.visit, with_place(error, node), turn)
    except:  # noqa: E722
        # See _no_memory.
        fail_visit(engine, gather.visit, _no_memory, turn)
    return 0


cdef Node twin_for(Engine engine, Visit visit, Turn turn):
    """Where a request is to run: where its data is; if that is nowhere or has no instance, where there is least to do."""
    cdef Node node = visit.node
    cdef Node twin
    cdef Position position = position_of(visit) if visit.is_in_sequence else None
    if position is not None and position.sequence.state is not None:
        twin = <Node>node.twin_at.get(position.sequence.place)  # where its state was made
        if twin is not None and twin.station.lost is None:
            return twin
    if node.place_of is not None:
        place = ask_about(visit.walk, turn, node.place_of, visit.request)
        if place is not None:
            twin = <Node>node.twin_at.get(place)
            if twin is not None:
                return twin
    return _least_busy(node)


cdef Node _least_busy(Node node):
    """The twin with the fewest requests for each instance in service, of those that are not lost; of several the next in turn.

    Where none is in service, requests wait until one is built again: it is passed over while there is another place.
    """
    cdef Node best = _least_busy_of(node, True)
    if best is None:
        best = _least_busy_of(node, False)
    return <Node>node.twins[0] if best is None else best


cdef Node _least_busy_of(Node node, c_bool in_service):
    """The same by the instances in service, or by all there should be; None: there is no such twin."""
    cdef Node best = None
    cdef Station station
    cdef int64_t outstanding
    cdef int64_t least = 0
    cdef int64_t instances
    cdef int64_t of_best = 1                                    # its instances
    cdef Py_ssize_t count = len(node.twins)
    cdef Py_ssize_t i
    for i in range(count):
        twin = node.twins[(node.station.next_twin + i) % count]
        station = (<Node>twin).station
        instances = station.in_service if in_service else station.instance_count
        if station.lost is not None or instances == 0:
            continue
        outstanding = count_present(<PyObject*>station) - station.ghosts
        if best is None or outstanding * of_best < least * instances:
            best = <Node>twin
            least = outstanding
            of_best = instances
    return best
