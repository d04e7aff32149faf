"""Compiles a CUDA source by NVRTC to machine code: compile.py LIBRARY ARCH SOURCE OPTION... Prints the size of the result.

It calls the library directly, so that no driver and no package but NVRTC is needed. Exit status 1: the source is refused, with
the compiler's log.
"""

import ctypes
import sys


def main():
    (library, arch, path), own = sys.argv[1:4], sys.argv[4:]
    nvrtc = ctypes.CDLL(library)
    with open(path, "rb") as file:
        source = file.read()
    program = ctypes.c_void_p()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, path.encode(), 0, None, None), "take the source")
    options = [option.encode() for option in [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", *own]]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)), "size the log")
    log = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetProgramLog(program, log), "read the log")
    text = log.value.decode(errors="replace").strip()
    if status != 0 or text:
        sys.exit(f"{path} for {arch}: status {status}\n{text}")
    check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "size the code")
    print(size.value)


def check(status, what):
    if status != 0:
        sys.exit(f"NVRTC cannot {what}: status {status}")


main()
