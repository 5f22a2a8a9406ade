"""Every failure that a user can cause, one class a kind.

An error is one sentence: what is wrong, with the value; what was expected; what to do.

    SpocoZooError
    ├── PackageError       a bioimage.io package that cannot be trusted or understood
    ├── SettingError       a word or number in a spec, a flag or an argument
    ├── ImageError         an image or label file, or what is in it
    ├── OutputError        a file that cannot be written, or would replace another
    ├── DeviceError        hardware that was asked for and is not there
    └── MissingExtraError  an optional part that is not installed
"""


class SpocoZooError(Exception):
    """A failure with a cause the user can mend; the message says how."""


class PackageError(SpocoZooError):
    """A package is damaged, unsafe, or needs what this program does not have."""


class SettingError(SpocoZooError, ValueError):
    """A setting is unknown, missing or out of range."""


class ImageError(SpocoZooError):
    """An image or label file is missing, unreadable or holds impossible values."""


class OutputError(SpocoZooError):
    """A file cannot be written, or would replace another."""


class DeviceError(SpocoZooError):
    """The device that was asked for is not available."""


class MissingExtraError(SpocoZooError, ImportError):
    """An optional dependency is not installed."""
