# Contents: a key that two requests share exactly if they contain the same.
#
# Guarantees   Equal keys, equal contents: of what is short exactly, else as far as BLAKE2b with a secret key of 256 bits goes, so
#              that nobody outside can look for two contents with one digest. Types count: 1, 1.0 and True differ, as do -0.0 and
#              0.0; a NaN is itself. The order of a request's own keys does not count, that of a dict in it does.
# Assumes      The GIL, which hashing many bytes lets go. May raise what a value raises when it is looked at.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy
from libcpp.string cimport string

from fastpipe.contents import library_content

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int*) except? -1

cdef enum:
    _DIGEST_BYTES = 32
    _LARGE_BYTES = 2048                          # a value of so many bytes is not copied on its way to the hash
    _SHORT_BYTES = 2048                          # what has no more is its own key: hashing it well would take ten times as long
    _MOST_LEVELS = 64                            # of lists in lists; what is deeper has no key


@cython.final
cdef class _Content:
    """What was read of a request so far: in words that none begins as another, each with its type and its length."""
    cdef string words                            # which are not hashed yet
    cdef object hasher                           # None until something is large
    cdef object template
    cdef c_bool may_change                       # some value can be changed in place

    cdef void c_head(self, char kind, int64_t length) noexcept:
        self.words.push_back(kind)
        self.words.append(<const char*>&length, sizeof(length))

    cdef int c_add(self, char kind, object data, const char* start, Py_ssize_t length) except -1:
        """Add bytes, which ``data`` owns."""
        self.c_head(kind, length)
        if length < _LARGE_BYTES:
            self.words.append(start, length)
            return 0
        self.c_hash_words()
        self.hasher.update(data)
        return 0

    cdef int c_hash_words(self) except -1:
        if self.hasher is None:
            self.hasher = self.template.copy()
        self.hasher.update(<bytes>self.words)
        self.words.clear()
        return 0

    cdef bytes c_key(self):
        """The words themselves if they are short, else a digest, which begins as no word does."""
        if self.hasher is None and self.words.size() <= _SHORT_BYTES:
            return <bytes>self.words
        self.c_hash_words()
        return b"\0" + <bytes>self.hasher.digest()


cdef _Content content_of(object request, object choice, object template):
    """What a request contains under the chosen keys, None: all; or None, if there is something that has no key."""
    cdef _Content content = _Content.__new__(_Content)
    cdef object names = choice
    content.template = template
    if names is None:
        names = request if len(request) == 1 else sorted(request)
    for name in names:
        if name in request and not (_read(content, name, 0) and _read(content, request[name], 0)):
            return None
    return content


cdef _Content content_of_value(object value, object template):
    """The same of what a function of users has returned."""
    cdef _Content content = _Content.__new__(_Content)
    content.template = template
    return content if _read(content, value, 0) else None


cdef c_bool _read(_Content content, object value, int level) except *:
    """Add a value; False: it has no key."""
    cdef int overflow
    cdef int64_t integer
    cdef double number
    kind = type(value)
    if kind is bytes:
        return not content.c_add(c"b", value, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if kind is str:
        value = (<str>value).encode("utf-8", "surrogatepass")
        return not content.c_add(c"s", value, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if kind is int:
        integer = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0:
            content.c_head(c"i", integer)
            return True
        value = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return not content.c_add(c"I", value, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if kind is float:
        number = value
        memcpy(&integer, &number, sizeof(integer))
        content.c_head(c"f", integer)
        return True
    if value is None or kind is bool:
        content.c_head(c"N" if value is None else c"T" if value else c"F", 0)
        return True
    if level >= _MOST_LEVELS:
        return False
    return _read_more(content, value, kind, level)


cdef c_bool _read_more(_Content content, object value, object kind, int level) except *:
    """The same of what is larger, or rarer."""
    if kind is tuple:
        return _read_all(content, c"t", value, level)
    if kind is complex:
        return _read_all(content, c"c", (value.real, value.imag), level)
    content.may_change = True
    if kind is list:
        return _read_all(content, c"l", tuple(<list>value), level)
    if kind is dict:
        items = list((<dict>value).items())
        content.c_head(c"d", len(items))
        for key, item in items:
            if not (_read(content, key, level + 1) and _read(content, item, level + 1)):
                return False
        return True
    if kind is bytearray:
        value = bytes(value)
        return not content.c_add(c"B", value, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    found = library_content(value)
    if found is None:
        return False
    head, data = found
    content.c_add(c"x", head, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
    content.c_hash_words()                                      # the shape and the dtype say how many bytes follow
    content.hasher.update(data)
    return True


cdef c_bool _read_all(_Content content, char kind, tuple items, int level) except *:
    content.c_head(kind, len(items))
    for item in items:
        if not _read(content, item, level + 1):
            return False
    return True
