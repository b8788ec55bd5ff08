"""The record as its observers write it: nothing that fails there reaches the training."""

import logging
from collections.abc import Mapping
from typing import Any

from hooks.account import Account
from hooks.arguments import logged_number
from zanalysis.runfile import Writer

__all__ = ["Journal"]

_log = logging.getLogger("hooks")


class Journal:
    """A writer, in memory or staged to a file, and what is said of its failures.

    Attributes:
        writer: where the record goes.
    """

    def __init__(self, writer: Writer) -> None:
        """Open it.

        Args:
            writer: where the record goes.
        """
        self.writer = writer
        self._told: set[str] = set()

    def overhead(self, account: Account) -> None:
        """Replace the account of the time spent.

        Args:
            account: the account.
        """
        self.writer.overhead(account.seconds, account.elapsed)

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write scalars of the user's own; of one that cannot be written it is said once.

        Args:
            step: the step.
            scalars: numbers, or tensors and arrays that hold one, by name.
        """
        for name, value in scalars.items():
            try:
                self.writer.log(step, name, logged_number(name, value))
            except Exception as error:
                self.note(step, "log", name, f"log({name}=…) was not recorded: {error}")

    def note(self, step: int, kind: str, what: str, text: str, layer: str = "") -> None:
        """Say something once, in the log and in the record; never raise.

        Args:
            step: the step.
            kind: a word.
            what: what it is identified by.
            text: a sentence.
            layer: the layer concerned.
        """
        if f"{kind}/{what}" in self._told:
            return
        self.say_once(f"{kind}/{what}", text)
        self.event(step, kind, text, layer)

    def event(self, step: int, kind: str, text: str, layer: str = "") -> None:
        """Record an event, without a word in the log; never raise.

        Args:
            step: the step.
            kind: a word.
            text: a sentence.
            layer: the layer concerned.
        """
        try:
            self.writer.event(step, kind, text, layer)
        except Exception as error:
            self.say_once("event", f"an event could not be recorded: {error!r}")

    def say_once(self, what: str, text: str) -> None:
        """Say something once in the log.

        Args:
            what: what it is identified by.
            text: a sentence.
        """
        if what not in self._told:
            self._told.add(what)
            _log.warning("%s", text)

    def flush(self) -> None:
        """Wait until what was written is safe from a kill."""
        self.writer.flush()

    def close(self) -> None:
        """Complete and close the record. Twice is harmless."""
        self.writer.close()
