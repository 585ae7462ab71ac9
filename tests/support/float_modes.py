"""The floating-point environment of the calling thread, as other libraries may leave it."""

import contextlib
import ctypes
import platform
import sys

# The offset of the control register in fenv_t, its bits other than the flags of exceptions, and bits to set.
_REGISTERS = {
    "x86_64": (28, 0xFFC0, {"flush": 0x8040, "upward": 0x4000}),  # MXCSR: FTZ and DAZ; rounding
    "aarch64": (0, 0xFFFFFFFF, {"flush": 1 << 24, "upward": 1 << 22}),  # FPCR: FZ; rounding
}
AVAILABLE = sys.platform.startswith("linux") and platform.machine() in _REGISTERS
MODES = ["flush", "upward"]


def _environment():
    environment = (ctypes.c_uint32 * 16)()
    _call("fegetenv", environment)
    return environment


def _call(name, environment):
    function = ctypes.CDLL(None)[name] if hasattr(ctypes.CDLL(None), name) else ctypes.CDLL("libm.so.6")[name]
    assert not function(environment)


def get_mode():
    """The bits of the control register."""
    offset, mask, _ = _REGISTERS[platform.machine()]
    return _environment()[offset // 4] & mask


def set_mode(*names):
    """Set the default mode, changed as named: any of MODES. Returns get_mode()."""
    offset, mask, bits = _REGISTERS[platform.machine()]
    environment = _environment()
    default = 0x1F80 if platform.machine() == "x86_64" else 0
    environment[offset // 4] = environment[offset // 4] & ~mask | default | sum(bits[name] for name in names)
    _call("fesetenv", environment)
    return get_mode()


@contextlib.contextmanager
def float_mode(*names):
    """Run a block in a mode, require that nothing in it changes the mode, and return to the default one."""
    try:
        mode = set_mode(*names)
        yield
        assert get_mode() == mode, f"the mode is {get_mode():#x} and was {mode:#x}"
    finally:
        set_mode()
