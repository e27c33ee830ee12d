"""stub"""

import typer


def submit() -> None:
    """x"""
