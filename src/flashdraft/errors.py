"""Every error that a user's mistake can raise. One root, few leaves.

A message says what was found, what was expected and the mend. The CLI prints it on one line.
"""


class FlashdraftError(Exception):
    """Root of all errors that flashdraft raises on purpose."""


class UsageError(FlashdraftError, ValueError):
    """An argument, a sampling parameter or a request that cannot be served. CLI exit code 2."""


class CheckpointError(FlashdraftError):
    """A weights file, config or tokenizer that is missing, truncated or contradicts itself."""


class IncompatibleDrafterError(CheckpointError):
    """A drafter that was made for another target."""


class DataError(FlashdraftError):
    """A prompts file, an on-policy dataset or a training run folder that cannot be read or resumed."""


class OverloadedError(FlashdraftError):
    """No place came free in time for what was asked; it may do later. Not the caller's mistake."""


class EngineError(FlashdraftError):
    """The engine failed or was stopped before an answer was finished. Not the caller's mistake."""
