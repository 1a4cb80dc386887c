"""What goes wrong with a user's input."""


class InputError(ValueError):
    """Bad input: the message is one line that names the input and the remedy. The command line exits with status 2."""
