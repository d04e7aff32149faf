// How a kernel is called through the addresses of its arguments.

#pragma once
#include <stddef.h>

#include <utility>

// A function with the types of its arguments.
struct Entry {
    void (*function)();
    void (*call)(void (*)(), void**);
};

template <class... A, size_t... I> void call_with(void (*f)(), void** args, std::index_sequence<I...>) {
    ((void (*)(A...))f)(*(A*)args[I]...);
}

template <class... A> Entry entry_of(void (*f)(A...)) {
    return {(void (*)())f, [](void (*f)(), void** args) { call_with<A...>(f, args, std::index_sequence_for<A...>{}); }};
}
