"""The real client in a process of its own, which uses a local Hub: it reads its variables when it is imported.

    with Hub() as hub, Client(hub, home) as client:
        client.push(folder, "tester/digits")

Nothing of it is patched but sleeping: pauses are noted, not slept.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

SERVE = """
import json, os, sys, time, traceback
import torch
torch.set_num_threads(1)
from vit_hf.sharing import attempts, hub

pauses = []
time.sleep = pauses.append
attempts.SILENCE_S = 1.0
answers, sys.stdout = sys.stdout, sys.stderr
print("ready", file=answers, flush=True)
for line in sys.stdin:
    call, arguments, options = json.loads(line)
    pauses.clear()
    answer = {}
    try:
        if call == "code":
            names = {}
            exec(arguments[0], names)
            answer["value"] = names.get("value")
        else:
            value = getattr(hub, call)(*arguments, **options)
            answer["value"] = vars(value) if hasattr(value, "commit") else str(value)
    except Exception as error:
        answer |= {"kinds": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}
        answer["trace"] = traceback.format_exc()
    print("answered", file=sys.stderr, flush=True)
    print(json.dumps({**answer, "pauses": pauses}), file=answers, flush=True)
sys.stderr.flush()
os._exit(0)  # at once: the libraries' own end takes seconds
"""


class CallError(Exception):
    """What a call in the client raised."""

    def __init__(self, answer: dict):
        super().__init__(answer["message"])
        self.kinds, self.trace = answer["kinds"], answer["trace"]


class Client:
    """A process that calls `vit_hf.sharing.hub`; a context manager that ends it.

    Args:
        hub: the server.
        home: folder for the client's cache.
        environment: beside that of the server.
    """

    def __init__(self, hub, home: Path, **environment: str):
        variables = {**os.environ, **hub.environment(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        variables |= {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""  # all that it has printed until its last answer
        self._logged = threading.Semaphore(0)  # answers up to which the log has been read
        self.pauses: list[float] = []  # of the last call
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready = False

    def _read(self):
        for line in self.process.stderr:
            if line == "answered\n":
                self._logged.release()
            else:
                self.log += line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self._reader.join(30)
        self.process.stdout.close()
        self.process.stderr.close()

    def call(self, name: str, *arguments, **options):
        """Call something; raises `CallError` with what it raised."""
        if not self._ready:
            self._ready = self.process.stdout.readline() == "ready\n"
        assert self._ready, self.log
        words = [str(word) if isinstance(word, Path) else word for word in arguments]
        self.process.stdin.write(json.dumps([name, words, options]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log
        answer = json.loads(line)
        assert self._logged.acquire(timeout=30), self.log
        self.pauses = answer["pauses"]
        if "message" in answer:
            raise CallError(answer)
        return answer["value"]

    def push(self, folder: Path, repo: str, **options) -> dict:
        return self.call("push", folder, repo, **options)

    def pull(self, repo: str, output: Path, **options) -> Path:
        return Path(self.call("pull", repo, output, **options))

    def run(self, code: str):
        """Run code; returns what it names `value`."""
        return self.call("code", code)
