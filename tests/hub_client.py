"""The real huggingface_hub client in one process of its own: it reads its variables when it is imported.

Nothing of it is changed but its waits between tries, and its time-out, for which the default is to wait for ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_WORKER = """
import json, sys, time, traceback, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # of the client's own uploads
import huggingface_hub
from huggingface_hub.utils import _http
time.sleep = lambda seconds: None
seconds = 20.0

def factory():
    client = _http.default_client_factory()
    client.timeout = seconds
    return client

huggingface_hub.set_client_factory(factory)
answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    asked = json.loads(line)
    if asked["timeout"] != seconds:
        seconds = asked["timeout"]
        huggingface_hub.close_session()
    scope = {"huggingface_hub": huggingface_hub, "api": huggingface_hub.HfApi(), "timeout": seconds, "result": None}
    scope |= asked["names"]
    try:
        exec(asked["script"], scope)
        answer = {"result": scope["result"]}
    except Exception as error:
        kinds, chain = [], error
        while chain is not None:
            kinds += [kind.__name__ for kind in type(chain).__mro__]
            chain = chain.__cause__ or chain.__context__
        answer = {"kinds": kinds, "message": str(error), "trace": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""


class ClientError(Exception):
    """What the client raised: the names of the exception's classes and its causes', its text and traceback."""

    def __init__(self, kinds: list[str], message: str, trace: str):
        super().__init__(f"{kinds[0]}: {message}\n{trace}")
        self.kinds, self.message = kinds, message


class Client:
    """The process; a context manager."""

    def __init__(self, environment: dict[str, str]):
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        short = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            env={**os.environ, **environment, **quiet, **short},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.process:
            self.process.stdin.close()

    def run(self, script: str, *, timeout: float = 20.0, **names: Any) -> Any:
        """Run a script with `api` (an HfApi), `timeout` and names of JSON values; returns its `result`."""
        print(json.dumps({"script": script, "timeout": timeout, "names": names}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        if "kinds" in answer:
            raise ClientError(**answer)
        return answer["result"]
