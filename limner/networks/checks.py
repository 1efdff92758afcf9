"""Checks of a network's settings. A SettingsError is the user's mistake; other errors of a constructor are bugs."""


class SettingsError(ValueError):
    """Settings that make no network. The message says what is wrong, without a full stop."""


def check_dropout(probability: float) -> float:
    """The probability. Raises SettingsError for one above 1."""
    if probability > 1:
        raise SettingsError(f"a dropout of {probability:g} is above 1")
    return probability
