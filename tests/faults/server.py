"""Imported once by the server that sessions are forked from."""

from . import trial

trial.warm_up()
