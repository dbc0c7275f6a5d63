"""The ``headatlas`` command, and ``python -m headatlas``."""


def start() -> None:
    """Run the command; stopped while it is imported or made, it ends with 130 and no traceback, as later."""
    try:
        from headatlas.cli import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    start()
