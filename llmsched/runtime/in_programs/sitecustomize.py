"""Python imports a module of this name when it starts: so each program of a gang that uses Ray hears of `ray_init.py`.

Nobody's program may fail because of it, whatever Python runs it, or wait for it. What this one hides comes after it.
"""

import contextlib
import os
import sys


class _BeforeRay:
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname != "ray":
            return None
        sys.meta_path.remove(cls)
        with contextlib.suppress(Exception):  # a Python of the user's own, which does not have llmsched
            import importlib.util

            from llmsched.runtime import ray_init

            ray_init.listen()
            return importlib.util.find_spec(fullname)
        return None


if os.environ.get("RAY_ADDRESS"):
    sys.meta_path.insert(0, _BeforeRay)

_this = sys.modules["sitecustomize"]
sys.path[:] = [one for one in sys.path if one != __file__.rpartition(os.sep)[0]]
del sys.modules["sitecustomize"]
try:
    import sitecustomize  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", _this)
