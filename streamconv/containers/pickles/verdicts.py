"""What unpickling would do with the classes and functions that a pickle names.

``streamconv`` itself imports none of them. The table of what plain torch accepts is that of
``torch/_weights_only_unpickler.py:_get_allowed_globals`` of PyTorch 2.13, written down here so that torch is not
needed. The modules that run code or touch the system are those that the scanners of pickles (picklescan, fickling)
warn of, and similar ones.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

from streamconv.containers.pickles.machine import Global

__all__ = ["PLAIN", "modern_name", "verdict"]

_DTYPES = (
    "bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 "
    "float4_e2m1fn_x2 float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int1 int16 int2 "
    "int3 int32 int4 int5 int6 int64 int7 int8 per_channel_affine per_channel_affine_float_qparams "
    "per_channel_symmetric per_tensor_affine per_tensor_symmetric qint32 qint8 quint2x4 quint4x2 quint8 uint1 uint16 "
    "uint2 uint3 uint32 uint4 uint5 uint6 uint64 uint7 uint8"
)
_REBUILD = (
    "device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter "
    "parameter_with_state qtensor sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass"
)
_REAL = "BFloat16 Byte Char Double Float Half Int Long Short"
_COMPLEX = "ComplexDouble ComplexFloat"
_QUANTIZED = "QInt32 QInt8 QUInt2x4 QUInt4x2 QUInt8"


def _all(prefix: str, names: str, suffix: str = "") -> set[str]:
    return {f"{prefix}{name}{suffix}" for name in names.split()}


PLAIN = frozenset(
    _all("builtins.", "bytearray complex set")
    | _all("collections.", "Counter OrderedDict")
    | {"_codecs.encode"}
    | _all("torch.", "Size Tensor device nn.parameter.Parameter serialization._get_layout")
    | _all("torch.", "storage.TypedStorage storage.UntypedStorage _tensor._rebuild_from_type_v2")
    | _all("torch.", _DTYPES)
    | _all("torch._utils._rebuild_", _REBUILD)
    | _all("torch.", f"{_REAL} {_COMPLEX} {_QUANTIZED} Bool", "Storage")
    | _all("torch.cuda.", f"{_REAL} {_COMPLEX} Bool", "Storage")
    | _all("torch.", f"{_REAL} Bool", "Tensor")
    | _all("torch.cuda.", f"{_REAL} Bool", "Tensor")
    | _all("torch.sparse.", _REAL, "Tensor")
    | _all("torch.cuda.sparse.", _REAL, "Tensor")
)
"""Full names that ``torch.load(.., weights_only=True)`` accepts without ``add_safe_globals``."""

# Every name of these modules and of those below them.
_MODULES = frozenset(
    # processes, the system, files
    _all("", "os posix nt posixpath ntpath subprocess _posixsubprocess sys pty platform commands popen2 signal shutil")
    | _all(
        "", "tempfile pathlib glob fileinput linecache mmap fcntl resource winreg _winreg _winapi msvcrt io _io _pyio"
    )
    # loading and running code
    | _all("", "importlib imp runpy zipimport pkgutil code codeop ctypes _ctypes cffi marshal bdb pdb doctest timeit")
    | _all("", "trace profile cProfile pydoc idlelib lib2to3 distutils setuptools pip ensurepip venv gc atexit types")
    | _all("", "py_compile compileall sysconfig site")
    # the standard library's own helpers that run a command
    | _all("", "_aix_support _osx_support _pyrepl test.support")
    # loading another pickle
    | _all("", "pickle _pickle cPickle pickletools dill cloudpickle joblib shelve copyreg")
    # calls that are run later
    | _all("", "concurrent asyncio multiprocessing threading _thread sched")
    # the network and other programs
    | _all("", "socket _socket socketserver ssl http httplib urllib urllib2 urllib3 requests aiohttp httpx ftplib")
    | _all("", "smtplib poplib imaplib nntplib telnetlib xmlrpc webbrowser paramiko antigravity sqlite3 _sqlite3")
    # modules of the same kinds in numpy and torch
    | _all("numpy.", "testing f2py distutils ctypeslib")
    | _all("torch.", "hub package jit fx onnx ops classes multiprocessing _inductor _dynamo _ops _classes")
    | _all("torch.distributed.", "rpc run launcher elastic")
    | _all(
        "torch.utils.", "_config_module bottleneck bundled_inputs collect_env cpp_extension data.datapipes model_zoo"
    )
)
_NAMES = frozenset(
    _all("builtins.", "eval exec execfile compile open file __import__ reload getattr setattr delattr globals locals")
    | _all("builtins.", "vars input breakpoint apply help")
    | _all("operator.", "attrgetter methodcaller call")
    | _all("_operator.", "attrgetter methodcaller call")
    | _all("codecs.", "open")
    | _all("uuid._", "get_command_stdout popen find_mac find_mac_near_keyword find_mac_under_heading find_mac_netcat")
    | _all("uuid._", "ifconfig_getter ip_getter arp_getter lanscan_getter netstat_getter ipconfig_getter")
    | _all("functools.", "reduce")
    | _all("logging.", "FileHandler config.dictConfig config.fileConfig config.listen")
    | _all("torch.", "load save compile serialization.load serialization.save storage._load_from_bytes")
    | _all("numpy.", "load save savez loads fromfile memmap fromregex loadtxt genfromtxt savetxt DataSource")
    | _all("numpy.lib.npyio.", "load save loads DataSource")
    | _all("pandas.", "read_pickle eval io.pickle.read_pickle")
)
# The most parts that a module in the table has.
_DEEPEST = max(name.count(".") + 1 for name in _MODULES)
# These are data or constructors of data although their modules are listed.
_HARMLESS = frozenset(
    _all("copyreg.", "_reconstructor __newobj__ __newobj_ex__")
    | _all("pathlib.", "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath")
    | _all("pathlib._local.", "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath")
    | _all("types.", "SimpleNamespace MappingProxyType GenericAlias NoneType")
    | _all("io.", "BytesIO StringIO")
    | _all("_io.", "BytesIO StringIO")
    | {"signal.Signals"}
)


def modern_name(value: Global) -> str:
    """The full name; a name of Python 2 becomes that of Python 3, as in unpicklers."""
    module, name = value.module, value.name
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def verdict(value: Global) -> str:
    """What unpickling a class or function would mean.

    Returns:
        "plain": ``torch.load`` with ``weights_only=True`` accepts it without ``add_safe_globals``. "executes": it is
        refused there, and it or its module runs code, loads code, or touches files, processes or the network.
        "refused": any other, such as a class of a training framework.
    """
    full = modern_name(value)
    if full in PLAIN:
        return "plain"
    if full in _HARMLESS:
        return "refused"
    parts = full.split(".", _DEEPEST)
    ancestors = {".".join(parts[:count]) for count in range(1, _DEEPEST + 1)}
    if full in _NAMES or ancestors & _MODULES or _reaches_through(value.name):
        return "executes"
    return "refused"


def _reaches_through(name: str) -> bool:
    """Whether a dotted name goes through another module or a special attribute (``serialization.os.system``)."""
    parts = name.split(".")
    return len(parts) > 1 and any(part in _MODULES or part.startswith("__") for part in parts)
