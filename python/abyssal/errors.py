"""The one exception that means "what you gave me is wrong"."""


class InputError(ValueError):
    """An argument, file or setting is not acceptable.

    The message is one sentence that names the argument or file, what was given and what is
    accepted. The command line prints it alone and exits with code 2.
    """
