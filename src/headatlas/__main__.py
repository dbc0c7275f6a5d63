"""The ``headatlas`` command, and ``python -m headatlas``."""


def start() -> None:
    """Run the command; stopped while it is imported, it ends as later: exit code 130, no traceback."""
    try:
        from headatlas.cli import main
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    main()


if __name__ == "__main__":
    start()
