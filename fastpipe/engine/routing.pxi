# Routing: which way a request takes through the graph. Filters, joins, maps, sub-graphs, restarts.
#
# Guarantees   No recursion over the length of a graph: what has arrived, and what may run, is put into the turn.
# Assumes      The GIL. ``except -1`` raises what fails the walk.

cdef Node _twin_for(Engine engine, Node node, object request):
    """Where a request is to run: where its data is; if that is nowhere or has no instance, where there is least to do."""
    cdef Node twin
    if node.place_of is not None:
        place = _enter_user_code(<void*>engine, node.place_of, request)
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
        outstanding = _present(<PyObject*>station) - station.ghosts
        if best is None or outstanding * of_best < least * instances:
            best = <Node>twin
            least = outstanding
            of_best = instances
    return best
