"""Start a module in a child interpreter that never imports from the current folder.

`python -m MODULE` and `python -c CODE` search the current folder before every other one, so a file `msgspec.py` there
would run with the rights of whoever types our command. `-P` prevents that from Python 3.11 on; this file does so on
every version: as a script it is searched from its own folder, which it removes before it imports anything.

PYTHONPATH is kept (development trees and interpreters without an installed edge-agent need it). The host process of
TensorRT may run on Python 3.6: the syntax here is that old. A
file of its own because it is also the script that runs in the child.
"""

import sys


def module_command(module: str, *arguments: str, python: "str | None" = None) -> "list[str]":
    """The command line of `python -m module arguments`, without the current folder on the child's module path.

    `module` is a dotted name, or the path of a package folder that is run under its own name. `python` is the
    interpreter; None: the caller's own, whose own children then get `-P` too where it knows that option.
    """
    safe_path = ["-P"] if python is None and sys.version_info >= (3, 11) else []
    return [python or sys.executable, *safe_path, __file__, module, *arguments]


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
