"""Start a module in a child interpreter that never imports from the current folder.

`python -m MODULE` and `python -c CODE` search the current folder before every other one, so a file `msgspec.py` there
would run with the rights of whoever types our command. `-P` prevents that from Python 3.11 on; this file does so on
every version: as a script it is searched from its own folder, which it removes before it imports anything.

The environment is cleaned (`child_environment`): no entry of a search path means the current folder, and no variable
makes an interpreter or the dynamic linker run something else first. Absolute entries are kept: development trees need
PYTHONPATH, CUDA needs LD_LIBRARY_PATH on some boards, and LD_PRELOAD is the usual cure for "static TLS block".

The host process of TensorRT may run on Python 3.6: the syntax here is that old. A file of its own because it is also
the script that runs in the child.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # a name that type checkers know; `typing` would be an import of every child
    from collections.abc import Mapping

SEARCHED = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "GCONV_PATH", "OPENSSL_MODULES")
"""Lists of places, and of libraries, that are searched for code. A relative or empty entry is the current folder."""
PLACES = (
    "HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME", "TORCH_HOME",
    "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH",
    "LLAMA_CPP_LIB_PATH", "GGML_BACKEND_PATH", "OPENSSL_CONF", "OPENSSL_ENGINES", "MPLCONFIGDIR",
)  # fmt: skip
"""Single places from which libraries run or configure code."""
PYTHON_KEPT = (
    "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE",
    "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "PYTHONFAULTHANDLER",
    "PYTHONMALLOC", "PYTHONDEVMODE", "PYTHONTRACEMALLOC", "PYTHONASYNCIODEBUG",
)  # fmt: skip
"""What an interpreter obeys and what runs no other code. PYTHONSTARTUP, PYTHONHOME, PYTHONPYCACHEPREFIX, PYTHONINSPECT,
PYTHONBREAKPOINT, PYTHONWARNINGS and the rest do."""


def module_command(module: str, *arguments: str, python: "str | None" = None) -> "list[str]":
    """The command line of `python -m module arguments`, without the current folder on the child's module path.

    `module` is a dotted name, or the path of a package folder that is run under its own name. `python` is the
    interpreter; None: the caller's own, whose own children then get `-P` too where it knows that option.
    """
    safe_path = ["-P"] if python is None and sys.version_info >= (3, 11) else []
    return [python or sys.executable, *safe_path, __file__, module, *arguments]


def child_environment(given: "Mapping[str, str]") -> "dict[str, str]":
    """The variables for a child of this process, whose own are `given` (`os.environ`): cleaned as the module says."""
    found = {}
    for name, value in given.items():
        kept = _absolute(name, value) if name in SEARCHED else value
        if _is_harmless(name, kept):
            found[name] = kept
    if sys.flags.isolated:  # started with -I: what it does not look at, its children do not either
        found.pop("PYTHONPATH", None)
    if sys.flags.no_user_site:
        found["PYTHONNOUSERSITE"] = "1"
    return found


def _is_harmless(name: str, value: str) -> bool:
    if name in PLACES:
        return value.startswith("/")
    if name in SEARCHED:
        return value != ""  # empty is the current folder for some of them
    # LD_AUDIT and LD_PROFILE load code, LD_DEBUG_OUTPUT writes files.
    return name in PYTHON_KEPT or not name.startswith(("PYTHON", "LD_"))


def _absolute(name: str, value: str) -> str:
    separator = ":"
    if name == "LD_PRELOAD":  # ld.so(8): spaces or colons
        value = value.replace(" ", separator)
    return separator.join(entry for entry in value.split(separator) if entry.startswith("/"))


def _run() -> None:
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        del sys.path[0]
    import runpy

    folder, _, name = sys.argv.pop(1).rpartition("/")
    if folder:
        sys.path.insert(0, folder)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run()
