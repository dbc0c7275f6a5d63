"""The one kind of error a user is meant to read.

Anything a user can cause (a missing file, a malformed relation, a model that does not fit) is raised as
:class:`HeadatlasError` with one sentence that names the file, what was found and what to do. The command
line prints that sentence and exits with code 2; every other exception is a defect of headatlas.
"""


class HeadatlasError(Exception):
    """A problem with what the user gave, said in one clear sentence.

    The message names the file or option, says what was found there and what to do about it.
    """


def first_line(error: BaseException) -> str:
    """The first line of what a library says is wrong, without a full stop; its kind if it is silent."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
