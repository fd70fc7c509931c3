"""`itt_composer.train` on a file system that takes no file of more than LARGEST bytes.

python small_disk.py RECIPE [KEY=VALUE …]
"""

import os
import resource
import runpy
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST"]), resource.RLIM_INFINITY))
runpy.run_module("itt_composer.train", run_name="__main__", alter_sys=True)
