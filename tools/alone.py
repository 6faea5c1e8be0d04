"""Run a script or a module as the interpreter does, but keep its children out of what it is under.

They are not preloaded with a sanitizer, and their addresses are random again (setarch -R is passed
on otherwise, and two programs then look like one by their addresses).
"""

import ctypes
import os
import runpy
import sys

os.environ.pop("LD_PRELOAD", None)
ctypes.CDLL(None).personality(0)  # PER_LINUX, for programs executed from now on
del sys.argv[0]
if sys.argv[0] == "-m":
    del sys.argv[0]
    sys.path.insert(0, "")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
