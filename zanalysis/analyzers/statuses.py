"""The words that say why a number is, or is not, there; and their codes in a run file."""

__all__ = ["CODES", "STATUSES"]

STATUSES = (
    "ok",
    "nonfinite",
    "zero",
    "empty",
    "below_noise",
    "too_few_samples",
    "not_converged",
    "no_gradient",
    "unused",
    "skipped",
    "dropped",
    "no_common_diagonal",
    "error",
)
"""The position in this tuple is the code stored in a run file: append, never reorder."""

CODES = {word: code for code, word in enumerate(STATUSES)}
