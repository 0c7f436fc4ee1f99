// What wheels bring along because libstdc++ has it only since GCC 11 and 12, and manylinux_2_28 admits what GCC 8 had.
//
// GCC's headers call these two functions. Their bodies are those of libstdc++; releasing/exports.map keeps them inside of
// each module. (The compiler of the manylinux images has the same in its libstdc++_nonshared.a.) If another one is needed some
// day, auditwheel names its version, and `make wheels` fails.
#include <condition_variable>
#include <mutex>
#include <new>

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

void condition_variable::wait(unique_lock<mutex>& lock) noexcept { _M_cond.wait(*lock.mutex()); }

}  // namespace std
