# The compiled graph: nodes, the ways in and out of them, the backends' instances.
#
# Guarantees   Built once, by a Pipe, and read-only afterwards, but for the tables of exits, which fill as requests pass, and what
#              a node's instances are asked, which is always asked of those that serve (GIL).

cimport cython

from fastpipe.filters import Status


cdef Entry entry_at(Engine engine, Node node):
    cdef Entry made
    cdef Entry entry = <Entry>engine.entries.get(node.name)
    if entry is None:                                           # nobody has entered here before
        made = Entry(engine.graph.entry(node.index), engine.nodes, engine.gate)
        entry = engine.entries.setdefault(node.name, made)
        if entry is made:                                       # nobody was faster
            for line in dict.fromkeys((made.line, made.inner_line)):
                for gate in (<Line>line).gates if line is not None else ():
                    (<Station>gate).lines.append(line)
    return entry


cdef Exit exit_of(Engine engine, Entry entry, Node node):
    """How a request that entered at ``entry`` leaves ``node``, once that has run, or is skipped alone."""
    cdef Exit exit = <Exit>entry.exits[node.index]
    if exit is None:
        exit = entry.exits[node.index] = Exit(entry.plan.exit(node.index), engine.nodes)
    return exit


cdef Exit exit_of_skipped(Engine engine, Entry entry, Node node, int status):
    """The same of a request that skips what comes with the node, too: SerialSkip or SubGraphSkip."""
    cdef Exit exit = <Exit>entry.skips.get((node.index, status))
    if exit is None:
        exit = Exit(entry.plan.exit(node.index, Status(status)), engine.nodes)
        entry.skips[node.index, status] = exit
    return exit


@cython.final
cdef class Instance:
    """One object of a node's backend."""

    def __init__(self, object backend, int index):
        self.backend = backend
        self.forward = backend.forward
        self.index = index
        self.retry_alone = backend.retry_alone
        self.keeps_input = backend.keeps_input
        self.padding_counts = tuple(backend.padding_counts)
        self.has_padding = len(self.padding_counts) > 0


@cython.final
cdef class Node:
    """A node of the compiled graph."""

    def __init__(self, str name, int index, Station station, list instances, str backend_name, *, object filter,
                 str filter_kind, object bucket, object weigh, object length_of, object subgraph, object sources, int parent_count,
                 int restart_limit):
        self.name = name
        self.index = index
        self.station = station
        self.instances = instances
        self.backend_name = backend_name
        self.filter = filter
        self.filter_kind = {"default": FILTER_DEFAULT, "run": FILTER_RUN, "swap": FILTER_SWAP, "call": FILTER_CALL}[filter_kind]
        self.bucket = bucket
        self.weigh = weigh
        self.length_of = length_of
        self.subgraph = subgraph
        self.cache = None if station is None else station.cache
        self.is_plain = subgraph is None and self.cache is None
        self.sources = sources
        self.parent_count = parent_count
        self.restart_limit = restart_limit

    def set_twins(self, tuple twins, object place_of):
        """Say that its instances are at several places: the node itself at each; called once, while building."""
        self.twins = twins
        self.twin_at = {(<Node>twin).station.place: twin for twin in twins}
        self.place_of = place_of

    def ask(self, object backend, object bucket):
        """Have a backend and no other say what a request weighs, where its data is, and, unless the node does, its bucket."""
        self.bucket = backend.bucket if bucket is None else bucket
        self.weigh = backend.weigh
        self.length_of = backend.length_of
        if self.twins is not None:
            self.place_of = backend.place_of

    def set_jump(self, Entry entry):
        """Say where the parts of a sub-graph node enter; called once, while building."""
        self.jump = entry


cdef tuple _nodes_at(tuple nodes, object indices):
    cdef list chosen = []
    for index in indices:
        chosen.append(nodes[index])
    return tuple(chosen)


@cython.final
cdef class Exit:
    """How a request leaves a node, or a skipped part of the graph: a graph.Exit for fast reading."""

    def __init__(self, plan, tuple nodes):
        self.hidden = tuple([(<Node>nodes[index]).name for index in plan.hidden])
        for slot in plan.kept:
            self.kept.push_back(slot)
        for slot in plan.unread:
            self.unread.push_back(slot)
        self.next = _nodes_at(nodes, plan.next)
        self.heir = plan.heir
        self.leaves = plan.leaves


@cython.final
cdef class Entry:
    """A place where requests may enter the graph: a graph.Entry for fast reading."""

    def __init__(self, plan, tuple nodes, Station gate=None):
        self.plan = plan
        self.node = nodes[plan.node]
        for count in plan.pending:
            self.pending.push_back(count)
        for index in range(len(nodes)):
            self.slots.push_back(plan.slots.get(index, -1))
        for count in plan.readers:
            self.readers.push_back(count)
        self.leaves = _nodes_at(nodes, plan.leaves)
        self.leaf_count = len(self.leaves)
        self.restart = None if plan.restart is None else nodes[plan.restart]
        stations = [(<Node>nodes[index]).station for index in sorted(plan.reached) if (<Node>nodes[index]).station is not None]
        gates = tuple([station for station in dict.fromkeys(stations) if (<Station>station).c_is_limited()
                       and ((<Station>station).when_full == BLOCK or station is self.node.station)])
        home = self.node.station if self.node.station in gates else None
        if gate is not None:
            self.line = Line((gate, *gates), home, gate)
            self.inner_line = Line(gates, home, None)
        elif gates:
            self.line = self.inner_line = Line(gates, home, None)
        self.exits = [None] * len(nodes)
        self.skips = {}
