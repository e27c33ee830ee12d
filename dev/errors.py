"""What can go wrong with a private server, each with the exit code it ends the program with."""


class ServerError(Exception):
    """A server could not be started or reached."""

    exit_code = 1


class MissingProgramError(ServerError):
    """A program that is needed is not installed and cannot be installed here."""

    exit_code = 3
