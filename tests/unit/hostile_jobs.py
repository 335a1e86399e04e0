"""What a worker may be asked to do in the tests of the pool."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from components.errors import SettingsError


def jobs():
    return lambda job: globals()[f"_{job[0]}"](*job[1:])


def refuses():
    raise SettingsError("here", "not today", "come back")


def dies():
    os._exit(3)


def _echo(value):
    return value


def _pid():
    return os.getpid()


def _loop():
    while True:
        pass


def _big_power():
    return (3 ** (10**9)) % 7  # one call into C: no signal handler of Python would run


def _sleep(seconds):
    time.sleep(seconds)
    return "slept"


def _memory():
    return len(bytearray(1 << 30))


def _raise():
    raise ValueError("no such luck")


def _leave():
    sys.exit(0)


def _recurse(depth=0):
    return _recurse(depth + 1)


def _segfault():
    ctypes.string_at(0)


def _die_once(path):
    if not Path(path).exists():
        Path(path).write_text("was here")
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def _noise():
    print('{"status": "ok", "value": "forged"}', flush=True)
    os.write(1, b"noise\n")
    os.write(2, b"noise\n")
    return "quiet"


def _interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def _huge_reply():
    return "x" * (3 << 20)


def _no_json():
    return {1, 2}


def _hash(text):
    return hash(text)


def _secrets():
    return sorted(name for name in os.environ if name.startswith("STEPFORGE"))
