"""Pushing to the Hub while a run goes on: nothing that happens here can stop the run or change what it leaves.

The model of a checkpoint is copied at once, by hard links, so that rotation cannot take it away; a thread does the
rest. Every error is caught and said in one line.
"""

import logging
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token, is_offline_mode

from .attempts import HubError
from .hub import Pushed, check_repo, push, push_command, upload
from .snapshot import complete, freeze

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""How long the end of a run waits for the push of a checkpoint before it leaves it."""


@dataclass(frozen=True)
class _Job:
    folder: Path
    place: Path
    message: str | None


class BackgroundPush:
    """Pushes checkpoints as they come, then the finished run.

    To the main branch, as Trainer does with `hub_strategy="every_save"`: each checkpoint's model replaces the one
    before, a commit each, and the finished run with its card and scores is the last. While one is sent, only the newest
    of those that come waits. Optimiser state stays here.

    Args:
        repo: "owner/name".
        private: of a new repo.
        revision: branch; main when None.
        token: other than the one that the user has logged in with.

    Raises:
        ValueError: the name is no repo's, there is no token, or the process is to stay offline: all that can be known
            without asking the Hub.
    """

    def __init__(self, repo: str, *, private: bool = True, revision: str | None = None, token: str | None = None):
        check_repo(repo)
        if is_offline_mode():
            raise ValueError(f"cannot push to {repo}: HF_HUB_OFFLINE is set; set HF_HUB_OFFLINE=0")
        if not (token or get_token()):
            raise ValueError(f"cannot push to {repo}: there is no token; log in with `hf auth login`, or set HF_TOKEN")
        self.repo, self.private, self.revision, self.token = repo, private, revision, token
        self._waiting: _Job | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._has_failed = False

    def __call__(self, folder: Path, message: str | None = None) -> None:
        """Copy the model of a checkpoint, and have it pushed; returns at once, and never raises.

        Args:
            folder: of the checkpoint.
            message: of the commit; names the folder when None.
        """
        place = None
        try:
            # the name is one that the next session of the run clears away, should this one be killed
            place = Path(tempfile.mkdtemp(prefix=".writing-push-", dir=folder.parent))
            freeze(folder, place)
            job = _Job(folder, place, message or f"Training in progress, {folder.name}")
            with self._lock:
                replaced, self._waiting = self._waiting, job
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="vit-hf push", daemon=True)
                    self._thread.start()
            if replaced is not None:
                shutil.rmtree(replaced.place, ignore_errors=True)
        except Exception as error:
            self._report(folder, error)
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)

    def finish(self, folder: Path) -> Pushed | None:
        """Push the finished run, after the checkpoint that is being sent; one that waits is left out.

        Returns:
            What became of the repo; None when it failed, which is said in one line with the command that tries again:
            the run is no worse for it.
        """
        if not self.wait(drop=True):
            self._say(f"a checkpoint is still being pushed after {PATIENCE_S:g} s, so {folder} was not", folder)
            return None
        try:
            return push(folder, self.repo, private=self.private, revision=self.revision, token=self.token)
        except Exception as error:
            self._has_failed = False
            self._report(folder, error)
            return None

    def wait(self, *, drop: bool = False) -> bool:
        """Wait until nothing is being sent; returns whether that came to be in `PATIENCE_S`.

        Args:
            drop: leave out the checkpoint that waits.
        """
        with self._lock:
            thread, waiting = self._thread, self._waiting
            if drop:
                self._waiting = None
        if drop and waiting is not None:
            shutil.rmtree(waiting.place, ignore_errors=True)
        if thread is not None:
            thread.join(PATIENCE_S)
        return thread is None or not thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._lock:
                job, self._waiting = self._waiting, None
                if job is None:
                    self._thread = None
                    return
            try:
                complete(job.place, repo=self.repo)
                again = push_command(job.folder, self.repo, private=self.private)
                upload(job.place, self.repo, again=again, private=self.private, message=job.message, token=self.token)
                self._has_failed = False
            except Exception as error:
                self._report(job.folder, error)
            finally:
                shutil.rmtree(job.place, ignore_errors=True)

    def _report(self, folder: Path, error: Exception) -> None:
        """Say a failure; of several in a row only the first."""
        if not self._has_failed:
            if isinstance(error, HubError):  # says it all
                logger.warning("%s", error)
            else:
                self._say(f"{self.repo} was not pushed: {error or type(error).__name__}", folder)
        self._has_failed = True

    def _say(self, what: str, folder: Path) -> None:
        logger.warning("%s; to push it: %s", what, self._again(folder))

    def _again(self, folder: Path) -> str:
        return push_command(folder, self.repo, private=self.private, revision=self.revision)
