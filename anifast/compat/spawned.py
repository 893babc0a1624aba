"""The __main__ of a program's own processes where they start anew: the same stand-ins, then the same definitions.

multiprocessing's spawn imports the parent's __main__ by the name in its spec, which `running` has set to this module.
"""

from __future__ import annotations

import json
import os

from anifast.compat import install, running

if __name__ != "anifast.compat.spawned":  # run, and not imported
    _flavour, _packages, _program = json.loads(os.environ[running.VARIABLE])
    for _package in _packages:
        install(_flavour, _package)
    running.run_again(_program, globals())
