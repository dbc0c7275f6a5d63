"""Makes the relations that headatlas ships, from packages named with versions and facts written by hand.

Nothing of this is needed at run time. ``python -m builder --help`` says what it does.
"""
