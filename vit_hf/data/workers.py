"""How a loader process behaves when the whole group of processes is asked to stop."""

import os
import signal
import threading


def leave_requests_to_the_run(worker: int) -> None:
    """Let a loader process pass over Ctrl-C, and over SIGTERM unless its own run sends it, which ends it so.

    Terminals and schedulers send both to the whole group; the run ends its loader processes itself, once it has saved.
    When it dies, they see that and end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    run = os.getppid()

    def wait_for_the_run() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait_for_the_run, daemon=True).start()
